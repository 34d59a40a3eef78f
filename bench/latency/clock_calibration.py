"""Is the clock right? Work whose duration is known from elsewhere, timed as any model is.

spin: waits until another clock has moved on by a given time. product: one long run of many calls,
divided by their number; on a CPU the very calls that were timed, so that other programs are in
both. Rows of kind `timer`: work, truth_ms, latency_ms and error_percent, which is of the truth.
`python -m bench.latency.clock_calibration` writes bench/results/timer_cpu.json; the GPU's comes
from bench/h200/latency.py.
"""
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.artefacts import absent
from bench.device import device_facts
from bench.latency.gpu import captured
from bench.latency.timing import Device, Plan, Subject, measure, summary, timed_for
from records.results import Results, Row, save

SPIN_MS = 2.0
REPEATS = 100  # calls in the one long run
PLAN = Plan(seconds=0.6, iterations=200, rounds=5, warmup_seconds=0.2)
_SPIN = """extern "C" __global__ void spin() {
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do { asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); } while (now - start < NANOSECONDSull);
}"""


def cpu_yardsticks(plan: Plan = PLAN) -> list[Row]:
    """The wall clock against the kernel's raw clock, which nothing slews: inside each call, and
    around many of them."""
    a = np.random.default_rng(0).standard_normal((384, 384), np.float32)
    spin, product = _Spin(), Subject({}, lambda: a @ a)
    spins = timed_for(Subject({}, spin), plan.seconds)
    timed_for(product, plan.warmup_seconds)
    began = _raw_ms()
    products = timed_for(product, plan.seconds)
    around = (_raw_ms() - began) / len(products)
    return [
        _held_against("spin until CLOCK_MONOTONIC_RAW moved on", float(np.mean(spin.took)), spins),
        _held_against("float32 product, 384", around, products)
    ]


def _held_against(work: str, truth_ms: float, calls: np.ndarray) -> Row:
    """Means of the very same calls: on a machine shared with other work, medians of two clocks need
    not agree."""
    found = float(calls.mean())
    return {
        "kind": "timer", "work": work, "device": "cpu", "truth_ms": truth_ms, "latency_ms": found,
        "iterations": len(calls), "error_percent": 100 * (found / truth_ms - 1)
    }


def gpu_yardsticks(plan: Plan = PLAN) -> list[Row]:
    """CUDA events, call by call and graph by graph, against the GPU's nanosecond counter and a long
    run of products."""
    import torch

    a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    out = torch.empty_like(a)

    def product() -> "torch.Tensor":
        return torch.mm(a, a, out=out)

    replay, _ = captured(product)
    rows = [check("float16 product, 4096", product, "cuda", plan, _long_run_gpu(product)),
            check("float16 product, 4096, as a graph", replay, "cuda", plan, _long_run_gpu(replay))]
    try:
        spin = torch.cuda._compile_kernel(_SPIN.replace("NANOSECONDS", str(round(SPIN_MS * 1e6))),
                                          "spin")
    # torch before 2.9, or no NVRTC beside it
    except (AttributeError, RuntimeError, OSError, TypeError) as error:
        why = " ".join(str(error).split())[:200]
        return [
            *rows,
            absent("spin until %globaltimer moved on", why, "use a torch that brings NVRTC")
        ]
    return [
        check("spin until %globaltimer moved on", lambda: spin((1, 1, 1), (1, 1, 1)), "cuda", plan,
              SPIN_MS), *rows
    ]


def check(work: str, call: Callable[[], object], device: Device, plan: Plan,
          truth_ms: float) -> Row:
    """Times `call` as any row is timed, and says how far that is from `truth_ms`."""
    subject = Subject({"artefact": work}, call, device)
    measure([subject], plan)
    found = summary(subject)
    return {"kind": "timer", "work": work, "device": device, "truth_ms": truth_ms, **found,
            "error_percent": 100 * (found["latency_ms"] / truth_ms - 1)}


class _Spin:
    """Runs for SPIN_MS of the raw clock, and remembers how long that really was."""

    def __init__(self) -> None:
        self.took: list[float] = []

    def __call__(self) -> None:
        began = now = _raw_ms()
        while now - began < SPIN_MS:
            now = _raw_ms()
        self.took.append(now - began)


def _raw_ms() -> float:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) / 1e6


def _long_run_gpu(call: Callable[[], object]) -> float:
    """Milliseconds a call between one pair of events around all of them."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(REPEATS // 2):
        call()  # the clock is up, and the queue ahead of the GPU, when the first event is reached
    begin.record()
    for _ in range(REPEATS):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / REPEATS


def main() -> None:
    env, rows = device_facts(), cpu_yardsticks()
    for row in rows:
        print(
            f"{row['work']}: {row['latency_ms']:.4f} ms, truth {row['truth_ms']:.4f} "
            f"({row['error_percent']:+.2f} %)"
        )
    save(
        Results("timer_cpu", "python -m bench.latency.clock_calibration", str(env["commit"]), env,
                rows), Path("bench/results/timer_cpu.json"))


if __name__ == "__main__":
    main()
