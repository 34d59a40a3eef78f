"""Energy of a call: how far a counter of joules moves while the call repeats.

Counters move in steps (NVML's about ten a second), so both ends are taken just after one moved.
"""
import time
from collections.abc import Callable

from records.results import Row

CHECK_SECONDS = 0.004  # of calls between two looks at the counter


def energy(call: Callable[[], object], joules: Callable[[], float | None],
           wait: Callable[[], object], seconds: float = 1.0) -> Row:
    """{energy_mj: millijoules a call, power_w: mean}, the device's whole draw, idle share included.

    joules: the counter, None where there is none (then the row is empty). wait: returns when all
    calls are done.
    """
    if joules() is None:
        return {}
    block = _calls_in(CHECK_SECONDS, call, wait)
    began: tuple[float, float] | None = None  # (seconds, joules) at the first step seen
    count, before, deadline = 0, joules(), time.perf_counter() + 3 * seconds
    while time.perf_counter() < deadline:
        for _ in range(block):
            call()
        wait()
        count += block
        now, held = time.perf_counter(), joules()
        if held is None or before is None or held == before:
            continue
        before = held
        if began is None:
            began, count = (now, held), 0
        elif now - began[0] >= seconds:
            used = held - began[1]
            return {"energy_mj": 1000 * used / count, "power_w": used / (now - began[0])}
    return {}


def _calls_in(seconds: float, call: Callable[[], object], wait: Callable[[], object]) -> int:
    call()
    wait()
    start = time.perf_counter()
    call()
    wait()
    return max(1, round(seconds / max(time.perf_counter() - start, 1e-6)))
