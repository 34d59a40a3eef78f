"""Scores question by question: means over types, bootstrap intervals, recovery.

95 % intervals draw the rooms, whose questions belong together, and the training seeds.
"""
from collections.abc import Mapping, Sequence

import numpy as np

from bench.accuracy.intervals import RoomBootstrap, interval
from records.results import Row
from scenes.questions.question import NUMERIC

Metric = tuple[str, str]                   # (task, metric)
QuestionScores = dict[tuple[str, int], float]  # (clip id, question index) -> value of one metric
ScoresByMetric = dict[Metric, QuestionScores]
NUMBERS, CHOICES = ("vsi_numeric", "mra"), ("vsi_choice", "accuracy")
DIRECTION = "vsi:object_rel_direction_"  # VSI-Bench counts its three difficulties as one type


def scores_by_metric(scores: Sequence[Sequence]) -> ScoresByMetric:
    """From [clip, index, task, kind, {metric: value}] of every question.

    The values of NUMBERS are weighted so that their mean is the mean of the numeric types.
    """
    out: ScoresByMetric = {}
    for clip, index, task, kind, metrics in scores:
        for metric, value in metrics.items():
            out.setdefault((task, metric), {})[clip, index] = value
            if kind and metric != "unparsable":
                out.setdefault((task, f"{metric}/{kind}"), {})[clip, index] = value
    if numeric := [[out[task, "mra"]] for task in NUMERIC if (task, "mra") in out]:
        out[NUMBERS] = _mean_of_types(numeric)
    return out


def choice_scores(scores: ScoresByMetric) -> QuestionScores:
    """All multiple choice, weighted so that the mean is that of the types; {} without any."""
    types: dict[str, list[QuestionScores]] = {}
    for (task, metric), values in scores.items():
        if task.startswith("vsi:") and metric == CHOICES[1]:
            types.setdefault(DIRECTION if task.startswith(DIRECTION) else task, []).append(values)
    return _mean_of_types([*types.values()])


def mean_over_seeds(by_seed: Mapping[int, ScoresByMetric], metric: Metric) -> float:
    return float(np.mean([np.mean([*scores[metric].values()]) for scores in by_seed.values()]))


def differences(a: Sequence[QuestionScores],
                b: Sequence[QuestionScores]) -> tuple[RoomBootstrap, np.ndarray]:
    """The rooms to draw, and a - b [seeds,questions] of scores of the same questions."""
    questions = list(a[0])
    delta = [[ours[question] - theirs[question] for question in questions]
             for ours, theirs in zip(a, b, strict=True)]
    return RoomBootstrap([clip for clip, _ in questions]), np.array(delta)


def bounds(rooms: RoomBootstrap, delta: np.ndarray) -> tuple[float, float]:
    """The interval of the mean of delta [seeds,questions]; (-inf, inf) for a single room."""
    return interval(_resampled(rooms, delta)) if rooms.count > 1 else (-np.inf, np.inf)


def recovery(rooms: RoomBootstrap, delta: np.ndarray, gain: np.ndarray) -> Row:
    """(student - semantic only) / (generator - semantic only), both [seeds,questions].

    Bounds are None where the interval of the gain holds zero.
    """
    low, high = bounds(rooms, gain)
    ends: tuple[float | None, float | None] = (None, None)
    if low > 0 or high < 0:
        ends = interval(_resampled(rooms, delta) / _resampled(rooms, gain))
    value = float(delta.mean() / gain.mean()) if gain.mean() else None
    return {"value": value, "low": ends[0], "high": ends[1]}


def _resampled(rooms: RoomBootstrap, delta: np.ndarray) -> np.ndarray:
    """The mean of delta [seeds,questions] in every resample of rooms and training seeds, [R].

    Seeds are drawn too: else one failed training would look like a certain loss.
    """
    seeds = len(delta)
    means = np.stack([rooms.means(each) for each in delta], 1)  # [R,seeds]
    draws = np.random.default_rng(1).multinomial(seeds, [1 / seeds] * seeds, len(means))
    return (draws * means).sum(1) / seeds


def _mean_of_types(types: Sequence[Sequence[QuestionScores]]) -> QuestionScores:
    """All questions; each type weighs the same, and within it each of its tasks."""
    total = sum(len(scores) for tasks in types for scores in tasks)
    out: QuestionScores = {}
    for tasks in types:
        for scores in tasks:
            for question, value in scores.items():
                out[question] = value * total / (len(types) * len(tasks)) / len(scores)
    return out
