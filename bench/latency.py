"""Latency of student and teacher on this machine: a run's very files, timed in turn, with tails, size and memory."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.config import LatencyConfig
from bench.memory import Kind, peak_memory
from bench.timing import Subject, measure, ratio, summary
from records.results import Row


def latency(run: Path, config: LatencyConfig) -> list[Row]:
    """Rows of kind `latency`, and of kind `absent` for what could not be timed here.

    latency_ms is the median of a call, p90_ms and p99_ms its tails, iqr_ms the middle half's width, frame_ms the
    median over the frames of a call. speedup: times faster per frame than the teacher's generator on the same device;
    vs_torch, vs_fp32: than the torch student and the FP32 ONNX. Each ratio is of medians within a round of this very
    run, with the 10th and 90th percentile over rounds. Raises ValueError if the run has no student or frames.
    """
    from bench.backends import student_subjects
    from bench.stages import teacher_subjects

    console = Console(stderr=True)
    frames = held_out_frames(run)
    with _threads(config.threads):
        subjects, missing = student_subjects(run, frames, config.batch, config.threads)
        if config.teacher:
            gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
            subjects = teacher_subjects(run, frames, "cuda" if gpu else "cpu") + subjects
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task(f"latency of {len(subjects)} rows", total=config.plan.rounds)
            measure(subjects, config.plan, lambda: progress.advance(bar))
    rows = [_row(subject, subjects, config) for subject in subjects]
    if config.memory:
        _add_memory(rows, run, config.threads, console)
    return rows + missing


def held_out_frames(run: Path) -> Tensor:
    """The run's held-out frames [N,3,224,224] float32 in [0,1]."""
    path = run / "frames" / "heldout.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no held-out frames; make a run with: vega3d distill run")
    try:
        return load_file(path)["frames"].float() / 255
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path}: not a frames file ({error}); run again: vega3d distill run") from error


def _row(subject: Subject, subjects: Sequence[Subject], config: LatencyConfig) -> Row:
    times = summary(subject.ms)
    row = {"kind": "latency", **subject.about, "threads": config.threads,
           "timer": "CUDA events" if subject.device == "cuda" else "wall clock", **times,
           "frame_ms": times["latency_ms"] / subject.about["frames"]}
    if subject.about["stage"] == "student":
        fp32 = {"stage": "student", "precision": "fp32", "batch": subject.about["batch"]}
        row |= _against(subject, subjects, "speedup", {"stage": "generator"})
        row |= _against(subject, subjects, "vs_torch", {**fp32, "backend": "torch"})
        row |= _against(subject, subjects, "vs_fp32", {**fp32, "backend": subject.about["backend"]})
    return row


def _against(subject: Subject, subjects: Sequence[Subject], name: str, wanted: Row) -> Row:
    """{name, name_low, name_high}: times faster per frame than the subject `wanted` describes, on the same device."""
    wanted = {**wanted, "device": subject.about["device"]}
    for other in subjects:
        if other is not subject and all(other.about[key] == value for key, value in wanted.items()):
            frames = subject.about["frames"] / other.about["frames"]
            return dict(zip((name, f"{name}_low", f"{name}_high"), (frames * r for r in ratio(other, subject)),
                            strict=True))
    return {}


def _add_memory(rows: list[Row], run: Path, threads: int, console: Console) -> None:
    """memory_mb and runtime_mb of CPU rows at batch 1; stages inside the generator share its process."""
    with console.status("peak memory, one process each"):
        for row in rows:
            if row["device"] != "cpu" or row["batch"] != 1 or row["stage"] in ("vae_encode", "transformer"):
                continue
            kind: Kind
            if row["stage"] != "student":
                kind, path = row["stage"], run
            elif row["backend"] == "torch":
                kind, path = "student", run / "student"
            else:
                kind, path = "onnx", run / "export" / row["artefact"]
            row |= peak_memory(kind, path, threads)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
