"""FP8 (E4M3) products of Wan's blocks, a scale a row of both factors; the rest stays bfloat16."""
from typing import Any

import torch
from torch import Tensor, nn

from teacher.fast.wan_blocks import plain_blocks

LARGEST = 448.0  # of E4M3
TINIEST = 1e-12  # below it a row counts as zeros


class FP8Linear(nn.Module):
    """x [...,D] bfloat16 -> [...,D'] bfloat16, both factors rounded to FP8."""
    rounded: Tensor  # [D',D] E4M3
    scale: Tensor    # [D',1] float32
    bias: Tensor | None

    def __init__(self, linear: nn.Linear):
        super().__init__()
        rounded, scale = to_fp8(linear.weight.data)
        self.register_buffer("rounded", rounded)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.data)

    @property
    def weight(self) -> Tensor:
        """The rounded weight, [D',D] bfloat16."""
        return (self.rounded.float() * self.scale).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = to_fp8(x.flatten(0, -2))
        out = torch._scaled_mm(rows, self.rounded.t(), scale, self.scale.t(), self.bias,
                               out_dtype=torch.bfloat16, use_fast_accum=True)
        return out.unflatten(0, x.shape[:-1])


def to_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[N,D] -> E4M3 [N,D] and its scale [N,1] float32, by each row's largest magnitude."""
    values = rows.float()
    scale = values.abs().amax(1, keepdim=True).clamp_min(TINIEST) / LARGEST
    return (values / scale).to(torch.float8_e4m3fn), scale


def round_products(transformer: Any) -> None:
    """Puts FP8 products into the blocks of a fused bfloat16 transformer, in place."""
    for block in plain_blocks(transformer):
        attention, hidden = block.attn1, block.ffn.net
        attention.to_qkv, attention.to_out[0] = map(
            FP8Linear, (attention.to_qkv, attention.to_out[0]))
        block.attn2.to_q = FP8Linear(block.attn2.to_q)
        hidden[0] = nn.Sequential(FP8Linear(hidden[0].proj), nn.GELU(approximate="tanh"))
        hidden[2] = FP8Linear(hidden[2])


def check_device(device: torch.device) -> None:
    """Raises ValueError for a GPU without FP8 products."""
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < (8, 9):
        raise ValueError(f"tap.precision fp8 needs compute capability 8.9 or 9.0, this GPU has "
                         f"{found[0]}.{found[1]}; set tap.precision to bf16")
