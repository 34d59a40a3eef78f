"""Interleaved timing: in each round every case runs a block of calls, in reversed order every other
round, so that drift of the machine affects all alike. Speed-ups are ratios of two cases' medians
within a round."""
import gc
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np

from records.options import Batch, Count, Range, Seconds, check_ranges
from records.results import Row
from records.timing import interleave, sample_block

DeviceType = Literal["cpu", "cuda"]
MIN_CALLS = 3  # of even the slowest case


@dataclass(frozen=True)
class TimingConfig:
    """When a row is complete: at `iterations` calls or `seconds` of them, whichever is first."""
    seconds: Annotated[float, Range(0, 1e6, above=True)] = 3.0
    iterations: Count = 200
    rounds: Count = 10
    warmup_seconds: Seconds = 0.3

    def __post_init__(self) -> None:
        check_ranges(self, "timing")


@dataclass(frozen=True)
class LatencyConfig:
    """How latency is measured. Importable without torch, for `vega3d bench --help`."""
    timing: TimingConfig = field(default_factory=TimingConfig)
    backends: str = ""              # comma-separated; default: all but compile, which takes minutes
    threads: Annotated[int, Range(1, 1024)] = 1  # CPU threads of every backend
    batch: tuple[Batch, ...] = (1,)  # frames a call of the student
    device: Literal["auto", "cpu", "cuda"] = "auto"  # the teacher's; auto: a GPU if there is one
    teacher: bool = True            # of a run: time its teacher's stages too
    teacher_precision: tuple[Literal["run", "fp32", "bf16"], ...] = ("run",)  # run: the tap's
    memory: bool = True             # peak memory of each file, in a process of its own
    energy: bool = True             # of GPU rows: repeat each for a second beside the power meter
    crosscheck: bool = False        # time the files with trtexec and polygraphy too, if installed
    soak: str = ""                  # such as 10m: run the fastest student so long, log clocks

    def __post_init__(self) -> None:
        check_ranges(self, "bench", filled=("teacher_precision",))
        if not self.batch or len(set(self.batch)) < len(self.batch):
            raise ValueError(f"bench.batch is {self.batch}, expected one or more different numbers")
        if self.soak and not re.fullmatch(r"\d{1,6}(\.\d{1,6})?[smh]", self.soak):
            raise ValueError(f"bench: got soak {self.soak!r}, "
                             "expected a time such as 90s, 10m or 1h")

    @property
    def backend_names(self) -> list[str]:
        return [name.strip() for name in self.backends.split(",") if name.strip()]

    @property
    def soak_seconds(self) -> float:
        if not self.soak:
            return 0.0
        return float(self.soak[:-1]) * {"s": 1, "m": 60, "h": 3600}[self.soak[-1]]


@dataclass
class BenchCase:
    """Something to time. `call` runs it once; `info`: the fields of its row besides the times.
    host: the same from host memory to host memory, synchronised, where that is more than `call`."""
    info: Row
    call: Callable[[], object]
    device: DeviceType = "cpu"
    host: Callable[[], object] | None = None
    rounds: list[np.ndarray] = field(default_factory=list)  # ms of each call; empty: not its turn
    busy: list[float] = field(default_factory=list)         # CPU rounds: ms of CPU time a call

    @property
    def ms(self) -> np.ndarray:
        return np.concatenate(self.rounds)


Cases = tuple[list[BenchCase], list[Row]]  # what can be timed; `absent` rows for the rest


def joined(parts: Iterable[Cases]) -> Cases:
    parts = list(parts)
    return ([case for cases, _ in parts for case in cases],
            [gap for _, missing in parts for gap in missing])


def time_cases(cases: Sequence[BenchCase], config: TimingConfig,
               progress: Callable[[], object] = lambda: None) -> None:
    """Fills each case's `rounds`. `progress` is called after every round."""
    sizes = [_block_sizes(_warm_up(case, config), config) for case in cases]
    blocks = [partial(_run_block, case, size) for case, size in zip(cases, sizes, strict=True)]
    with _no_garbage_collection():
        interleave(blocks, config.rounds, progress)


def time_for(case: BenchCase, seconds: float) -> np.ndarray:
    """Milliseconds of each call, as many as fit in `seconds`, without a pause between them."""
    blocks: list[np.ndarray] = []
    began, calls = time.perf_counter(), 1
    while not blocks or time.perf_counter() - began < seconds:
        blocks.append(_time_calls(case, calls))
        # look at the clock every 0.1 s
        calls = max(1, min(1000, round(100 / max(float(np.median(blocks[-1])), 1e-3))))
    return np.concatenate(blocks)


def summary(case: BenchCase) -> dict[str, float | int]:
    """The times of a row. low_ms, high_ms: 10th and 90th percentile of the rounds' medians, the
    drift of the machine. busy_ms: CPU time of a call in the quietest quarter of the rounds, without
    the share that other programs take."""
    p10, p25, median, p75, p90, p99 = np.percentile(case.ms, [10, 25, 50, 75, 90, 99])
    medians = [np.median(block) for block in case.rounds if len(block)]
    low, high = np.percentile(medians, [10, 90])
    busy = {"busy_ms": float(np.percentile(case.busy, 25))} if case.busy else {}
    return {"latency_ms": float(median), "p90_ms": float(p90), "p99_ms": float(p99),
            "iqr_ms": float(p75 - p25), "p10_ms": float(p10), "low_ms": float(low),
            "high_ms": float(high), "iterations": len(case.ms), **busy}


def ratio(slow: BenchCase, fast: BenchCase) -> tuple[float, float, float]:
    """How many times faster `fast` is: (median, 10th, 90th percentile) over their common rounds.
    Raises ValueError if no round timed both."""
    ratios = [np.median(a) / np.median(b)
              for a, b in zip(slow.rounds, fast.rounds, strict=True) if len(a) and len(b)]
    if not ratios:
        raise ValueError("ratio: no round timed both; measure them in one call")
    low, median, high = np.percentile(ratios, [10, 50, 90])
    return float(median), float(low), float(high)


def _warm_up(case: BenchCase, config: TimingConfig) -> float:
    """Seconds a call takes once warm."""
    calls = sample_block(lambda: _time_calls(case, 1)[0] / 1000, 1, config.warmup_seconds,
                         time.perf_counter)
    return max(min(calls), 1e-9)


def _block_sizes(seconds_a_call: float, config: TimingConfig) -> list[int]:
    """Calls in each round: even; for a slow case, one call in some of the rounds."""
    calls = min(config.iterations, max(MIN_CALLS, math.ceil(config.seconds / seconds_a_call)))
    edges = np.linspace(0, calls, config.rounds + 1).round().astype(int)
    return np.diff(edges).tolist()


def _run_block(case: BenchCase, sizes: Sequence[int], round_index: int) -> None:
    calls, started = sizes[round_index], time.process_time_ns()
    warm = calls > 1 or (calls and case.device == "cuda")
    if warm:
        case.call()  # untimed: the caches hold the previous case's data, and an idle GPU is slow
    case.rounds.append(_time_calls(case, calls))
    if case.device == "cpu" and calls:
        case.busy.append((time.process_time_ns() - started) / 1e6 / (calls + warm))


def _time_calls(case: BenchCase, calls: int) -> np.ndarray:
    """Milliseconds of each of `calls`, [calls]."""
    if case.device == "cuda":
        return _between_events(case.call, calls)
    ms = np.empty(calls)
    for i in range(calls):
        start = time.perf_counter_ns()
        case.call()
        ms[i] = (time.perf_counter_ns() - start) / 1e6
    return ms


def _between_events(call: Callable[[], object], calls: int) -> np.ndarray:
    """GPU compute time, calls queued without waiting, as trtexec: launch overhead on the host
    counts only where the GPU really waits for the host."""
    import torch

    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    events[-1].synchronize()
    return np.array([begin.elapsed_time(end) for begin, end in pairwise(events)])


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
