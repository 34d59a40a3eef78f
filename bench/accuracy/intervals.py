"""95 % intervals by paired bootstrap over rooms: the clips of one share furniture and light, and
are drawn together."""
import re
from collections.abc import Mapping, Sequence

import numpy as np

from records.results import Row

RESAMPLES = 4000
METRICS = ("delta1", "normal_deg")  # those that make up the recovery


class Rooms:
    """Held-out clips, and how often each is drawn in every resample of their rooms.

    ids: clip ids; those that differ only in a trailing _NUMBER are of one room. Values given to the
    methods are one a clip, in the order of the ids.
    """

    def __init__(self, ids: Sequence[str], seed: int = 0):
        rooms = [re.sub(r"_\d+$", "", i) for i in ids]
        names = sorted(set(rooms))
        owner = np.array([names.index(room) for room in rooms])                    # [clips]
        drawn = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names),
                                                        RESAMPLES)
        self.count = len(names)
        self._weights = drawn[:, owner]                                            # [R,clips]

    def means(self, values: np.ndarray) -> np.ndarray:
        """The mean over clips in every resample, [R]."""
        return self._weights @ values / self._weights.sum(1)

    def difference(self, a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
        """Mean of a - b, clip by clip, and its interval. One room has no spread: its interval is
        the whole line."""
        low, high = interval(self.means(a - b)) if self.count > 1 else (-np.inf, np.inf)
        return float((a - b).mean()), low, high


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the samples."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def add_intervals(rows: Sequence[Row], per_clip: Mapping[str, Sequence[Row]],
                  ids: Sequence[str]) -> None:
    """Adds to each row, in place, and each with _low and _high:

    METRIC_vs_semantic, the mean over clips of its difference to semantic only; METRIC_vs_fp32,
    likewise, of an exported file (a row with fp32_cosine_mean) to the torch student; and the bounds
    of its recovery, where the teacher's own gain is surely not zero. per_clip: a row with METRICS
    for every clip of `ids`, by the `features` it belongs to.
    """
    rooms = Rooms(ids)
    clips = {
        name: {m: np.array([row[m] for row in values])
               for m in METRICS}
        for name, values in per_clip.items()
    }
    for row in rows:
        name = row["features"]
        if name not in clips:
            continue
        row |= {"clips": len(ids), "rooms": rooms.count}
        for metric in METRICS:
            mine = clips[name][metric]
            if name != "semantic_only":
                row |= named(f"{metric}_vs_semantic",
                             *rooms.difference(mine, clips["semantic_only"][metric]))
            if "fp32_cosine_mean" in row:
                row |= named(f"{metric}_vs_fp32",
                             *rooms.difference(mine, clips["student_fp32"][metric]))
        if "recovery" in row:
            row |= _recovery(clips[name], clips["teacher"], clips["semantic_only"], rooms)


def _recovery(mine: dict[str, np.ndarray], teacher: dict[str, np.ndarray],
              base: dict[str, np.ndarray], rooms: Rooms) -> Row:
    """Bounds of recovery_METRIC and of the smaller of them. A ratio to a gain that may be zero has
    none."""
    found: Row = {}
    shares = []
    for metric in METRICS:
        gain = rooms.means(teacher[metric] - base[metric])  # [R]
        low, high = interval(gain)
        if rooms.count < 2 or low <= 0 <= high:
            continue
        shares.append(rooms.means(mine[metric] - base[metric]) / gain)
        found |= _bounds(f"recovery_{metric}", shares[-1])
    if len(shares) == len(METRICS):
        found |= _bounds("recovery", np.minimum(*shares))
    return found


def _bounds(name: str, samples: np.ndarray) -> Row:
    low, high = interval(samples)
    return {f"{name}_low": low, f"{name}_high": high}


def named(name: str, mean: float, low: float, high: float) -> Row:
    """A row's three fields of one figure and its interval."""
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
