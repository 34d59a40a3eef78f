"""Wan2.1-T2V-1.3B's features the released way and ours, side by side on one GPU: time, memory, equality, disk to disk.

Usage: python bench/h200/wan_extraction.py --out DIR [--seconds 240] [--tiny] [--commit HASH]
Writes DIR/wan_extraction_h200.json after every part (a part that fails is named in it) and DIR/wan_profile.txt. Random
weights of the true shapes are saved in the official layout and loaded by the loader everyone uses. --tiny: the same
parts on a few thousand weights, also without a GPU; its file is wan_extraction_tiny.json.

The released way: every frame through the 3D VAE by itself, all 30 blocks, text of 512 vectors, eager, bf16 weights; the
same pixels, noise and tap. Both start from frames on the GPU at the size of the row and end with pooled features.
"""
import argparse
import gc
import shutil
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from sitting import Sitting, said
from torch import Tensor

from records.environment import environment
from records.results import Results, Row, save
from scenes.clip import Clip, ClipFolder, save_clip
from teacher import causal, fused, wide_rows
from teacher.features import FeatureStore, fill
from teacher.geometry import paper
from teacher.noise import NoiseBank
from teacher.prompt import Prompt, load_prompt, save_prompt
from teacher.wan import Tap, WanTower, load_wan, normalise, paper_time

TAP = Tap(block=20, k=300, seeds=1, geometry="registered", precision="bf16")
PAPER = replace(TAP, geometry="paper", side=480)
REPEATS, WARM = 10, 2


@dataclass(frozen=True)
class Shapes:
    """What is measured: Wan2.1-1.3B at the sizes of the issue, or the same in small."""
    vae: dict[str, Any]
    transformer: dict[str, Any]
    sizes: tuple[tuple[int, int], ...]    # (height, width), the last only if there is time
    frames: int
    counts: tuple[int, ...]               # frames a call, for the fit
    clips: int
    clip_frames: int


REAL = Shapes({}, {"num_attention_heads": 12, "attention_head_dim": 128, "text_dim": 4096, "ffn_dim": 8960,
                   "num_layers": 30}, ((480, 640), (480, 832), (720, 1280)), 32, (8, 16, 32, 64, 128, 256), 200, 16)
TINY = Shapes({"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1},
              {"num_attention_heads": 2, "attention_head_dim": 16, "text_dim": 32, "ffn_dim": 64, "num_layers": 30},
              ((64, 96), (96, 64), (128, 64)), 4, (2, 4, 6, 8), 6, 3)


class Extraction(Sitting):
    """What has been measured so far, and how long is left."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(args.seconds)
        self.args = args
        self.shapes = TINY if args.tiny else REAL
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.name = "wan_extraction_tiny" if args.tiny else "wan_extraction_h200"
        self.env = environment() | ({"commit": args.commit} if args.commit else {})
        self.folder = args.out / "wan-random"

    def missing(self, part: str, error: Exception | None) -> Row:
        return {"kind": "absent", "part": part, "why": said(error, 300) if error else f"{self.left:.0f} s were left"}

    def write(self) -> None:
        self.env["seconds"] = round(self.spent, 1)
        command = " ".join(["python", "bench/h200/wan_extraction.py", *sys.argv[1:]])
        save(Results(self.name, command, str(self.env["commit"]), self.env, self.rows),
             self.args.out / f"{self.name}.json")


class Stopwatch:
    """Milliseconds between marks: CUDA events where there is a GPU."""

    def __init__(self, device: torch.device):
        self.cuda, self.marks = device.type == "cuda", list[Any]()

    def mark(self) -> None:
        if self.cuda:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def laps(self) -> list[float]:
        if not self.cuda:
            return [1000 * (b - a) for a, b in zip(self.marks, self.marks[1:], strict=False)]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) for a, b in zip(self.marks, self.marks[1:], strict=False)]


class Released:
    """The generator as VEGA-3D runs it, from the same folder."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype = torch.bfloat16):
        self.vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=dtype).to(device).eval()
        self.transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=dtype).to(device)
        self.transformer.eval()
        self.text = load_prompt(folder / "prompt.safetensors").to(device).padded().to(dtype)   # [1,512,4096]
        self.dtype, self.bank = dtype, NoiseBank()

    @torch.inference_mode()
    def features(self, frames: Tensor, time_of: tuple[float, float], watch: Stopwatch) -> Tensor:
        """[N,3,H,W] in [0,1] -> [N,D,14,14]; marks the watch before, between VAE and transformer, and after."""
        watch.mark()
        pixels = (frames * 2 - 1).to(self.dtype)
        z = torch.cat([self.vae.encode(one[None, :, None]).latent_dist.mode() for one in pixels])
        z = normalise(z.float(), self.vae)                                                     # [N,16,1,h,w]
        watch.mark()
        timestep, sigma = time_of
        noise = self.bank.draw(TAP.seed, range(len(z)), z)
        taken: list[Tensor] = []
        hook = self.transformer.blocks[TAP.block].register_forward_hook(lambda _m, _i, out: taken.append(out))
        self.transformer(hidden_states=((1 - sigma) * z + sigma * noise).to(self.dtype),
                         timestep=torch.full((len(z),), timestep, device=z.device),
                         encoder_hidden_states=self.text.expand(len(z), -1, -1), return_dict=False)
        hook.remove()
        grid = taken[0].transpose(1, 2).unflatten(2, (z.shape[3] // 2, z.shape[4] // 2))
        out = F.adaptive_avg_pool2d(grid.float(), (14, 14))
        watch.mark()
        return out


def save_random(s: Extraction) -> None:
    """A checkpoint of random weights in the official layout, drawn on the device, in bf16."""
    torch.manual_seed(0)
    with torch.device(s.device):
        vae = AutoencoderKLWan(**s.shapes.vae)
        transformer = WanTransformer3DModel(in_channels=16, out_channels=16, **s.shapes.transformer)
        # one vector, as UMT5 says of ""; the released code fills it up to 512
        prompt = Prompt(torch.randn(1, 1, s.shapes.transformer["text_dim"]) * 0.1, 512)
    s.rows.append({"kind": "weights", "vae_params": _count(vae), "transformer_params": _count(transformer)})
    for name, model in (("vae", vae), ("transformer", transformer)):
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
        model.save_pretrained(s.folder / name)
    save_prompt(prompt.to("cpu"), s.folder / "prompt.safetensors")


def time_released(s: Extraction, sizes: tuple[tuple[int, int], ...]) -> None:
    model = Released(s.folder, s.device)
    for height, width in sizes:
        frames = pictures(s.shapes.frames, height, width).to(s.device)
        laps = []
        for i in range(WARM + REPEATS):
            if i == WARM:
                _start_peak(s.device)
            watch = Stopwatch(s.device)
            model.features(frames, TAP.time, watch)
            laps.append(watch.laps())
        vae, dit = (statistics.median(lap[j] for lap in laps[WARM:]) for j in (0, 1))
        total = statistics.median(sum(lap) for lap in laps[WARM:])
        s.rows.append(_row("reference", height, width, s, vae, dit, total, 1.0))
        print(s.rows[-1], flush=True)
        s.write()


def reference_features(s: Extraction, kept: dict[str, Tensor], dtype: torch.dtype, count: int) -> None:
    model = Released(s.folder, s.device, dtype)
    frames = paper(pictures(2 if s.args.tiny else count, 480, 640).to(s.device), PAPER.side)
    kept[str(dtype)] = model.features(frames, paper_time(PAPER.k), Stopwatch(s.device)).cpu()


def open_ours(s: Extraction, tap: Tap) -> WanTower:
    tower = load_wan(s.folder, tap).to(s.device)
    if s.device.type == "cpu" and tap.precision == "bf16":
        tower.compile("eager")
    return tower


def time_ours(s: Extraction, tower: WanTower, size: tuple[int, int], note: str) -> None:
    height, width = size
    frames = pictures(s.shapes.frames, height, width).to(s.device)[None]
    start = time.monotonic()
    tower.features(frames)
    _wait(s.device)
    first = time.monotonic() - start
    total = timed(s, lambda: tower.features(frames))
    peak = s.device.type == "cuda" and torch.cuda.max_memory_allocated() / 2**30
    vae = timed(s, torch.inference_mode()(lambda: tower.latents(tower.resize(frames[0]).unsqueeze(1))))
    reference = next((r["total_ms"] for r in s.rows if r.get("path") == "reference"
                      and (r["height"], r["width"]) == size), float("nan"))
    s.rows.append(_row("ours", height, width, s, vae, total - vae, total, reference / total)
                  | {"peak_gib": peak or None, "first_call_s": round(first, 1), "note": note})
    print(s.rows[-1], flush=True)
    s.write()


def timed(s: Extraction, call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median milliseconds of a call; leaves the peak memory of the timed calls behind."""
    for _ in range(WARM):
        call()
    _start_peak(s.device)
    found = []
    for _ in range(repeats):
        watch = Stopwatch(s.device)
        watch.mark()
        call()
        watch.mark()
        found += watch.laps()
    return statistics.median(found)


def equality(s: Extraction, tower: WanTower, kept: dict[str, Tensor], dtype: torch.dtype, count: int) -> None:
    """Ours in paper geometry against the released way, and both against its fp32."""
    watched = tower.tap
    tower.tap = replace(PAPER, precision=watched.precision)
    found = tower.features(pictures(2 if s.args.tiny else count, 480, 640).to(s.device)[None])[0].cpu()
    tower.tap = watched
    names = {f"released {str(dtype).removeprefix('torch.')}": kept[str(dtype)]}
    if dtype == torch.bfloat16 and str(torch.float32) in kept:
        names["released fp32"] = kept[str(torch.float32)]
    for name, wanted in names.items():
        n = min(len(found), len(wanted))
        s.rows.append(_agreement(f"ours {str(dtype).removeprefix('torch.')}", name, found[:n], wanted[:n]))
        print(s.rows[-1], flush=True)
    if len(names) == 2:
        both = kept[str(torch.bfloat16)], kept[str(torch.float32)]
        n = min(map(len, both))
        s.rows.append(_agreement("released bfloat16", "released fp32", both[0][:n], both[1][:n]))
        print(s.rows[-1], flush=True)


def linearity(s: Extraction, tower: WanTower) -> None:
    height, width = s.shapes.sizes[0]
    times = []
    for count in s.shapes.counts:
        frames = pictures(count, height, width).to(s.device)[None]
        times.append(timed(s, lambda frames=frames: tower.features(frames), 5))  # type: ignore[misc]
        s.rows.append({"kind": "linearity", "frames": count, "height": height, "width": width, "total_ms": times[-1]})
    slope, offset = np.polyfit(s.shapes.counts, times, 1)
    rest = np.array(times) - (slope * np.array(s.shapes.counts) + offset)
    r2 = 1 - float((rest ** 2).sum() / ((np.array(times) - np.mean(times)) ** 2).sum())
    s.rows.append({"kind": "fit", "ms_per_frame": float(slope), "offset_ms": float(offset), "r2": r2})
    print(s.rows[-1], flush=True)


def busy(s: Extraction, tower: WanTower) -> None:
    """All clips from disk through the feature store, as `distill run` fills it."""
    height, width = s.shapes.sizes[0]
    root = s.args.out / "busy"
    shutil.rmtree(root, ignore_errors=True)
    base = (pictures(s.shapes.clip_frames, height, width) * 255).byte().numpy()
    for i in range(s.shapes.clips):
        save_clip(Clip(f"train/{i:04d}", np.roll(base, i, -1)), root / "clips" / "train" / f"{i:04d}.safetensors")
    source = ClipFolder(root / "clips")
    for count in (16, max(1, s.shapes.clips % 16)):   # the sizes a fill meets: compiled and tried before
        tower.features(pictures(count * s.shapes.clip_frames, height, width).to(s.device)
                       .unflatten(0, (count, s.shapes.clip_frames)))
    _wait(s.device)
    store = FeatureStore(root / "features", tower.spec, "random")
    inside, samples, done = Within(tower, s.device), list[float](), threading.Event()
    watcher = threading.Thread(target=_sample, args=(samples, done), daemon=True)
    if s.device.type == "cuda":
        watcher.start()
    start = time.perf_counter()
    fill(store, inside, source, source.ids("train"), s.device)
    wall = time.perf_counter() - start
    done.set()
    kernels = sum(sum(watch.laps()) for watch in inside.watches) / 1000
    s.rows.append({"kind": "busy", "clips": s.shapes.clips, "frames": s.shapes.clip_frames, "height": height,
                   "width": width, "wall_s": wall, "busy_events": kernels / wall, "bytes_read": base.nbytes
                   * s.shapes.clips, "busy_nvml": statistics.mean(samples) / 100 if samples else None,
                   "samples": len(samples), "clips_per_s": s.shapes.clips / wall})
    print(s.rows[-1], flush=True)
    shutil.rmtree(root)


class Within:
    """A tower whose calls are timed on the GPU: from its first kernel to its last."""

    def __init__(self, tower: WanTower, device: torch.device):
        self.tower, self.device, self.dim, self.spec = tower, device, tower.dim, tower.spec
        self.watches: list[Stopwatch] = []

    def features(self, frames: Tensor) -> Tensor:
        self.watches.append(watch := Stopwatch(self.device))
        watch.mark()
        out = self.tower.features(frames)
        watch.mark()
        return out


def profile(s: Extraction, tower: WanTower) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    height, width = s.shapes.sizes[1]
    frames = pictures(s.shapes.frames, height, width).to(s.device)[None]
    kinds = [ProfilerActivity.CUDA] if s.device.type == "cuda" else [ProfilerActivity.CPU]
    with record(activities=kinds) as seen:
        tower.features(frames)
        _wait(s.device)
    key = "self_cuda_time_total" if s.device.type == "cuda" else "self_cpu_time_total"
    table = seen.key_averages().table(sort_by=key, row_limit=45, max_name_column_width=110)
    (s.args.out / "wan_profile.txt").write_text(f"ours, {s.shapes.frames} frames, {height}x{width}\n{table}\n")


def pictures(count: int, height: int, width: int) -> Tensor:
    """Smooth random pictures with fine texture [N,3,H,W] in [0,1]; the first ones are the same whatever the count."""
    made = []
    for i in range(count):
        draw = torch.Generator().manual_seed(i)
        coarse, fine = (torch.rand(1, 3, n, n, generator=draw) for n in (8, 64))
        large = [F.interpolate(x, (height, width), mode="bilinear") for x in (coarse, fine)]
        made.append(0.7 * large[0] + 0.3 * large[1])
    return torch.cat(made)


def _row(path: str, height: int, width: int, s: Extraction, vae: float, dit: float, total: float,
         speedup: float) -> Row:
    peak = torch.cuda.max_memory_allocated() / 2**30 if s.device.type == "cuda" else None
    return {"kind": "extraction", "path": path, "height": height, "width": width, "frames": s.shapes.frames,
            "vae_ms": vae, "dit_ms": dit, "total_ms": total, "peak_gib": peak, "speedup": speedup,
            "repeats": REPEATS}


def _agreement(path: str, against: str, found: Tensor, wanted: Tensor) -> Row:
    """Token by token [N,D,14,14]."""
    cosine = F.cosine_similarity(found.double(), wanted.double(), dim=1)
    error = (found.double() - wanted.double()).norm() / wanted.double().norm()
    worst = (found - wanted).abs().max() / wanted.abs().max()
    return {"kind": "equality", "path": path, "against": against, "frames": len(found), "geometry": "paper 480x832",
            "cosine_min": cosine.min().item(), "cosine_mean": cosine.mean().item(), "relative_l2": error.item(),
            "relative_max": worst.item()}


def _sample(into: list[float], done: threading.Event) -> None:
    time.sleep(1.0)   # NVML looks back up to a second
    while not done.wait(0.2):
        try:
            into.append(float(torch.cuda.utilization()))
        except Exception:  # no NVML for Python here: the events remain
            return


def _count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _start_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def _anew(s: Extraction, what: str) -> WanTower:
    """Our tower with nothing compiled so far, neither in memory nor on disk."""
    torch._dynamo.reset()
    torch.compiler.config.cache_key_tag = what
    return open_ours(s, TAP)


def _attempts(s: Extraction) -> list[tuple[str, Callable[[], WanTower]]]:
    """As shipped; should that fail on this machine, with the compiler's own loops over wide rows; then without cuDNN's
    attention; then without the compiler."""
    def rows_in_loops() -> WanTower:
        wide_rows.WIDEST = 0
        return _anew(s, "rows in loops")

    def without_cudnn() -> WanTower:
        fused.FASTEST_FIRST[:] = fused.FASTEST_FIRST[1:]
        return _anew(s, "rows in loops, without cuDNN attention")

    def eager() -> WanTower:
        torch._dynamo.config.disable = True
        return open_ours(s, TAP)

    return [("as shipped", lambda: open_ours(s, TAP)), ("rows in loops", rows_in_loops),
            ("rows in loops, without cuDNN attention", without_cudnn), ("not compiled", eager)]


def time_first_that_runs(s: Extraction, sizes: tuple[tuple[int, int], ...]) -> tuple[WanTower, str]:
    """Ours at every size, by the first attempt that gets through all of them."""
    for note, attempt in _attempts(s):
        before = len(s.rows)
        try:
            tower = attempt()
            for size in sizes:
                time_ours(s, tower, size, note)
            return tower, note
        except Exception:
            traceback.print_exc()
            del s.rows[before:]
            _free()
    raise RuntimeError("no attempt at our path ran")


def _without(s: Extraction, what: str, tower: WanTower, size: tuple[int, int]) -> None:
    """A row beside the one that is shipped: the same without one choice."""
    time_ours(s, tower, size, "")
    row = s.rows.pop()
    s.rows.append({"kind": f"without {what}", **{key: row[key] for key in (
        "height", "width", "frames", "vae_ms", "dit_ms", "total_ms", "repeats")}})
    print(s.rows[-1], flush=True)


def pooling_last(s: Extraction, tower: WanTower, size: tuple[int, int]) -> None:
    """Every token through the last block's last product; nothing is compiled anew but for towers of one block."""
    tower._pools = lambda *_: False  # type: ignore[method-assign]
    try:
        _without(s, "pooling before the last product", tower, size)
    finally:
        del tower._pools


def first_convolution_by_cudnn(s: Extraction, size: tuple[int, int]) -> None:
    """The VAE's first convolution as a convolution, of 3 channels filled up to 8."""
    fits, causal.FirstConv.fits = causal.FirstConv.fits, staticmethod(lambda _: False)  # type: ignore[assignment]
    try:
        _without(s, "the first convolution as a product", _anew(s, "cuDNN first"), size)
    finally:
        causal.FirstConv.fits = staticmethod(fits)  # type: ignore[assignment]
        _as_shipped()


def rows_in_loops(s: Extraction, size: tuple[int, int]) -> None:
    """The compiler's own loops over wide rows."""
    shipped, wide_rows.WIDEST = wide_rows.WIDEST, 0
    try:
        _without(s, "rows in registers", _anew(s, "rows in loops"), size)
    finally:
        wide_rows.WIDEST = shipped
        _as_shipped()


def _as_shipped() -> None:
    torch._dynamo.reset()
    torch.compiler.config.cache_key_tag = ""


def measure(s: Extraction) -> None:
    kept: dict[str, Tensor] = {}
    small, wide, last = s.shapes.sizes
    spare = 0 if s.args.tiny else 1
    s.part("checkpoint", lambda: save_random(s))
    s.part("reference", lambda: time_released(s, (wide, small)))
    _free()
    tower, note = time_first_that_runs(s, (wide, small))
    s.part("without pooling", lambda: pooling_last(s, tower, wide))
    s.part("reference features, bf16", lambda: reference_features(s, kept, torch.bfloat16, 8))
    _free()
    s.part("reference features, fp32", lambda: reference_features(s, kept, torch.float32, 4))
    _free()
    s.part("equality, bf16", lambda: equality(s, tower, kept, torch.bfloat16, 8))
    s.part("equality, fp32", lambda: equality(s, open_ours(s, replace(TAP, precision="fp32")), kept, torch.float32, 4))
    _free()
    s.part("linearity", lambda: linearity(s, tower))
    s.part("busy", lambda: busy(s, tower), 40 * spare)
    if note == "as shipped":
        s.part("first convolution by cuDNN", lambda: first_convolution_by_cudnn(s, wide), 35 * spare)
    s.part("reference, third size", lambda: time_released(s, (last,)), 75 * spare)
    _free()
    s.part("ours, third size", lambda: time_ours(s, tower, last, note), 40 * spare)
    s.part("profile", lambda: profile(s, tower), 10 * spare)
    if note == "as shipped":
        s.part("rows in loops", lambda: rows_in_loops(s, wide), 35 * spare)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--commit", default="")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.allow_tf32 = False   # so that fp32 means it, on either side
    sitting = Extraction(arguments)
    try:
        measure(sitting)
    finally:
        sitting.part("end", lambda: shutil.rmtree(sitting.folder, ignore_errors=True))
