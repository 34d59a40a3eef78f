"""Checks the clock: work of a known duration, timed as any model is: spin, until another clock has
advanced by a given time; and product, one long run divided by its calls. `python -m
bench.latency.clock_calibration` writes bench/results/timer_cpu.json; with --gpu OUT, the GPU's and
the CPU's rows to OUT."""
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro

from bench.device import device_facts
from bench.latency.gpu import capture_graph
from bench.latency.timing import BenchCase, DeviceType, TimingConfig, summary, time_cases, time_for
from records.results import Row, measured, save

SPIN_MS = 2.0
REPEATS = 100  # calls in the one long run
TIMING = TimingConfig(seconds=0.6, iterations=200, rounds=5, warmup_seconds=0.2)
_SPIN = """extern "C" __global__ void spin() {
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    } while (now - start < NANOSECONDSull);
}"""


def cpu_calibration(config: TimingConfig = TIMING) -> list[Row]:
    """The wall clock against CLOCK_MONOTONIC_RAW, inside each call and around many of them."""
    a = np.random.default_rng(0).standard_normal((384, 384), np.float32)
    spin, product = _Spin(), BenchCase({}, lambda: a @ a)
    spins = time_for(BenchCase({}, spin), config.seconds)
    time_for(product, config.warmup_seconds)
    began = _raw_ms()
    products = time_for(product, config.seconds)
    product_ms = (_raw_ms() - began) / len(products)
    return [_cpu_row("spin until CLOCK_MONOTONIC_RAW moved on", float(np.mean(spin.took)), spins),
            _cpu_row("float32 product, 384", product_ms, products)]


def gpu_calibration(config: TimingConfig = TIMING) -> list[Row]:
    """CUDA events, by call and by graph, against %globaltimer and a long run of products."""
    import torch

    a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    out = torch.empty_like(a)

    def product() -> "torch.Tensor":
        return torch.mm(a, a, out=out)

    replay, _ = capture_graph(product)
    source = _SPIN.replace("NANOSECONDS", str(round(SPIN_MS * 1e6)))
    spin = torch.cuda._compile_kernel(source, "spin")
    return [check("spin until %globaltimer moved on", lambda: spin((1, 1, 1), (1, 1, 1)), "cuda",
                  config, SPIN_MS),
            check("float16 product, 4096", product, "cuda", config, _long_run_gpu(product)),
            check("float16 product, 4096, as a graph", replay, "cuda", config,
                  _long_run_gpu(replay))]


def check(work: str, call: Callable[[], object], device: DeviceType, config: TimingConfig,
          truth_ms: float) -> Row:
    """Times `call` as any row is timed, and its distance from `truth_ms`."""
    case = BenchCase({"artefact": work}, call, device)
    time_cases([case], config)
    return _row(work, device, truth_ms, summary(case))


def _row(work: str, device: DeviceType, truth_ms: float, times: Row) -> Row:
    return {"kind": "timer", "work": work, "device": device, "truth_ms": truth_ms, **times,
            "error_percent": 100 * (times["latency_ms"] / truth_ms - 1)}


def _cpu_row(work: str, truth_ms: float, calls: np.ndarray) -> Row:
    """Means of the very same calls: on a shared machine, medians of two clocks need not agree."""
    return _row(work, "cpu", truth_ms,
                {"latency_ms": float(calls.mean()), "iterations": len(calls)})


class _Spin:
    """Waits for SPIN_MS of the raw clock, and records how long that really was."""

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
        call()  # clocks have ramped up, and calls are queued, when the first event is reached
    begin.record()
    for _ in range(REPEATS):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / REPEATS


def main(gpu: Path | None = None) -> None:
    """gpu: calibrate the GPU too, and write here."""
    path, env = gpu or Path("bench/results/timer_cpu.json"), device_facts()
    rows = [*(gpu_calibration() if gpu else []), *cpu_calibration()]
    for row in rows:
        print(f"{row['work']}: {row['latency_ms']:.4f} ms, truth {row['truth_ms']:.4f} "
              f"({row['error_percent']:+.2f} %)")
    save(measured(path.stem, rows, env), path)


if __name__ == "__main__":
    tyro.cli(main)
