"""The language teacher's answers (bench/h200/language.py) as rows of tables: mean and spread over
seeds, differences.

Scores and differences are shares in the files and percent or points here; intervals are the files'
own, 95 % by bootstrap over rooms.
"""
import statistics
from collections.abc import Sequence

from bench.tables.columns import Column, over_seeds
from records.results import Row
from scenes.questions.question import NUMERIC

MRA, GROUND = "vsi_numeric mra", "ground acc@0.25"  # a score's field is its task and metric
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
GUESSED = "-"  # the position, in the files, of what no model answered: it has none here

_SCORES = (Column("seeds", "seeds", 0), Column("steps", "steps",
                                               0), Column("numeric MRA, %", MRA, 1, 100),
           Column("grounding Acc@0.25, %", GROUND, 1,
                  100), Column("Acc@0.5, %", "ground acc@0.5", 1,
                               100), Column("multiple choice, %", "choice", 1, 100),
           Column("numeric over semantic only, points (95 %)", f"gain {MRA}"),
           Column("grounding over semantic only, points (95 %)", f"gain {GROUND}"))
SCORED = (Column("positions", "position"), Column("features", "features"), *_SCORES,
          Column("semantic share of the gate, each seed", "gates"),
          Column("recovery, numeric (95 %)", f"recovery {MRA}"),
          Column("recovery, grounding (95 %)", f"recovery {GROUND}"))
FUSED = (Column("positions", "position"), Column("fusion", "features"), *_SCORES)
CONTROLLED = (Column("positions", "position"), Column("generator minus",
                                                      "features"), Column("seeds", "seeds", 0),
              Column("numeric MRA, points (95 %)",
                     MRA), Column("lowest … highest seed", f"{MRA} seeds"),
              Column("grounding Acc@0.25, points (95 %)",
                     GROUND), Column("lowest … highest seed", f"{GROUND} seeds"))
GATED = (Column("part", "group"), Column("what", "name"), Column("tokens", "tokens", 0),
         *(Column(name, name) for name in ("generator", *CONTROLS)))
TYPED = (Column("type", "task"), Column("by", "metric"),
         *(Column(name, name, 1, 100) for name in ("semantic_only", "generator", "student_int8")),
         Column("best control", "control"),
         *(Column(name, name, 1, 100) for name in ("majority", "text_only")))


def scored(rows: Sequence[Row]) -> list[Row]:
    """A row for each position and features; recovery only where the generator's own gain is surely
    above zero."""
    found = {(row["kind"], row["position"], row["features"], row.get("minus"), _field(row)): row
             for row in rows if row["kind"] in ("difference", "recovery")}
    out = _answered(rows)
    gates = {(row["position"], row["features"], row["seed"]): row["gate"] for row in rows
             if row["kind"] == "score" and row.get("gate") is not None}
    for row in out:
        row["gates"] = ", ".join(f"{gates[place]:.2f}" for place in sorted(gates)
                                 if place[:2] == (row["position"], row["features"])) or None
        for field in (MRA, GROUND):
            gain = found.get(
                ("difference", row["position"], row["features"], "semantic_only", field))
            best = found.get(("difference", row["position"], "generator", "semantic_only", field))
            kept = found.get(("recovery", row["position"], row["features"], None, field))
            if gain:
                of = f", {gain['seeds']} of {row['seeds']} seeds" if gain["seeds"] < row[
                    "seeds"] else ""
                row[f"gain {field}"] = points(gain) + of
            if kept and None not in (kept["low"], kept["high"]) and best and (best["low"] or 0) > 0:
                row[f"recovery {field}"] = f"{kept['value']:.2f} ({kept['low']:.2f} … {kept['high']:.2f})"
    return sorted(out, key=_place)


def fused(rows: Sequence[Row]) -> list[Row]:
    """As `scored`, named by the way of fusing, the best at the numeric types first."""
    named = [{**row, "features": "token_gate" if row["features"] == "generator" else
              row["features"].rpartition("+")[2]} for row in scored(rows)]
    return sorted(named, key=lambda row: (*_place(row)[:2], -row.get(MRA, 0)))


def controlled(rows: Sequence[Row]) -> list[Row]:
    """The generator minus semantic only, each control, words alone: a row for each position and
    what is taken off."""
    out: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["kind"] != "difference" or row["features"] != "generator" or row["minus"] in STUDENTS:
            continue
        place = row["position"], row["minus"]
        one = out.setdefault(place,
                             {"position": place[0], "features": place[1], "seeds": row["seeds"]})
        one[_field(row)] = points(row)
        if row["seeds"] > 1:
            one[f"{_field(row)} seeds"] = f"{_point(row['lowest_seed'])} … {_point(row['highest_seed'])}"
    return sorted(out.values(), key=_place)


def typed(rows: Sequence[Row]) -> list[Row]:
    """A row for each type of question, without depth and pose: the mean over seeds, the control
    that is best at it."""
    answered = _answered([row for row in rows if row["position"] in ("pose_free", GUESSED)])
    if all(row["position"] is None for row in answered):
        return []
    out: list[Row] = []
    for field in TYPES:
        means = {row["features"]: row[field] for row in answered if field in row}
        if means:
            task, metric = field.split()
            best = max((name for name in CONTROLS if name in means), key=lambda name: means[name],
                       default=None)
            control = None if best is None else f"{100 * means[best]:.1f} ({best})"
            out.append(
                {"task": task.removeprefix("vsi:"), "metric": metric, "control": control, **means})
    return out


def gated(rows: Sequence[Row]) -> list[Row]:
    """The gate's mean semantic share of each class and part of the frame, a number a seed, the most
    geometric first."""
    out: dict[tuple[str, str], Row] = {}
    shares: dict[tuple[str, str, str], list[float]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        out.setdefault((row["group"], row["name"]),
                       {key: row[key]
                        for key in ("group", "name", "tokens")})
        shares.setdefault((row["group"], row["name"], row["features"]), []).append(row["gate_mean"])
    for (group, name, features), values in shares.items():
        out[group, name][features] = ", ".join(f"{value:.2f}" for value in values)
    order = {key[:2]: sum(values) for key, values in shares.items() if key[2] == "generator"}
    return sorted(out.values(), key=lambda row:
                  (row["group"], order.get((row["group"], row["name"]), 0.0)))


def _answered(rows: Sequence[Row]) -> list[Row]:
    """A row for each position and features: every score under its _field, mean and spread over
    seeds."""
    seeds: dict[tuple, Row] = {}
    for row in rows:
        if row["kind"] == "score":
            about = {key: row.get(key) for key in ("position", "features", "seed", "steps")}
            seeds.setdefault((row["position"], row["features"], row["seed"]),
                             about)[_field(row)] = row["value"]
    for one in seeds.values():
        if directions := [
                value for field, value in one.items()
                if field.startswith(f"{DIRECTION.split()[0]}_") and field.endswith(" accuracy")
        ]:
            one[DIRECTION] = statistics.fmean(directions)
        if choices := [one[field] for field in CHOICES if field in one]:
            one["choice"] = statistics.fmean(choices)
    merged = over_seeds(list(seeds.values()), ("position", "features"))
    for row in merged:
        if not row.get("steps_std"):
            row.pop("steps_std", None)  # of equal steps there is nothing to say
        if row["position"] == GUESSED:
            row |= {"position": None, "seeds": None}
    return merged


def _field(row: Row) -> str:
    return f"{row['task']} {row['metric']}"


def _place(row: Row) -> tuple[bool, str, int]:
    name, position = row["features"], row["position"]
    return position is None, position or "", ORDER.index(name) if name in ORDER else len(ORDER)


def points(row: Row) -> str:
    """Such as +1.2 (+0.4 … +2.0); without bounds where there was but one room to draw from."""
    if row["low"] is None or row["high"] is None:
        return _point(row["value"])
    return f"{_point(row['value'])} ({_point(row['low'])} … {_point(row['high'])})"


def _point(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # + 0.0: no -0.0
