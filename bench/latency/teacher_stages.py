"""What the teacher costs, stage by stage: VAE encode, transformer to the tap for S noise draws,
semantic encoder."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from bench.latency.gpu import LAUNCHES, Launch, gpu_subjects
from bench.latency.timing import Device, Subject
from distill.config import load_config
from records.results import Row
from teacher.towers.checkpoints import generator_folder
from teacher.towers.efficientnet import SemanticEncoder
from teacher.towers.wan import WanTower, load_wan

Found = tuple[list[Subject], list[Row]]


@dataclass(frozen=True)
class Stage:
    """One timed part of the teacher. Its row names it by `name`."""
    name: str
    call: Callable[[Tensor], Tensor]
    weights: list[nn.Module]
    digest: str


def load_generator(run: Path) -> WanTower:
    """The run's generator up to its tap, on the CPU."""
    config = load_config(run / "config.yaml")
    path = generator_folder(config.teacher.generator)
    return load_wan(path, config.teacher.tap)


def teacher_subjects(run: Path, frames: Tensor, device: Device) -> Found:
    """Every stage, and `generator`: VAE and transformer in one call, what the student stands in
    for.

    frames [N,3,H,W] in [0,1]. In image mode a call is one frame; in video mode, one clip of the
    run's length, and the row's frame_ms is a frame's share of it.
    """
    config = load_config(run / "config.yaml")
    count = 1 if config.teacher.tap.frames == "image" else config.scenes.frames
    clip = frames[torch.arange(count) % len(frames)][None]  # [1,T,3,H,W]
    name = "wan-nano" if config.teacher.generator == "wan-nano" else Path(
        config.teacher.generator).name
    found, missing = generator_subjects(load_generator(run), name, clip, device)
    more, gaps = semantic_subjects(clip, device)
    return found + more, missing + gaps


def generator_subjects(tower: WanTower, name: str, clips: Tensor, device: Device,
                       launches: Sequence[Launch] = LAUNCHES) -> Found:
    """VAE, transformer and both, for clips [B,T,3,H,W] in [0,1] on the CPU."""
    tower.to(device)
    # all at once: a graph's capture must not ask how much memory is free
    tower.chunk = clips.shape[0] * clips.shape[1]
    vae = cast(nn.Module, tower.vae)
    encoder = [vae.get_submodule(part) for part in ("encoder", "quant_conv")]
    one_by_one = tower.tap.frames == "image"

    @torch.inference_mode()
    def latents(videos: Tensor) -> Tensor:
        return tower.latents(videos.flatten(0, 1).unsqueeze(1) if one_by_one else videos)

    stages = [
        Stage("vae_encode", latents, encoder, tower.spec["weights"]),
        Stage("transformer",
              _PastVAE(tower, latents(clips.to(device))).features, [tower.transformer],
              tower.spec["weights"]),
        Stage("generator", tower.features, [*encoder, tower.transformer], tower.spec["weights"])
    ]
    return _subjects(stages, name, clips, device, launches)


def semantic_subjects(clips: Tensor, device: Device,
                      launches: Sequence[Launch] = LAUNCHES) -> Found:
    semantic = SemanticEncoder().to(device)
    stage = Stage("semantic", semantic.features, [semantic], semantic.spec["weights"])
    return _subjects([stage], semantic.spec["tower"], clips, device, launches)


def _subjects(stages: Sequence[Stage], artefact: str, clips: Tensor, device: Device,
              launches: Sequence[Launch]) -> Found:
    found: list[Subject] = []
    missing: list[Row] = []
    for stage in stages:
        parts = [(p.dtype, p.numel()) for module in stage.weights for p in module.parameters()]
        held = {dtype: sum(count for other, count in parts if other == dtype) for dtype, _ in parts}
        # most weights decide: a bf16 Wan keeps its norms and time embedding in fp32
        precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[
            max(held, key=lambda dtype: held[dtype])]
        about: Row = {
            "artefact": artefact, "sha256": stage.digest, "stage": stage.name, "backend": "torch",
            "device": device, "precision": precision, "batch": len(clips),
            "frames": len(clips) * clips.shape[1], "size_mb": _weights_mb(stage.weights)
        }
        if device == "cuda":
            more, gaps = gpu_subjects(stage.call, clips, about, launches, about["size_mb"])
            found, missing = found + more, missing + gaps
        else:
            found.append(Subject(about, partial(torch.inference_mode()(stage.call), clips), device))
    return found, missing


class _PastVAE(WanTower):
    """The tower with the VAE's work already done: what is left is the transformer, for every noise
    draw."""

    def __init__(self, tower: WanTower, latents: Tensor):
        self.__dict__.update(tower.__dict__)
        self._latents = latents

    def latents(self, frames: Tensor) -> Tensor:
        return self._latents


def _weights_mb(modules: list[nn.Module]) -> float:
    """Of what the stage reads: blocks above the tap and the VAE's decoder are not among it."""
    return sum(p.numel() * p.element_size() for module in modules
               for p in module.parameters()) / 1e6
