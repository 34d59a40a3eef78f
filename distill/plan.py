"""`vega3d distill plan`: disk space and hours of a run on hours of video, from measured rates."""
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from distill.config import RunConfig
from distill.loop import build_student, compiled_loss, parameter_groups, train_step
from teacher.towers.checkpoints import generator_folder
from teacher.towers.efficientnet import SEMANTIC_DIM, SemanticEncoder
from teacher.towers.wan import load_wan
from teacher.training.gradients import Gradients
from teacher.training.processes import Processes, resolve_device

GRID_TOKENS, PIXEL_BYTES, CHECKPOINT_COPIES = 196, 3 * 224 * 224, 4  # weights, gradient, 2 moments
SECONDS = 2.0  # least time that each rate is measured


@dataclass(frozen=True)
class Rates:
    """Of one device: frames a second; channels of the features; weights of the student."""
    generative: float
    semantic: float
    student: float
    channels: int
    weights: int


@dataclass(frozen=True)
class Plan:
    """bytes: by what is stored; hours: by stage, on all GPUs."""
    bytes: dict[str, float]
    hours: dict[str, float]

    def lines(self) -> list[str]:
        total, time_total = sum(self.bytes.values()), sum(self.hours.values())
        rows = [f"  {name:22} {size / 1e9:12.3f} GB {size / total:5.0%}"
                for name, size in {**self.bytes, "storage in all": total}.items()]
        rows += [f"  {name:22} {hours:12.4f} h  {hours / time_total:5.0%}"
                 for name, hours in {**self.hours, "time in all": time_total}.items()]
        largest, longest = max(self.bytes, key=self.bytes.get), max(  # type: ignore[arg-type]
            self.hours, key=self.hours.get)  # type: ignore[arg-type]
        return [*rows, f"cost drivers: {largest} (storage), {longest} (time)"]


def plan(rates: Rates, config: RunConfig, frames: float, gpus: int) -> Plan:
    """For `frames` frames of video. GPUs are counted as if work divided evenly between them."""
    students = len(config.seeds)
    features = 2 * GRID_TOKENS * frames
    sizes = {"clips": frames * PIXEL_BYTES, "generative features": features * rates.channels,
             "semantic features": features * SEMANTIC_DIM,
             "student, checkpoint": 4.0 * rates.weights * (students + CHECKPOINT_COPIES)}
    seconds = {"generative extraction": frames / rates.generative,
               "semantic extraction": frames / rates.semantic,
               "student": frames * config.student.epochs * students / rates.student}
    return Plan(sizes, {name: s / 3600 / gpus for name, s in seconds.items()})


def measure(config: RunConfig) -> Rates:
    """Runs the config's towers and training steps for a few seconds each on its device."""
    device, count = resolve_device(config.device), config.scenes.frames
    tower = load_wan(generator_folder(config.teacher.generator), config.teacher.tap).to(device)
    semantic = SemanticEncoder().to(device)
    clips = torch.rand(16 if device.type == "cuda" else 1, count, 3, 224, 224, device=device)
    generative = _rate(lambda: tower.features(clips), len(clips) * count, device)
    encoder = _rate(lambda: semantic.features(clips), len(clips) * count, device)
    mean = torch.zeros(tower.dim)
    student = build_student(config.student, "", mean, mean + 1, 0).to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(student, config.student), lr=1e-6,
                                  fused=device.type == "cuda")
    gradients = Gradients(compiled_loss(student, config.student, device), Processes(device))
    batch = config.student.batch
    frames = torch.rand(batch, 3, 224, 224, device=device)
    raw = torch.randn(batch, tower.dim, 14, 14, device=device)
    images = _rate(lambda: train_step(gradients, optimizer, frames, raw, 1.0), batch, device)
    return Rates(generative, encoder, images, tower.dim,
                 sum(p.numel() for p in student.parameters()))


def _rate(step: Callable[[], object], items: int, device: torch.device) -> float:
    """Items a second, after one step that is not counted."""
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step()
    wait()
    begin, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < SECONDS or not steps:
        step()
        wait()
        steps += 1
    return items * steps / spent
