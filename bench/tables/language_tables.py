"""Rows of bench.recipes.language_tables as tables: scores by features, differences of two rows, and
the gate. Scores are shares in the files, percent and points here."""
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
EASE = ("easy", "medium", "hard")
SCORES |= {name: (DIRECTIONS + name, "accuracy") for name in EASE}
NUMERIC = ("camera", "distance", "size")
DIFFERENCES = {task: field for field, (task, _) in SCORES.items()
               if field in (*NUMERIC, "order")} | {"numeric": "numeric"}
LEVEL = 0.05
TESTED = 4  # seeds: by fewer a spread is so unsure that p is below 0.05 / 40 too often
DROPPED_IN = " dropped in"  # ends the features of rows without a training of their own
GATED = ("generator", "random_weights", "zeros", "noise", "rgb", "vae_latents", "semantic twice",
         "true_xyz")
EXTREMES = 5  # classes shown of the lowest shares, and of the highest

LANGUAGE_COLUMNS = columns(
    ("features", "features"), ("seeds", "seeds", 0), ("steps", "steps", 0),
    ("camera distance, MRA %", "camera", 1, 100), ("object distance", "distance", 1, 100),
    ("size", "size", 1, 100), ("mean of the three", "numeric", 1, 100),
    ("depth order, %", "order", 1, 100), ("counter to the prior", "counter", 1, 100),
    ("directions: easy / medium / hard", "directions"),
    ("fused tokens: depth R²", "depth_r2", 2), ("ray R²", "ray_r2", 2))
SEED_COLUMNS = columns(
    ("features", "features"), ("object distance, MRA % of each seed", "distance"),
    *((f"direction, {name}, %", name) for name in EASE), ("same noun, closest", "same_noun"))
GAIN_COLUMNS = columns(
    ("features", "features"), ("minus", "minus"), ("seeds", "seeds", 0),
    ("camera distance, points (95 %)", "camera"), ("object distance", "distance"),
    ("size", "size"), ("mean of the three", "numeric"), ("depth order", "order"))
DROPPED_COLUMNS = (*GAIN_COLUMNS, *columns(
    ("share of the generator's gain (each seed): camera distance", "camera_share"),
    ("mean of the three", "numeric_share")))
GATE_COLUMNS = columns(("tokens of", "part"), *((name, name, 2) for name in GATED))


def language_rows(rows: Sequence[Row]) -> list[Row]:
    """A row for each features in the file's order: mean and spread over seeds of every score."""
    merged = over_seeds(_trainings(rows), ("features",))
    for row in merged:
        if not row.get("steps_std"):
            row.pop("steps_std", None)  # equal steps need no spread
        if all(name in row for name in EASE):
            row["directions"] = " / ".join(f"{100 * row[name]:.1f}" for name in EASE)
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
    """A row for each pair of these differences. * marks those of at least TESTED seeds that differ
    from zero after Holm's correction over all such differences of the table."""
    out: dict[tuple[str, str], Row] = {}
    tested = []
    for row in rows:
        if row.get("kind") == "difference":
            pair = row["features"], row["minus"]
            shown = out.setdefault(pair, {"features": pair[0], "minus": pair[1]})
            field = DIFFERENCES[row["task"]]
            shown["seeds"] = max(row["seeds"], shown.get("seeds", 0))
            shown[field] = with_interval(row["value"], row["low"], row["high"])
            if row["seeds"] >= TESTED:
                tested.append((row["p"], shown, field))
    for shown, field in _significant(tested):
        shown[field] += " *"
    return [*out.values()]


def is_minus_control(row: Row) -> bool:
    """Whether it is a difference from a training with less than true geometry."""
    return (row.get("kind") == "difference" and not is_dropped(row)
            and not row["minus"].endswith(("true_xyz", DROPPED_IN)))


def is_dropped(row: Row) -> bool:
    """Whether its features were put into the generator's teacher."""
    return row["features"].endswith(DROPPED_IN)


def dropped_rows(rows: Sequence[Row]) -> list[Row]:
    """`gains` of what was dropped in, and its share of the generator's gain: of the means, and of
    each seed, such as "1.00 (0.98, 1.02)", or "none" if the mean is not above semantic's. No share
    where the generator's gain may be zero."""
    out = gains([row for row in rows if is_dropped(row)])
    by_features: dict[str, dict[int, Row]] = {}
    for training in _trainings(rows):
        by_features.setdefault(training["features"], {})[training["seed"]] = training
    sure = [DIFFERENCES[row["task"]] for row in rows if row["features"] == "generator"
            and row.get("minus") == "semantic" and row["low"] > 0]
    for row in out:
        sides = [by_features[name] for name in (row["features"], "generator", "semantic")]
        seeds = sorted(set.intersection(*map(set, sides)))
        for field in {"camera", "numeric"}.intersection(sure):
            values = [[side[seed][field] for side in sides] for seed in seeds]   # [seeds][3]
            means = [statistics.fmean(side) for side in zip(*values, strict=True)]
            of_mean, *of_seeds = (f"{(dropped - semantic) / (generator - semantic):.2f}"
                                  for dropped, generator, semantic in (means, *values))
            row[f"{field}_share"] = (f"{of_mean} ({', '.join(of_seeds)})" if means[0] > means[2]
                                     else "none")
    return out


def gate_rows(rows: Sequence[Row]) -> list[Row]:
    """The gate's mean semantic share and its spread over seeds: of all tokens, of those at depth
    edges, and of the classes with the generator's lowest and highest shares."""
    by_seed: dict[tuple[str, int], Row] = {}
    for row in rows:
        if row["task"] == "gate":
            name = row["metric"].removeprefix("class/")
            part = {"part": name.replace("_", " "), "class": name != row["metric"],
                    "seed": row["seed"]}
            by_seed.setdefault((name, row["seed"]), part)[row["features"]] = row["value"]
    parts = over_seeds([*by_seed.values()], ("part",))
    classes = sorted((row for row in parts if row["class"]), key=lambda row: row["generator"])
    return [*(row for row in parts if not row["class"]), *classes[:EXTREMES],
            *classes[EXTREMES:][-EXTREMES:]]


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
