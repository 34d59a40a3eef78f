"""Wan2.1-T2V-1.3B's features the released way and ours on one GPU: time, memory, equality.

    python -m bench.recipes.wan_extraction OUT.json [--tiny]

Random weights of the true shapes are saved in the diffusers layout and loaded from there by both.
The released way: every frame through the 3D VAE by itself, all 30 blocks, 512 text vectors, eager,
bf16; with the same pixels, noise and tap as ours. Both start from frames on the GPU and end with
pooled features. --tiny: a few thousand weights, also without a GPU.
"""
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from tyro.conf import Positional

from bench.device import device_facts
from bench.latency.timing import BenchCase, TimingConfig, summary, time_cases
from records.results import Row, measured, save
from teacher.towers.base import NoiseBank, resize_paper
from teacher.towers.prompt import Prompt, load_prompt, save_prompt
from teacher.towers.tap import Tap, paper_time
from teacher.towers.wan import WanTower, load_wan, normalise_latents

TAP = Tap(block=20, k=300, seeds=1, precision="bf16")
FP8 = replace(TAP, precision="fp8")
PAPER = replace(TAP, geometry="paper", side=480)
REPEATS = 10
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Shapes:
    """Wan2.1-1.3B and the sizes of the table, or a small version of both."""
    vae: dict[str, Any]
    transformer: dict[str, Any]
    sizes: tuple[tuple[int, int], ...]    # (height, width), px
    frames: int                           # a call
    counts: tuple[int, ...]               # frames a call, for the fit
    equality_frames: int


REAL = Shapes({}, {"num_attention_heads": 12, "attention_head_dim": 128, "text_dim": 4096,
                   "ffn_dim": 8960, "num_layers": 30},
              ((480, 832), (480, 640), (720, 1280)), 32, (8, 16, 32, 64, 128, 256), 4)
TINY = Shapes({"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1},
              {"num_attention_heads": 2, "attention_head_dim": 16, "text_dim": 32, "ffn_dim": 64,
               "num_layers": 30},
              ((96, 64), (64, 96)), 4, (2, 4, 6), 2)


class ReleasedWan:
    """The generator as VEGA-3D's published code runs it."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.bfloat16):
        self.vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=dtype)
        self.transformer = WanTransformer3DModel.from_pretrained(folder / "transformer",
                                                                 torch_dtype=dtype)
        for model in (self.vae, self.transformer):
            model.to(DEVICE).eval()
        self.text = load_prompt(folder / "prompt.safetensors").padded().to(DEVICE, dtype)
        self.dtype, self.noise = dtype, NoiseBank()

    @torch.inference_mode()
    def latents(self, frames: Tensor) -> Tensor:
        """[N,3,H,W] in [0,1] -> [N,16,1,H/8,W/8]."""
        pixels = (frames * 2 - 1).to(self.dtype)
        z = torch.cat([self.vae.encode(one[None, :, None]).latent_dist.mode() for one in pixels])
        return normalise_latents(z.float(), self.vae)

    @torch.inference_mode()
    def features(self, frames: Tensor, tap_time: tuple[float, float] = TAP.time) -> Tensor:
        """[N,3,H,W] in [0,1] -> [N,D,14,14]."""
        z, (timestep, sigma) = self.latents(frames), tap_time
        noise = self.noise.draw(TAP.seed, range(len(z)), z)
        tokens: list[Tensor] = []
        hook = self.transformer.blocks[TAP.block].register_forward_hook(
            lambda _module, _inputs, output: tokens.append(output))
        self.transformer(hidden_states=((1 - sigma) * z + sigma * noise).to(self.dtype),
                         timestep=torch.full((len(z),), timestep, device=z.device),
                         encoder_hidden_states=self.text.expand(len(z), -1, -1), return_dict=False)
        hook.remove()
        grid = tokens[0].transpose(1, 2).unflatten(2, (z.shape[3] // 2, z.shape[4] // 2))
        return F.adaptive_avg_pool2d(grid.float(), (14, 14))


def save_random(folder: Path, shapes: Shapes) -> Row:
    """A checkpoint of random bf16 weights in the diffusers layout; its row of kind `weights`."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        vae = AutoencoderKLWan(**shapes.vae)
        transformer = WanTransformer3DModel(in_channels=16, out_channels=16, **shapes.transformer)
        # one vector, as UMT5 yields for ""; the released code pads it to 512
        prompt = Prompt(torch.randn(1, 1, shapes.transformer["text_dim"]) * 0.1, 512)
    row: Row = {"kind": "weights"}
    for name, model in (("vae", vae), ("transformer", transformer)):
        row[f"{name}_params"] = sum(parameter.numel() for parameter in model.parameters())
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
        model.save_pretrained(folder / name)
    save_prompt(prompt.to("cpu"), folder / "prompt.safetensors")
    return row


def released_rows(folder: Path, shapes: Shapes) -> list[Row]:
    model, rows = ReleasedWan(folder), []
    for height, width in shapes.sizes:
        frames = pictures(shapes.frames, height, width)
        total, peak = median_ms(partial(model.features, frames))
        vae, _ = median_ms(partial(model.latents, frames))
        rows.append(_time_row("reference", frames, vae, total, peak) | {"speedup": 1.0})
    return rows


def our_rows(tower: WanTower, shapes: Shapes, released: Sequence[Row],
             path: str = "ours") -> list[Row]:
    rows = []
    for (height, width), reference in zip(shapes.sizes, released, strict=True):
        frames = pictures(shapes.frames, height, width)
        began = time.monotonic()
        tower.features(frames[None])
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        first_call_s = time.monotonic() - began
        total, peak = median_ms(partial(tower.features, frames[None]))
        videos = tower.resize(frames).unsqueeze(1)
        vae, _ = median_ms(torch.inference_mode()(partial(tower.latents, videos)))
        rows.append(_time_row(path, frames, vae, total, peak) | {
            "speedup": reference["total_ms"] / total, "first_call_s": round(first_call_s, 1)})
    return rows


def linearity_rows(tower: WanTower, shapes: Shapes) -> list[Row]:
    """Time against the number of frames, and the straight line through it."""
    height, width = shapes.sizes[1]
    rows: list[Row] = []
    for count in shapes.counts:
        clip = pictures(count, height, width)[None]
        total, _ = median_ms(partial(tower.features, clip), repeats=5)
        rows.append({"kind": "linearity", "frames": count, "height": height, "width": width,
                     "total_ms": total})
    times = [row["total_ms"] for row in rows]
    slope, offset = np.polyfit(shapes.counts, times, 1)
    return [*rows, {"kind": "fit", "ms_per_frame": float(slope), "offset_ms": float(offset),
                    "r2": float(np.corrcoef(shapes.counts, times)[0, 1] ** 2)}]


def equality_rows(folder: Path, shapes: Shapes) -> list[Row]:
    """Ours in paper geometry against the released way, in bf16, fp32 and FP8."""
    frames = pictures(shapes.equality_frames, 480, 640)
    features = {}
    taps = {"bfloat16": PAPER, "float32": replace(PAPER, precision="fp32"),
            "fp8": replace(PAPER, precision="fp8")}
    for name, tap in taps.items():
        if name != "fp8":
            released = ReleasedWan(folder, getattr(torch, name))
            found = released.features(resize_paper(frames, PAPER.side), paper_time(PAPER.k))
            features[f"released {name}"] = found.cpu()
            del released
            _free()
        tower = load_tower(folder, tap)
        features[f"ours {name}"] = tower.features(frames[None])[0].cpu()
        del tower
        _free()
    pairs = (("ours fp8", "released float32"), ("ours bfloat16", "released bfloat16"),
             ("ours bfloat16", "released float32"), ("released bfloat16", "released float32"),
             ("ours float32", "released float32"))
    return [_agreement(path, against, features[path], features[against])
            for path, against in pairs]


def load_tower(folder: Path, tap: Tap) -> WanTower:
    tower = load_wan(folder, tap).to(DEVICE)
    if DEVICE.type == "cpu" and tap.precision != "fp32":
        tower.compile("eager")
    return tower


def median_ms(call: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float | None]:
    """(median milliseconds of a call, peak GiB of torch's allocator; None on a CPU)."""
    _free()
    case = BenchCase({}, call, "cuda" if DEVICE.type == "cuda" else "cpu")
    time_cases([case], TimingConfig(seconds=1e6, iterations=repeats, rounds=1, warmup_seconds=0))
    peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else None
    return summary(case)["latency_ms"], peak


def pictures(count: int, height: int, width: int) -> Tensor:
    """Smooth random pictures with fine texture [N,3,H,W] in [0,1]; number i is always the same."""
    images = []
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        coarse, fine = (F.interpolate(torch.rand(1, 3, n, n, generator=generator), (height, width),
                                      mode="bilinear") for n in (8, 64))
        images.append(0.7 * coarse + 0.3 * fine)
    return torch.cat(images).to(DEVICE)


def main(out: Positional[Path], tiny: bool = False) -> None:
    torch.backends.cudnn.allow_tf32 = False   # so that fp32 is fp32 on both sides
    shapes, env = TINY if tiny else REAL, device_facts()
    with TemporaryDirectory() as scratch:
        rows = [save_random(folder := Path(scratch), shapes)]
        released = released_rows(folder, shapes)
        _free()
        tower = load_tower(folder, TAP)
        rows += [*released, *our_rows(tower, shapes, released), *linearity_rows(tower, shapes)]
        del tower
        _free()
        if DEVICE.type == "cpu" or torch.cuda.get_device_capability() >= (8, 9):
            rows += our_rows(load_tower(folder, FP8), shapes, released, "ours, fp8")
            _free()
        rows += equality_rows(folder, shapes)
    save(measured(out.stem, rows, env), out)
    print("\n".join(map(str, rows)))


def _time_row(path: str, frames: Tensor, vae: float, total: float, peak: float | None) -> Row:
    return {"kind": "extraction", "path": path, "height": frames.shape[2],
            "width": frames.shape[3], "frames": len(frames), "vae_ms": vae, "dit_ms": total - vae,
            "total_ms": total, "peak_gib": peak, "repeats": REPEATS}


def _agreement(path: str, against: str, found: Tensor, expected: Tensor) -> Row:
    """Token by token [N,D,14,14]."""
    cosine = F.cosine_similarity(found.double(), expected.double(), dim=1)
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    largest = (found - expected).abs().max() / expected.abs().max()
    return {"kind": "equality", "path": path, "against": against, "frames": len(found),
            "geometry": "paper 480x832", "cosine_min": cosine.min().item(),
            "cosine_mean": cosine.mean().item(), "relative_l2": error.item(),
            "relative_max": largest.item()}


def _free() -> None:
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    tyro.cli(main)
