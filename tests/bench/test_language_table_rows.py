"""Rows of the language teacher's trainings as tables, from scores whose means are known by hand."""
import pytest

from bench.tables.fill import TABLES, table
from records.results import Results, save


def score(features: str, values: list[float], task: str = "camera_distance",
          metric: str = "mra") -> list[dict]:
    """One row a seed, as bench.recipes.language_tables writes it."""
    return [{"features": features, "seed": seed, "steps": 600, "task": task, "metric": metric,
             "value": value, "questions": 90} for seed, value in enumerate(values)]


@pytest.fixture
def shown(tmp_path):
    def cells(name: str, rows: list[dict]) -> list[dict[str, str]]:
        file = TABLES[name].file
        save(Results(file, "language_tables", "abc123", {"gpu": "a GPU"}, rows),
             tmp_path / f"{file}.json")
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


def test_the_three_directions_are_one_column_of_means(shown):
    rows = [row for name, values in (("easy", [0.9, 0.5]), ("medium", [0.6]), ("hard", [0.25]))
            for row in score("semantic", values, f"vsi:object_rel_direction_{name}", "accuracy")]
    column = "directions: easy / medium / hard"
    assert shown("sensitivity", rows)[0][column] == "70.0 / 60.0 / 25.0"
    assert column not in shown("sensitivity", [*score("semantic", [0.5]), *rows[:2]])[0]


def test_each_seed_is_a_percentage_in_the_seeds_order(shown):
    easy = score("semantic", [0.511, 0.9413], "vsi:object_rel_direction_easy", "accuracy")
    rows = [*score("true_xyz", [0.8]), *easy[::-1], *score("semantic", [0.5])]
    semantic, = (row for row in shown("sensitivity_seeds", rows) if row["features"] == "semantic")
    assert semantic == {"features": "semantic", "direction, easy, %": "51, 94"}


def difference(minus: str, p: float, task: str = "camera_distance", value: float = 0.2,
               features: str = "true_xyz", seeds: int = 4) -> dict:
    return {"kind": "difference", "features": features, "minus": minus, "task": task,
            "seeds": seeds, "rooms": 90, "value": value, "low": value - 0.05,
            "high": value + 0.04, "p": p}


def test_differences_are_shown_in_points_with_their_intervals(shown):
    rows = [*score("true_xyz", [0.7, 0.9]), *score("semantic", [0.6, 0.6]),
            difference("semantic", 0.3), difference("semantic", 0.4, "numeric", -0.01)]
    assert len(shown("sensitivity", rows)) == 2  # a difference is no training
    one, = shown("sensitivity_gains", rows)
    assert (one["features"], one["minus"], one["seeds"]) == ("true_xyz", "semantic", "4")
    assert one["camera distance, points (95 %)"] == "+20.0 (+15.0 … +24.0)"
    assert one["mean of the three"] == "-1.0 (-6.0 … +3.0)"


def test_holm_corrects_over_all_differences_of_the_table(shown):
    marked = {}
    for others in (1, 5):  # p = 0.009 is below 0.05 / 5, not below 0.05 / 6
        rows = [difference("semantic", 0.009)]
        rows += [difference(f"other {i}", 0.5) for i in range(others)]
        marked[others] = [row["minus"] for row in shown("sensitivity_gains", rows)
                          if row["camera distance, points (95 %)"].endswith(" *")]
    assert marked == {1: ["semantic"], 5: []}


def test_differences_of_few_seeds_are_neither_marked_nor_counted(shown):
    rows = [difference("semantic", 0.009), *(difference(f"other {i}", 0.5) for i in range(4)),
            *(difference(f"few {i}", 1e-6, seeds=3) for i in range(9))]
    marked = [row["minus"] for row in shown("sensitivity_gains", rows)
              if row["camera distance, points (95 %)"].endswith(" *")]
    assert marked == ["semantic"]  # 0.009 is below 0.05 / 5, not below 0.05 / 14


def test_the_generator_is_compared_with_what_has_less_than_true_geometry(shown):
    rows = [difference(minus, 0.5, features=features) for features, minus in (
        ("generator", "semantic"), ("generator", "place"), ("generator", "true_xyz"),
        ("generator", "zeros dropped in"), ("student_int8 dropped in", "semantic"))]
    rows += score("generator", [0.5])
    assert [row["minus"] for row in shown("rooms_questions_gains", rows)] == ["semantic", "place"]


def test_what_is_dropped_in_has_its_share_of_the_generators_gain_in_each_seed(shown):
    share = "share of the generator's gain (each seed): camera distance"
    rows = [*score("semantic", [0.5, 0.6, 0.1]), *score("generator", [0.6, 0.8]),
            *score("student_int8 dropped in", [0.59, 0.76]),
            difference("semantic", 0.2, value=0.15, features="generator"),
            difference("semantic", 0.3, value=0.125, features="student_int8 dropped in")]
    row, = shown("rooms_questions_dropped", rows)
    assert row["features"] == "student_int8 dropped in"
    assert row[share] == "0.83 (0.90, 0.80)"  # 0.125 / 0.15, not the mean of the seeds' shares
    zeros = [*score("zeros dropped in", [0.4, 0.7]),
             difference("semantic", 0.0, value=-0.05, features="zeros dropped in")]
    assert shown("rooms_questions_dropped", rows + zeros)[1][share] == "none"
    rows[-2]["low"] = -0.01
    assert share not in shown("rooms_questions_dropped", rows)[0]


def test_the_gates_shares_are_by_part_and_of_the_classes_at_both_ends(shown):
    names = [f"class/thing {i:02d}" for i in range(12)]
    rows = [row for i, name in enumerate(names[::-1])
            for row in score("generator", [i / 20, i / 20 + 0.1], "gate", name)]
    rows += [*score("generator", [0.4], "gate", "depth_edges"),
             *score("zeros", [0.9, 1.0], "gate", "thing"), *score("zeros", [1.0], "gate", names[0])]
    found = shown("rooms_questions_gate", rows)
    ends = [*names[:6:-1], *names[4::-1]]  # without things 05 and 06
    assert [row["tokens of"] for row in found] == [
        "depth edges", "thing", *(name.removeprefix("class/") for name in ends)]
    assert found[1] == {"tokens of": "thing", "generator": "–", "zeros": "0.95 ± 0.07"}
    assert found[-1]["generator"] == "0.60 ± 0.07" and found[-1]["zeros"] == "1.00"
