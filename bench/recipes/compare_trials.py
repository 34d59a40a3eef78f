"""False alarms and misses of `vega3d bench compare`: the experiment behind its noise rule.

    python -m bench.recipes.compare_trials MODEL.onnx [--trials 100] [--out OUT.json]

Each trial times one file twice, a fresh session each, and a third time with work added to every
call. Rows: trial, what (again, slower), added (share of a call), the medians, and the verdict; the
first row counts them.
"""
import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from bench.artefacts import find
from bench.compare import compare_times
from bench.device import device_facts
from bench.latency.backends import onnxruntime_cpu_case
from bench.latency.timing import BenchCase, TimingConfig, summary, time_cases
from records.results import Row, measured, save

TIMING = TimingConfig(seconds=1.5, iterations=200, rounds=10, warmup_seconds=0.1)
ADDED = (0.1, 0.2, 0.3)  # shares of a call, in turn


def trials(model: Path, count: int) -> list[Row]:
    rows: list[Row] = []
    for i in track(range(count), "trials", console=Console(stderr=True)):
        added = ADDED[i % len(ADDED)]
        first, second = _time_once(model), _time_once(model)
        slowed = _time_once(model, added * first["latency_ms"])
        for what, after in (("again", second), ("slower", slowed)):
            noise, verdict = compare_times(first, after)
            rows.append({"trial": i, "what": what, "added": added if what == "slower" else 0.0,
                         "load_1m": os.getloadavg()[0], "noise": noise, "verdict": verdict,
                         **{f"before_{key}": value for key, value in first.items()},
                         **{f"after_{key}": value for key, value in after.items()}})
    return [tally(rows), *rows]


def tally(rows: list[Row]) -> Row:
    """How many trials of the same file were called equal, and how many slower ones slower."""
    again = [row["verdict"] for row in rows if row["what"] == "again"]
    counts: Row = {"what": "tally", "trials": len(again), "equal": again.count("equal")}
    for added in ADDED:
        slower = [row["verdict"] for row in rows
                  if row["what"] == "slower" and row["added"] == added]
        counts[f"slower_{100 * added:.0f}_trials"] = len(slower)
        counts[f"slower_{100 * added:.0f}_seen"] = slower.count("worse")
    return counts


def _time_once(model: Path, extra_ms: float = 0.0) -> Row:
    """As a user's run: a new session, warmed up, timed."""
    (file,), _ = find(model)
    call = onnxruntime_cpu_case(file, torch.rand(1, 3, 224, 224).numpy(), 1).call
    case = BenchCase({}, _slowed(call, extra_ms) if extra_ms else call)
    time_cases([case], TIMING)
    return summary(case)


def _slowed(call: Callable[[], object], extra_ms: float) -> Callable[[], object]:
    """Adds CPU time, not waiting: other programs slow it down as they do the call itself."""
    def slowed() -> None:
        call()
        end = time.thread_time_ns() + round(extra_ms * 1e6)
        while time.thread_time_ns() < end:
            pass
    return slowed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("bench/results/compare_trials.json"))
    args = parser.parse_args()
    env, rows = device_facts(), trials(args.model, args.trials)
    env["load_1m_after"] = device_facts()["load_1m"]
    command = "python -m bench.recipes.compare_trials"
    save(measured(args.out.stem, rows, env, command), args.out)
    print(rows[0])


if __name__ == "__main__":
    main()
