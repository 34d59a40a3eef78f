"""A sustained run: whether latency stays constant over minutes of load, and what slows it."""
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.latency.timing import BenchCase, time_for
from records.results import Row

INTERVALS = 20
IDENTITY = ("artefact", "sha256", "backend", "device", "precision", "batch", "launch")
STATES = ("temperature_c", "sm_mhz", "cpu_mhz", "slowed_by", "throttle_count", "load_1m")


def soak(case: BenchCase, seconds: float, state: Callable[[], dict[str, Any]],
         progress: Callable[[], object] = lambda: None) -> list[Row]:
    """Calls without a pause for `seconds`: one row of kind `soak`, INTERVALS of `soak_interval`.
    first_ms, last_ms: medians of the first and the last tenth. state: clocks, temperature_c,
    slowed_by, added to each interval."""
    intervals: list[Row] = []
    blocks: list[np.ndarray] = []
    began = time.monotonic()
    for _ in range(INTERVALS):
        blocks.append(time_for(case, seconds / INTERVALS))
        intervals.append({
            "kind": "soak_interval", "artefact": case.info["artefact"],
            "backend": case.info["backend"], "at_s": time.monotonic() - began,
            "latency_ms": float(np.median(blocks[-1])),
            "p99_ms": float(np.percentile(blocks[-1], 99)), **state()
        })
        progress()
    tenth = max(1, INTERVALS // 10)
    first = float(np.median(np.concatenate(blocks[:tenth])))
    last = float(np.median(np.concatenate(blocks[-tenth:])))
    states: dict[str, list[Any]] = {}
    for key in STATES:
        states[key] = [row[key] for row in intervals if row.get(key) is not None]
    total: Row = {
        "kind": "soak", **{key: case.info.get(key) for key in IDENTITY},
        "seconds": time.monotonic() - began, "calls": sum(map(len, blocks)), "first_ms": first,
        "last_ms": last, "slowdown": last / first,
        "slowest_ms": max(row["latency_ms"] for row in intervals),
        "hottest_c": max(states["temperature_c"], default=None),
        "slowest_mhz": min(states["sm_mhz"] or states["cpu_mhz"], default=None),
        "slowed_by": _slowed_by(states)
    }
    return [total, *intervals]


def _slowed_by(states: dict[str, list[Any]]) -> str:
    """The GPU's throttle reasons, thermal throttles of the CPU, and load by other programs."""
    reasons = sorted({reason for reason in states["slowed_by"] if reason != "nothing"})
    throttles, load = states["throttle_count"], max(states["load_1m"], default=0.0)
    if throttles and throttles[-1] > throttles[0]:
        reasons.append(f"{throttles[-1] - throttles[0]} thermal throttles")
    if load - 1 > 0.5 * (os.cpu_count() or 1):
        reasons.append(f"other programs (load {load:.1f})")
    return ", ".join(reasons) or "nothing seen"
