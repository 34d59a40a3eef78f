"""Scores question by question, and their means over types."""
from collections.abc import Sequence

from scenes.questions.question import NUMERIC

Metric = tuple[str, str]                   # (task, metric)
QuestionScores = dict[tuple[str, int], float]  # (clip id, question index) -> value of one metric
ScoresByMetric = dict[Metric, QuestionScores]
NUMBERS, CHOICES = ("vsi_numeric", "mra"), ("vsi_choice", "accuracy")
DIRECTION = "vsi:object_rel_direction_"  # VSI-Bench counts its three difficulties as one type


def scores_by_metric(scores: Sequence[Sequence]) -> ScoresByMetric:
    """From [clip, index, task, kind, {metric: value}] of every question. The values of NUMBERS and
    CHOICES are weighted so that their mean is the mean of the types."""
    out: ScoresByMetric = {}
    for clip, index, task, kind, metrics in scores:
        for metric, value in metrics.items():
            out.setdefault((task, metric), {})[clip, index] = value
            if kind and metric != "unparsable":
                out.setdefault((task, f"{metric}/{kind}"), {})[clip, index] = value
    numeric = [[out[task, "mra"]] for task in NUMERIC if (task, "mra") in out]
    choices: dict[str, list[QuestionScores]] = {}
    for (task, metric), values in out.items():
        if task.startswith("vsi:") and metric == "accuracy":
            kind = DIRECTION if task.startswith(DIRECTION) else task
            choices.setdefault(kind, []).append(values)
    for name, types in ((NUMBERS, numeric), (CHOICES, [*choices.values()])):
        if types:
            out[name] = _mean_of_types(types)
    return out


def _mean_of_types(types: Sequence[Sequence[QuestionScores]]) -> QuestionScores:
    """All questions; each type weighs the same, and within it each of its tasks."""
    total = sum(len(scores) for tasks in types for scores in tasks)
    out: QuestionScores = {}
    for tasks in types:
        for scores in tasks:
            for question, value in scores.items():
                out[question] = value * total / (len(types) * len(tasks)) / len(scores)
    return out
