"""What became slower, larger or worse between two result files by more than the noise. A shared
machine is slow in bursts: a row is slower only if its median, its 10th percentile and, on a CPU,
the CPU time of a call all are."""
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from records.results import Results, Row

# rows of equal values are compared
KEY = ("stage", "backend", "device", "precision", "batch", "launch", "threads")
MACHINE = ("cpu", "cores", "gpu", "device", "l4t")
SETTINGS = {  # of one machine, that decide its speed
    "power mode": "power_mode", "CPU governor": "cpu_governor",
    "GPU power limit": "gpu_power_limit", "GPU clock limit": "gpu_clocks_max_sm"}
MIN_CHANGE = 0.05      # share of a time that never counts as a change
DRIFTS = 1.0           # times the drift within the runs: what two runs may differ by
GROWTH = {"size_mb": 0.02, "memory_mb": 0.10, "energy_mj_per_frame": 0.10}
SCORES = {  # 1: more is better, -1: less is
    "delta1": 1, "miou": 1, "cosine_mean": 1, "fp32_cosine_mean": 1, "abs_rel": -1, "normal_deg": -1
}
SCORE_NOISE = {"fp32_cosine_mean": 0.0005, "cosine_mean": 0.002, "normal_deg": 0.2}
Outcome = Literal["equal", "better", "worse"]


@dataclass(frozen=True)
class Change:
    """One figure of one row in both files. noise: the share (of times and sizes) or the difference
    (of scores) that counts as equal."""
    row: str
    figure: str
    before: float
    after: float
    noise: float
    verdict: Outcome

    def __str__(self) -> str:
        moved = f"{self.after - self.before:+.3g}"
        if self.before:
            moved = f"{100 * (self.after / self.before - 1):+.1f} %"
        is_share = self.figure == "latency_ms" or self.figure in GROWTH
        noise = f"{100 * self.noise:.1f} %" if is_share else f"{self.noise:.2g}"
        return (f"{self.verdict:6} {self.row}: {self.figure} {self.before:.4g} -> "
                f"{self.after:.4g} ({moved}, noise {noise})")


def compare(before: Results, after: Results) -> tuple[list[Change], list[str]]:
    """Every figure that both files have; and, in words, rows of only one of them. Raises ValueError
    if they share no row."""
    old, new = _rows(before), _rows(after)
    shared = [key for key in old if key in new]
    if not shared:
        raise ValueError(f"compare: {before.name} and {after.name} share no row (backend, "
                         "precision, batch, stage); measure the same things twice")
    changes = [change for key in shared for change in _changes(_label(key), old[key], new[key])]
    unshared = [key for key in {**old, **new} if key not in shared]
    return changes, [f"only {'before' if key in old else 'after'}: {_label(key)}"
                     for key in unshared]


def same_machine(before: Results, after: Results) -> bool:
    """Whether both are of one kind of machine; otherwise no change can be blamed on the code."""
    return all(before.env.get(key) == after.env.get(key) for key in MACHINE)


def different_settings(before: Results, after: Results) -> list[str]:
    """In words: power mode, governor, limits of power and clocks that differ. Times depend on them.
    """
    old, new = _settings(before.env), _settings(after.env)
    return [f"{name} {old.get(name, 'unknown')} -> {new.get(name, 'unknown')}"
            for name in {**old, **new} if old.get(name) != new.get(name)]


def _settings(env: Mapping[str, Any]) -> dict[str, str]:
    """By name; a Jetson's file states them before and after the run, and both if they changed."""
    found: dict[str, dict[str, None]] = {}
    for state in (env, env.get("before"), env.get("after")):
        if not isinstance(state, dict):
            continue
        values = {name: str(state.get(key) or "") for name, key in SETTINGS.items()}
        for line in str(state.get("clocks") or "").splitlines():  # of jetson_clocks --show
            name, _, limits = line.partition(" ")
            if "MinFreq" in limits:
                values[f"clocks of {name.rstrip(':')}"] = re.sub(r" ?CurrentFreq=\d+", "", limits)
        for name, value in values.items():
            if value:
                found.setdefault(name, {})[" ".join(value.split())] = None
    return {name: ", then ".join(values) for name, values in found.items()}


def compare_times(before: Row, after: Row) -> tuple[float, Outcome]:
    """(noise as a share, outcome) of two rows' latency."""
    noise = max(MIN_CHANGE, DRIFTS * (_drift(before) ** 2 + _drift(after) ** 2) ** 0.5)
    median = after["latency_ms"] / before["latency_ms"]
    shares = [after[key] / before[key] for key in ("p10_ms", "busy_ms")
              if before.get(key) and after.get(key)]
    slower = median > 1 + noise and all(share > 1 + MIN_CHANGE for share in shares)
    faster = median < 1 / (1 + noise) and all(share < 1 / (1 + MIN_CHANGE) for share in shares)
    return noise, _outcome(slower, faster)


def _drift(row: Row) -> float:
    """Spread of a row's rounds as a share of its median; of its tail if it has no rounds."""
    if row.get("high_ms") is not None:
        return (row["high_ms"] - row["low_ms"]) / row["latency_ms"]
    return (row["p90_ms"] - row["latency_ms"]) / row["latency_ms"] if row.get("p90_ms") else 0.0


def _changes(label: str, before: Row, after: Row) -> Iterator[Change]:
    for figure in ("latency_ms", *GROWTH, *SCORES):
        old, new = before.get(figure), after.get(figure)
        if old is None or new is None or (figure not in SCORES and not (old and new)):
            continue
        if figure == "latency_ms":
            noise, outcome = compare_times(before, after)
        elif figure in GROWTH:
            noise = GROWTH[figure]
            outcome = _outcome(new / old > 1 + noise, new / old < 1 / (1 + noise))
        else:
            noise, gain = _score_noise(figure, before, after), SCORES[figure] * (new - old)
            outcome = _outcome(gain < -noise, gain > noise)
        yield Change(label, figure, old, new, noise, outcome)


def _outcome(worse: bool, better: bool) -> Outcome:
    return "worse" if worse else "better" if better else "equal"


def _score_noise(figure: str, before: Row, after: Row) -> float:
    """Half the width of the recorded 95 % interval, where there is one."""
    noise = SCORE_NOISE.get(figure, 0.005)
    for row in (before, after):
        low, high = (row.get(f"{figure}_vs_semantic_{end}") for end in ("low", "high"))
        if low is not None and high is not None:
            noise = max(noise, (high - low) / 2)
    return noise


def _rows(results: Results) -> dict[tuple, Row]:
    """Comparable rows by their key. A Jetson's rows name neither stage nor backend: engines."""
    found: dict[tuple, Row] = {}
    for row in results.rows:
        if "features" in row and row.get("kind", "accuracy") == "accuracy":
            found.setdefault(("accuracy", row["features"], row.get("seed", 0)), row)
        elif row.get("latency_ms") and row.get("kind", "latency") in ("latency", "preprocess"):
            identity = {"stage": "student", "backend": "trt", "device": "cuda", **row}
            found.setdefault(tuple(identity.get(key) for key in KEY), row)
    return found


def _label(key: Sequence[object]) -> str:
    if key[0] == "accuracy":
        return f"{key[1]}, seed {key[2]}"
    stage, backend, device, precision, batch, launch, _ = key
    label = f"{stage} {precision} on {backend} ({device}), batch {batch}"
    return f"{label}, {launch}" if launch else label
