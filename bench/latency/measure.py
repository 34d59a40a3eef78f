"""Latency of students and teacher on this machine: the very files, timed in turn, with tails, size,
memory, energy."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.artefacts import Artefact, find
from bench.latency.config import LatencyConfig
from bench.latency.energy import energy
from bench.latency.memory import Kind, peak_memory
from bench.latency.meters import Meter, cpu_state, meter
from bench.latency.timing import Plan, Subject, measure, ratio, summary
from records.results import Row

CONSOLE = Console(stderr=True)


def latency(sources: Sequence[Path], config: LatencyConfig) -> list[Row]:
    """Rows of kind `latency` (see `timed`), and of kind `absent` for what could not be timed here.

    sources: run folders, student folders, ONNX files, engines. A single run's teacher is timed
    beside it. Kinds `preprocess`, `soak`, `soak_interval` and `crosscheck` as the config asks.
    Raises ValueError for a source that is none of these, or a run without frames.
    """
    from bench.latency.backends import student_subjects
    from bench.latency.measure import preprocess_row
    from bench.latency.teacher_stages import teacher_subjects

    run = sources[0] if len(sources) == 1 and (sources[0] / "config.yaml").is_file() else None
    held = [find(source) for source in sources]
    artefacts, missing = [a for files, _ in held
                          for a in files], [gap for _, gaps in held for gap in gaps]
    frames = held_out_frames(run) if run else torch.rand(8, 3, 224, 224,
                                                         generator=torch.Generator().manual_seed(0))
    power = meter() if config.energy or config.soak else None
    with _threads(config.threads):
        subjects, gaps = student_subjects(artefacts, frames, config.batch, config.names,
                                          config.threads)
        missing += gaps
        if run and config.teacher:
            gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
            stages, gaps = teacher_subjects(run, frames, "cuda" if gpu else "cpu")
            subjects, missing = stages + subjects, missing + gaps
        if not subjects:
            raise ValueError(f"bench: nothing here can be timed by {config.backends}: "
                             + "; ".join(f"{gap['what']}: {gap['why']}" for gap in missing))
        if config.energy and power:
            _add_energy(subjects, power)
        rows = timed(subjects, config.plan)
        rows = [{**row, "threads": config.threads} for row in rows]
        ready = [preprocess_row(config.plan)]
        soaked = _soaked(subjects, rows, config, power)
    if config.memory:
        _add_memory(rows, artefacts, run, config.threads)
    return rows + ready + soaked + (_crosschecked(rows, artefacts)
                                    if config.crosscheck else []) + missing


def timed(subjects: Sequence[Subject], plan: Plan) -> list[Row]:
    """Measures the subjects in turn; one row of kind `latency` for each, in their order.

    latency_ms is the median of a call; the other times are bench.timing.summary's; frame_ms is the
    median over the frames of a call, frames_per_s its inverse. On a GPU these are GPU compute time,
    and host_ms, host_p90_ms the same call from host memory to host memory. speedup: times faster
    per frame than the teacher's generator on the same device; vs_torch, vs_fp32: than the torch
    student and the FP32 file. Each ratio is of medians within a round of this very run, with the
    10th and 90th percentile over rounds.
    """
    hosts = [Subject(subject.about, subject.host) for subject in subjects if subject.host]
    with Progress(console=CONSOLE, transient=True) as progress:
        bar = progress.add_task(f"latency of {len(subjects)} rows",
                                total=plan.rounds * (1 + bool(hosts)))
        measure(subjects, plan, lambda: progress.advance(bar))
        if hosts:
            measure(hosts, plan, lambda: progress.advance(bar))
    travelled = {id(host.about): summary(host) for host in hosts}
    return [_row(subject, subjects, travelled.get(id(subject.about))) for subject in subjects]


def held_out_frames(run: Path) -> Tensor:
    """The run's held-out frames [N,3,224,224] float32 in [0,1]."""
    path = run / "frames" / "heldout.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no held-out frames; make a run with: vega3d distill run")
    try:
        return load_file(path)["frames"].float() / 255
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path}: not a frames file ({error}); run again: vega3d distill run") from error


def _row(subject: Subject, subjects: Sequence[Subject], travelled: Row | None) -> Row:
    times = summary(subject)
    frame_ms = times["latency_ms"] / subject.about["frames"]
    row = {
        "kind": "latency",
        **subject.about, "timer": "CUDA events" if subject.device == "cuda" else "wall clock",
        **times, "frame_ms": frame_ms, "frames_per_s": 1000 / frame_ms
    }
    if travelled:
        row |= {"host_ms": travelled["latency_ms"], "host_p90_ms": travelled["p90_ms"]}
    if subject.about["stage"] == "student":
        fp32 = {"stage": "student", "precision": "fp32", "batch": subject.about["batch"]}
        row |= _against(subject, subjects, "speedup", {"stage": "generator"})
        row |= _against(subject, subjects, "vs_torch", {**fp32, "backend": "torch"})
        row |= _against(subject, subjects, "vs_fp32", {**fp32, "backend": subject.about["backend"]})
    return row


def _against(subject: Subject, subjects: Sequence[Subject], name: str, wanted: Row) -> Row:
    """{name, name_low, name_high}: times faster per frame than the subject `wanted` describes, on
    the same device and launched the same way; of several, than the one of its own batch and width
    of number."""
    about = subject.about
    wanted = {**wanted, "device": about["device"], "launch": about.get("launch")}
    others = [
        other for other in subjects if other is not subject and all(
            other.about.get(key) == value for key, value in wanted.items())
    ]
    if not others:
        return {}
    other = max(
        others, key=lambda o: (o.about["batch"] == about["batch"],
                               (o.about["precision"] == "fp32") == (about["precision"] == "fp32")))
    frames = about["frames"] / other.about["frames"]
    return dict(
        zip((name, f"{name}_low", f"{name}_high"), (frames * r for r in ratio(other, subject)),
            strict=True))


def _add_energy(subjects: Sequence[Subject], power: Meter) -> None:
    """energy_mj and power_w of what runs on the GPU, and energy_mj_per_frame."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for subject in subjects:
        if subject.about["device"] == "cuda" and subject.about.get("launch") != "eager":
            found = energy(subject.call, power.joules, wait)
            if found:
                found["energy_mj_per_frame"] = found["energy_mj"] / subject.about["frames"]
            subject.about |= found


def _soaked(subjects: Sequence[Subject], rows: Sequence[Row], config: LatencyConfig,
            power: Meter | None) -> list[Row]:
    from bench.latency.soak import INTERVALS, soak

    students = [
        i for i, row in enumerate(rows)
        if row["stage"] == "student" and row["batch"] == min(config.batch)
    ]
    if not config.soak or not students:
        return []
    fastest = subjects[min(students, key=lambda i: rows[i]["frame_ms"])]
    state = power.state if power and fastest.about["device"] == "cuda" else cpu_state
    with Progress(console=CONSOLE, transient=True) as progress:
        bar = progress.add_task(f"{config.soak} of {fastest.about['artefact']}", total=INTERVALS)
        return soak(fastest, config.soak_seconds, state, lambda: progress.advance(bar))


def _crosschecked(rows: Sequence[Row], artefacts: Sequence[Artefact]) -> list[Row]:
    from bench.latency.crosscheck import crosscheck

    files = {file.sha256: file for file in artefacts}
    with CONSOLE.status("cross-check with other tools"):
        return [found for row in rows if row["sha256"] in files and row["batch"] == 1
                if (found := crosscheck(row, files[row["sha256"]]))]


def _add_memory(rows: Sequence[Row], artefacts: Sequence[Artefact], run: Path | None,
                threads: int) -> None:
    """memory_mb and runtime_mb of CPU rows at batch 1; stages inside the generator share its
    process."""
    files = {file.sha256: file.path for file in artefacts}
    with CONSOLE.status("peak memory, one process each"):
        for row in rows:
            skipped = row["stage"] in ("vae_encode", "transformer") or row["backend"] == "compile"
            if row["device"] != "cpu" or row["batch"] != 1 or skipped:
                continue
            kind: Kind = {"torch": "student", "openvino": "openvino"}.get(row["backend"],
                                                                          "onnx")  # type: ignore
            path = files.get(row["sha256"])
            if row["stage"] != "student":
                kind, path = row["stage"], run
            elif kind == "student" and path:
                path = path.parent
            if path:
                row |= peak_memory(kind, path, threads)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


CAMERA = (480, 640)  # height, width, px


def to_frame(photo: np.ndarray, size: int = 224) -> np.ndarray:
    """uint8 [H,W,3] -> the middle square, float32 [1,3,size,size] in [0,1]."""
    h, w = photo.shape[:2]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    square = Image.fromarray(photo[top:top + side, left:left + side])
    small = np.asarray(square.resize((size, size), Image.Resampling.BILINEAR), np.float32)
    return np.ascontiguousarray(small.transpose(2, 0, 1)[None]) / 255


def preprocess_row(plan: Plan) -> Row:
    """One camera frame, made ready on the CPU."""
    photo = np.random.default_rng(0).integers(0, 256, (*CAMERA, 3), np.uint8)
    subject = Subject({}, lambda: to_frame(photo))
    measure([subject], plan)
    return {
        "kind": "preprocess", "artefact": f"{CAMERA[1]}x{CAMERA[0]} camera frame",
        "stage": "preprocess", "backend": "pillow", "device": "cpu", "precision": "uint8",
        "batch": 1, "frames": 1, "timer": "wall clock", **summary(subject)
    }
