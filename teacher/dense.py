"""The dense teacher: fused tokens -> depth, surface normal and class of every fourth pixel.

It is trained and scored on stored features: fused, semantic only, or controls.
"""
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from records import manifest
from records.files import parse_json, reading, spec_digest, to_json
from records.interrupts import deferred
from records.progress import track
from scenes.dense import NO_CLASS, DenseScores, DenseTargets
from teacher.config import DenseTraining
from teacher.data.dataset import Example, Examples, moments
from teacher.fusion import TokenGate
from teacher.towers.base import GRID
from teacher.training.checkpoint import (
    Checkpoint,
    clip_and_step,
    remove_checkpoint,
    save_finite,
    set_lr,
)

UP = 4  # targets to a token's side
# a batch -> its generative features [B,D,14,14] float32, not standardised; None: semantic only
Stream = Callable[[Example], Tensor | None]


@dataclass(frozen=True)
class DenseShape:
    semantic_dim: int
    generative_dim: int      # 0: semantic only
    classes: int
    width: int = 128


@dataclass
class DenseOutput:
    log_depth: Tensor  # [B,56,56], ln metres
    normals: Tensor    # [B,3,56,56], not yet unit length
    logits: Tensor     # [B,classes,56,56]
    gate: Tensor       # [B,1,14,14], semantic share


class DenseTeacher(nn.Module):
    """semantic [B,Ds,14,14], generative [B,Dg,14,14] or None, not standardised -> DenseOutput."""
    def __init__(self, shape: DenseShape):
        super().__init__()
        self.shape = shape
        generative_dim = max(shape.generative_dim, 1)
        for name, dim in (("semantic", shape.semantic_dim), ("generative", generative_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(1, dim, 1, 1))
            self.register_buffer(f"{name}_std", torch.ones(1, dim, 1, 1))
        self.fusion = TokenGate(shape.semantic_dim, generative_dim, shape.width)
        # A position embedding in every variant, so that a generative stream gains nothing by
        # encoding position. Without it fixed noise was as much better than semantic-only as the
        # generator (bench/results/rooms_accuracy).
        self.position = nn.Parameter(torch.zeros(1, shape.width, GRID, GRID))
        outputs = 1 + 3 + shape.classes
        self.mix = nn.Conv2d(shape.width, shape.width, 3, padding=1)
        self.head = nn.Conv2d(shape.width, outputs * UP * UP, 1)

    def forward(self, semantic: Tensor, generative: Tensor | None) -> DenseOutput:
        if self.shape.generative_dim == 0:
            generative = None
        elif generative is None:
            raise ValueError("dense teacher: was trained with a generative stream, got none")
        else:
            generative = self._standard("generative", generative)
        semantic = self._standard("semantic", semantic)
        fused, gate = self.fusion(semantic, generative)                                # [B,W,14,14]
        fused = fused + self.position
        out = F.pixel_shuffle(self.head(F.gelu(fused + self.mix(fused))), UP)  # [B,4+classes,56,56]
        return DenseOutput(out[:, 0], out[:, 1:4], out[:, 4:], gate)

    def _standard(self, name: str, x: Tensor) -> Tensor:
        return (x - self.get_buffer(f"{name}_mean")) / self.get_buffer(f"{name}_std")


def dense_loss(out: DenseOutput, depth: Tensor, normals: Tensor, classes: Tensor) -> Tensor:
    """Sum of log-depth L1, normal cosine distance and cross-entropy, a scalar; targets [B,...] as
    in scenes.dense.DenseTargets."""
    known, facing = depth > 0, (normals != 0).any(1)
    distance = (out.log_depth - depth.clamp_min(1e-3).log()).abs()[known].mean()
    cosine = F.cosine_similarity(out.normals.float(), normals.float(), dim=1)
    entropy = F.cross_entropy(out.logits.float(), classes.long(), ignore_index=NO_CLASS)
    return distance + (1 - cosine)[facing].mean() + 0.25 * entropy


def train_dense_teacher(name: str, examples: Examples, stream: Stream, shape: DenseShape,
                        config: DenseTraining, seed: int, folder: Path) -> DenseTeacher:
    """Trains a DenseTeacher on the examples' field `semantic` and a generative stream into
    folder/NAME.safetensors, or resumes from NAME.ckpt.safetensors to the same weights."""
    device = examples.device
    torch.manual_seed(seed)
    model = DenseTeacher(shape).to(device)
    inputs: dict[str, Callable] = {"semantic": lambda example: example["semantic"]}
    if shape.generative_dim:
        inputs["generative"] = stream
    for side, values in inputs.items():
        for key, value in zip(("mean", "std"), moments(examples, values), strict=True):
            model.get_buffer(f"{side}_{key}").copy_(value.view(1, -1, 1, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01)
    total = config.epochs * (per_epoch := examples.steps(config.batch))
    key = spec_digest({
        "name": name, "seed": seed, "examples": examples.ids, **asdict(config), **asdict(shape),
        **{name: store.key for name, store in examples.stores.items()}
    })
    checkpoint = Checkpoint(folder / f"{name}.ckpt.safetensors", {"model": model}, optimizer, key)
    step = checkpoint.load()
    for epoch in track(range(step // per_epoch, config.epochs), description=f"teacher: {name}"):
        with deferred():
            for batch in examples.batches(config.batch, seed, epoch, step - epoch * per_epoch):
                set_lr(optimizer, config.lr, step, total, warm=total // 20)
                out = model(batch["semantic"].float(), stream(batch))
                loss = dense_loss(out, batch["depth"], batch["normals"], batch["classes"])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                clip_and_step(optimizer, model.parameters())
                step += 1
                checkpoint.after_step(step, due=step == (epoch + 1) * per_epoch)
    save_teacher(model, folder, name)
    remove_checkpoint(checkpoint.path)
    return model.eval()


@torch.inference_mode()
def score(model: DenseTeacher, examples: Examples,
          stream: Stream) -> tuple[dict[str, float], list[dict]]:
    """The four dense metrics over all clips, and rows with those of each `clip`."""
    every, rows = DenseScores(model.shape.classes), []
    for clip_id, example in examples.in_order():
        out = model(example["semantic"].float(), stream(example))
        truth = DenseTargets(*(example[k].cpu().numpy() for k in ("depth", "normals", "classes")))
        predicted = (out.log_depth.exp().cpu().numpy(), out.normals.cpu().numpy(),
                     out.logits.argmax(1).cpu().numpy())
        one = DenseScores(model.shape.classes)
        for scores in (every, one):
            scores.add(*predicted, truth)
        rows.append({"clip": clip_id, **one.result()})
    return every.result(), rows


def save_teacher(model: DenseTeacher, folder: Path, name: str) -> None:
    save_finite(model.state_dict(), folder / f"{name}.safetensors",
                {"shape": to_json(asdict(model.shape))})


def load_teacher(folder: Path, name: str) -> DenseTeacher:
    """What `save_teacher` wrote, in eval mode. Raises ValueError if the file is missing."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no such teacher; train it with: vega3d distill run")
    manifest.check(path, "delete it and run: vega3d distill run --name RUN")
    with reading(path, "a dense teacher, or damaged", "delete it and run: vega3d distill run"):
        with safe_open(path, "pt") as file:
            shape = DenseShape(**parse_json((file.metadata() or {})["shape"]))
        model = DenseTeacher(shape)
        model.load_state_dict(load_file(path), strict=True)
    return model.eval()
