"""What the teacher costs, stage by stage: VAE encode, transformer to the tap for S noise draws, semantic encoder."""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from bench.timing import Device, Subject
from distill.config import load_config
from records.results import Row
from teacher.semantic import SemanticEncoder
from teacher.wan import WanTower, generator_folder, load_wan


@dataclass(frozen=True)
class Stage:
    """One timed part of the teacher. Its row names it by `name`."""
    name: str
    call: Callable[[Tensor], object]
    weights: list[nn.Module]
    digest: str


def load_generator(run: Path) -> WanTower:
    """The run's generator up to its tap, on the CPU."""
    config = load_config(run / "config.yaml")
    path = generator_folder(config.teacher.generator)
    return load_wan(path, config.teacher.tap)


def teacher_subjects(run: Path, frames: Tensor, device: Device) -> list[Subject]:
    """Every stage, and `generator`: VAE and transformer in one call, what the student stands in for.

    frames [N,3,H,W] in [0,1]. In image mode a call is one frame; in video mode, one clip of the run's length, and the
    row's frame_ms is a frame's share of it.
    """
    config = load_config(run / "config.yaml")
    tower, semantic = load_generator(run).to(device), SemanticEncoder().to(device)
    count = 1 if config.teacher.tap.frames == "image" else config.scenes.frames
    clip = frames[torch.arange(count) % len(frames)][None].to(device)                   # [1,T,3,H,W]
    latents = torch.inference_mode()(tower.latents)(clip)
    vae = cast(nn.Module, tower.vae)
    encoder = [vae.get_submodule(name) for name in ("encoder", "quant_conv")]
    stages = [Stage("vae_encode", tower.latents, encoder, tower.spec["weights"]),
              Stage("transformer", _PastVAE(tower, latents).features, [tower.transformer], tower.spec["weights"]),
              Stage("generator", tower.features, [*encoder, tower.transformer], tower.spec["weights"]),
              Stage("semantic", semantic.features, [semantic], semantic.spec["weights"])]
    name = "wan-nano" if config.teacher.generator == "wan-nano" else Path(config.teacher.generator).name
    return [_subject(stage, name if stage.name != "semantic" else semantic.spec["tower"], clip, device)
            for stage in stages]


def _subject(stage: Stage, artefact: str, clip: Tensor, device: Device) -> Subject:
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[
        next(p for module in stage.weights for p in module.parameters()).dtype]
    about: Row = {"artefact": artefact, "sha256": stage.digest, "stage": stage.name, "backend": "torch",
                  "device": device, "precision": precision, "batch": 1, "frames": clip.shape[1],
                  "size_mb": _weights_mb(stage.weights)}
    run = torch.inference_mode()(stage.call)
    return Subject(about, lambda: run(clip), device)


class _PastVAE(WanTower):
    """The tower with the VAE's work already done: what is left is the transformer, for every noise draw."""

    def __init__(self, tower: WanTower, latents: Tensor):
        self.__dict__.update(tower.__dict__)
        self._latents = latents

    def latents(self, frames: Tensor) -> Tensor:
        return self._latents


def _weights_mb(modules: list[nn.Module]) -> float:
    """Of what the stage reads: blocks above the tap and the VAE's decoder are not among it."""
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters()) / 1e6
