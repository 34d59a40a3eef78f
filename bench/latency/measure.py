"""Latency of students and teacher on this machine, with size, memory, energy and preprocessing."""
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.artefacts import Artefact, find
from bench.latency.backends import BACKENDS, student_cases
from bench.latency.crosscheck import crosscheck
from bench.latency.memory import Workload, peak_memory
from bench.latency.meters import Meter, cpu_state, energy_per_call, find_meter
from bench.latency.soak import INTERVALS, soak
from bench.latency.teacher_stages import teacher_cases
from bench.latency.timing import BenchCase, LatencyConfig, TimingConfig, ratio, summary, time_cases
from export.camera import square_frame
from records import manifest
from records.progress import Progress
from records.results import Row

CONSOLE = Console(stderr=True)
CAMERA = (480, 640)  # height, width, px


def latency(sources: Sequence[Path], config: LatencyConfig) -> list[Row]:
    """Rows of kind `latency`, `preprocess`, `soak`, `soak_interval`, `crosscheck`, and `absent` for
    what could not be timed. sources: run folders, student folders, exported files. A single run's
    teacher is timed too. Raises ValueError for a source that is none of these, or a run without
    frames."""
    run = sources[0] if len(sources) == 1 and (sources[0] / "config.yaml").is_file() else None
    found = [find(source) for source in sources]
    artefacts = [file for files, _ in found for file in files]
    missing = [gap for _, gaps in found for gap in gaps]
    meter = find_meter() if config.energy or config.soak else None
    with ExitStack() as after:
        after.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(config.threads)
        cases, gaps = _cases(artefacts, run, config)
        missing += gaps
        if not cases:
            gaps_text = "; ".join(f"{gap['what']}: {gap['why']}" for gap in missing)
            raise ValueError("bench: nothing here can be timed by "
                             f"{config.backends or 'any backend'}: {gaps_text}")
        if config.energy and meter:
            _add_energy(cases, meter)
        rows = [{**row, "threads": config.threads} for row in timed_rows(cases, config.timing)]
        preprocessing = preprocess_row(config.timing)
        soaked = _soak_fastest(cases, rows, config, meter)
    if config.memory:
        _add_memory(rows, artefacts, run, config.threads)
    crosschecked = _crosscheck_all(rows, artefacts) if config.crosscheck else []
    return [*rows, preprocessing, *soaked, *crosschecked, *missing]


def timed_rows(cases: Sequence[BenchCase], config: TimingConfig) -> list[Row]:
    """Times the cases in turn; one row of kind `latency` for each, in their order. Times of a call
    are timing.summary's, on a GPU its compute time; host_ms: from host memory to host memory.
    speedup: times faster per frame than the teacher's generator on the same device; vs_torch,
    vs_fp32: than the torch student and the FP32 file; medians over rounds of ratios within a round,
    with _low and _high, the 10th and 90th percentile."""
    hosts = [BenchCase(case.info, case.host) for case in cases if case.host]
    with Progress(console=CONSOLE, transient=True) as progress:
        bar = progress.add_task(f"latency of {len(cases)} rows",
                                total=config.rounds * (1 + bool(hosts)))
        time_cases(cases, config, lambda: progress.advance(bar))
        if hosts:
            time_cases(hosts, config, lambda: progress.advance(bar))
    host_times = {id(host.info): summary(host) for host in hosts}
    return [_row(case, cases, host_times.get(id(case.info))) for case in cases]


def held_out_frames(run: Path) -> Tensor:
    """The run's held-out frames [N,3,224,224] float32 in [0,1]."""
    path = run / "frames" / "heldout.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no held-out frames; make a run with: vega3d distill run")
    manifest.check(path, f"make it again with: vega3d distill run --name {run.resolve().name}")
    try:
        return load_file(path)["frames"].float() / 255
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path}: not a frames file ({error}); "
                         "run again: vega3d distill run") from error


def preprocess_row(config: TimingConfig) -> Row:
    """Preprocessing of one camera frame on the CPU."""
    photo = np.random.default_rng(0).integers(0, 256, (*CAMERA, 3), np.uint8)
    case = BenchCase({}, lambda: square_frame(photo, 224))
    time_cases([case], config)
    return {"kind": "preprocess", "artefact": f"{CAMERA[1]}x{CAMERA[0]} camera frame",
            "stage": "preprocess", "backend": "pillow", "device": "cpu", "precision": "uint8",
            "batch": 1, "frames": 1, "timer": "wall clock", **summary(case)}


def _cases(artefacts: Sequence[Artefact], run: Path | None,
           config: LatencyConfig) -> tuple[list[BenchCase], list[Row]]:
    frames = (held_out_frames(run) if run else
              torch.rand(8, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    cases, missing = student_cases(artefacts, frames, config.batch, config.backend_names,
                                   config.threads)
    if run and config.teacher:
        cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
        stages, gaps = teacher_cases(run, frames, "cuda" if cuda else "cpu",
                                     config.teacher_precision)
        cases, missing = stages + cases, missing + gaps
    return cases, missing


def _row(case: BenchCase, cases: Sequence[BenchCase], host_times: Row | None) -> Row:
    times = summary(case)
    frame_ms = times["latency_ms"] / case.info["frames"]
    timer = "CUDA events" if case.device == "cuda" else "wall clock"
    row = {"kind": "latency", **case.info, "timer": timer, **times, "frame_ms": frame_ms,
           "frames_per_s": 1000 / frame_ms}
    if host_times:
        row |= {"host_ms": host_times["latency_ms"], "host_p90_ms": host_times["p90_ms"]}
    if case.info["stage"] == "student":
        fp32 = {"stage": "student", "precision": "fp32", "batch": case.info["batch"]}
        row |= _speedup(case, cases, "speedup", {"stage": "generator"})
        row |= _speedup(case, cases, "vs_torch", {**fp32, "backend": "torch"})
        row |= _speedup(case, cases, "vs_fp32", {**fp32, "backend": case.info["backend"]})
    return row


def _speedup(case: BenchCase, cases: Sequence[BenchCase], name: str, wanted: Row) -> Row:
    """{name, name_low, name_high}: times faster per frame than the case with the `wanted` fields,
    on the same device and launched the same way; of several, that of the same batch, then of the
    same precision class (FP32 or not)."""
    info = case.info
    wanted = {**wanted, "device": info["device"], "launch": info.get("launch")}

    def closeness(other: BenchCase) -> tuple[bool, bool]:
        same_class = (other.info["precision"] == "fp32") == (info["precision"] == "fp32")
        return other.info["batch"] == info["batch"], same_class

    others = [other for other in cases if other is not case
              and all(other.info.get(key) == value for key, value in wanted.items())]
    if not others:
        return {}
    baseline = max(others, key=closeness)
    frames = info["frames"] / baseline.info["frames"]
    median, low, high = ratio(baseline, case)
    return {name: frames * median, f"{name}_low": frames * low, f"{name}_high": frames * high}


def _add_energy(cases: Sequence[BenchCase], meter: Meter) -> None:
    """energy_mj, power_w and energy_mj_per_frame of what runs on the GPU."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for case in cases:
        if case.info["device"] == "cuda" and case.info.get("launch") != "eager":
            found = energy_per_call(case.call, meter.joules, wait)
            if found:
                found["energy_mj_per_frame"] = found["energy_mj"] / case.info["frames"]
            case.info |= found


def _soak_fastest(cases: Sequence[BenchCase], rows: Sequence[Row], config: LatencyConfig,
                  meter: Meter | None) -> list[Row]:
    students = [i for i, row in enumerate(rows)
                if row["stage"] == "student" and row["batch"] == min(config.batch)]
    if not config.soak or not students:
        return []
    fastest = cases[min(students, key=lambda i: rows[i]["frame_ms"])]
    state = meter.state if meter and fastest.info["device"] == "cuda" else cpu_state
    with Progress(console=CONSOLE, transient=True) as progress:
        bar = progress.add_task(f"{config.soak} of {fastest.info['artefact']}", total=INTERVALS)
        return soak(fastest, config.soak_seconds, state, lambda: progress.advance(bar))


def _crosscheck_all(rows: Sequence[Row], artefacts: Sequence[Artefact]) -> list[Row]:
    files = {file.sha256: file for file in artefacts}
    with CONSOLE.status("cross-check with other tools"):
        found = [crosscheck(row, files[row["sha256"]]) for row in rows
                 if row["sha256"] in files and row["batch"] == 1]
    return [row for row in found if row]


def _add_memory(rows: Sequence[Row], artefacts: Sequence[Artefact], run: Path | None,
                threads: int) -> None:
    """memory_mb and runtime_mb of CPU rows at batch 1; the generator's stages share its process."""
    files = {file.sha256: file.path for file in artefacts}
    with CONSOLE.status("peak memory, one process each"):
        for row in rows:
            if row["device"] != "cpu" or row["batch"] != 1:
                continue
            workload, path = row["stage"], run
            if row["stage"] == "student":
                workload, path = BACKENDS[row["backend"]].memory, files.get(row["sha256"])
            if path and workload in get_args(Workload):
                path = path.parent if workload == "student" else path
                row |= peak_memory(workload, path, threads)
