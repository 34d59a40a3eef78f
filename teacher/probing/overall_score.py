"""Normalised Overall Score (arXiv 2603.19235): each metric min-max scaled over the rows, then
averaged, x100.

The published numbers come out only if discriminative and generative backbones are scaled apart,
each with the
baseline: they do not compare across the two groups. Pooled over all rows, they do.
"""
from collections.abc import Collection, Mapping, Sequence

import numpy as np

Scores = Mapping[str, Sequence[float]]  # row -> its metrics, all of them "more is better"


def overall_score(scores: Scores) -> dict[str, float]:
    """One scale for all rows. A metric on which they all agree says nothing and is left out.

    Raises ValueError if rows differ in length.
    """
    if len(lengths := {len(row) for row in scores.values()}) != 1:
        raise ValueError(f"nos: rows have {sorted(lengths)} metrics, expected the same number")
    return dict(zip(scores, pooled(np.array(list(scores.values()), float)).tolist(), strict=True))


def pooled(table: np.ndarray) -> np.ndarray:
    """[rows, metrics] -> [rows]. A metric that is unknown for some row (NaN) is left out as well; 0
    if none is left."""
    low, high = table.min(0), table.max(0)
    told = high > low
    scaled = (table[:, told] - low[told]) / (high - low)[told]
    return 100 * scaled.mean(1) if told.any() else np.zeros(len(table))


def published_overall_score(scores: Scores, baseline: str,
                  groups: Mapping[str, Collection[str]]) -> dict[str, dict[str, float]]:
    """Each group scaled apart, with the baseline in it: {group: {row: score}}."""
    return {
        name: overall_score({row: scores[row]
                          for row in (baseline, *rows)})
        for name, rows in groups.items()
    }
