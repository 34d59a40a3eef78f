"""Latency, energy and agreement of the shipped students and of the generators on one GPU.

    python -m bench.recipes.gpu_latency latency_gpu.json [--batch 1 8 32] [--tiny]

All are timed in turn in one process. Students read frames of 224x224, launched by torch kernel by
kernel, or compiled and launched as one CUDA graph; INT8: with int8_resident's blocks, but products
as cuBLAS has them, untuned. wan-nano reads the same frames and averages one noise draw or four.
Real Wan: Wan2.1-1.3B's shapes with random weights, 32 frames of 640x480 a call, as wan_extraction
runs it. FP32 is without TF32. Most of the time is compilation: under six minutes on an H200; the
file's env has the seconds it took. --tiny: a small Wan, few calls; a CPU will do.
The clock is checked apart: python -m bench.latency.clock_calibration --gpu timer.json
"""
import copy
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tyro.conf import Positional

from bench.artefacts import absent
from bench.device import device_facts
from bench.latency.gpu import gpu_cases
from bench.latency.meters import energy_per_call, find_meter
from bench.latency.teacher_stages import generator_stage, stage_cases
from bench.latency.timing import (
    BenchCase,
    Cases,
    DeviceType,
    TimingConfig,
    joined,
    ratio,
    summary,
    time_cases,
)
from bench.recipes.int8_resident import with_int8_blocks
from bench.recipes.wan_extraction import (
    REAL,
    TAP,
    TINY,
    Shapes,
    load_tower,
    pictures,
    save_random,
)
from export.parity import THRESHOLDS
from records.files import read_object
from records.results import Row, measured, save
from student.config import SHIPPED_BY_SIZE
from student.vit import load_student
from teacher.towers.checkpoints import NANO
from teacher.towers.tap import Tap
from teacher.towers.wan import load_wan
from vega3d import run_recipe

DEVICE: DeviceType = "cuda" if torch.cuda.is_available() else "cpu"
NANO_NAME, WAN_NAME = "wan-nano", "wan2.1-t2v-1.3b"
TIMING = TimingConfig(seconds=0.75, warmup_seconds=0.1)
QUICK = TimingConfig(seconds=0.01, rounds=1, warmup_seconds=0.0)
ENERGY_SECONDS = 0.5
PROGRAMS = 64  # compiled from one function: sizes, precisions and batches
CLIP = Path(__file__).parents[2] / "export" / "web" / "static" / "clip.json"


@torch.no_grad()
def student_cases(size: str, frames: Tensor) -> Cases:
    """A shipped student in FP32, FP16 and INT8. frames [B,3,224,224] in [0,1] on the CPU."""
    exact = load_student(SHIPPED_BY_SIZE[size]).to(DEVICE)
    exact.train()  # one fused attention; it has no dropout
    half = copy.deepcopy(exact).half()
    wanted = exact(frames.to(DEVICE))
    parts: list[Cases] = []
    for precision, model in (("fp32", exact), ("fp16", half), ("int8", with_int8_blocks(half))):
        inputs = frames if precision == "fp32" else frames.half()
        weights_mb = sum(value.nbytes for value in model.state_dict().values()) / 1e6
        info: Row = {"artefact": f"vit-{size}", "stage": "student", "backend": "torch",
                     "precision": precision, "batch": len(frames), "frames": len(frames),
                     "size_mb": weights_mb}
        if DEVICE == "cpu":
            call = torch.inference_mode()(partial(model, inputs))
            parts.append(([BenchCase(info | {"device": "cpu"}, call)], []))
            continue
        if precision != "int8":
            parts.append(gpu_cases(model, inputs, info, weights_mb, ["eager"]))
        program = torch.compile(model, dynamic=False)
        parts.append(gpu_cases(program, inputs, info | {"backend": "compile"}, weights_mb,
                               ["graph"]))
    return _compared(joined(parts), frames, wanted)


def nano_cases(tap: Tap, frames: Tensor) -> Cases:
    """wan-nano in FP32 and bf16. frames [B,3,224,224] in [0,1] on the CPU."""
    clips = frames.unsqueeze(1)
    towers = [load_wan(NANO, replace(tap, precision=precision)).to(DEVICE)
              for precision in ("fp32", "bf16")]
    for tower in towers:
        tower.chunk = len(clips)  # all at once: a graph capture must not ask how much is free
    parts = [stage_cases([generator_stage(tower)], NANO_NAME, clips, DEVICE)
             for tower in towers]
    return _compared(joined(parts), frames, towers[0].features(clips.to(DEVICE)), tap.seeds)


def wan_cases(folder: Path, shapes: Shapes) -> Cases:
    """Wan's shapes, in bf16."""
    frames = pictures(shapes.frames, *shapes.sizes[1])
    exact = load_tower(folder, "fp32").features(frames[None])
    info: Row = {"artefact": WAN_NAME, "weights": "random", "stage": "generator",
                 "backend": "torch", "device": DEVICE, "launch": "eager", "precision": "bf16",
                 "batch": len(frames), "frames": len(frames)}
    call = partial(load_tower(folder, "bf16").features, frames[None])
    return _compared(([BenchCase(info, call, DEVICE)], []), frames, exact, TAP.seeds)


def _compared(cases: Cases, frames: Tensor, wanted: Tensor, draws: int | None = None) -> Cases:
    """Adds to every row the frames' size, its cosine to the FP32 output [...,D,14,14], token by
    token, and whether that passes the export's gate (bf16: FP16's)."""
    for case in cases[0]:
        found: Tensor = case.call()  # type: ignore[assignment]
        cosine = F.cosine_similarity(found.float(), wanted, dim=-3)
        mean, low = cosine.mean().item(), cosine.quantile(0.01).item()
        precision = case.info["precision"]
        least = THRESHOLDS["fp16" if precision == "bf16" else precision]
        passed = mean >= least.cosine_mean and low >= least.cosine_p1
        case.info |= {"draws": draws, "height": frames.shape[2], "width": frames.shape[3],
                      "cosine_mean": mean, "cosine_p1": low,
                      "gate": "passed" if passed else "failed"}
    return cases


def rows_of(cases: Sequence[BenchCase]) -> list[Row]:
    """vs_one_draw, vs_wan: how many times faster a frame of the student is than one of wan-nano
    and of real Wan; medians over rounds, with _low and _high, the 10th and 90th percentile."""
    rows = []
    for case in cases:
        times, frames = summary(case), case.info["frames"]
        row: Row = {"kind": "latency", **case.info,
                    "timer": "CUDA events" if case.device == "cuda" else "wall clock", **times,
                    "frame_ms": times["latency_ms"] / frames}
        for name, slow in _generators(case, cases):
            for end, value in zip(("", "_low", "_high"), ratio(slow, case), strict=True):
                row[name + end] = value * frames / slow.info["frames"]
        rows.append(row)
    return rows


def _generators(case: BenchCase, cases: Sequence[BenchCase]) -> Iterator[tuple[str, BenchCase]]:
    """What a student is compared with: wan-nano with one draw, of the same batch, launched alike,
    both in FP32 or neither; and real Wan."""
    def kind(info: Row) -> tuple:
        return info["batch"], info.get("launch"), info["precision"] == "fp32"

    for other in cases if case.info["stage"] == "student" else ():
        if other.info["artefact"] == WAN_NAME:
            yield "vs_wan", other
        elif other.info["draws"] == 1 and kind(other.info) == kind(case.info):
            yield "vs_one_draw", other


def add_energy(cases: Sequence[BenchCase]) -> None:
    """energy_mj_per_frame and power_w, where there is a meter, of all but the small models' eager
    launches, which leave the GPU waiting."""
    meter = find_meter() if DEVICE == "cuda" else None
    for case in cases:
        if meter and (case.info["launch"] == "graph" or case.info["artefact"] == WAN_NAME):
            found = energy_per_call(case.call, meter.joules, torch.cuda.synchronize, ENERGY_SECONDS)
            if found:
                case.info |= {"energy_mj_per_frame": found["energy_mj"] / case.info["frames"],
                              "power_w": found["power_w"]}


def rendered_frames(count: int) -> Tensor:
    """Frames of the live page's clip, a room of the test split, [N,3,224,224] in [0,1]."""
    facts = read_object(CLIP)
    with Image.open(CLIP.with_name(facts["file"])) as image:
        sheet = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    side = facts["side"]
    tiles = sheet.unfold(1, side, side).unfold(2, side, side)   # [3,rows,columns,side,side]
    frames = tiles.flatten(1, 2).transpose(0, 1)[:facts["frames"]]
    return frames[torch.arange(count) % len(frames)].contiguous()


def main(out: Positional[Path], batch: tuple[int, ...] = (1, 8, 32), tiny: bool = False) -> None:
    if DEVICE == "cpu" and not tiny:
        raise ValueError("gpu_latency: no NVIDIA GPU here; rehearse with --tiny")
    torch.backends.cudnn.allow_tf32 = False
    torch._dynamo.config.recompile_limit = PROGRAMS  # beyond it a program would silently be eager
    began, env, parts = time.monotonic(), device_facts(), []
    shapes, timing = (TINY, QUICK) if tiny else (REAL, TIMING)

    def log(done: str) -> None:
        print(f"{time.monotonic() - began:4.0f} s: {done}", file=sys.stderr)

    with TemporaryDirectory() as scratch:
        save_random(Path(scratch), shapes)
        try:
            parts.append(wan_cases(Path(scratch), shapes))
        except (RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())[:200]
            parts.append(([], [absent(WAN_NAME, why, "use a larger GPU")]))
    log(WAN_NAME)
    for size in batch:
        frames = rendered_frames(size)
        parts += [nano_cases(Tap(seeds=draws), frames) for draws in (1, Tap().seeds)]
        log(f"{NANO_NAME}, batch {size}")
        for name in SHIPPED_BY_SIZE:
            parts.append(student_cases(name, frames))
            log(f"vit-{name}, batch {size}")
    cases, missing = joined(parts)
    for what, measure in (("times", partial(time_cases, cases, timing)),
                          ("energy", partial(add_energy, cases))):
        measure()
        log(what)
        env["seconds"] = round(time.monotonic() - began, 1)
        rows = [*rows_of(cases), *missing]
        save(measured(out.stem, rows, env), out)
    print("\n".join(map(str, rows)))


if __name__ == "__main__":
    run_recipe(main)
