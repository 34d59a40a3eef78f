"""A small run folder as `distill run` writes it: toy rooms, a briefly trained student, its exports.

The student is trained, because random weights rank quantisation settings wrongly. What is cached
here is shared by every test of the session: copy it before you edit it.
"""
import atexit
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from export.graph.export_onnx import export_onnx
from export.graph.session import TorchModel
from export.parity import Gate
from export.pipeline import WEAKLY_TYPED, Exporter, Options
from export.quant.int8 import Recipe, quantize
from export.source import TrainedRun, load_trained_run
from student.config import StudentConfig
from student.vit import Student, save_student

PX, GRID = 224, 14
EXPORTED = Options(recipe=Recipe(frames=32))


@cache
def trained_run() -> Path:
    """One run folder a session, read-only: Ti width, 2 blocks, 64 features, 70 steps (15 s)."""
    folder = Path(mkdtemp(prefix="vega3d_export_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = StudentConfig(size="ti", depth=2, out_dim=64, stem="patch")
    return make_run(folder / "run", config, 70)


@cache
def run() -> TrainedRun:
    return load_trained_run(trained_run())


@cache
def fp32() -> onnx.ModelProto:
    return export_onnx(run().student)


@cache
def int8() -> onnx.ModelProto:
    return quantize(fp32(), run().calibration, Recipe(frames=64))


@cache
def gate() -> Gate:
    return Gate(TorchModel(run().student), run().heldout, run().calibration)


@cache
def exported_run() -> Path:
    """A copy of that run with its INT8, FP16 and opset-17 ONNX files, read-only."""
    folder = shutil.copytree(trained_run(), trained_run().with_name("exported"))
    exporter = Exporter(load_trained_run(folder), EXPORTED, log=lambda _: None)
    exporter.gate = gate()  # the same student and frames
    exporter.export("int8")
    exporter.export("fp16")
    exporter.export_files((WEAKLY_TYPED,))
    return folder


def make_run(folder: Path, config: StudentConfig, steps: int, seed: int = 0) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    student = train(Student(config), steps, np.random.default_rng(seed))
    save_student(student, folder / "student")
    (folder / "frames").mkdir(parents=True)
    for name, n, rng in (("calibration", 300, np.random.default_rng(1)),
                         ("heldout", 32, np.random.default_rng(2))):
        frames, depth = rooms(n, rng)
        save_file({"frames": frames, "depth": depth}, folder / "frames" / f"{name}.safetensors")
    (folder / "env.json").write_text(json.dumps({"commit": "fixture"}))
    (folder / "export").mkdir()
    return folder


def train(student: Student, steps: int, rng: np.random.Generator) -> Student:
    """Regression onto fixed non-linear functions of depth and colour, here and in the mirrored
    patch.

    Block weights start three times as wide as usual: otherwise they would hardly matter after so
    few steps, and no fault in them would show.
    """
    with torch.no_grad():
        for name, parameter in student.blocks.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                parameter *= 3
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=max(steps, 2))
    targets = _Targets(student.config.out_dim)
    student.train()
    for _ in range(steps):
        frames, depth = rooms(8, rng)
        x = frames.float() / 255
        loss = F.smooth_l1_loss(student(x), targets(x, depth))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return student.eval()


def rooms(n: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """n toy rooms of floor, wall and boxes: uint8 [n,3,224,224] and depth [n,14,14] in metres."""
    frames, depths = zip(*(_room(rng) for _ in range(n)), strict=True)
    return torch.from_numpy(np.stack(frames)), torch.from_numpy(np.stack(depths))


def _room(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    v, u = np.mgrid[0:PX, 0:PX] / PX                                     # [H,W]
    horizon, wall = rng.uniform(0.3, 0.6), rng.uniform(3, 8)
    depth = np.minimum(wall, 1.4 / np.maximum(v - horizon, 1e-3))  # floor, cut by the back wall
    colour = rng.uniform(0.2, 1, (2, 3, 1, 1))
    image = np.where(depth < wall, colour[0], colour[1])                 # [3,H,W]
    for _ in range(rng.integers(2, 6)):
        x, y, w, h = *rng.uniform(0, 0.8, 2), *rng.uniform(0.1, 0.4, 2)
        box = (u > x) & (u < x + w) & (v > y) & (v < y + h)
        near = rng.uniform(0.8, wall)
        box &= near < depth
        depth = np.where(box, near, depth)
        image = np.where(box, rng.uniform(0.2, 1, (3, 1, 1)), image)
    image = image * np.exp(-depth / 6) + rng.normal(0, 0.02, (3, PX, PX))
    cells = depth.reshape(GRID, PX // GRID, GRID, PX // GRID).mean((1, 3))
    return (image.clip(0, 1) * 255).astype(np.uint8), cells.astype(np.float32)


class _Targets:
    """Features standardised per channel: a mean shared by all tokens would hide every error."""

    def __init__(self, out_dim: int):
        generator = torch.Generator().manual_seed(7)
        self.first = torch.randn(11, 64, generator=generator)
        self.second = torch.randn(64, out_dim, generator=generator) / 8
        frames, depth = rooms(64, np.random.default_rng(3))
        mixed = self._mix(frames.float() / 255, depth)
        self.mean = mixed.mean((0, 2, 3), keepdim=True)
        self.std = mixed.std((0, 2, 3), keepdim=True)

    def __call__(self, frames: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        return (self._mix(frames, depth) - self.mean) / self.std          # [B,D,14,14]

    def _mix(self, frames: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        rgb = F.adaptive_avg_pool2d(frames, GRID) * 4 - 2                 # [B,3,14,14]
        near = torch.log(depth)[:, None] - 1                              # [B,1,14,14]
        row = torch.linspace(-1, 1, GRID).view(1, 1, GRID, 1).expand_as(near)
        facts = torch.cat([rgb, near, rgb.flip(3), near.flip(3), row, row.transpose(2, 3),
                           torch.ones_like(near)], 1)
        return (torch.tanh(facts.movedim(1, -1) @ self.first / 2) @ self.second).movedim(-1, 1)
