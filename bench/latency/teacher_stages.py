"""The teacher by stage: VAE encoder, transformer to the tap, both, and the semantic encoder."""
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from bench.latency.gpu import gpu_cases
from bench.latency.timing import BenchCase, Cases, DeviceType, joined
from distill.config import load_run_config
from records.results import Row
from teacher.towers.checkpoints import generator_folder
from teacher.towers.efficientnet import SemanticEncoder
from teacher.towers.wan import WanTower, load_wan

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Stage:
    """One timed part of the teacher. Its row names it by `name`."""
    name: str
    call: Callable[[Tensor], Tensor]
    weights: list[nn.Module]
    digest: str


def load_generator(run: Path, precision: Literal["run", "fp32", "bf16"] = "run") -> WanTower:
    """The run's generator up to its tap, on the CPU. "run": in the precision of the run's tap."""
    teacher = load_run_config(run).teacher
    tap = teacher.tap if precision == "run" else replace(teacher.tap, precision=precision)
    return load_wan(generator_folder(teacher.generator), tap)


def teacher_cases(run: Path, frames: Tensor, device: DeviceType,
                  precisions: Sequence[Literal["run", "fp32", "bf16"]] = ("run",)) -> Cases:
    """Every stage, and `generator`: VAE and transformer in one call, what the student replaces.
    frames [N,3,H,W] in [0,1]. A call is one frame in image mode, one clip in video mode."""
    config = load_run_config(run)
    count = 1 if config.teacher.tap.frames == "image" else config.scenes.frames
    clip = frames[torch.arange(count) % len(frames)][None]  # [1,T,3,H,W]
    name = Path(config.teacher.generator).name
    parts = [generator_cases(load_generator(run, precision), name, clip, device)
             for precision in precisions]
    semantic = SemanticEncoder().to(device)
    stage = Stage("semantic", semantic.features, [semantic], semantic.spec["weights"])
    return joined([*parts, stage_cases([stage], semantic.spec["tower"], clip, device)])


def generator_cases(tower: WanTower, name: str, clips: Tensor, device: DeviceType) -> Cases:
    """VAE, transformer and both, for clips [B,T,3,H,W] in [0,1] on the CPU."""
    tower.to(device)
    # all at once: a graph capture must not ask how much memory is free
    tower.chunk = clips.shape[0] * clips.shape[1]
    encoder = _encoder(tower)

    @torch.inference_mode()
    def latents(videos: Tensor) -> Tensor:
        one_by_one = tower.tap.frames == "image"
        return tower.latents(videos.flatten(0, 1).unsqueeze(1) if one_by_one else videos)

    digest, z = tower.spec["weights"], latents(clips.to(device))

    def transformer(videos: Tensor) -> Tensor:
        return tower.block_features(videos, [tower.tap.block], z)[0]

    stages = [Stage("vae_encode", latents, encoder, digest),
              Stage("transformer", transformer, [tower.transformer], digest),
              generator_stage(tower)]
    return stage_cases(stages, name, clips, device)


def generator_stage(tower: WanTower) -> Stage:
    """All of it in one call."""
    return Stage("generator", tower.features, [*_encoder(tower), tower.transformer],
                 tower.spec["weights"])


def stage_cases(stages: Sequence[Stage], artefact: str, clips: Tensor,
                device: DeviceType) -> Cases:
    """A stage's precision is that of most of its weights: a bf16 Wan keeps its norms in fp32."""
    parts: list[Cases] = []
    for stage in stages:
        # of what the stage reads: not of blocks above the tap or of the VAE's decoder
        weights = [p for module in stage.weights for p in module.parameters()]
        counts: Counter[torch.dtype] = Counter()
        for parameter in weights:
            counts[parameter.dtype] += parameter.numel()
        info: Row = {
            "artefact": artefact, "sha256": stage.digest, "stage": stage.name, "backend": "torch",
            "device": device, "precision": PRECISIONS[counts.most_common(1)[0][0]],
            "batch": len(clips), "frames": len(clips) * clips.shape[1],
            "size_mb": sum(p.numel() * p.element_size() for p in weights) / 1e6
        }
        if device == "cuda":
            parts.append(gpu_cases(stage.call, clips, info, info["size_mb"]))
        else:
            call = partial(torch.inference_mode()(stage.call), clips)
            parts.append(([BenchCase(info, call, device)], []))
    return joined(parts)


def _encoder(tower: WanTower) -> list[nn.Module]:
    if tower.tap.vae != "wan":
        return [tower.encoder]
    vae = cast(nn.Module, tower.vae)
    return [vae.get_submodule(part) for part in ("encoder", "quant_conv")]
