"""What each result file shows as a table: which rows, in which order, under which columns."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench.accuracy.intervals import METRICS
from bench.report.findings import gain_is_real
from bench.tables.columns import Column, over_seeds
from bench.tables.question_tables import (
    CONTROLLED,
    FUSED,
    GATED,
    SCORED,
    TYPED,
    controlled,
    fused,
    gated,
    points,
    scored,
    typed,
)
from records.results import Row


@dataclass(frozen=True)
class Table:
    """file: the result file it is made from, for one that is not named as the table is."""
    columns: tuple[Column, ...]
    rows: Callable[[list[Row]], list[Row]] = list
    file: str = ""


ENGINES = ("fp16", "int8", "fp32")  # of bench/h200/trt_plan.py, as the product writes them


def plain_table(fields: Sequence[str]) -> Table:
    """Fields under their own names, in the rows that have them all."""
    columns = tuple(Column(field.replace("_", " "), field, None) for field in fields)
    return Table(
        columns,
        lambda rows: [row for row in rows if all(row.get(field) is not None for field in fields)])


def _probes(rows: list[Row]) -> list[Row]:
    """The best of each control, then the best generator row of each mode and number of noise
    draws."""
    def strength(row: Row) -> float:
        return (row["depth_r2_mlp"] or 0) + (row["normal_cos"] or 0)

    def best(group: Sequence[Row]) -> Row:
        return max(group, key=strength)

    generator = [row for row in rows if row["features"].startswith("generator")]
    controls = [row for row in rows if row not in generator]
    names = dict.fromkeys(row["features"] for row in controls)
    shown = [best([row for row in controls if row["features"] == name]) for name in names]
    taps = sorted({(row["seeds"], row["mode"]) for row in generator})
    return shown + [
        best([row for row in generator if (row["seeds"], row["mode"]) == tap]) for tap in taps
    ]


def _rooms(rows: list[Row]) -> list[Row]:
    """Mean and spread over seeds; rows of one seed only (exported files) as they are.

    A share of the generator's gain is shown unless that gain was measured and may be zero.
    """
    measured = any("delta1_vs_semantic_low" in row for row in rows)
    if measured and not all(gain_is_real(rows, metric) for metric in METRICS):
        rows = [{key: value for key, value in row.items() if key != "recovery"} for row in rows]
    return over_seeds(rows, ("features", "head"))


def _timed(rows: list[Row]) -> list[Row]:
    """As graphs, and launched call by call where a lone frame's latency is the question."""
    return [
        row for row in rows
        if row.get("kind") == "latency" and (row.get("launch") == "graph" or row["batch"] == 1)
    ]


def _engines(rows: list[Row]) -> list[Row]:
    """One row a student and batch: TensorRT's engines as exported beside torch's compiled FP16."""
    places: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        if row["backend"].startswith("tensorrt") or row["backend"] == "torch":
            variant: str = row.get("variant") or row["precision"]
            places.setdefault((row["model"], row["batch"]), {})[variant] = row
    return [_engines_of(model, batch, there) for (model, batch), there in sorted(places.items())
            if any(there.get(name, {}).get("latency_ms") for name in ENGINES)]


def _engines_of(model: str, batch: int, there: dict[str, Row]) -> Row:
    engines = {name: there.get(name, {"error": "not measured"}) for name in ENGINES}
    outcomes = {
        name: row.get("gate") or row.get("error") or "not timed"
        for name, row in engines.items()
    }
    alike = len(set(outcomes.values())) == 1
    row: Row = {
        "model": model, "batch": batch, "weights": engines["int8"].get("weights"),
        "outcome": f"all {outcomes['int8']}" if alike else "; ".join(
            map(": ".join, outcomes.items()))
    }
    for name, engine in engines.items():
        row |= {f"{name}_ms": engine.get("graph_ms"), f"{name}_mb": engine.get("size_mb")}
    row["torch_ms"] = there.get("fp16-compiled", {}).get("graph_ms")
    return row | {
        key: engines["int8"].get(key)
        for key in ("graph_vs_fp16", "vs_fp16", "cosine_mean", "cosine_p1")
    }


def _spellings(rows: list[Row]) -> list[Row]:
    """TensorRT's engines where other places for Q/DQ and other spellings of the graph were timed,
    quickest first."""
    timed = [row for row in rows if row["backend"].startswith("tensorrt") and row.get("latency_ms")]
    tried = {(row["model"], row["batch"]) for row in timed if "-" in row["variant"]}
    shown = [{**row, "outcome": row.get("gate") or row.get("error")} for row in timed
             if (row["model"], row["batch"]) in tried]
    return sorted(
        shown, key=lambda row:
        (row["model"], row["batch"], row.get("graph_ms") or row["latency_ms"]))


def _gains(rows: list[Row]) -> list[Row]:
    """What a regression would score of each question over semantic features, in points with the
    interval."""
    return [row | {field.removesuffix("_gain"): points({"value": gain, "low": row[f"{field}_low"],
                                                        "high": row[f"{field}_high"]})
                   for field, gain in row.items() if field.endswith("_gain")} for row in rows]


_NANO_PROBE = Table(
    (Column("features", "features"), Column("frames", "mode"), Column(
        "noise t", "t", 2), Column("block", "block", 0), Column("noise draws", "seeds", 0),
     Column("depth R², ridge", "depth_r2_ridge"), Column("depth R², MLP", "depth_r2_mlp"),
     Column("depth δ<1.25", "delta1"), Column("normal cosine", "normal_cos"),
     Column("match, exact", "match_exact", 2), Column("match, within 1 token", "match_1", 2)),
    _probes)

_ROOMS_ACCURACY = Table(
    (Column("features", "features"), Column("head", "head"), Column(
        "seeds", "seeds", 0), Column("depth δ<1.25", "delta1"), Column("depth AbsRel", "abs_rel"),
     Column("normal error, °", "normal_deg", 1), Column("mIoU", "miou"),
     Column("cosine to teacher", "cosine_mean"), Column("recovery of the gain", "recovery", 2),
     Column("questions", "questions", 0), Column("numeric MRA, %", "task/vsi_numeric/mra", 1, 100),
     Column("multiple choice, %", "task/vsi_choice/accuracy", 1,
            100), Column("grounding Acc@0.25, %", "task/ground/acc@0.25", 1,
                         100), Column("Acc@0.5, %", "task/ground/acc@0.5", 1, 100),
     Column("recovery, numeric", "task/vsi_numeric/mra_recovery",
            2), Column("recovery, grounding", "task/ground/acc@0.25_recovery", 2)), _rooms)

_LATENCY_CPU = Table(
    (Column("file", "artefact"), Column("stage", "stage"), Column("runs on", "backend"),
     Column("precision", "precision"), Column("batch", "batch",
                                              0), Column("median, ms", "latency_ms",
                                                         1), Column("p90, ms", "p90_ms", 1),
     Column("p99, ms", "p99_ms", 1), Column("size, MB", "size_mb",
                                            1), Column("peak memory, MB", "memory_mb", 0),
     Column("faster than the generator", "speedup", 1, suffix="x")))

_TRT_H200 = Table(
    (Column("model", "model"), Column("weights", "weights"), Column(
        "batch", "batch", 0), Column("FP16, ms", "fp16_ms", 3), Column("INT8, ms", "int8_ms", 3),
     Column("FP32, ms", "fp32_ms", 3), Column("compiled torch FP16, ms", "torch_ms", 3),
     Column("INT8 faster than FP16", "graph_vs_fp16", 2,
            suffix="x"), Column("the same, launched", "vs_fp16", 2, suffix="x"),
     Column("INT8's cosine to FP32, mean", "cosine_mean",
            5), Column("1st percentile", "cosine_p1", 5), Column("FP16, MB", "fp16_mb", 1),
     Column("INT8, MB", "int8_mb", 1), Column("gates", "outcome")), _engines)

_TRT_PLACES = Table(
    (Column("model", "model"), Column("batch", "batch", 0), Column("engine", "variant"),
     Column("launched, ms", "latency_ms", 3), Column("as a CUDA graph, ms", "graph_ms", 3),
     Column("faster than FP16", "graph_vs_fp16", 2, suffix="x"),
     Column("cosine to FP32, mean", "cosine_mean", 5), Column(
         "1st percentile", "cosine_p1", 5), Column("gate", "outcome")), _spellings)

_TRT_LAYERS = Table(
    (Column("model", "model"), Column("batch", "batch", 0), Column("engine", "variant"),
     Column("kernels", "launches", 0), Column("all, ms", "total_ms",
                                              3), Column("INT8 products", "gemm_int8_ms", 3),
     Column("half products", "gemm_half_ms", 3), Column("float products", "gemm_float_ms",
                                                        3), Column("attention", "attention_ms", 3),
     Column("GELU", "gelu_ms", 3), Column("LayerNorm", "norm_ms",
                                          3), Column("quantise, reformat", "quantise_reformat_ms",
                                                     3), Column("other", "other_ms", 3)))

_INT8_CPU = Table(
    (Column("model", "model"), Column("precision", "precision"), Column("runs on", "backend"),
     Column("batch", "batch", 0), Column("median, ms", "latency_ms",
                                         1), Column("faster than FP32", "vs_fp32", 2, suffix="x"),
     Column("faster than FP16", "vs_fp16", 2,
            suffix="x"), Column("cosine to FP32, mean", "cosine_mean",
                                5), Column("1st percentile", "cosine_p1",
                                           5), Column("size, MB", "size_mb", 1)))

_LATENCY_H200 = Table(
    (Column("file", "artefact"), Column("stage", "stage"), Column("runs on", "backend"),
     Column("launch", "launch"), Column("precision", "precision"), Column("batch", "batch", 0),
     Column("GPU median, ms", "latency_ms", 3), Column("p90, ms", "p90_ms", 3),
     Column("p99, ms", "p99_ms", 3), Column("host to host, ms", "host_ms", 3),
     Column("frames/s", "frames_per_s", 0), Column("mJ a frame", "energy_mj_per_frame",
                                                   1), Column("memory, MB", "memory_mb", 0),
     Column("faster than the generator", "speedup", 1, suffix="x")), _timed)

_TIMER = Table((Column("work of a known length", "work"), Column(
    "on", "device"), Column("truth, ms", "truth_ms", 4), Column(
        "measured, ms", "latency_ms", 4), Column("off by, %", "error_percent", 2)),
               lambda rows: [row for row in rows if row["kind"] == "timer"])

_RENDERING = Table((Column("processes", "workers", 0), Column("frames", "frames", 0),
                    Column("px", "size_px", 0), Column("frames/s, all in", "frames_per_s", 0),
                    Column("frames/s once all are at work", "steady_frames_per_s",
                           0), Column("MB/s written", "mb_per_s", 0)),
                   lambda rows: [row for row in rows if "workers" in row])

_TRIALS = Table((Column("trials", "trials", 0), Column(
    "same file called equal", "equal", 0), Column("10 % slower: trials", "slower_10_trials",
                                                  0), Column("called slower", "slower_10_seen", 0),
                 Column("20 % slower: trials", "slower_20_trials",
                        0), Column("called slower", "slower_20_seen",
                                   0), Column("30 % slower: trials", "slower_30_trials",
                                              0), Column("called slower", "slower_30_seen", 0)),
                lambda rows: [row for row in rows if row["what"] == "tally"])

_INT8_TOOLS = Table(
    (Column("model", "model"), Column("INT8 by", "tool"), Column("INT8 products", "int8_layers", 0),
     Column("cosine to FP32, mean", "cosine_mean", 5), Column(
         "1st percentile", "cosine_p1", 5), Column("relative error", "relative_error", 4),
     Column("depth δ<1.25 lost, points", "delta1_drop", 2),
     Column("faster than FP32", "vs_fp32", 2, suffix="x"), Column("size, MB", "size_mb", 1)),
    lambda rows: [row for row in rows if row["part"] == "tool"])

_QUESTION_PROBES = Table(
    (Column("features", "features"), Column("training clips", "train_clips",
                                            0), Column("held-out clips", "clips", 0),
     Column("size of the room, R²", "room_size_r2"), Column("size of a thing", "thing_size_r2"),
     Column("distance between two things",
            "thing_distance_r2"), Column("distance between two tokens", "token_distance_r2")))

_QUESTION_GAINS = Table(
    (Column("features", "features"), Column("size of the room, MRA %", "room_size_mra", 1, 100),
     Column("over semantic, points (95 %)", "room_size"),
     Column("size of a thing", "thing_size_mra", 1, 100), Column("over semantic", "thing_size"),
     Column("distance between two things", "thing_distance_mra", 1,
            100), Column("over semantic", "thing_distance")), _gains, "question_probes")

_CURVES = Table(
    (Column("training", "training"), Column("features", "features"), Column("seed", "seed", 0),
     Column("steps", "steps", 0), Column("loss of numbers, held-out: lowest", "number_lowest"),
     Column("at step", "number_lowest_at", 0), Column("at the end", "number_last"),
     Column("of grounding: lowest", "ground_lowest"), Column("at step", "ground_lowest_at", 0),
     Column("at the end", "ground_last"), Column("numeric MRA, %", "numeric_mra", 1,
                                                 100), Column("distances", "distance_mra", 1, 100),
     Column("grounding Acc@0.25, %", "ground_acc", 1, 100)),
    lambda rows: [row for row in rows if row["kind"] == "training"])

_CROSSCHECK = Table((
    Column("file", "artefact"), Column("runs on", "backend"), Column("precision", "precision"),
    Column("batch", "batch", 0), Column("median here, ms", "latency_ms", 2), Column("by", "tool"),
    Column("its median, ms", "tool_ms", 2), Column("ours over its", "ratio", 3)))

_INFER_CORE = Table((
    Column("what", "what"), Column("measured", "value", None), Column("unit", "unit"),
    Column("at most", "limit", None)))

_TAP_SEARCH = Table(
    (Column("rank", "rank", 0), Column("frames", "mode"), Column("noise t", "t", 2),
     Column("block", "block", 0), Column("score", "score", 1), Column("2.5 %", "score_low", 1),
     Column("97.5 %", "score_high", 1), Column("came first", "first_share", 1, 100, " %"),
     Column("depth R², ridge", "depth_r2_ridge"), Column("XYZ R², ridge", "xyz_r2_ridge"),
     Column("depth R², MLP", "depth_r2_mlp"), Column(
         "normal cosine", "normal_cos"), Column("correspondence AUC", "corr_std_auc")),
    lambda rows: sorted(rows, key=lambda row: row["rank"])[:10])

_CENSUS = Table(
    (Column("task", "task"), Column("a 100 rooms", "per_100_rooms", 0),
     Column("scored on", "held_out_questions", 0), Column("by", "metric"), Column(
         "chance", "chance"), Column("majority", "majority"), Column(
             "words alone", "text_only"), Column("best constant", "constant")),
    lambda rows: [{key: value
                   for key, value in row.items() if value != ""} for row in rows])

_LANGUAGE_7B = Table((
    Column("training", "tune"), Column("parameters, billion", "parameters", 2, 1e-9),
    Column("trained, billion", "trained", 2, 1e-9), Column("frames", "frames", 0),
    Column("visual tokens", "visual_tokens", 0), Column("a step, ms", "step_ms", 0),
    Column("planned, GB", "planned_gb", 1), Column("peak, GB", "peak_gb", 1)))

TABLES = {
    "nano_probe": _NANO_PROBE, "rooms_accuracy": _ROOMS_ACCURACY, "latency_cpu": _LATENCY_CPU,
    "int8_cpu": _INT8_CPU, "latency_h200": _LATENCY_H200, "timer_h200": _TIMER, "timer_cpu": _TIMER,
    "rendering_h200": _RENDERING, "compare_trials": _TRIALS, "int8_tools": _INT8_TOOLS,
    "crosscheck_cpu": _CROSSCHECK, "infer_core": _INFER_CORE, "tap_search": _TAP_SEARCH,
    "rooms_census": _CENSUS, "language_7b": _LANGUAGE_7B, "trt_h200": _TRT_H200, **{
        name: table
        for card in ("h100", "h200")
        for name, table in ((f"trt_{card}_places", replace(_TRT_PLACES, file=f"trt_{card}")), (f"trt_{card}_layers", _TRT_LAYERS))
    }, "trt_h100": _TRT_H200, "rooms_questions": Table(SCORED, scored), "fusion_ablation": Table(
        FUSED, fused), "rooms_questions_controls": Table(CONTROLLED, controlled, "rooms_questions"),
    "rooms_questions_types": Table(TYPED, typed, "rooms_questions"),
    "gate_by_class": Table(GATED, gated), "question_probes": _QUESTION_PROBES,
    "question_probes_gain": _QUESTION_GAINS, "language_curves": _CURVES,
    "rooms_questions_warm": Table(SCORED, scored), "rooms_questions_warm_types": Table(
        TYPED, typed, "rooms_questions_warm"), "rooms_questions_pilot": Table(SCORED, scored),
    "rooms_questions_pilot_controls": Table(CONTROLLED, controlled, "rooms_questions_pilot"),
    "rooms_questions_pilot_types": Table(TYPED, typed, "rooms_questions_pilot")
}
