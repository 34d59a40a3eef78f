"""Tables of question scores, from rows whose means, spreads and intervals are known by hand."""
import pytest

from bench.tables.fill import table
from records.results import Results, save

MRA, GROUND, HALF = ("vsi_numeric", "mra"), ("ground", "acc@0.25"), ("ground", "acc@0.5")


def score(features: str, values: list[float], what=MRA, position: str = "pose_free",
          steps: int = 900) -> list[dict]:
    """One row a seed, with the fields of a result file."""
    facts = {"kind": "score", "features": features, "position": position, "task": what[0],
             "metric": what[1]}
    trained = {} if position == "-" else {
        "steps": steps, "planned": 900, "trained_on": features, "gate": None
    }
    return [{**facts, **trained, "seed": seed, "value": value} for seed, value in enumerate(values)]


def difference(a: str, b: str, value: float, low, high, what=MRA, position: str = "pose_free",
               seeds: int = 3) -> dict:
    return {
        "kind": "difference", "features": a, "minus": b, "position": position, "task": what[0],
        "metric": what[1], "seeds": seeds, "value": value, "low": low, "high": high,
        "lowest_seed": value - 0.01, "highest_seed": value + 0.02
    }


def recovery(value: float, low, high, what=MRA) -> dict:
    return {
        "kind": "recovery", "features": "student_int8", "position": "pose_free", "task": what[0],
        "metric": what[1], "value": value, "low": low, "high": high, "seeds": 3
    }


ROWS = [
    *score("majority", [0.30], position="-"), *score("text_only", [0.29, 0.30, 0.31]),
    *score("rgb", [0.37, 0.38, 0.39]), *score("semantic_only", [0.35, 0.36, 0.37]),
    *score("semantic_only", [0.20, 0.22, 0.24], GROUND), *score("student_int8", [0.39, 0.40, 0.41]),
    *score("student_fp32", [0.40, 0.41, 0.42]), *score("generator", [0.40, 0.42, 0.44]),
    *score("generator", [0.30, 0.30, 0.36], GROUND), *score("generator", [0.10, 0.10, 0.10], HALF),
    *score("generator", [0.5, 0.5, 0.5], position="depth_pose"),
    difference("generator", "semantic_only", 0.06, 0.02, 0.1),
    difference("generator", "rgb", 0.04, -0.004, 0.09),
    difference("generator", "semantic_only", 0.1, -0.01, 0.2, GROUND),
    difference("generator", "student_int8", 0.02, 0.01, 0.03),
    difference("student_int8", "semantic_only", 0.04, 0.01, 0.07),
    recovery(0.667, 0.4, 0.9),
    recovery(0.5, 0.2, 0.8, GROUND)
]


@pytest.fixture
def shown(tmp_path):
    """The cells that a table shows for some rows: one dict a line, by header."""
    def cells(name: str, rows: list[dict]) -> list[dict[str, str]]:
        file = name if name in ("fusion_ablation", "gate_by_class") else "rooms_questions"
        save(Results(file, "language.py train", "abc123", {"gpu": "a GPU"}, rows),
             tmp_path / f"{file}.json")
        lines = [[cell.strip() for cell in line.strip("|").split("|")]
                 for line in table(name, tmp_path).splitlines() if line.startswith("|")]
        head = [name + " again" * lines[0][:i].count(name) for i, name in enumerate(lines[0])]
        return [dict(zip(head, line, strict=True)) for line in lines[2:]]
    return cells


def test_rows_are_one_a_position_and_features_and_baselines_come_last(shown):
    rows = shown("rooms_questions", ROWS[::-1])
    order = ("generator", "student_fp32", "student_int8", "semantic_only", "rgb", "text_only")
    assert [(row["positions"], row["features"]) for row in rows] == [
        ("depth_pose", "generator"), *(("pose_free", name) for name in order), ("–", "majority")]
    assert rows[-1]["numeric MRA, %"] == "30.0" and rows[-1]["seeds"] == rows[-1]["steps"] == "–"


def test_scores_are_the_mean_and_spread_over_seeds(shown):
    row = shown("rooms_questions", ROWS)[1]
    assert (row["seeds"], row["steps"]) == ("3", "900")
    assert row["numeric MRA, %"] == "42.0 ± 2.0" and row["grounding Acc@0.25, %"] == "32.0 ± 3.5"
    assert row["Acc@0.5, %"] == "10.0 ± 0.0"


def test_the_gates_share_is_shown_for_each_seed(shown):
    rows = [{**row, "gate": share}
            for row, share in zip(score("generator", [0.4] * 3), (0.7, 0.0, 0.531), strict=True)]
    generator, alone = shown("rooms_questions", [*rows, *score("semantic_only", [0.4])])
    assert generator["semantic share of the gate, each seed"] == "0.70, 0.00, 0.53"
    assert alone["semantic share of the gate, each seed"] == "–"


def test_gates_of_a_class_are_a_number_a_seed_and_the_most_geometric_come_first(shown):
    def gate(features, name, share, seed=0, group="class"):
        return {
            "features": features, "position": "pose_free", "seed": seed, "group": group,
            "name": name, "tokens": 9, "gate_mean": share, "gate_std": 0.1
        }

    found = shown("gate_by_class", [
        gate("generator", "chair", 0.9),
        gate("generator", "wall", 0.3, seed=1),
        gate("generator", "wall", 0.2),
        gate("noise", "wall", 0.99)
    ])
    assert [(row["what"], row["generator"], row["noise"]) for row in found] == [
        ("wall", "0.20, 0.30", "0.99"), ("chair", "0.90", "–")]


def test_one_seed_has_no_spread_and_steps_that_differ_have_one(shown):
    one, = shown("rooms_questions", score("generator", [0.41]))
    assert (one["seeds"], one["numeric MRA, %"]) == ("1", "41.0")
    two, = shown("rooms_questions",
                 [*score("rgb", [0.4, 0.4])[:1], *score("rgb", [0.4, 0.4], steps=700)[1:]])
    assert two["steps"] == "800 ± 141"


def test_the_gain_over_semantic_only_is_in_points_with_its_interval(shown):
    rows = {
        row["features"]: row
        for row in shown("rooms_questions", ROWS) if row["positions"] == "pose_free"
    }
    numeric, ground = (f"{name} over semantic only, points (95 %)"
                       for name in ("numeric", "grounding"))
    assert rows["generator"][numeric] == "+6.0 (+2.0 … +10.0)"
    assert rows["generator"][ground] == "+10.0 (-1.0 … +20.0)"
    assert rows["student_int8"][numeric] == "+4.0 (+1.0 … +7.0)"
    assert rows["student_int8"][ground] == "–"
    # generator minus rgb is in another table
    assert rows["rgb"][numeric] == rows["semantic_only"][numeric] == "–"


def test_a_gain_of_one_room_has_no_interval(shown):
    rows = [*score("rgb", [0.4]), difference("rgb", "semantic_only", -0.0004, None, None)]
    row, = shown("rooms_questions", rows)
    assert row["numeric over semantic only, points (95 %)"] == "+0.0"


def test_recovery_stands_only_where_the_generators_gain_is_surely_positive(shown):
    rows = {
        row["features"]: row
        for row in shown("rooms_questions", ROWS) if row["positions"] == "pose_free"
    }
    assert rows["student_int8"]["recovery, numeric (95 %)"] == "0.67 (0.40 … 0.90)"
    # the gain's interval holds zero
    assert "recovery, grounding (95 %)" not in rows["student_int8"]
    worse = [
        *score("student_int8", [0.3]),
        difference("generator", "semantic_only", -0.06, -0.1, -0.02),
        recovery(0.9, 0.8, 1.0)
    ]
    assert not any("recovery" in head for row in shown("rooms_questions", worse) for head in row)
    unbounded = [
        *worse[:1],
        difference("generator", "semantic_only", 0.06, 0.02, 0.1),
        recovery(0.9, None, None)
    ]
    assert not any("recovery" in head for row in shown("rooms_questions", unbounded)
                   for head in row)


def test_the_three_directions_count_as_one_type_of_multiple_choice(shown):
    way = "vsi:object_rel_direction_"
    choices = [(f"{way}easy", 0.9), (f"{way}medium", 0.6), (f"{way}hard", 0.3),
               ("vsi:route_planning", 0.2)]
    rows = [
        row for task, value in choices
        for row in score("generator", [value, value + 0.1], (task, "accuracy"))
    ]
    rows += score("generator", [1.0, 1.0], (f"{way}easy", "unparsable"))
    assert [row["multiple choice, %"] for row in shown("rooms_questions", rows)] == ["45.0 ± 7.1"]
    assert [(row["type"], row["generator"]) for row in shown("rooms_questions_types", rows)] == [
        ("object_rel_direction", "65.0"), ("route_planning", "25.0")]


def test_scores_alone_are_a_table_and_differences_alone_are_none(shown):
    rows = shown("rooms_questions", [row for row in ROWS if row["kind"] == "score"])
    assert len(rows) == 8 and not any("points" in head for head in rows[0])
    with pytest.raises(ValueError,
                       match=r"results:rooms_questions: rooms_questions\.json has no row for it"):
        shown("rooms_questions", [row for row in ROWS if row["kind"] != "score"])
    with pytest.raises(ValueError,
                       match=r"results:rooms_questions_controls: rooms_questions\.json has no row"):
        shown("rooms_questions_controls", [row for row in ROWS if row["kind"] == "score"])


def test_fusions_are_named_by_their_variant_and_the_best_comes_first(shown):
    rows = [
        *score("generator", [0.40, 0.42]), *score("generator+add", [0.44, 0.46]),
        *score("semantic_only", [0.36]), *score("generator+cross_attention", [0.30, 0.50]),
        *score("generator+add", [0.1], position="depth_pose"),
        difference("generator+add", "semantic_only", 0.09, 0.05, 0.13, seeds=2)
    ]
    found = shown("fusion_ablation", rows)
    assert [(row["positions"], row["fusion"], row["numeric MRA, %"]) for row in found] == [
        ("depth_pose", "add", "10.0"), ("pose_free", "add", "45.0 ± 1.4"),
        ("pose_free", "token_gate", "41.0 ± 1.4"), ("pose_free", "cross_attention", "40.0 ± 14.1"),
        ("pose_free", "semantic_only", "36.0")]
    assert found[1]["numeric over semantic only, points (95 %)"] == "+9.0 (+5.0 … +13.0)"


def test_the_generator_minus_each_control_with_its_worst_and_best_seed(shown):
    rows = shown("rooms_questions_controls", ROWS)
    # a student is no control
    assert [row["generator minus"] for row in rows] == ["semantic_only", "rgb"]
    assert rows[1] == {
        "positions": "pose_free", "generator minus": "rgb", "seeds": "3",
        "numeric MRA, points (95 %)": "+4.0 (-0.4 … +9.0)", "lowest … highest seed": "+3.0 … +6.0",
        "grounding Acc@0.25, points (95 %)": "–", "lowest … highest seed again": "–"
    }
    assert rows[0]["lowest … highest seed again"] == "+9.0 … +12.0"
    one, = shown("rooms_questions_controls",
                 [difference("generator", "zeros", 0.04, 0.01, 0.09, seeds=1)])
    assert "lowest … highest seed" not in one


def test_types_are_shown_without_depth_and_pose_beside_the_control_that_is_best_at_each(shown):
    counting, size = ("vsi:object_counting", "mra"), ("vsi:room_size_estimation", "mra")
    rows = [
        *score("generator", [0.5, 0.7], counting),
        *score("generator", [0.9], counting, "depth_pose"), *score("rgb", [0.3, 0.5], counting),
        *score("zeros", [0.41, 0.41], counting), *score("rgb", [0.2], size),
        *score("zeros", [0.1], size), *score("majority", [0.25], counting, "-"),
        *score("text_only", [0.2], GROUND)
    ]
    found = shown("rooms_questions_types", rows)
    assert [(row["type"], row["by"], row["best control"]) for row in found] == [
        ("object_counting", "mra", "41.0 (zeros)"), ("room_size_estimation", "mra", "20.0 (rgb)"),
        ("ground", "acc@0.25", "–")]
    assert found[0]["generator"] == "60.0" and found[0]["majority"] == "25.0"
    assert found[2]["text_only"] == "20.0" and found[2]["majority"] == "–"
    with pytest.raises(ValueError, match="has no row for it"):
        shown("rooms_questions_types", [row for row in rows if row["position"] != "pose_free"])
