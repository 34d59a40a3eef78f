"""Rows of the language teacher's trainings as tables, from scores whose means are known by hand."""
import pytest

from bench.tables.fill import table
from bench.tables.language_tables import gains, minus_semantic
from records.results import Results, save


def score(features: str, values: list[float], task: str = "camera_distance",
          metric: str = "mra") -> list[dict]:
    """One row a seed, as bench.recipes.language_tables writes it."""
    return [{"features": features, "seed": seed, "steps": 600, "task": task, "metric": metric,
             "value": value, "questions": 90} for seed, value in enumerate(values)]


@pytest.fixture
def shown(tmp_path):
    def cells(name: str, rows: list[dict]) -> list[dict[str, str]]:
        save(Results("sensitivity", "language_tables", "abc123", {"gpu": "a GPU"}, rows),
             tmp_path / "sensitivity.json")
        head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")]
                           for line in table(name, tmp_path).splitlines() if line[:1] == "|"]
        return [dict(zip(head, line, strict=True)) for line in lines]
    return cells


def test_scores_are_means_and_spreads_over_seeds(shown):
    rows = [*score("true_xyz", [0.8, 0.9]),
            *score("true_xyz", [0.6, 0.6], "depth_order", "accuracy"),
            *score("true_xyz", [0.1, 0.1], "depth_order", "unparsable"),
            *score("semantic", [0.5])]
    xyz, semantic = shown("sensitivity", rows)
    assert (xyz["seeds"], xyz["steps"], xyz["depth order, %"]) == ("2", "600", "60.0 ± 0.0")
    assert xyz["camera distance, MRA %"] == "85.0 ± 7.1" and "mean of the three" not in xyz
    assert semantic["camera distance, MRA %"] == "50.0" and semantic["depth order, %"] == "–"


def test_the_three_numeric_tasks_have_a_mean(shown):
    tasks = ("camera_distance", "vsi:object_abs_distance", "vsi:object_size_estimation")
    rows = [row for task, value in zip(tasks, (0.2, 0.3, 0.7), strict=True)
            for row in score("semantic", [value], task)]
    assert shown("sensitivity", rows)[0]["mean of the three"] == "40.0"


def test_differences_are_paired_by_seed_with_a_t_interval(shown):
    rows = [*score("true_xyz", [0.7, 0.9, 0.5]), *score("semantic", [0.6, 0.6, 0.3, 0.9])]
    one, = shown("sensitivity_gains", rows)
    assert (one["features"], one["minus"], one["seeds"]) == ("true_xyz", "semantic", "3")
    # differences .1, .3, .2: 4.303 (two degrees of freedom) times .1 / sqrt(3) to each side
    assert one["camera distance, points (95 %)"] == "+20.0 (-4.8 … +44.8)"
    one, = shown("sensitivity_gains", [*score("true_xyz", [0.7]), *score("zeros", [0.6])])
    assert one["camera distance, points (95 %)"] == "+10.0"


def test_holm_corrects_over_all_differences_of_the_table(shown):
    xyz, semantic = score("true_xyz", [0.70, 0.74, 0.72]), score("semantic", [0.6, 0.6, 0.6])
    alone, = shown("sensitivity_gains", [*xyz, *semantic])  # p = 0.0092
    assert alone["camera distance, points (95 %)"].endswith(" *")
    others = [row for name in ("place", "rgb", "zeros", "noise", "text_only")
              for row in score(name, [0.6, 0.8, 0.7])]
    rows = shown("sensitivity_gains", [*xyz, *semantic, *others])
    assert len(rows) == 6 and not any(cell.endswith("*") for row in rows for cell in row.values())
    same, = shown("sensitivity_gains", [*xyz, *score("semantic", [0.70, 0.74, 0.72])])
    assert same["camera distance, points (95 %)"] == "+0.0 (+0.0 … +0.0)"


def test_a_variant_is_compared_with_the_semantic_features_of_that_variant():
    names = ("generator", "semantic", "generator, masked", "semantic, masked",
             "generator, channel gate")
    rows = gains(minus_semantic)([row for name in names for row in score(name, [0.5])])
    assert [(row["features"], row["minus"]) for row in rows] == [
        ("generator", "semantic"), ("generator, masked", "semantic, masked"),
        ("generator, channel gate", "semantic")]
