"""95 % intervals by paired bootstrap over rooms; clips of one room are drawn together."""
import re
from collections.abc import Mapping, Sequence

import numpy as np

from records.results import Row

RESAMPLES = 4000
METRICS = ("delta1", "normal_deg")  # recovery is the smaller of theirs
Values = dict[str, np.ndarray]      # metric -> [clips]


def room_of(clip_id: str) -> str:
    """Clips that differ only in a trailing _NUMBER show one room."""
    return re.sub(r"_\d+$", "", clip_id)


class RoomBootstrap:
    """Resamples of rooms (`room_of`). ids: of the clips."""

    def __init__(self, ids: Sequence[str], seed: int = 0):
        names, room_of_clip = np.unique([room_of(clip_id) for clip_id in ids], return_inverse=True)
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(len(names), [1 / len(names)] * len(names), RESAMPLES)
        self.count = len(names)
        self._weights = draws[:, room_of_clip]  # [R,clips]

    def means(self, values: np.ndarray) -> np.ndarray:
        """[R]: the mean of [clips], or of [training seeds,clips], in every resample. Seeds are
        drawn too: else one failed training would look like a certain loss."""
        means = self._weights @ np.atleast_2d(values).T / self._weights.sum(1, keepdims=True)
        seeds = means.shape[1]
        draws = np.random.default_rng(1).multinomial(seeds, [1 / seeds] * seeds, len(means))
        return (draws * means).sum(1) / seeds

    def difference(self, a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
        """Mean of a - b and its interval, which is (-inf, inf) for a single room."""
        low, high = interval(self.means(a - b)) if self.count > 1 else (-np.inf, np.inf)
        return float((a - b).mean()), low, high


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the samples."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def interval_fields(name: str, mean: float, low: float, high: float) -> Row:
    """A row's three fields of one figure: NAME, NAME_low, NAME_high."""
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def add_intervals(rows: Sequence[Row], per_clip: Mapping[str, Sequence[Row]],
                  ids: Sequence[str]) -> None:
    """Adds to each row, in place, each with _low and _high: METRIC_vs_semantic, the mean difference
    to semantic only; METRIC_vs_fp32, of an exported file to the torch student; and bounds of its
    recovery where the teacher surely gains. per_clip: METRICS of every clip of `ids`, by the row's
    `features`."""
    rooms = RoomBootstrap(ids)
    values: dict[str, Values] = {}
    for name, clips in per_clip.items():
        values[name] = {}
        for metric in METRICS:
            values[name][metric] = np.array([clip[metric] for clip in clips])
    for row in rows:
        name = row["features"]
        if name not in values:
            continue
        row |= {"clips": len(ids), "rooms": rooms.count}
        baselines = {"semantic": "semantic_only"} if name != "semantic_only" else {}
        if "fp32_cosine_mean" in row:
            baselines["fp32"] = "student_fp32"
        for metric in METRICS:
            for label, baseline in baselines.items():
                difference = rooms.difference(values[name][metric], values[baseline][metric])
                row |= interval_fields(f"{metric}_vs_{label}", *difference)
        if "recovery" in row:
            row |= _recovery(values[name], values["teacher"], values["semantic_only"], rooms)


def _recovery(values: Values, teacher: Values, semantic: Values, rooms: RoomBootstrap) -> Row:
    """Bounds of recovery_METRIC and of the smaller of them; none where the gain may be zero."""
    bounds: Row = {}
    shares = []
    for metric in METRICS:
        gain = rooms.means(teacher[metric] - semantic[metric])  # [R]
        low, high = interval(gain)
        if rooms.count > 1 and not low <= 0 <= high:
            shares.append(rooms.means(values[metric] - semantic[metric]) / gain)
            bounds |= _bounds(f"recovery_{metric}", shares[-1])
    if len(shares) == len(METRICS):
        bounds |= _bounds("recovery", np.minimum(*shares))
    return bounds


def _bounds(name: str, samples: np.ndarray) -> Row:
    low, high = interval(samples)
    return {f"{name}_low": low, f"{name}_high": high}
