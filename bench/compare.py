"""Two result files side by side: what became slower, larger or worse by more than the noise that
was recorded.

A machine that does other work besides is slow in bursts, so a row counts as slower only where its
median left the noise of both files *and* its quickest tenth of the calls moved as well, *and*, on a
CPU, the processor time of a call: other programs add to a call's time, but hardly to the work that
it is.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from records.results import Results, Row

# rows of equal values are compared
KEY = ("stage", "backend", "device", "precision", "batch", "launch", "threads")
MACHINE = ("cpu", "cores", "gpu", "device", "l4t", "power_mode")
LEAST = 0.05           # share: a smaller change of time is never called one
DRIFTS = 1.0           # times the drift within the runs: what two runs may differ by
GROWTH = {"size_mb": 0.02, "memory_mb": 0.10}
SCORES = {  # 1: more is better, -1: less is
    "delta1": 1, "miou": 1, "cosine_mean": 1, "fp32_cosine_mean": 1, "abs_rel": -1, "normal_deg": -1
}
SCORE_NOISE = {"fp32_cosine_mean": 0.0005, "cosine_mean": 0.002, "normal_deg": 0.2}
Verdict = Literal["equal", "better", "worse"]


@dataclass(frozen=True)
class Change:
    """One figure of one row in both files. noise: the share (of times and sizes) or the difference
    it may move by."""
    row: str
    figure: str
    before: float
    after: float
    noise: float
    verdict: Verdict

    def __str__(self) -> str:
        moved = f"{100 * (self.after / self.before - 1):+.1f} %" if self.before else f"{self.after - self.before:+.3g}"
        return (
            f"{self.verdict:6} {self.row}: {self.figure} {self.before:.4g} -> {self.after:.4g} "
            f"({moved}, noise "
            f"{f'{100 * self.noise:.1f} %' if self.figure.endswith(('_ms', '_mb')) else f'{self.noise:.2g}'})"
        )


def compare(before: Results, after: Results) -> tuple[list[Change], list[str]]:
    """Every figure that both files have; and, in words, rows of only one of them.

    Raises ValueError if they share no row.
    """
    old, new = _rows(before), _rows(after)
    shared = [key for key in old if key in new]
    if not shared:
        raise ValueError(
            f"compare: {before.name} and {after.name} share no row (backend, precision, batch, "
            "stage); measure the same things twice")
    changes = [change for key in shared for change in _changes(_label(key), old[key], new[key])]
    lone = [key for key in {**old, **new} if key not in shared]
    alone = [f"only {'before' if key in old else 'after'}: {_label(key)}" for key in lone]
    return changes, alone


def same_machine(before: Results, after: Results) -> bool:
    """Whether both were measured on one kind of machine; else their ratio says nothing about the
    code."""
    return all(before.env.get(key) == after.env.get(key) for key in MACHINE)


def compare_times(before: Row, after: Row) -> tuple[float, Verdict]:
    """(noise as a share, verdict) of two rows' latency."""
    noise = max(LEAST, DRIFTS * (_drift(before) ** 2 + _drift(after) ** 2) ** 0.5)
    median = after["latency_ms"] / before["latency_ms"]
    least = [
        after[key] / before[key] for key in ("p10_ms", "busy_ms")
        if before.get(key) and after.get(key)
    ]
    if median > 1 + noise and all(share > 1 + LEAST for share in least):
        return noise, "worse"
    return noise, "better" if median < 1 / (1 + noise) and all(share < 1 / (1 + LEAST)
                                                               for share in least) else "equal"


def _drift(row: Row) -> float:
    """How far a row's own rounds spread, as a share of its median; by its tail where it has no
    rounds."""
    if row.get("high_ms") is not None:
        return (row["high_ms"] - row["low_ms"]) / row["latency_ms"]
    return (row["p90_ms"] - row["latency_ms"]) / row["latency_ms"] if row.get("p90_ms") else 0.0


def _changes(label: str, before: Row, after: Row) -> Iterator[Change]:
    if before.get("latency_ms") and after.get("latency_ms"):
        noise, verdict = compare_times(before, after)
        yield Change(label, "latency_ms", before["latency_ms"], after["latency_ms"], noise, verdict)
    for figure, noise in GROWTH.items():
        if before.get(figure) and after.get(figure):
            share = after[figure] / before[figure]
            verdict = "worse" if share > 1 + noise else "better" if share < 1 / (1 +
                                                                                 noise) else "equal"
            yield Change(label, figure, before[figure], after[figure], noise, verdict)
    for figure, sign in SCORES.items():
        if before.get(figure) is not None and after.get(figure) is not None:
            noise = _score_noise(figure, before, after)
            gain = sign * (after[figure] - before[figure])
            verdict = "worse" if gain < -noise else "better" if gain > noise else "equal"
            yield Change(label, figure, before[figure], after[figure], noise, verdict)


def _score_noise(figure: str, before: Row, after: Row) -> float:
    """Half the width of the recorded 95 % interval, where there is one."""
    halves = [(row[f"{figure}_vs_semantic_high"] - row[f"{figure}_vs_semantic_low"]) / 2
              for row in (before, after) if row.get(f"{figure}_vs_semantic_high") is not None
              and row.get(f"{figure}_vs_semantic_low") is not None]
    return max([SCORE_NOISE.get(figure, 0.005), *halves])


def _rows(results: Results) -> dict[tuple, Row]:
    """What can be compared, by what it is; of a Jetson's file the engines, which name neither stage
    nor backend."""
    found: dict[tuple, Row] = {}
    for row in results.rows:
        if "features" in row and row.get("kind", "accuracy") == "accuracy":
            found.setdefault(("accuracy", row["features"], row.get("seed", 0)), row)
        elif row.get("latency_ms") and row.get("kind", "latency") in ("latency", "preprocess"):
            known = {"stage": "student", "backend": "trt", "device": "cuda", **row}
            found.setdefault(tuple(known.get(key) for key in KEY), row)
    return found


def _label(key: Sequence[object]) -> str:
    if key[0] == "accuracy":
        return f"{key[1]}, seed {key[2]}"
    stage, backend, device, precision, batch, launch, _ = key
    return f"{stage} {precision} on {backend} ({device}), batch {batch}" + (f", {launch}"
                                                                            if launch else "")
