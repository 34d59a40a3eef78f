"""Answers about rooms, question by question: piles of values, their bootstrap over rooms and
trainings, the recovery.

A pile holds one metric's value of every question: (clip id, index) -> value. 95 % intervals draw
the rooms, whose questions belong together, and the trainings' seeds.
"""
from collections.abc import Sequence

import numpy as np

from bench.accuracy.intervals import Rooms, interval
from records.results import Row
from scenes.questions.question import NUMERIC

Pile = dict[tuple[str, int], float]
NUMBERS, CHOICES = ("vsi_numeric", "mra"), ("vsi_choice", "accuracy")
DIRECTION = "vsi:object_rel_direction_"  # VSI-Bench counts its three difficulties as one type


def piles_of(scores: Sequence[Sequence]) -> dict[tuple[str, str], Pile]:
    """(task, metric) -> pile, from [clip, index, task, kind, {metric: value}] of every question.
    The values of NUMBERS are weighted so that their mean is the mean of the numeric types."""
    out: dict[tuple[str, str], Pile] = {}
    for clip, index, task, kind, metrics in scores:
        for metric, value in metrics.items():
            for name in [(task, metric),
                         *([(task, f"{metric}/{kind}")] if kind and metric != "unparsable" else [])
                         ]:
                out.setdefault(name, {})[clip, index] = value
    if numeric := [[out[task, "mra"]] for task in NUMERIC if (task, "mra") in out]:
        out[NUMBERS] = _mean_of(numeric)
    return out


def choice_pile(piles: dict[tuple[str, str], Pile]) -> Pile:
    """The values of every multiple choice, weighted so that their mean is the mean of the types; {}
    without any."""
    types: dict[str, list[Pile]] = {}
    for (task, metric), pile in piles.items():
        if task.startswith("vsi:") and metric == CHOICES[1]:
            types.setdefault(DIRECTION if task.startswith(DIRECTION) else task, []).append(pile)
    return _mean_of([*types.values()])


def differences(a: Sequence[Pile], b: Sequence[Pile]) -> tuple[Rooms, np.ndarray]:
    """a - b [seeds,questions] of piles with the same questions, and the rooms that these are drawn
    with."""
    keys = list(a[0])
    # questions of a room are drawn together: the clip's own number is cut off
    return Rooms([clip for clip, _ in keys]), np.array([[x[k] - y[k] for k in keys]
                                                        for x, y in zip(a, b, strict=True)])


def bounds(drawn: Rooms, delta: np.ndarray) -> tuple[float, float]:
    """The interval of delta's mean [seeds,questions]. One room has no spread: its interval is the
    whole line."""
    return interval(_resampled(drawn, delta)) if drawn.count > 1 else (-np.inf, np.inf)


def recovery(drawn: Rooms, delta: np.ndarray, gain: np.ndarray) -> Row:
    """(student - semantic only) / (generator - semantic only), both [seeds,questions]; bounds only
    where that gain is surely not zero."""
    low, high = bounds(drawn, gain)
    ends = (None, None) if low <= 0 <= high else interval(
        _resampled(drawn, delta) / _resampled(drawn, gain))
    return {
        "value": float(delta.mean() / gain.mean()) if gain.mean() else None, "low": ends[0],
        "high": ends[1]
    }


def _resampled(drawn: Rooms, delta: np.ndarray) -> np.ndarray:
    """The mean of delta [seeds,questions] in every resample of rooms, and of the trainings' seeds,
    [R]. Without the latter a training that happened to learn nothing would look like a certain
    loss."""
    seeds = len(delta)
    means = np.stack([drawn.means(each) for each in delta], 1)  # [R,seeds]
    return (np.random.default_rng(1).multinomial(seeds, [1 / seeds] * seeds, len(means)) *
            means).sum(1) / seeds


def _mean_of(types: Sequence[Sequence[Pile]]) -> Pile:
    """One pile of all: each type weighs the same, and within it each of its piles."""
    total = sum(len(pile) for piles in types for pile in piles)
    return {
        k: v * total / (len(types) * len(piles)) / len(pile)
        for piles in types
        for pile in piles
        for k, v in pile.items()
    }
