"""The clock: several things timed in turn, so that a machine that drifts drifts under all of them alike.

In each round every subject runs a block of calls, the order reversed every other round; a block begins with an untimed
call that brings its weights back into the caches. Speed-ups are ratios of two subjects' medians within a round.
"""
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Device = Literal["cpu", "cuda"]
FEWEST = 3  # calls of even the slowest subject


@dataclass(frozen=True)
class Plan:
    """How long to measure. A row is done at `iterations` calls or `seconds` of them, whichever comes first."""
    seconds: float = 2.0
    iterations: int = 200
    rounds: int = 10
    warmup_seconds: float = 0.3

    def __post_init__(self) -> None:
        for name in ("seconds", "iterations", "rounds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"bench: {name} is {getattr(self, name)}, expected more than 0")


@dataclass
class Subject:
    """Something to time: `call` runs it once; `about` is what its row says besides times."""
    about: dict[str, Any]
    call: Callable[[], object]
    device: Device = "cpu"
    rounds: list[np.ndarray] = field(default_factory=list)  # ms of each call, one array a round; empty: sat it out

    @property
    def ms(self) -> np.ndarray:
        return np.concatenate(self.rounds)


def measure(subjects: Sequence[Subject], plan: Plan, progress: Callable[[], object] = lambda: None) -> None:
    """Fills each subject's `rounds`. `progress` is called after every round."""
    blocks = [_blocks(_warm_up(subject, plan), plan) for subject in subjects]
    with _no_collection():
        for i in range(plan.rounds):
            turns = list(zip(subjects, blocks, strict=True))
            for subject, calls in turns if i % 2 == 0 else reversed(turns):
                subject.rounds.append(_block(subject, calls[i]))
            progress()


def summary(ms: np.ndarray) -> dict[str, float | int]:
    """What a row keeps of its calls: median, tails, and the width of the middle half."""
    low, median, high, p90, p99 = np.percentile(ms, [25, 50, 75, 90, 99])
    return {"latency_ms": float(median), "p90_ms": float(p90), "p99_ms": float(p99), "iqr_ms": float(high - low),
            "iterations": len(ms)}


def ratio(slow: Subject, fast: Subject) -> tuple[float, float, float]:
    """How many times faster `fast` is: (median, 10th, 90th percentile) over the rounds that timed both.

    Raises ValueError if no round did.
    """
    pairs = [np.median(a) / np.median(b) for a, b in zip(slow.rounds, fast.rounds, strict=True) if len(a) and len(b)]
    if not pairs:
        raise ValueError("ratio: no round timed both; measure them in one call")
    low, median, high = np.percentile(pairs, [10, 50, 90])
    return float(median), float(low), float(high)


def _warm_up(subject: Subject, plan: Plan) -> float:
    """Seconds a call takes once warm: the best of at least two."""
    best, started = math.inf, time.perf_counter()
    for i in range(1000):
        best = min(best, _timed(subject) / 1000)
        if i >= 1 and time.perf_counter() - started > plan.warmup_seconds:
            break
    return max(best, 1e-9)


def _blocks(seconds_a_call: float, plan: Plan) -> list[int]:
    """Calls in each round: even, or, for something slow, one call in some of the rounds."""
    calls = min(plan.iterations, max(FEWEST, math.ceil(plan.seconds / seconds_a_call)))
    edges = np.linspace(0, calls, plan.rounds + 1).round().astype(int)
    return np.diff(edges).tolist()


def _block(subject: Subject, calls: int) -> np.ndarray:
    if calls > 1:
        subject.call()  # untimed: whoever ran before owned the caches
    return np.array([_timed(subject) for _ in range(calls)])


def _timed(subject: Subject) -> float:
    """Milliseconds of one call: wall clock, or between two CUDA events on the current stream."""
    if subject.device == "cpu":
        start = time.perf_counter_ns()
        subject.call()
        return (time.perf_counter_ns() - start) / 1e6
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    subject.call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


@contextmanager
def _no_collection() -> Iterator[None]:
    # a collection in the middle of a call is Python's time, not the model's
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
