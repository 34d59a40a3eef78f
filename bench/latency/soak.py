"""A sustained run: does the machine still answer as quickly after minutes of work, and if not, what
slowed it?"""
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.latency.timing import Subject, timed_for
from records.results import Row

INTERVALS = 20  # rows of the course, however long the run


def soak(subject: Subject, seconds: float, state: Callable[[], dict[str, Any]],
         progress: Callable[[], object] = lambda: None) -> list[Row]:
    """Calls without a pause for `seconds`. One row of kind `soak`, then one of kind `soak_interval`
    for each twentieth.

    first_ms, last_ms: medians of the first and the last tenth; slowdown: their ratio; slowest_ms:
    the slowest interval's median. `state` is asked between intervals: its temperature_c, sm_mhz,
    slowed_by … are in their rows.
    """
    course: list[Row] = []
    blocks: list[np.ndarray] = []
    began = time.monotonic()
    for _ in range(INTERVALS):
        blocks.append(timed_for(subject, seconds / INTERVALS))
        course.append({
            "kind": "soak_interval", "artefact": subject.about["artefact"],
            "backend": subject.about["backend"], "at_s": time.monotonic() - began,
            "latency_ms": float(np.median(blocks[-1])),
            "p99_ms": float(np.percentile(blocks[-1], 99)), **state()
        })
        progress()
    tenth = max(1, INTERVALS // 10)
    first, last = (float(np.median(np.concatenate(part)))
                   for part in (blocks[:tenth], blocks[-tenth:]))
    seen = {key: [row[key] for row in course if row.get(key) is not None] for key in
            ("temperature_c", "sm_mhz", "cpu_mhz", "slowed_by", "throttle_count", "load_1m")}
    whole: Row = {
        "kind": "soak", **{
            key: subject.about.get(key)
            for key in ("artefact", "sha256", "backend", "device", "precision", "batch", "launch")
        }, "seconds": time.monotonic() - began, "calls": sum(map(len, blocks)), "first_ms": first,
        "last_ms": last, "slowdown": last / first, "slowest_ms": max(row["latency_ms"]
                                                                     for row in course),
        "hottest_c": max(seen["temperature_c"], default=None),
        "slowest_mhz": min(seen["sm_mhz"] or seen["cpu_mhz"],
                           default=None), "slowed_by": _slowed_by(seen)
    }
    return [whole, *course]


def _slowed_by(seen: dict[str, list[Any]]) -> str:
    """What the states tell: the GPU's own reasons, thermal throttles counted, or other programs on
    our cores."""
    told = sorted({why for why in seen["slowed_by"] if why != "nothing"})
    throttles, load = seen["throttle_count"], max(seen["load_1m"], default=0.0)
    if throttles and throttles[-1] > throttles[0]:
        told.append(f"{throttles[-1] - throttles[0]} thermal throttles")
    if load - 1 > 0.5 * (os.cpu_count() or 1):
        told.append(f"other programs (load {load:.1f})")
    return ", ".join(told) or "nothing seen"
