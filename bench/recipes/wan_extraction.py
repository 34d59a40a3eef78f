"""Wan2.1-T2V-1.3B's features the released way and ours on one GPU: time, memory, equality.

    python -m bench.recipes.wan_extraction OUT.json [--tiny]

Random weights of the true shapes are saved in the diffusers layout and loaded from there by both.
The released way: every frame through the 3D VAE by itself, all 30 blocks, 512 text vectors, eager,
bf16; with the same pixels, noise and tap as ours. Both start from frames on the GPU and end with
pooled features. cosine_min: the lowest of a token of the first frames, to ours in float32 with the
same VAE. --tiny: a few thousand weights, also without a GPU; the tiny VAE has its true shapes.
"""
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor
from tyro.conf import Positional

from bench.device import device_facts
from bench.latency.timing import BenchCase, TimingConfig, summary, time_cases
from records.results import Row, measured, save
from teacher.towers.base import NoiseBank, resize_paper
from teacher.towers.prompt import Prompt, load_prompt, save_prompt
from teacher.towers.tap import Tap, paper_time
from teacher.towers.tiny_vae import published_shapes
from teacher.towers.wan import WanTower, load_wan, normalise_latents
from vega3d import run_recipe

TAP = Tap(block=20, k=300, seeds=1, noise="fresh", precision="bf16")
PAPER = replace(TAP, geometry="paper", side=480)
REPEATS, REFERENCE_REPEATS = 5, 3
EQUAL = (("ours fp8", "released float32"), ("ours bf16", "released bfloat16"),
         ("ours bf16", "released float32"), ("released bfloat16", "released float32"),
         ("ours float32", "released float32"))
TINY_VAE = "taew2_1.safetensors"
Precision = Literal["fp32", "bf16", "fp8"]
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
              ((480, 832), (480, 640), (720, 1280)), 32, (8, 32, 128), 4)
TINY = Shapes({"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1},
              {"num_attention_heads": 2, "attention_head_dim": 16, "text_dim": 32, "ffn_dim": 64,
               "num_layers": 30},
              ((32, 64), (64, 32)), 2, (2, 3, 4), 2)


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
    """A checkpoint of random bf16 weights in the diffusers layout, and `TINY_VAE` beside it; the
    row of kind `weights`."""
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
    encoder = {name: torch.randn(shape) * np.prod(shape[1:]) ** -0.5
               for name, shape in published_shapes().items()}
    row["tiny_vae_encoder_params"] = sum(weight.numel() for weight in encoder.values())
    save_file({name: weight.half() for name, weight in encoder.items()}, folder / TINY_VAE)
    return row


def released_rows(folder: Path, shapes: Shapes, exact: Sequence[Tensor]) -> list[Row]:
    model, rows = ReleasedWan(folder), []
    for (height, width), wanted in zip(shapes.sizes, exact, strict=True):
        frames = pictures(shapes.frames, height, width)
        found = model.features(frames[:len(wanted)])
        total, peak = median_ms(partial(model.features, frames), REFERENCE_REPEATS)
        vae, _ = median_ms(partial(model.latents, frames), REFERENCE_REPEATS)
        rows.append(_time_row("reference", frames, TAP, vae, total, peak, found, wanted) | {
            "repeats": REFERENCE_REPEATS, "speedup": 1.0})
    return rows


def our_rows(tower: WanTower, shapes: Shapes, released: Sequence[Row],
             exact: Sequence[Tensor]) -> list[Row]:
    rows, path = [], "ours" if tower.tap.vae == "wan" else "ours, tiny VAE"
    for (height, width), reference, wanted in zip(shapes.sizes, released, exact, strict=True):
        frames = pictures(shapes.frames, height, width)
        began = time.monotonic()
        tower.features(frames[None])
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        first_call_s = time.monotonic() - began
        total, peak = median_ms(partial(tower.features, frames[None]))
        videos = tower.resize(frames).unsqueeze(1)
        vae, _ = median_ms(torch.inference_mode()(partial(tower.latents, videos)))
        found = tower.features(frames[None, :len(wanted)])[0]
        rows.append(_time_row(path, frames, tower.tap, vae, total, peak, found, wanted) | {
            "repeats": REPEATS, "speedup": reference["total_ms"] / total,
            "first_call_s": round(first_call_s, 1)})
    return rows


def linearity_rows(tower: WanTower, shapes: Shapes) -> list[Row]:
    """Time against the number of frames, and the straight line through it."""
    height, width = shapes.sizes[1]
    rows: list[Row] = []
    for count in shapes.counts:
        clip = pictures(count, height, width)[None]
        total, _ = median_ms(partial(tower.features, clip))
        rows.append({"kind": "linearity", "frames": count, "height": height, "width": width,
                     "total_ms": total})
    times = [row["total_ms"] for row in rows]
    slope, offset = np.polyfit(shapes.counts, times, 1)
    return [*rows, {"kind": "fit", "ms_per_frame": float(slope), "offset_ms": float(offset),
                    "r2": float(np.corrcoef(shapes.counts, times)[0, 1] ** 2)}]


def exact_features(tower: WanTower, shapes: Shapes) -> list[Tensor]:
    """Of the first pictures of each size, each [N,D,14,14] on the CPU."""
    return [tower.features(pictures(shapes.equality_frames, *size)[None])[0].cpu()
            for size in shapes.sizes]


def released_paper_features(folder: Path, shapes: Shapes) -> dict[str, Tensor]:
    """The released way's in paper geometry [N,D,14,14] on the CPU, by precision."""
    frames = resize_paper(pictures(shapes.equality_frames, 480, 640), PAPER.side)
    return {f"released {str(dtype).removeprefix('torch.')}":
            ReleasedWan(folder, dtype).features(frames, paper_time(PAPER.k)).cpu()
            for dtype in (torch.float32, torch.bfloat16)}


def paper_features(tower: WanTower, shapes: Shapes) -> Tensor:
    """Ours in paper geometry [N,D,14,14] on the CPU; its size is compiled already."""
    tap = tower.tap
    tower.tap = replace(tap, geometry=PAPER.geometry, side=PAPER.side)
    found = tower.features(pictures(shapes.equality_frames, 480, 640)[None])[0].cpu()
    tower.tap = tap
    return found


def load_tower(folder: Path, precision: Precision, vae: str = "wan") -> WanTower:
    _free()
    tower = load_wan(folder, replace(TAP, precision=precision, vae=vae)).to(DEVICE)
    if DEVICE.type == "cpu" and precision != "fp32":
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
        coarse, fine = (F.interpolate(torch.rand(1, 3, n, n, generator=generator).to(DEVICE),
                                      (height, width), mode="bilinear") for n in (8, 64))
        images.append(0.7 * coarse + 0.3 * fine)
    return torch.cat(images)


def main(out: Positional[Path], tiny: bool = False) -> None:
    torch.backends.cudnn.allow_tf32 = False   # so that fp32 is fp32 on both sides
    shapes, env = TINY if tiny else REAL, device_facts()
    precisions: list[Precision] = ["bf16"]
    if DEVICE.type == "cpu" or torch.cuda.get_device_capability() >= (8, 9):
        precisions.append("fp8")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tiny_vae = str(folder / TINY_VAE)
        rows = [save_random(folder, shapes)]
        paper = released_paper_features(folder, shapes)
        tower = load_tower(folder, "fp32")
        exact = exact_features(tower, shapes)
        paper["ours float32"] = paper_features(tower, shapes)
        del tower
        exact_tiny = exact_features(load_tower(folder, "fp32", tiny_vae), shapes)
        _free()
        released = released_rows(folder, shapes, exact)
        rows += released
        for precision in precisions:
            tower = load_tower(folder, precision)
            rows += our_rows(tower, shapes, released, exact)
            paper[f"ours {precision}"] = paper_features(tower, shapes)
            if precision == "bf16":
                rows += linearity_rows(tower, shapes)
            del tower
            rows += our_rows(load_tower(folder, precision, tiny_vae), shapes, released, exact_tiny)
            save(measured(out.stem, rows, env), out)  # in case the rest does not end
    rows += [_agreement(path, against, paper[path], paper[against]) for path, against in EQUAL
             if path in paper]
    save(measured(out.stem, rows, env), out)
    print("\n".join(map(str, rows)))


def _time_row(path: str, frames: Tensor, tap: Tap, vae: float, total: float, peak: float | None,
              found: Tensor, wanted: Tensor) -> Row:
    cosine = F.cosine_similarity(found.cpu().double(), wanted.double(), dim=1)
    return {"kind": "extraction", "path": path, "height": frames.shape[2],
            "width": frames.shape[3], "frames": len(frames),
            "vae": "wan" if tap.vae == "wan" else Path(tap.vae).stem, "precision": tap.precision,
            "vae_ms": vae, "dit_ms": total - vae, "total_ms": total, "peak_gib": peak,
            "cosine_min": cosine.min().item()}


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
    run_recipe(main)
