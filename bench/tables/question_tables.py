"""Question scores of the language teacher as rows of tables. Scores and differences are shares in
the files, percent and points here; intervals are the files' own, 95 %."""
import statistics
from collections.abc import Sequence

from bench.tables.columns import columns, over_seeds, signed, with_interval
from records.results import Row
from scenes.questions.question import NUMERIC

# a score's field is its task and metric
MRA, GROUND, GROUND_HALF = "vsi_numeric mra", "ground acc@0.25", "ground acc@0.5"
# VSI-Bench counts its three difficulties as one type
DIRECTION = "vsi:object_rel_direction accuracy"
CHOICES = ("vsi:object_rel_distance accuracy", DIRECTION, "vsi:route_planning accuracy",
           "vsi:obj_appearance_order accuracy")
TYPES = (*(f"{task} mra" for task in NUMERIC), *CHOICES, GROUND)
CONTROLS = ("noise", "rgb", "vae_latents", "zeros")
STUDENTS = ("student_fp32", "student_fp16", "student_int8", "student_int8_cpu",
            "student_fp32_retrained")
ORDER = ("generator", *STUDENTS, "semantic_only", *CONTROLS, "text_only", "chance", "majority",
         "nearest_text")
BASELINE = "-"  # in the files, the position of baselines without a model

_SCORES = (
    ("seeds", "seeds", 0), ("steps", "steps", 0), ("numeric MRA, %", MRA, 1, 100),
    ("grounding Acc@0.25, %", GROUND, 1, 100), ("Acc@0.5, %", GROUND_HALF, 1, 100),
    ("multiple choice, %", "choice", 1, 100),
    ("numeric over semantic only, points (95 %)", f"gain {MRA}"),
    ("grounding over semantic only, points (95 %)", f"gain {GROUND}"))
SCORE_COLUMNS = columns(
    ("positions", "position"), ("features", "features"), *_SCORES,
    ("semantic share of the gate, each seed", "gates"),
    ("recovery, numeric (95 %)", f"recovery {MRA}"),
    ("recovery, grounding (95 %)", f"recovery {GROUND}"))
FUSION_COLUMNS = columns(("positions", "position"), ("fusion", "features"), *_SCORES)
CONTROL_COLUMNS = columns(
    ("positions", "position"), ("generator minus", "features"), ("seeds", "seeds", 0),
    ("numeric MRA, points (95 %)", MRA), ("lowest … highest seed", f"{MRA} seeds"),
    ("grounding Acc@0.25, points (95 %)", GROUND), ("lowest … highest seed", f"{GROUND} seeds"))
GATE_COLUMNS = columns(("part", "group"), ("what", "name"), ("tokens", "tokens", 0),
                       *((name, name) for name in ("generator", *CONTROLS)))
TYPE_COLUMNS = columns(
    ("type", "task"), ("by", "metric"),
    *((name, name, 1, 100) for name in ("semantic_only", "generator", "student_int8")),
    ("best control", "control"), *((name, name, 1, 100) for name in ("majority", "text_only")))


def score_rows(rows: Sequence[Row]) -> list[Row]:
    """A row for each position and features. Recovery is shown only where the interval of the
    generator's own gain is above zero."""
    differences = {(row["position"], row["features"], row["minus"], _field(row)): row
                   for row in rows if row["kind"] == "difference"}
    recoveries = {(row["position"], row["features"], _field(row)): row
                  for row in rows if row["kind"] == "recovery"}
    out = _mean_scores(rows)
    for row in out:
        position, features = row["position"], row["features"]
        row["gates"] = _gates(rows, position, features)
        for field in (MRA, GROUND):
            gain = differences.get((position, features, "semantic_only", field))
            generator = differences.get((position, "generator", "semantic_only", field))
            share = recoveries.get((position, features, field))
            if gain:
                row[f"gain {field}"] = points(gain)
            if share and share["low"] is not None and generator and (generator["low"] or 0) > 0:
                interval = f"{share['low']:.2f} … {share['high']:.2f}"
                row[f"recovery {field}"] = f"{share['value']:.2f} ({interval})"
    return sorted(out, key=_order)


def fusion_rows(rows: Sequence[Row]) -> list[Row]:
    """As `score_rows`, named by the fusion, the best at the numeric types first."""
    out = []
    for row in score_rows(rows):
        fusion = row["features"].rpartition("+")[2]
        out.append({**row, "features": "token_gate" if fusion == "generator" else fusion})
    return sorted(out, key=lambda row: (*_order(row)[:2], -row.get(MRA, 0)))


def control_rows(rows: Sequence[Row]) -> list[Row]:
    """The generator minus semantic only, each control and text only, by position."""
    out: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["kind"] != "difference" or row["features"] != "generator":
            continue
        position, baseline = row["position"], row["minus"]
        if baseline in STUDENTS:
            continue
        shown = out.setdefault((position, baseline), {
            "position": position, "features": baseline, "seeds": row["seeds"]})
        shown[_field(row)] = points(row)
        if row["seeds"] > 1:
            ends = [signed(row[f"{end}_seed"]) for end in ("lowest", "highest")]
            shown[f"{_field(row)} seeds"] = " … ".join(ends)
    return sorted(out.values(), key=_order)


def type_rows(rows: Sequence[Row]) -> list[Row]:
    """A row for each type of question, without depth and pose, with the control best at it."""
    scores = _mean_scores([row for row in rows if row["position"] in ("pose_free", BASELINE)])
    if all(row["position"] is None for row in scores):
        return []
    out: list[Row] = []
    for field in TYPES:
        means = {row["features"]: row[field] for row in scores if field in row}
        if not means:
            continue
        task, metric = field.split()
        row = {"task": task.removeprefix("vsi:"), "metric": metric, "control": None, **means}
        if controls := [name for name in CONTROLS if name in means]:
            best = max(controls, key=lambda name: means[name])
            row["control"] = f"{100 * means[best]:.1f} ({best})"
        out.append(row)
    return out


def gate_rows(rows: Sequence[Row]) -> list[Row]:
    """The gate's mean semantic share by class and part of the frame, one number a seed; those that
    trust the generator most come first."""
    out: dict[tuple[str, str], Row] = {}
    shares: dict[tuple[str, str, str], list[float]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        group, name = row["group"], row["name"]
        out.setdefault((group, name), {"group": group, "name": name, "tokens": row["tokens"]})
        shares.setdefault((group, name, row["features"]), []).append(row["gate_mean"])
    for (group, name, features), values in shares.items():
        out[group, name][features] = ", ".join(f"{value:.2f}" for value in values)
    order = {key[:2]: sum(values) for key, values in shares.items() if key[2] == "generator"}
    return [row for key, row in
            sorted(out.items(), key=lambda item: (item[0][0], order.get(item[0], 0.0)))]


def points(row: Row) -> str:
    """Such as +1.2 (+0.4 … +2.0); without bounds where there was a single room to draw from."""
    return with_interval(row["value"], row["low"], row["high"])


def _mean_scores(rows: Sequence[Row]) -> list[Row]:
    """A row for each position and features: mean and spread over seeds of every score's field."""
    by_training: dict[tuple, Row] = {}
    for row in rows:
        if row["kind"] == "score":
            facts = {key: row.get(key) for key in ("position", "features", "seed", "steps")}
            training = (row["position"], row["features"], row["seed"])
            by_training.setdefault(training, facts)[_field(row)] = row["value"]
    prefix, metric = DIRECTION.split()
    for scores in by_training.values():
        directions = [value for field, value in scores.items()
                      if field.startswith(f"{prefix}_") and field.endswith(f" {metric}")]
        if directions:
            scores[DIRECTION] = statistics.fmean(directions)
        if choices := [scores[field] for field in CHOICES if field in scores]:
            scores["choice"] = statistics.fmean(choices)
    merged = over_seeds(list(by_training.values()), ("position", "features"))
    for row in merged:
        if not row.get("steps_std"):
            row.pop("steps_std", None)  # equal steps need no spread
        if row["position"] == BASELINE:
            row |= {"position": None, "seeds": None}
    return merged


def _gates(rows: Sequence[Row], position: str | None, features: str) -> str | None:
    """The gate's mean semantic share of each seed."""
    shares = {row["seed"]: row["gate"] for row in rows
              if row["kind"] == "score" and row.get("gate") is not None
              and (row["position"], row["features"]) == (position, features)}
    return ", ".join(f"{shares[seed]:.2f}" for seed in sorted(shares)) or None


def _field(row: Row) -> str:
    return f"{row['task']} {row['metric']}"


def _order(row: Row) -> tuple[bool, str, int]:
    name, position = row["features"], row["position"]
    return position is None, position or "", ORDER.index(name) if name in ORDER else len(ORDER)
