"""Differences of trainings with intervals over rooms and seeds, against formulas written out."""
import numpy as np
import pytest
from scipy import stats

from bench.accuracy.question_differences import clip_sums, difference


def seeds_of(values: list[list[float]], counts: list[int]) -> list[list[dict]]:
    """Sums of one task, from each seed's mean score of each room's questions."""
    return [[{f"test/{i:05d}_0": [value * n, n]
              for i, (value, n) in enumerate(zip(seed, counts, strict=True))}] for seed in values]


def test_scores_are_summed_by_clip():
    answers = [{"clip": clip, "task": task, "scores": {"mra": value, "unparsable": 0.0}}
               for clip, task, value in [("a", "size", 0.5), ("a", "size", 1.0), ("b", "size", 0.2),
                                         ("a", "other", 0.9)]]
    assert clip_sums(answers, "size", "mra") == {"a": [1.5, 2], "b": [0.2, 1]}


def test_the_variance_is_that_between_seeds_plus_that_between_rooms_less_their_interaction():
    counts = [4, 4, 4, 4, 4]
    ours = [[0.9, 0.8, 0.5, 0.7, 0.6], [0.7, 0.9, 0.4, 0.6, 0.6]]
    base = [[0.1, 0.8, 0.3, 0.4, 0.5], [0.2, 0.7, 0.5, 0.6, 0.8]]
    found = difference(seeds_of(ours, counts), seeds_of(base, counts))
    each = np.subtract(ours, base)                                     # [seeds,rooms]
    parts = [each.mean(1).var(ddof=1) / 2, each.mean(0).var(ddof=1) / 5]
    rest = each - each.mean(0) - each.mean(1, keepdims=True) + each.mean()
    interaction = (rest**2).sum() / 4 / 10  # of (5 - 1)(2 - 1) degrees, over 2 x 5 cells
    total = sum(parts) - interaction
    assert total > max(parts)
    freedom = total**2 / (parts[0]**2 / 1 + parts[1]**2 / 4 + interaction**2 / 4)
    half = stats.t.ppf(0.975, freedom) * total**0.5
    assert found["value"] == pytest.approx(each.mean())
    assert (found["seeds"], found["rooms"]) == (2, 5)
    assert (found["low"], found["high"]) == pytest.approx((each.mean() - half, each.mean() + half))
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(each.mean()) / total**0.5, freedom))


def test_rooms_weigh_as_their_questions_and_tasks_weigh_the_same():
    ours, base = seeds_of([[1.0, 0.0]], [9, 1]), seeds_of([[0.5, 0.5]], [9, 1])
    assert difference(ours, base)["value"] == pytest.approx(0.4)
    other = seeds_of([[0.1, 0.1]], [1, 1]), seeds_of([[0.1, 0.1]], [1, 1])
    both = difference([ours[0] + other[0][0]], [base[0] + other[1][0]])
    assert both["value"] == pytest.approx(0.2)
    alone = difference(ours, base)
    assert both["high"] - both["low"] == pytest.approx((alone["high"] - alone["low"]) / 2)


def test_clips_of_one_room_are_one_room_and_one_room_has_no_interval():
    names = ["test/00000_0", "test/00000_1", "test/00001_0"]
    ours, base = ([[{name: [value, 1] for name, value in zip(names, values, strict=True)}]]
                  for values in ([0.9, 0.7, 0.8], [0.5, 0.6, 0.6]))
    assert difference(ours, base)["rooms"] == 2
    one, two = ([[{name: sums[0][0][name] for name in names[:2]}]] for sums in (ours, base))
    found = difference(one, two)
    assert found["low"] == found["high"] == found["value"] == pytest.approx(0.25)
    assert found["p"] == 1
    assert difference(one, one)["p"] == 1


def test_trainings_scored_on_other_questions_are_not_compared():
    with pytest.raises(ValueError, match="scored on other questions"):
        difference(seeds_of([[0.5, 0.5]], [4, 4]), seeds_of([[0.5, 0.5]], [4, 3]))


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    rng, counts, covered = np.random.default_rng(0), [6] * 60, []
    for _ in range(300):
        rooms = rng.normal(0, 0.1, 60)  # rooms that suit one of the two, in every training
        each = 0.05 + rooms + rng.normal(0, 0.03, (4, 1)) + rng.normal(0, 0.2, (4, 60))
        found = difference(seeds_of(each.tolist(), counts),
                           seeds_of(np.zeros((4, 60)).tolist(), counts))
        covered.append(found["low"] <= 0.05 <= found["high"])
    assert 0.93 <= np.mean(covered) <= 0.98


def test_trainings_without_an_effect_of_seeds_have_at_least_the_variance_between_rooms():
    each = [[0.1, 0.5, 0.3], [0.5, 0.1, 0.3]]                            # [seeds,rooms], one mean
    found = difference(seeds_of(each, [4] * 3), seeds_of([[0.0] * 3] * 2, [4] * 3))
    assert found["low"] == found["high"] == pytest.approx(0.3)  # rooms' means do not differ either
    each = [[0.1, 0.3, 0.2], [0.2, 0.2, 0.2]]
    found = difference(seeds_of(each, [4] * 3), seeds_of([[0.0] * 3] * 2, [4] * 3))
    half = found["high"] - found["value"]
    assert half > stats.norm.ppf(0.975) * np.std([0.15, 0.25, 0.2], ddof=1) / 3**0.5
