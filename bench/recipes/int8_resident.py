"""INT8 on a GPU without TensorRT: activations that stay INT8 between a block's products.

    python -m bench.recipes.int8_resident OUT.json [--students FOLDER ...] [--batch 1 32 128]
        [--tune]

Each norm, the attention's output and GELU end in rounding to INT8, a scale a token; products are
INT8 x INT8 with a scale an output channel; attention itself and the residual stream are FP16.
torch.compile fuses the rounding into the kernel before it. Against the same student in FP16,
compiled alike, both in CUDA graphs and timed in turn. --tune times kernels for every product, which
takes minutes a batch; OUT.json is written after each. ViT-S and ViT-B: random weights, which tell
nothing about accuracy.
"""
import copy
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tyro.conf import Positional

from bench.device import device_facts
from bench.latency.timing import BenchCase, TimingConfig, ratio, summary, time_cases
from records.results import Row, measured, save
from student.config import SHIPPED, StudentConfig
from student.vit import HEAD_WIDTH, Block, Student, load_student
from vega3d import run_recipe

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TINIEST = 1e-5  # below it a token counts as zeros


class Int8Linear(nn.Module):
    """(x [M,D] INT8, scale [M,1]) -> [M,D'] in the scale's type."""
    rounded: Tensor  # [D',D] INT8
    scale: Tensor    # [1,D']
    bias: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        rounded, scale = to_int8(linear.weight.data.float())
        self.register_buffer("rounded", rounded)
        self.register_buffer("scale", scale.T.contiguous())
        self.register_buffer("bias", linear.bias.data.float())

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        product = torch._int_mm(x, self.rounded.t())  # [M,D'] int32
        return product.float() * (scale.float() * self.scale) + self.bias


class Int8Block(nn.Module):
    """A student's block: x [B,N,C] FP16 -> same."""

    def __init__(self, block: Block):
        super().__init__()
        self.norm1, self.norm2, self.heads = block.norm1, block.norm2, block.attn.heads
        self.qkv, self.proj = Int8Linear(block.attn.qkv), Int8Linear(block.attn.proj)
        self.fc1, self.fc2 = Int8Linear(block.fc1), Int8Linear(block.fc2)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        rows = x.flatten(0, 1)                                               # [B*N,C]
        qkv = self.qkv(*to_int8(self.norm1(rows))).to(x.dtype)
        q, k, v = qkv.view(b, n, 3, self.heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b * n, c)
        rows = rows + self.proj(*to_int8(attended)).to(x.dtype)
        hidden = F.gelu(self.fc1(*to_int8(self.norm2(rows))))                # [B*N,4C]
        return (rows + self.fc2(*to_int8(hidden)).to(x.dtype)).view(b, n, c)


def to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[M,D] -> INT8 [M,D] and its scale [M,1], by each row's largest magnitude."""
    values = rows.float()
    scale = values.abs().amax(1, keepdim=True).clamp_min(TINIEST) / 127
    return (values / scale).round().to(torch.int8), scale


def with_int8_blocks(student: Student) -> Student:
    """A copy in the student's own type, all of whose blocks are Int8Block."""
    student = copy.deepcopy(student)
    student.blocks = nn.ModuleList(map(Int8Block, student.blocks))  # type: ignore[arg-type]
    return student


def rows_of(student: Student, facts: Row, batches: Sequence[int],
            tune: bool) -> Iterator[list[Row]]:
    """The FP16 and the INT8 row of one student, batch by batch."""
    student = student.to(DEVICE).train()  # train(): one fused attention; it has no dropout
    dtype = torch.float16 if DEVICE.type == "cuda" else torch.float32
    fp16 = copy.deepcopy(student).to(dtype)
    models = {"fp16": fp16, "int8": with_int8_blocks(fp16)}
    mode = "max-autotune" if tune else "reduce-overhead"
    for batch in batches:
        torch._dynamo.reset()  # else a further batch is a dynamic size, and a ninth program eager
        frames = torch.rand(batch, 3, student.config.image_size, student.config.image_size,
                            device=DEVICE)
        exact = student(frames)
        cases = []
        for precision, model in models.items():
            program = torch.compile(model, mode=mode) if DEVICE.type == "cuda" else model
            call = torch.inference_mode()(partial(program, frames.to(dtype)))
            cosine = F.cosine_similarity(call().float(), exact, dim=1)
            row = facts | {"batch": batch, "precision": precision, "cosine_mean":
                           cosine.mean().item(), "cosine_p1": cosine.quantile(0.01).item()}
            cases.append(BenchCase(row, call, DEVICE.type))  # type: ignore[arg-type]
        time_cases(cases, TimingConfig(seconds=1.0))
        yield [case.info | summary(case) | {"vs_fp16": ratio(cases[0], case)[0]}
               for case in cases]


@torch.no_grad()
def main(out: Positional[Path], students: tuple[Path, ...] = (SHIPPED,),
         batch: tuple[int, ...] = (1, 32, 128),
         random: tuple[Literal["ti", "s", "b"], ...] = ("s", "b"), tune: bool = False) -> None:
    torch.manual_seed(0)
    given = [(load_student(folder), "trained") for folder in students]
    given += [(Student(StudentConfig(size, depth=12, stem="patch")), "random")
              for size in random]
    rows: list[Row] = []
    env = device_facts()
    for student, weights in given:
        facts = {"model": f"vit-{student.config.size}", "weights": weights}
        for added in rows_of(student, facts, batch, tune):
            rows += added
            save(measured(out.stem, rows, env), out)  # in case the rest does not end
    print("\n".join(map(str, rows)))


if __name__ == "__main__":
    run_recipe(main)
