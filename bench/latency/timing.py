"""The clock: several things timed in turn, so that a machine that drifts drifts under all of them
alike.

In each round every subject runs a block of calls, the order reversed every other round; a block
begins with an untimed call that brings its weights back into the caches. Speed-ups are ratios of
two subjects' medians within a round.
"""
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np

Device = Literal["cpu", "cuda"]
FEWEST = 3  # calls of even the slowest subject


@dataclass(frozen=True)
class Plan:
    """How long to measure. A row is done at `iterations` calls or `seconds` of them, whichever
    comes first."""
    seconds: float = 3.0
    iterations: int = 200
    rounds: int = 10
    warmup_seconds: float = 0.3

    def __post_init__(self) -> None:
        for name in ("seconds", "iterations", "rounds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"bench: {name} is {getattr(self, name)}, expected more than 0")


@dataclass
class Subject:
    """Something to time: `call` runs it once; `about` is what its row says besides times. `host`:
    the same from host memory to host memory, waited for, where that is more than `call`."""
    about: dict[str, Any]
    call: Callable[[], object]
    device: Device = "cpu"
    host: Callable[[], object] | None = None
    # ms of each call, one array a round; empty: sat it out
    rounds: list[np.ndarray] = field(default_factory=list)
    # of rounds on a CPU: ms of processor time a call
    busy: list[float] = field(default_factory=list)

    @property
    def ms(self) -> np.ndarray:
        return np.concatenate(self.rounds)


def measure(subjects: Sequence[Subject], plan: Plan,
            progress: Callable[[], object] = lambda: None) -> None:
    """Fills each subject's `rounds`. `progress` is called after every round."""
    blocks = [_blocks(_warm_up(subject, plan), plan) for subject in subjects]
    with _no_collection():
        for i in range(plan.rounds):
            turns = list(zip(subjects, blocks, strict=True))
            for subject, calls in turns if i % 2 == 0 else reversed(turns):
                started = time.process_time_ns()
                subject.rounds.append(_block(subject, calls[i]))
                if subject.device == "cpu" and calls[i]:
                    subject.busy.append(
                        (time.process_time_ns() - started) / 1e6 / (calls[i] + (calls[i] > 1)))
            progress()


def timed_for(subject: Subject, seconds: float) -> np.ndarray:
    """Milliseconds of each call, as many as `seconds` hold, without a pause between them."""
    done: list[np.ndarray] = []
    began, at_once = time.perf_counter(), 1
    while not done or time.perf_counter() - began < seconds:
        done.append(_timed(subject, at_once))
        # look up every 0.1 s
        at_once = max(1, min(1000, round(100 / max(float(np.median(done[-1])), 1e-3))))
    return np.concatenate(done)


def summary(subject: Subject) -> dict[str, float | int]:
    """What a row keeps of its calls: median, tails, the width of the middle half, the quickest
    tenth; low_ms and high_ms, the 10th and 90th percentile of the rounds' medians: how far the
    machine itself drifted; and on a CPU busy_ms, the processor time of a call in the least
    disturbed quarter of the rounds: what other programs take is not in it."""
    ms, rounds = subject.ms, subject.rounds
    quick, low, median, high, p90, p99 = np.percentile(ms, [10, 25, 50, 75, 90, 99])
    least, most = np.percentile([np.median(r) for r in rounds if len(r)], [10, 90])
    return {
        "latency_ms": float(median), "p90_ms": float(p90), "p99_ms": float(p99),
        "iqr_ms": float(high - low), "p10_ms": float(quick), "low_ms": float(least),
        "high_ms": float(most), "iterations": len(ms),
        **({"busy_ms": float(np.percentile(subject.busy, 25))} if subject.busy else {})
    }


def ratio(slow: Subject, fast: Subject) -> tuple[float, float, float]:
    """How many times faster `fast` is: (median, 10th, 90th percentile) over the rounds that timed
    both.

    Raises ValueError if no round did.
    """
    pairs = [
        np.median(a) / np.median(b) for a, b in zip(slow.rounds, fast.rounds, strict=True)
        if len(a) and len(b)
    ]
    if not pairs:
        raise ValueError("ratio: no round timed both; measure them in one call")
    low, median, high = np.percentile(pairs, [10, 50, 90])
    return float(median), float(low), float(high)


def _warm_up(subject: Subject, plan: Plan) -> float:
    """Seconds a call takes once warm: the best of at least two."""
    best, started = math.inf, time.perf_counter()
    for i in range(1000):
        best = min(best, _timed(subject, 1)[0] / 1000)
        if i >= 1 and time.perf_counter() - started > plan.warmup_seconds:
            break
    return max(best, 1e-9)


def _blocks(seconds_a_call: float, plan: Plan) -> list[int]:
    """Calls in each round: even, or, for something slow, one call in some of the rounds."""
    calls = min(plan.iterations, max(FEWEST, math.ceil(plan.seconds / seconds_a_call)))
    edges = np.linspace(0, calls, plan.rounds + 1).round().astype(int)
    return np.diff(edges).tolist()


def _block(subject: Subject, calls: int) -> np.ndarray:
    if calls > 1 or (calls and subject.device == "cuda"):
        # untimed: whoever ran before owned the caches, and a GPU that idles waits for its first
        # launch
        subject.call()
    return _timed(subject, calls)


def _timed(subject: Subject, calls: int) -> np.ndarray:
    """Milliseconds of each of `calls`, [calls]."""
    if subject.device == "cuda":
        return _between_events(subject.call, calls)
    ms = np.empty(calls)
    for i in range(calls):
        start = time.perf_counter_ns()
        subject.call()
        ms[i] = (time.perf_counter_ns() - start) / 1e6
    return ms


def _between_events(call: Callable[[], object], calls: int) -> np.ndarray:
    """From each CUDA event to the next, the calls queued one behind another as trtexec does: GPU
    compute time. What the host needs to ask for it counts only where the GPU really waits for the
    host."""
    import torch

    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    events[-1].synchronize()
    return np.array([begin.elapsed_time(end) for begin, end in pairwise(events)])


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
