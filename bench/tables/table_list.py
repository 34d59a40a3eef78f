"""Every table of docs/results.md and README: its result file, columns, rows and their order."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.accuracy.intervals import METRICS
from bench.report.findings import gain_is_real
from bench.tables.columns import Column, columns, mean_difference, over_seeds, with_interval
from bench.tables.language_tables import (
    DROPPED_COLUMNS,
    GAIN_COLUMNS,
    GATE_COLUMNS,
    LANGUAGE_COLUMNS,
    SEED_COLUMNS,
    dropped_rows,
    gains,
    gate_rows,
    is_minus_control,
    language_rows,
    seed_rows,
)
from records.results import Row

ENGINES = ("fp16", "int8", "fp32")  # TensorRT engines as the product writes them

README_FEATURES = ("teacher", "semantic_only", "student_distilled", "student_heads")


@dataclass(frozen=True)
class Table:
    """file: bench/results/FILE.json. where: the rows of it to show; derive: rows made of these;
    order: a sort key, None for the file's order."""
    file: str
    columns: tuple[Column, ...]
    where: Callable[[Row], bool] = bool  # all
    derive: Callable[[list[Row]], list[Row]] = list
    order: Callable[[Row], Any] | None = None

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        shown = self.derive([row for row in rows if self.where(row)])
        return sorted(shown, key=self.order) if self.order else shown


def table_of_fields(file: str, fields: Sequence[str]) -> Table:
    """Fields under their own names, in the rows that have them all."""
    return Table(file, columns(*((field.replace("_", " "), field, None) for field in fields)),
                 lambda row: all(row.get(field) is not None for field in fields))


def _best_probes(rows: list[Row]) -> list[Row]:
    """The best of each control, then of the generator's in each mode and number of noise draws."""
    best: dict[tuple, Row] = {}
    for row in rows:
        generator = row["features"].startswith("generator")
        key = (1, row["seeds"], row["mode"]) if generator else (0, row["features"])
        if key not in best or _strength(row) > _strength(best[key]):
            best[key] = row
    controls = [row for key, row in best.items() if not key[0]]
    taps = sorted(key for key in best if key[0])
    return controls + [best[key] for key in taps]


def _strength(row: Row) -> float:
    return (row["depth_r2_mlp"] or 0) + (row["normal_cos"] or 0)


def _flips_by_folder(rows: list[Row]) -> list[Row]:
    """Files, how many of them verify named, and how many got each verdict."""
    folders: dict[str, Row] = {}
    for row in rows:
        counts = folders.setdefault(row["kind"], {"name": row["kind"], "files": 0, "verify": 0})
        counts["files"] += 1
        counts["verify"] += row["verify"] == "named"
        counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
    return list(folders.values())


def _rooms_accuracy(rows: list[Row]) -> list[Row]:
    """Mean and spread over seeds, and the gain over semantic_only. Recovery is hidden where the
    generator's gain was measured and may be zero."""
    measured = any("delta1_vs_semantic_low" in row for row in rows)
    if measured and not all(gain_is_real(rows, metric) for metric in METRICS):
        rows = [row | {"recovery": None} for row in rows]
    return [row | _over_semantic(row, rows) for row in over_seeds(rows, ("features", "head"))]


def _over_semantic(merged: Row, rows: Sequence[Row]) -> Row:
    """FIELD_gain: mean difference from semantic_only of the same head and seed, with its
    t-interval; nothing where there is none."""
    baseline = {row.get("seed"): row for row in rows
                if (row["features"], row.get("head")) == ("semantic_only", merged.get("head"))}
    own = [row for row in rows if (row["features"], row.get("head")) == (
        merged["features"], merged.get("head")) and row.get("seed") in baseline]
    gains: Row = {}
    for field, scale in (("delta1", 100), ("normal_deg", 1)):
        found = [row[field] - baseline[row.get("seed")][field] for row in own if field in row]
        if found and merged["features"] != "semantic_only":
            gains[f"{field}_gain"] = mean_difference(found, scale)
    return gains


def _real_beside_rooms(rows: list[Row]) -> list[Row]:
    """One row a training: scores on rooms, and beside them as real_FIELD those on real frames."""
    def training(row: Row) -> tuple:
        return tuple(row.get(key) for key in ("arm", "training", "labelled_rooms", "seed"))

    real = {training(row): row for row in rows if row["frames_from"] == "real"}
    return [row | {f"real_{field}": value for field, value in real.get(training(row), {}).items()}
            for row in rows if row["frames_from"] == "rooms"]


def _is_timer(row: Row) -> bool:
    return row["kind"] == "timer"


def _is_tensorrt(row: Row) -> bool:
    return row["backend"].startswith("tensorrt")


def _engines(rows: list[Row]) -> list[Row]:
    """One row a student and batch: TensorRT's engines as exported, and torch's compiled FP16."""
    places: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        variant: str = row.get("variant") or row["precision"]
        places.setdefault((row["model"], row["batch"]), {})[variant] = row
    shown = []
    for (model, batch), variants in sorted(places.items()):
        if any(variants.get(name, {}).get("latency_ms") for name in ENGINES):
            shown.append({"model": model, "batch": batch, **_engines_of(variants)})
    return shown


def _engines_of(variants: dict[str, Row]) -> Row:
    engines = {name: variants.get(name, {"error": "not measured"}) for name in ENGINES}
    outcomes = {}
    for name, engine in engines.items():
        outcomes[name] = engine.get("gate") or engine.get("error") or "not timed"
    outcome = f"all {outcomes['int8']}"
    if len(set(outcomes.values())) > 1:
        outcome = "; ".join(f"{name}: {result}" for name, result in outcomes.items())
    int8 = engines["int8"]
    row: Row = {"weights": int8.get("weights"), "outcome": outcome}
    for name, engine in engines.items():
        row |= {f"{name}_ms": engine.get("graph_ms"), f"{name}_mb": engine.get("size_mb")}
    row["torch_ms"] = variants.get("fp16-compiled", {}).get("graph_ms")
    fields = ("graph_vs_fp16", "vs_fp16", "cosine_mean", "cosine_p1")
    return row | {field: int8.get(field) for field in fields}


def _placements(rows: list[Row]) -> list[Row]:
    """Timed engines of the students for which other Q/DQ placements were tried."""
    timed = [row for row in rows if row.get("latency_ms")]
    tried = {(row["model"], row["batch"]) for row in timed if "-" in row["variant"]}
    return [{**row, "outcome": row.get("gate") or row.get("error")} for row in timed
            if (row["model"], row["batch"]) in tried]


def _gains_in_points(rows: list[Row]) -> list[Row]:
    """Adds FIELD: FIELD_gain in points with its interval."""
    shown = []
    for row in rows:
        gains = {}
        for field, gain in row.items():
            if field.endswith("_gain"):
                low, high = row[f"{field}_low"], row[f"{field}_high"]
                gains[field.removesuffix("_gain")] = with_interval(gain, low, high)
        shown.append(row | gains)
    return shown


_TRAINING = (
    ("rooms: depth δ<1.25", "delta1"), ("median-scaled", "delta1_median"),
    ("normal error, °", "normal_deg", 1), ("match, within 1 token", "match"),
    ("real frames: depth δ<1.25", "real_delta1"), ("median-scaled", "real_delta1_median"),
    ("normal error, °", "real_normal_deg", 1), ("match, within 1 token", "real_match"),
    ("cosine to teacher", "cosine_mean"))
_OVER_SEMANTIC = (("δ<1.25 over semantic, points (95 %)", "delta1_gain"),
                  ("normals over semantic, ° (95 %)", "normal_deg_gain"))
_TIMER = columns(("work of a known length", "work"), ("on", "device"), ("truth, ms", "truth_ms", 4),
                 ("measured, ms", "latency_ms", 4), ("off by, %", "error_percent", 2))
_ROBUSTNESS = columns(
    ("disturbance", "perturbation"), ("level", "level"), ("model", "model"),
    ("depth δ<1.25", "delta1"), ("change, points", "change", 1, 100), ("AbsRel", "abs_rel"),
    ("normal error, °", "normal_deg", 1), ("match, within 1 token", "match", 2),
    ("frames", "frames", 0))

TABLES = {
    "alignment": Table("alignment", columns(
        ("features", "generator"), ("aligned to", "align"), ("width", "width", 0),
        ("block", "block", 0), ("noise t", "t", 2), ("noise draws", "draws", 0),
        ("depth R², alone", "depth_r2_alone"), ("with semantic", "depth_r2_fused"),
        ("gain", "depth_gain"), ("95 % from", "depth_gain_low"), ("to", "depth_gain_high"),
        ("random weights with semantic", "depth_r2_random_fused"),
        ("normal cosine, alone", "normal_cos_alone"), ("with semantic", "normal_cos_fused"),
        ("match, exact", "match_exact"), ("match, within 1 token", "match_within1")),
        lambda row: row.get("frames_from") != "real"),
    "alignment_real": Table("alignment", columns(
        ("features", "generator"), ("aligned to", "align"), ("block", "block", 0),
        ("noise t", "t", 2), ("depth R² (MLP), alone", "depth_r2_alone_mlp"),
        ("with semantic", "depth_r2_fused_mlp"), ("gain", "depth_gain_mlp"),
        ("95 % from", "depth_gain_mlp_low"), ("to", "depth_gain_mlp_high"),
        ("first half to second", "depth_gain_mlp_way1"), ("back", "depth_gain_mlp_way2"),
        ("random weights: gain", "depth_random_gain_mlp"), ("gain, ridge", "depth_gain"),
        ("random weights: gain, ridge", "depth_random_gain")),
        lambda row: row.get("frames_from") == "real",
        order=lambda row: row.get("block") is not None),
    "nano_probe": Table("nano_probe", columns(
        ("features", "features"), ("frames", "mode"), ("noise t", "t", 2), ("block", "block", 0),
        ("noise draws", "seeds", 0), ("depth R², ridge", "depth_r2_ridge"),
        ("with semantic", "depth_r2_fused"),
        ("depth R², MLP", "depth_r2_mlp"), ("depth δ<1.25", "delta1"),
        ("normal cosine", "normal_cos"), ("match, exact", "match_exact", 2),
        ("match, within 1 token", "match_1", 2)), derive=_best_probes),
    "rooms_accuracy": Table("rooms_accuracy", columns(
        ("features", "features"), ("head", "head"), ("seeds", "seeds", 0),
        ("depth δ<1.25", "delta1"), ("median-scaled", "delta1_median"),
        ("depth AbsRel", "abs_rel"), ("normal error, °", "normal_deg", 1), ("mIoU", "miou"),
        *_OVER_SEMANTIC, ("match, within 1 token", "match_descriptor"),
        ("cosine to teacher", "cosine_mean"), ("recovery of the gain", "recovery", 2),
        ("questions", "questions", 0), ("numeric MRA, %", "task/vsi_numeric/mra", 1, 100),
        ("multiple choice, %", "task/vsi_choice/accuracy", 1, 100),
        ("grounding Acc@0.25, %", "task/ground/acc@0.25", 1, 100),
        ("Acc@0.5, %", "task/ground/acc@0.5", 1, 100),
        ("recovery, numeric", "task/vsi_numeric/mra_recovery", 2),
        ("recovery, grounding", "task/ground/acc@0.25_recovery", 2)), derive=_rooms_accuracy),
    "rooms_accuracy_short": Table("rooms_accuracy", columns(
        ("features", "features"), ("seeds", "seeds", 0), ("depth δ<1.25", "delta1"),
        ("normal error, °", "normal_deg", 1), ("mIoU", "miou"),
        ("recovery of the gain", "recovery", 2)),
        lambda row: row["features"] in README_FEATURES, _rooms_accuracy),
    "app_model": Table("app_model", columns(
        ("model", "model"), ("seed", "seed", 0), ("clips", "test_clips", 0),
        ("depth δ<1.25", "delta1"), ("less than FP32, points", "delta1_vs_fp32", 2, -100),
        ("median-scaled", "delta1_median"), ("AbsRel", "abs_rel"),
        ("normal error, °", "normal_deg", 1), ("match, within 1 token", "match"),
        ("scale's change at 160 px, %", "scale_change_160", 1, 100),
        ("at 448 px", "scale_change_448", 1, 100),
        ("of the middle, cropped", "scale_change_crop", 1, 100),
        ("of a corner", "scale_change_corner", 1, 100),
        ("cosine to teacher", "cosine_mean"))),
    "shipped_recovery": Table("shipped_recovery", columns(
        ("features", "features"), ("seeds", "seeds", 0), ("depth δ<1.25", "delta1"),
        ("depth AbsRel", "abs_rel"), ("normal error, °", "normal_deg", 1), ("mIoU", "miou"),
        *_OVER_SEMANTIC, ("cosine to teacher", "cosine_mean"),
        ("recovery of the gain", "recovery", 2)), derive=_rooms_accuracy),
    "label_efficiency": Table("label_efficiency", columns(
        ("labelled rooms", "labelled_rooms", 0), ("training", "training"), *_TRAINING),
        derive=_real_beside_rooms),
    "app_arms": Table("app_arms", columns(
        ("student", "arm"), ("training", "training"), *_TRAINING), derive=_real_beside_rooms),
    "student_ablation": Table("student_ablation", columns(
        ("student", "variant"), ("cosine to teacher", "cosine_mean"),
        ("1st percentile", "cosine_p1"), ("cosine at exposure x1.5", "cosine_bright"),
        ("depth δ<1.25", "delta1"), ("AbsRel", "abs_rel"), ("normal error, °", "normal_deg", 1),
        ("mIoU", "miou"), ("recovery of the gain", "recovery", 2))),
    "latency_cpu": Table("latency_cpu", columns(
        ("file", "artefact"), ("stage", "stage"), ("runs on", "backend"),
        ("precision", "precision"), ("batch", "batch", 0), ("median, ms", "latency_ms", 1),
        ("p90, ms", "p90_ms", 1), ("p99, ms", "p99_ms", 1), ("size, MB", "size_mb", 1),
        ("peak memory, MB", "memory_mb", 0), ("faster than the generator", "speedup", 1, 1, "x"))),
    "heads_cpu": Table("heads_cpu", columns(
        ("student", "student"), ("outputs", "outputs"), ("file", "artefact"),
        ("runs on", "backend"), ("median, ms", "latency_ms", 1), ("p90, ms", "p90_ms", 1),
        ("over the features alone", "vs_features", 2, 1, "x"),
        ("over the previous student", "vs_previous", 2, 1, "x"))),
    "openvino_cpu": Table("openvino_cpu", columns(
        ("model", "model"), ("weights", "weights"), ("threads", "threads", 0),
        ("file", "artefact"), ("runs on", "runtime"), ("precision", "precision"),
        ("median, ms", "latency_ms", 1), ("faster than the best FP32", "vs_best_fp32", 2, 1, "x"),
        ("than the best float", "vs_best_float", 2, 1, "x"),
        ("cosine to FP32, mean", "cosine_mean", 5), ("1st percentile", "cosine_p1", 5))),
    "camera_cpu": Table("camera_cpu", columns(
        ("file", "artefact"), ("runs on", "runtime"), ("height", "height", 0),
        ("width", "width", 0), ("preparing alone, ms", "prepare_ms", 1),
        ("Pillow and NumPy, ms", "present_ms", 1), ("in the graph, ms", "in_graph_ms", 1),
        ("saved, %", "saved", 0, 100), ("cosine", "cosine_mean", 4))),
    "latency_gpu": Table("latency_gpu", columns(
        ("file", "artefact"), ("noise draws", "draws", 0), ("runs on", "backend"),
        ("launch", "launch"), ("precision", "precision"), ("batch", "batch", 0),
        ("GPU median, ms", "latency_ms", 3), ("ms a frame", "frame_ms", 4),
        ("faster than the generator with one draw", "vs_one_draw", 2, 1, "x"),
        ("than real Wan", "vs_wan", 0, 1, "x"), ("mJ a frame", "energy_mj_per_frame", 2),
        ("cosine to FP32, mean", "cosine_mean", 5), ("1st percentile", "cosine_p1", 5)),
        lambda row: row["kind"] == "latency",
        order=lambda row: (row["stage"], row["artefact"], row["launch"], row["precision"])),
    "timer_h200": Table("timer_h200", _TIMER, _is_timer),
    "timer_cpu": Table("timer_cpu", _TIMER, _is_timer),
    "rendering_h200": Table("rendering_h200", columns(
        ("processes", "workers", 0), ("frames", "frames", 0), ("px", "size_px", 0),
        ("frames/s, all in", "frames_per_s", 0),
        ("frames/s once all are at work", "steady_frames_per_s", 0),
        ("MB/s written", "mb_per_s", 0)), lambda row: "workers" in row),
    "compare_trials": Table("compare_trials", columns(
        ("trials", "trials", 0), ("same file called equal", "equal", 0),
        ("10 % slower: trials", "slower_10_trials", 0), ("called slower", "slower_10_seen", 0),
        ("20 % slower: trials", "slower_20_trials", 0), ("called slower", "slower_20_seen", 0),
        ("30 % slower: trials", "slower_30_trials", 0), ("called slower", "slower_30_seen", 0)),
        lambda row: row["what"] == "tally"),
    "int8_tools": Table("int8_tools", columns(
        ("model", "model"), ("INT8 by", "tool"), ("INT8 products", "int8_layers", 0),
        ("cosine to FP32, mean", "cosine_mean", 5), ("1st percentile", "cosine_p1", 5),
        ("relative error", "relative_error", 4), ("depth δ<1.25 lost, points", "delta1_drop", 2),
        ("faster than FP32", "vs_fp32", 2, 1, "x"), ("size, MB", "size_mb", 1)),
        lambda row: row["part"] == "tool"),
    "crosscheck_cpu": Table("crosscheck_cpu", columns(
        ("file", "artefact"), ("runs on", "backend"), ("precision", "precision"),
        ("batch", "batch", 0), ("median here, ms", "latency_ms", 2), ("by", "tool"),
        ("its median, ms", "tool_ms", 2), ("ours over its", "ratio", 3))),
    "infer_core": Table("infer_core", columns(
        ("Python", "python"), ("onnxruntime", "onnxruntime"), ("numpy", "numpy"),
        ("size, MB", "size_mb", 0), ("without sympy, MB", "without_sympy_mb", 0),
        ("at most", "max_mb", 0), ("a start, s", "start_s", 2), ("worst", "worst_s", 2),
        ("at most", "max_start_s", 1), ("its processor time, s", "cpu_s", 2))),
    "real_office": Table("real_office", columns(
        ("file", "file"), ("precision", "precision"), ("δ<1.25, metric", "delta1_metric"),
        ("median-scaled", "delta1_median"), ("affine in 1/z", "delta1_affine"),
        ("AbsRel, metric", "abs_rel"), ("correlation", "corr", 2),
        ("normal error, °", "normal_deg", 1), ("match at .21 m: exact", "match_exact_21cm", 2),
        ("within 1 token", "match_within1_21cm", 2), ("at .49 m: exact", "match_exact_49cm", 2),
        ("within 1 token", "match_within1_49cm", 2), ("flicker, %", "flicker", 1, 100),
        ("drift over 1,000 frames", "drift", 3))),
    "adapt": Table("adapt", columns(
        ("recording", "recording"), ("student", "stage"), ("frames", "frames_from"),
        ("seeds", "seeds", 0), ("count", "frames", 0),
        ("depth δ<1.25", "delta1"), ("median-scaled", "delta1_median"), ("AbsRel", "abs_rel"),
        ("normal error, °", "normal_deg", 1), ("matches", "match_descriptor"),
        ("cosine to teacher", "cosine_mean")),
        derive=partial(over_seeds, by=("recording", "stage", "frames_from", "frames"))),
    "robustness": Table("robustness", _ROBUSTNESS),
    "robustness_teacher": Table("robustness_teacher", _ROBUSTNESS),
    "scaling": Table("scaling", columns(
        ("stage", "stage"), ("GPUs", "gpus", 0), ("frames/s", "items_per_s", 0),
        ("speed-up", "speedup", 2, 1, "x"))),
    "web": Table("web", columns(
        ("file", "artefact"), ("precision", "precision"), ("threads", "threads", 0),
        ("median, ms", "latency_ms", 1), ("p90, ms", "p90_ms", 1), ("frames/s", "frames_per_s", 1),
        ("first overlay, s", "first_overlay_s", 2))),
    "phones": Table("phones", columns(
        ("file", "file"), ("runtime", "runtime"), ("precision", "precision"), ("ran on", "ran_on"),
        ("cosine, mean", "cosine_mean", 5), ("cosine, worst frame", "cosine_min", 5),
        ("ms", "latency_ms", 1), ("MB", "size_mb", 1))),
    "tap_search": Table("tap_search", columns(
        ("rank", "rank", 0), ("features", "features"), ("noise t", "t", 2), ("block", "block", 0),
        ("score", "score", 1), ("2.5 %", "score_low", 1), ("97.5 %", "score_high", 1),
        ("came first", "first_share", 1, 100, " %"), ("depth R², ridge", "depth_r2_ridge"),
        ("with semantic", "depth_r2_fused"),
        ("with semantic, test rooms", "test_depth_r2_fused"),
        ("XYZ R², ridge", "xyz_r2_ridge"), ("depth R², MLP", "depth_r2_mlp"),
        ("normal cosine", "normal_cos"), ("correspondence AUC", "corr_std_auc")),
        lambda row: row.get("rank", 0) <= 10 or row.get("shipped", False),
        order=lambda row: row.get("rank", 99)),
    "rooms_census": Table("rooms_census", columns(
        ("task", "task"), ("a 100 rooms", "per_100_rooms", 0),
        ("scored on", "held_out_questions", 0), ("by", "metric"), ("chance", "chance"),
        ("majority", "majority"), ("words alone", "text_only"), ("best constant", "constant"))),
    "wan_extraction": Table("wan_extraction", columns(
        ("path", "path"), ("VAE", "vae"), ("precision", "precision"), ("height", "height", 0),
        ("width", "width", 0), ("frames", "frames", 0), ("VAE, ms", "vae_ms", 1),
        ("transformer, ms", "dit_ms", 1), ("both, ms", "total_ms", 1),
        ("peak, GiB", "peak_gib", 2), ("cosine to FP32, lowest", "cosine_min", 5),
        ("faster than the reference", "speedup", 2, 1, "x")),
        lambda row: row["kind"] == "extraction"),
    "language_7b": Table("language_7b", columns(
        ("training", "tune"), ("parameters, billion", "parameters", 2, 1e-9),
        ("trained, billion", "trained", 2, 1e-9), ("frames", "frames", 0),
        ("visual tokens", "visual_tokens", 0), ("a step, ms", "step_ms", 0),
        ("planned, GB", "planned_gb", 1), ("peak, GB", "peak_gb", 1))),
    "hostile": Table("hostile", columns(
        ("input", "kind"), ("tried", "tried", 0), ("one line, exit code 2", "clean", 0))),
    "flips": Table("flips", columns(
        ("in", "name"), ("files", "files", 0), ("refused", "refused", 0),
        ("made again", "made again", 0), ("left out of bench", "left out", 0),
        ("read by no stage", "verified", 0), ("used", "used", 0),
        ("named by verify", "verify", 0)), derive=_flips_by_folder),
    "language_graph": Table("language_graph", columns(
        ("clips", "clips", 0), ("questions", "questions", 0), ("layers", "layers", 0),
        ("eager step, ms", "eager_ms", 1), ("as a CUDA graph, ms", "graphed_ms", 1),
        ("faster", "speedup", 2, 1, "x"), ("last loss, eager", "loss_last"),
        ("last loss, graph", "loss_last_graphed"))),
    "trt_h200": Table("trt_h200", columns(
        ("model", "model"), ("weights", "weights"), ("batch", "batch", 0),
        ("FP16, ms", "fp16_ms", 3), ("INT8, ms", "int8_ms", 3), ("FP32, ms", "fp32_ms", 3),
        ("compiled torch FP16, ms", "torch_ms", 3),
        ("INT8 faster than FP16", "graph_vs_fp16", 2, 1, "x"),
        ("the same, launched", "vs_fp16", 2, 1, "x"),
        ("INT8's cosine to FP32, mean", "cosine_mean", 5), ("1st percentile", "cosine_p1", 5),
        ("FP16, MB", "fp16_mb", 1), ("INT8, MB", "int8_mb", 1), ("gates", "outcome")),
        lambda row: _is_tensorrt(row) or row["backend"] == "torch", _engines),
    "trt_h200_places": Table("trt_h200", columns(
        ("model", "model"), ("batch", "batch", 0), ("engine", "variant"),
        ("launched, ms", "latency_ms", 3), ("as a CUDA graph, ms", "graph_ms", 3),
        ("faster than FP16", "graph_vs_fp16", 2, 1, "x"),
        ("cosine to FP32, mean", "cosine_mean", 5), ("1st percentile", "cosine_p1", 5),
        ("gate", "outcome")), _is_tensorrt, _placements, lambda row: (
            row["model"], row["batch"], row.get("graph_ms") or row["latency_ms"])),
    "trt_h200_layers": Table("trt_h200_layers", columns(
        ("model", "model"), ("batch", "batch", 0), ("engine", "variant"),
        ("kernels", "launches", 0), ("all, ms", "total_ms", 3),
        ("INT8 products", "gemm_int8_ms", 3), ("half products", "gemm_half_ms", 3),
        ("float products", "gemm_float_ms", 3), ("attention", "attention_ms", 3),
        ("GELU", "gelu_ms", 3), ("LayerNorm", "norm_ms", 3),
        ("quantise, reformat", "quantise_reformat_ms", 3), ("other", "other_ms", 3))),
    "trt_jetson_h200": Table("trt_jetson_h200", columns(
        ("model", "model"), ("precision", "precision"), ("batch", "batch", 0),
        ("median, ms", "latency_ms", 3), ("p90, ms", "p90_ms", 3),
        ("host to host, ms", "host_to_host_ms", 3), ("cosine to FP32, mean", "cosine_mean", 5),
        ("1st percentile", "cosine_p1", 5), ("size, MB", "size_mb", 1), ("gate", "gate"))),
    "sensitivity": Table("sensitivity", LANGUAGE_COLUMNS, derive=language_rows),
    "sensitivity_seeds": Table("sensitivity", SEED_COLUMNS, derive=seed_rows),
    "sensitivity_gains": Table("sensitivity", GAIN_COLUMNS, derive=gains),
    "rooms_questions": Table("rooms_questions", LANGUAGE_COLUMNS, derive=language_rows),
    "rooms_questions_seeds": Table("rooms_questions", SEED_COLUMNS, derive=seed_rows),
    "rooms_questions_gains": Table("rooms_questions", GAIN_COLUMNS, is_minus_control, gains),
    "rooms_questions_dropped": Table("rooms_questions", DROPPED_COLUMNS, derive=dropped_rows),
    "rooms_questions_gate": Table("rooms_questions", GATE_COLUMNS, derive=gate_rows),
    "masking_ablation": Table("masking_ablation", LANGUAGE_COLUMNS, derive=language_rows),
    "masking_gains": Table("masking_ablation", GAIN_COLUMNS, derive=gains),
    "fusion_ablation": Table("fusion_ablation", LANGUAGE_COLUMNS, derive=language_rows),
    "fusion_gains": Table("fusion_ablation", GAIN_COLUMNS, derive=gains),
    "question_probes": Table("question_probes", columns(
        ("features", "features"), ("training clips", "train_clips", 0),
        ("held-out clips", "clips", 0), ("room size, R²", "room_size_r2"),
        ("object size", "thing_size_r2"), ("distance of two objects", "thing_distance_r2"),
        ("distance of two tokens", "token_distance_r2"))),
    "question_probes_gain": Table("question_probes", columns(
        ("features", "features"), ("room size, MRA %", "room_size_mra", 1, 100),
        ("over semantic, points (95 %)", "room_size"),
        ("object size", "thing_size_mra", 1, 100), ("over semantic", "thing_size"),
        ("distance of two objects", "thing_distance_mra", 1, 100),
        ("over semantic", "thing_distance")), derive=_gains_in_points),
    "language_curves": Table("language_curves", columns(
        ("training", "training"), ("features", "features"), ("seed", "seed", 0),
        ("steps", "steps", 0), ("loss of numbers, held-out: lowest", "number_lowest"),
        ("at step", "number_lowest_at", 0), ("at the end", "number_last"),
        ("of grounding: lowest", "ground_lowest"), ("at step", "ground_lowest_at", 0),
        ("at the end", "ground_last"), ("numeric MRA, %", "numeric_mra", 1, 100),
        ("distances", "distance_mra", 1, 100), ("grounding Acc@0.25, %", "ground_acc", 1, 100)),
        lambda row: row["kind"] == "training"),
    "kills": Table("kills", columns(
        ("stage", "stage"), ("killed at a", "kill"), ("trials", "trials", 0),
        ("partial files", "partial", 0), ("did not resume", "stuck", 0),
        ("resumed to equal files", "resumed_equal", 0))),
    "growth": Table("growth", columns(
        ("clips", "clips", 0), ("to open, s", "open_s", 2), ("index, MB", "index_mb", 1),
        ("clips read at random", "read_clips", 0), ("MB/s", "read_mb_per_s", 0),
        ("memory it took, MB", "read_memory_mb", 1))),
}
