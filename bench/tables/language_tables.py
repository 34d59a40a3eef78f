"""Rows of bench.recipes.language_tables as tables: scores by features, and differences of two rows.
Scores are shares in the files, percent and points here."""
import statistics
from collections.abc import Sequence

from bench.tables.columns import columns, over_seeds, with_interval
from records.results import Row

DIRECTIONS = "vsi:object_rel_direction_"
# column's field -> task and metric of its rows
SCORES = {
    "camera": ("camera_distance", "mra"), "distance": ("vsi:object_abs_distance", "mra"),
    "size": ("vsi:object_size_estimation", "mra"), "order": ("depth_order", "accuracy"),
    "counter": ("depth_order", "accuracy/counter"),
    "same_noun": ("same_noun_closest", "accuracy"), "depth_r2": ("fused", "depth_r2"),
    "ray_r2": ("fused", "ray_r2")}
SCORES |= {name: (DIRECTIONS + name, "accuracy") for name in ("easy", "medium", "hard")}
NUMERIC = ("camera", "distance", "size")
DIFFERENCES = {task: field for field, (task, _) in SCORES.items()
               if field in (*NUMERIC, "order")} | {"numeric": "numeric"}
LEVEL = 0.05

LANGUAGE_COLUMNS = columns(
    ("features", "features"), ("seeds", "seeds", 0), ("steps", "steps", 0),
    ("camera distance, MRA %", "camera", 1, 100), ("object distance", "distance", 1, 100),
    ("size", "size", 1, 100), ("mean of the three", "numeric", 1, 100),
    ("depth order, %", "order", 1, 100), ("counter to the prior", "counter", 1, 100),
    *((f"direction, {name}", name, 1, 100) for name in ("easy", "medium", "hard")),
    ("same noun, closest", "same_noun", 1, 100), ("fused tokens: depth R²", "depth_r2", 2),
    ("ray R²", "ray_r2", 2))
SEED_COLUMNS = columns(
    ("features", "features"), ("object distance, MRA % of each seed", "distance"),
    *((f"direction, {name}, %", name) for name in ("easy", "medium", "hard")),
    ("same noun, closest", "same_noun"))
GAIN_COLUMNS = columns(
    ("features", "features"), ("minus", "minus"), ("seeds", "seeds", 0),
    ("camera distance, points (95 %)", "camera"), ("object distance", "distance"),
    ("size", "size"), ("mean of the three", "numeric"), ("depth order", "order"))


def language_rows(rows: Sequence[Row]) -> list[Row]:
    """A row for each features in the file's order: mean and spread over seeds of every score."""
    merged = over_seeds(_trainings(rows), ("features",))
    for row in merged:
        if not row.get("steps_std"):
            row.pop("steps_std", None)  # equal steps need no spread
    return merged


def seed_rows(rows: Sequence[Row]) -> list[Row]:
    """As `language_rows`: every score a percentage of each seed, such as "51, 94"."""
    values: dict[str, dict[str, list[str]]] = {}
    for training in sorted(_trainings(rows), key=lambda training: training["seed"]):
        shown = values.setdefault(training["features"], {})
        for field in SCORES:
            if field in training:
                shown.setdefault(field, []).append(f"{100 * training[field]:.0f}")
    return [{"features": features, **{field: ", ".join(texts) for field, texts in shown.items()}}
            for features, shown in values.items()]


def gains(rows: Sequence[Row]) -> list[Row]:
    """A row for each pair of the file's differences. * marks those that differ from zero after
    Holm's correction over all differences of the table."""
    out: dict[tuple[str, str], Row] = {}
    tested = []
    for row in rows:
        if row.get("kind") == "difference":
            pair = row["features"], row["minus"]
            shown = out.setdefault(pair, {"features": pair[0], "minus": pair[1]})
            field = DIFFERENCES[row["task"]]
            shown["seeds"] = max(row["seeds"], shown.get("seeds", 0))
            shown[field] = with_interval(row["value"], row["low"], row["high"])
            tested.append((row["p"], shown, field))
    for shown, field in _significant(tested):
        shown[field] += " *"
    return [*out.values()]


def _trainings(rows: Sequence[Row]) -> list[Row]:
    """A row for each features and seed, with a field for each of SCORES that was measured."""
    fields = {scored: field for field, scored in SCORES.items()}
    out: dict[tuple[str, int], Row] = {}
    for row in rows:
        if row.get("kind") == "difference":
            continue
        facts = {name: row[name] for name in ("features", "seed", "steps")}
        training = out.setdefault((row["features"], row["seed"]), facts)
        if field := fields.get((row["task"], row["metric"])):
            training[field] = row["value"]
    for training in out.values():
        if all(field in training for field in NUMERIC):
            training["numeric"] = statistics.fmean(training[field] for field in NUMERIC)
    return [*out.values()]


def _significant(tested: Sequence[tuple[float, Row, str]]) -> list[tuple[Row, str]]:
    """Those below LEVEL by Holm's step-down correction."""
    out = []
    for rank, (p, row, field) in enumerate(sorted(tested, key=lambda item: item[0])):
        if p > LEVEL / (len(tested) - rank):
            break
        out.append((row, field))
    return out
