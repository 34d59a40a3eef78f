"""Differences between trainings of the language teacher, with intervals over rooms and seeds."""
import math
from collections.abc import Mapping, Sequence

import numpy as np

from bench.accuracy.intervals import room_of
from records.results import Row

Sums = Mapping[str, tuple[float, int]]  # clip id -> sum of a metric over its questions, their count


def clip_sums(answers: Sequence[Row], task: str, metric: str) -> dict[str, list[float]]:
    """Sums of a metric over each clip's questions of a task; answers: rows of answers.jsonl."""
    out: dict[str, list[float]] = {}
    for row in answers:
        if row["task"] == task:
            total = out.setdefault(row["clip"], [0.0, 0])
            total[0] += row["scores"][metric]
            total[1] += 1
    return out


def difference(ours: Sequence[Sequence[Sums]], baseline: Sequence[Sequence[Sums]]) -> Row:
    """value, low, high (95 %), p of no difference (1 of a single room), counts of seeds and rooms.

    ours, baseline: of each seed, of each task whose scores are averaged, sums over the same
    questions. Seeds and rooms are crossed random effects: the variance of the mean is that between
    the seeds' means plus that between the rooms' means, less that of their interaction, which both
    contain, and at least the larger of the two. Degrees of freedom: Welch and Satterthwaite's.
    Rooms: `room_of` a clip.
    """
    from scipy.special import stdtr, stdtrit

    by_seed, tasks = np.zeros(len(ours)), len(ours[0])
    effects: dict[str, np.ndarray] = {}  # room -> its part of the error of each seed's mean, [S]
    for task in range(tasks):
        clips = sorted(ours[0][task])
        first, second = (np.array([[seed[task][clip] for clip in clips] for seed in side])
                         for side in (ours, baseline))                    # [S,clips,2]
        if not np.array_equal(first[..., 1], second[..., 1]):
            raise ValueError("difference: the trainings were scored on other questions")
        sums, counts = first[..., 0] - second[..., 0], first[0, :, 1]
        task_mean = sums.sum(1) / counts.sum()                            # [S]
        by_seed += task_mean / tasks
        parts = (sums - task_mean[:, None] * counts) / counts.sum() / tasks
        for clip, part in zip(clips, parts.T, strict=True):
            effects[room_of(clip)] = effects.get(room_of(clip), 0.0) + part
    count, rooms, mean = len(by_seed), len(effects), float(by_seed.mean())
    errors = np.stack([*effects.values()], 1)                             # [S,rooms]
    scale = rooms / max(rooms - 1, 1)
    total = of_rooms = np.square(errors.mean(0)).sum() * scale
    variances = [(of_rooms, rooms - 1)]  # of the mean, and their degrees of freedom
    if count > 1:
        of_seeds = by_seed.var(ddof=1) / count
        of_both = np.square(errors - errors.mean(0)).sum() * scale / (count - 1) / count
        total = max(of_rooms + of_seeds - of_both, of_rooms, of_seeds)
        variances += [(of_seeds, count - 1), (of_both, (rooms - 1) * (count - 1))]
    row: Row = {"value": mean, "seeds": count, "rooms": rooms, "low": mean, "high": mean,
                "p": float(rooms < 2 or not mean)}
    if total > 0 and rooms > 1:
        freedom = total**2 / sum(v**2 / n for v, n in variances if n)
        error = math.sqrt(total)
        half = float(stdtrit(freedom, 0.975)) * error
        row |= {"low": mean - half, "high": mean + half,
                "p": 2 * float(stdtr(freedom, -abs(mean) / error))}
    return row
