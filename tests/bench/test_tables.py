"""Tables in Markdown equal their result files, and nothing else in a document changes."""
from pathlib import Path

import pytest

from bench.recipes.infer_core import timed
from bench.tables.columns import Column, over_seeds
from bench.tables.fill import TABLES, fill, table, update
from records.results import Results, save
from tests.bench_rows import ENV, accuracy_row, file_row, latency_row

ROOT = Path(__file__).resolve().parents[2]


def write(folder, name: str, rows: list[dict], **env) -> None:
    save(Results(name, f"vega3d bench --save {name}", "abc123", {**ENV, **env}, rows),
         folder / f"{name}.json")


def probe(features: str, depth: float, block=None, seeds=None, mode: str = "-") -> dict:
    return {
        "features": features, "mode": mode, "t": 0.3, "block": block, "seeds": seeds,
        "depth_r2_mlp": depth, "depth_r2_ridge": depth - 0.05, "delta1": 0.5, "normal_cos": 0.9,
        "match_exact": None, "match_1": 0.6
    }


@pytest.fixture
def folder(tmp_path):
    rooms = [accuracy_row(name, delta1 + seed / 100, 10.0, seed) for seed in (0, 1, 2)
             for name, delta1 in (("teacher", 0.84), ("semantic_only", 0.77))]
    write(tmp_path, "rooms_accuracy",
          [*rooms, file_row("student_int8_cpu", "model.int8.cpu.onnx", 0.832, 0.999)])
    write(tmp_path, "latency_cpu",
          [latency_row("student", "model.onnx", 24.44, backend="ort-cpu", speedup=16.1)])
    write(tmp_path, "real_office", [{"file": "model.onnx", "precision": "int8", "corr": 0.41}])
    write(tmp_path, "adapt", [{"stage": "after", "frames_from": "footage", "abs_rel": 0.19}])
    write(tmp_path, "alignment", [
        {"generator": "wan-nano", "depth_r2_alone": 0.76},
        {"generator": "wan-nano", "frames_from": "real", "depth_gain_mlp": 0.13, "cpu": "EPYC",
         "command": "vega3d teacher probe --rgbd place", "commit": "2222222"}])
    write(tmp_path, "openvino_cpu", [{"artefact": "model.onnx", "runtime": "OpenVINO",
                                      "latency_ms": 16.0, "vs_best_float": 1.0,
                                      "cosine_mean": 0.99931}])
    write(tmp_path, "camera_cpu", [{"artefact": "model.onnx", "saved": 0.02}])
    disturbed = [{"perturbation": "exposure", "level": "x1.5", "model": "int8",
                  "delta1": 0.8, "change": -0.03}]
    for name in ("robustness", "robustness_teacher"):
        write(tmp_path, name, disturbed)
    write(tmp_path, "heads_cpu", [{"student": "shipped", "outputs": "all", "artefact": "model.onnx",
                                   "backend": "ort-cpu", "latency_ms": 9.9, "vs_features": 1.4}])
    write(tmp_path, "shipped_recovery",
          [{"features": "shipped_int8", "head": "dense", "seed": seed, "recovery": 1.1 + seed / 10}
           for seed in (0, 1, 2)])
    for name, key in (("label_efficiency", "labelled_rooms"), ("app_arms", "arm")):
        write(tmp_path, name, [
            {"training": training, "seed": 0, key: 50, "frames_from": frames, "delta1": delta1}
            for training, frames, delta1 in (("labels", "rooms", 0.748), ("both", "rooms", 0.773),
                                             ("both", "real", 0.494), ("labels", "real", 0.490))])
    write(tmp_path, "student_ablation", [{"variant": "base", "seed": 0, "cosine_mean": 0.858}])
    write(tmp_path, "app_model", [{"model": "model.onnx", "seed": 0, "delta1": 0.8}])
    write(tmp_path, "scaling", [{"stage": "extraction", "gpus": 2, "items_per_s": 2008.4,
                                 "speedup": 1.65}])
    write(tmp_path, "phones", [{"file": "model.tflite", "runtime": "litert", "ran_on": "CPU"}])
    write(tmp_path, "nano_probe", [
        probe("position only", 0.18),
        probe("rgb patches", 0.38),
        probe("random weights", 0.3, 6, 1, "image"),
        probe("random weights", 0.35, 6, 1, "video"),
        probe("generator, image", 0.6, 4, 1, "image"),
        probe("generator, image", 0.7, 6, 1, "image"),
        probe("generator, image", 0.76, 6, 8, "image")
    ])
    gpu = {"launch": "graph", "frame_ms": 0.03, "vs_wan": 190.4}
    write(tmp_path, "latency_gpu", [
        {**latency_row("student", "vit-s", 0.9, "fp16"), **gpu, "batch": 32},
        {**latency_row("student", "vit-s", 0.4, "int8"), **gpu},
        {**latency_row("generator", "wan-nano", 0.8, "bf16"), **gpu, "vs_wan": None, "draws": 4},
        {**latency_row("student", "vit-s", 0.3, "fp16"), **gpu, "batch": 1},
        {"kind": "absent", "what": "a", "why": "b", "fix": "c"}])
    for name in ("timer_h200", "timer_cpu"):
        write(tmp_path, name, [{
            "kind": "timer", "work": "spin", "device": "cpu", "truth_ms": 2.0, "latency_ms": 2.001,
            "error_percent": 0.05
        }, {"kind": "absent", "what": "a", "why": "b", "fix": "c"}])
    write(tmp_path, "rendering_h200", [{
        "workers": 14, "frames": 900, "size_px": 224, "frames_per_s": 1100.0,
        "steady_frames_per_s": 1500.0, "mb_per_s": 800.0
    }])
    write(tmp_path, "compare_trials", [{
        "what": "tally", "trials": 1, "equal": 1, "slower_10_trials": 0, "slower_10_seen": 0,
        "slower_20_trials": 0, "slower_20_seen": 0, "slower_30_trials": 0, "slower_30_seen": 0
    }, {"what": "again"}])
    write(tmp_path, "int8_tools", [{
        "model": "ViT-Ti", "part": "tool", "tool": "vega3d", "cosine_mean": 0.9998, "vs_fp32": 1.8,
        "int8_layers": 48
    }, {
        "model": "ViT-Ti", "part": "share", "tool": "vega3d", "op": "Gelu", "ms": 1.5, "share": 0.1
    }])
    write(tmp_path, "crosscheck_cpu", [{
        "artefact": "model.onnx", "backend": "ort-cpu", "precision": "fp32", "batch": 1,
        "latency_ms": 20.0, "tool": "polygraphy 0.53.6", "tool_ms": 20.2, "ratio": 0.99
    }])
    write(tmp_path, "tap_search", [{
        "rank": rank, "mode": "image", "t": 0.5, "block": rank, "score": 97.0 - rank,
        "score_low": 90.0, "score_high": 99.0, "first_share": 0.5, "corr_std_auc": 0.9,
        "shipped": rank == 12
    } for rank in range(12, 0, -1)] + [{"features": "rgb patches", "corr_std_auc": 0.8}])
    write(tmp_path, "rooms_census", [{
        "task": "ground", "per_100_rooms": 762.0, "metric": "acc@0.25", "chance": "",
        "majority": 0.13, "text_only": 0.2
    }])
    write(tmp_path, "language_7b", [{"tune": "lora", "parameters": 7742769665, "peak_gb": 22.4}])
    engine = {"model": "ViT-S", "backend": "tensorrt-8.6", "batch": 1}
    write(tmp_path, "trt_h200", [
        {**engine, "precision": "fp16", "variant": "fp16", "latency_ms": 0.55, "graph_ms": 0.49,
         "gate": "passed"},
        {**engine, "precision": "int8", "variant": "int8-mlp", "latency_ms": 0.5, "graph_ms": 0.45,
         "gate": "passed"},
        {**engine, "precision": "int8", "variant": "int8", "error": "not built in the time"}
    ])
    write(tmp_path, "trt_h200_layers", [{
        "model": "ViT-S", "batch": 32, "variant": "int8", "by": "kernels", "launches": 97,
        "total_ms": 2.5, "gemm_int8_ms": 0.5
    }])
    write(tmp_path, "trt_jetson_h200", [latency_row("student", "model.onnx", 0.48, "fp16")])
    write(tmp_path, "web", [latency_row("student", "model.onnx", 97.2, threads=2)])
    write(tmp_path, "wan_extraction", [{"kind": "weights", "vae_params": 9},
                                       {"kind": "extraction", "path": "ours", "speedup": 4.0}])
    write(tmp_path, "language_graph", [{"clips": 8, "eager_ms": 50.7, "graphed_ms": 13.1}])
    write(tmp_path, "question_probes", [{
        "features": "semantic", "train_clips": 600, "clips": 120, "room_size_r2": 0.5,
        "thing_size_r2": 0.5, "thing_distance_r2": 0.6, "token_distance_r2": 0.7,
        "room_size_mra": 0.4, "room_size_gain": 0.012, "room_size_gain_low": -0.003,
        "room_size_gain_high": 0.02
    }])
    write(tmp_path, "language_curves", [{
        "kind": "training", "training": "longer", "features": "generator", "seed": 0,
        "number_lowest": 1.2, "number_lowest_at": 800
    }, {"kind": "point", "step": 9}])
    values = {"generator": 0.5, "semantic": 0.4, "zeros dropped in": 0.3}
    language = [{"features": features, "seed": 0, "steps": 9, "metric": metric, "task": task,
                 "value": value} for features, value in values.items()
                for task, metric in (("camera_distance", "mra"), ("gate", "all"))]
    language += [{"kind": "difference", "features": features, "minus": "semantic",
                  "task": "camera_distance", "seeds": 1, "value": 0.2, "low": 0.1, "high": 0.3,
                  "p": 0.01} for features in ("generator", "zeros dropped in")]
    for name in ("sensitivity", "rooms_questions", "masking_ablation", "fusion_ablation"):
        write(tmp_path, name, language)
    write(tmp_path, "kills", [{"stage": "train", "kill": "random moment", "trials": 50,
                               "partial": 0, "stuck": 0, "resumed_equal": 50}])
    write(tmp_path, "growth", [{"clips": 1000, "open_s": 0.06, "index_mb": 1.4}])
    write(tmp_path, "hostile", [{"kind": "json", "tried": 76, "clean": 76}])
    write(tmp_path, "flips", [{"file": "runs/flips/config.yaml", "kind": "run", "stage": "bench",
                               "verdict": "refused", "verify": "named"}])
    write(tmp_path, "infer_core", [{"python": "3.9.18", "size_mb": 190.5,
                                     **timed([(1.2, 0.9), (1.0, 0.8), (1.1, 0.8)])}])
    return tmp_path


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
            if line.startswith("|")]


@pytest.mark.parametrize("name", list(TABLES))
def test_every_table_is_a_table(folder, name):
    head, rule, *body = cells(table(name, folder))
    assert body and all(len(row) == len(head) == len(rule) for row in body)
    assert all(set(cell) <= {"-", ":"} for cell in rule)
    assert f"bench/results/{TABLES[name].file}.json" in table(name, folder)


def test_every_committed_result_file_has_a_table():
    files = {path.stem for path in (ROOT / "bench" / "results").glob("*.json")}
    assert files == {table.file for table in TABLES.values()}


def test_rows_that_were_measured_later_name_their_own_command_and_commit(folder):
    later = table("alignment_real", folder)
    assert "`vega3d teacher probe --rgbd place` on EPYC" in later and "commit 2222222" in later
    assert "0.130" in later and "2222222" not in table("alignment", folder)


def test_a_gain_is_in_points_with_its_interval(folder):
    *_, row = cells(table("question_probes_gain", folder))
    assert row == ["semantic", "40.0", "+1.2 (-0.3 … +2.0)"]


def test_a_training_is_one_row_whatever_its_curve(folder):
    assert len(cells(table("language_curves", folder))) == 3


def test_seeds_are_one_row_with_their_spread(folder):
    rows = {row[0]: row for row in cells(table("rooms_accuracy", folder))}
    assert rows["teacher"][2:4] == ["3", "0.850 ± 0.010"]
    assert rows["student_int8_cpu"][2:4] == ["1", "0.832"]


def test_a_gain_over_semantic_is_paired_by_seed_with_a_t_interval(folder):
    rows = [accuracy_row(name, delta1, normal, seed) for name, scores in {
        "teacher": [(0.7, 9.0), (0.9, 8.0), (0.5, 10.0)],
        "semantic_only": [(0.6, 10.0), (0.6, 10.0), (0.3, 11.0)],
        "rgb": [(0.65, 10.5)]}.items() for seed, (delta1, normal) in enumerate(scores)]
    write(folder, "rooms_accuracy", [*rows, {**rows[0], "features": "heads", "head": "own"}])
    head, _, *body = cells(table("rooms_accuracy", folder))
    gains = {row[0]: [row[head.index(f"{name} (95 %)")] for name in (
        "δ<1.25 over semantic, points", "normals over semantic, °")] for row in body}
    # differences .1, .3, .2: 4.303 (two degrees of freedom) times .1 / sqrt(3) to each side
    assert gains == {"teacher": ["+20.0 (-4.8 … +44.8)", "-1.3 (-2.8 … +0.1)"],
                     "semantic_only": ["–", "–"], "rgb": ["+5.0", "+0.5"], "heads": ["–", "–"]}


def test_gpu_latency_is_in_the_order_of_generator_student_and_precision(folder):
    head, _, *body = cells(table("latency_gpu", folder))
    names = ("file", "precision", "batch", "than real Wan")
    assert [[row[head.index(name)] for name in names] for row in body] == [
        ["wan-nano", "bf16", "1", "–"], ["vit-s", "fp16", "32", "190x"],
        ["vit-s", "fp16", "1", "190x"], ["vit-s", "int8", "1", "190x"]]


def test_a_share_of_a_gain_that_may_be_zero_is_not_shown(folder):
    sure = [accuracy_row("teacher", 0.84, 9.8), accuracy_row("student_fp32", 0.83, 10.1)]
    write(folder, "rooms_accuracy", sure)
    assert "recovery of the gain" in table("rooms_accuracy", folder)
    write(folder, "rooms_accuracy", [{**row, "delta1_vs_semantic_low": -0.1} for row in sure])
    assert "recovery of the gain" not in table("rooms_accuracy", folder)


def test_the_ten_best_taps_are_shown_best_first_then_the_shipped_one_and_the_controls(folder):
    ranks = [row[0] for row in cells(table("tap_search", folder))[2:]]
    assert ranks == [*map(str, range(1, 11)), "12", "–"]


def test_a_baseline_that_was_not_scored_is_no_column(folder):
    head, _, row = cells(table("rooms_census", folder))
    assert "chance" not in head and row[0] == "ground" and row[head.index("words alone")] == "0.200"


def test_engines_of_a_student_and_batch_are_one_row_with_the_outcome_of_each(folder):
    def engine(batch, variant, **facts):
        backend = "torch" if variant.endswith("compiled") else "tensorrt-8.6"
        return {"model": "ViT-S", "batch": batch, "precision": variant.split("-")[0],
                "variant": variant, "backend": backend, **facts}

    timed = {"latency_ms": 2.1, "graph_ms": 2.0, "gate": "passed"}
    write(folder, "trt_h200", [
        engine(1, "fp16", error="not built in the time"),
        engine(8, "fp16-compiled", **timed),
        *(engine(32, name, **timed, vs_fp16=0.5)
          for name in ("fp16", "int8", "fp32", "fp16-compiled", "int8-mlp")),
        engine(8, "int8", **{**timed, "gate": "failed"}),
        engine(8, "fp16", **timed)
    ])
    head, _, *body = cells(table("trt_h200", folder))
    shown = [dict(zip(head, row, strict=True)) for row in body]
    assert [(row["batch"], row["INT8, ms"], row["FP32, ms"], row["gates"]) for row in shown] == [
        ("8", "2.000", "–", "fp16: passed; int8: failed; fp32: not measured"),
        ("32", "2.000", "2.000", "all passed")]


def test_a_column_that_no_row_fills_is_left_out(folder):
    shown = table("openvino_cpu", folder)
    assert "than the best float" in shown and "than the best FP32" not in shown


def test_the_probe_table_keeps_every_control_and_the_best_generator_rows(folder):
    rows = cells(table("nano_probe", folder))[2:]
    assert [(row[0], row[4], row[6]) for row in rows] == [
        ("position only", "–", "0.180"), ("rgb patches", "–", "0.380"),
        ("random weights", "1", "0.350"), ("generator, image", "1", "0.700"),
        ("generator, image", "8", "0.760")]


def test_scores_on_real_frames_stand_beside_those_on_rooms_of_the_same_training(folder):
    assert cells(table("label_efficiency", folder))[2:] == [
        ["50", "labels", "0.748", "0.490"], ["50", "both", "0.773", "0.494"]]


def test_a_table_names_the_machine_and_commit_it_was_measured_on(folder):
    assert "on a processor, 2 cores, commit abc123" in table("latency_cpu", folder)
    write(folder, "nano_probe", [probe("position only", 0.1)], gpu="a GPU")
    assert "on a GPU, commit" in table("nano_probe", folder)


@pytest.mark.parametrize(("command", "shown"), [
    ("vega3d bench --run /root/me/runs/1 --save web", "`vega3d bench --run 1 --save web` on"),
    ("bench/h200/a.py --onnx int8=/tmp/b/c.onnx", "`bench/h200/a.py --onnx int8=c.onnx` (script at "
                                                  "commit 6866ce9) on"),
    ("python -m bench.trials model.onnx", "`python -m bench.trials model.onnx` (script at commit "
                                          "6866ce9) on"),
    ("python -m bench.web --run runs/1", "`python -m bench.web --run runs/1` on"),
    ("vega3d bench " + "--also one " * 20, "`vega3d bench " + "--also one " * 9 + "--also …` on"),
])
def test_a_command_is_shown_without_machine_paths_and_not_at_any_length(folder, command, shown):
    rows = [latency_row("student", "model.onnx", 24.4)]
    save(Results("latency_cpu", command, "abc123", ENV, rows), folder / "latency_cpu.json")
    assert shown in table("latency_cpu", folder)


README = (
    "# Title\n\n<!-- results:latency_cpu -->\nold\n<!-- /results:latency_cpu -->\n\ntext | "
    "between\n\n<!-- results:openvino_cpu -->\n<!-- /results:openvino_cpu -->\nend\n")


def test_filling_changes_only_what_is_between_markers_and_is_stable(folder):
    once = fill(README, folder)
    assert "24.4" in once and "0.99931" in once and "old" not in once
    assert once.startswith("# Title\n\n<!-- results:latency_cpu -->\n|")
    assert "\n\ntext | between\n\n" in once
    assert once.endswith("<!-- /results:openvino_cpu -->\nend\n")
    assert fill(once, folder) == once


def test_check_fails_by_name_when_a_result_has_changed_and_writes_nothing(folder):
    readme = folder / "README.md"
    readme.write_text(README)
    assert update([readme], folder) == [readme] and update([readme], folder, check=True) == []
    write(folder, "latency_cpu", [latency_row("student", "model.onnx", 99.0)])
    before = readme.read_text()
    message = r"differ from their result files \(latency_cpu\); run: vega3d bench tables"
    with pytest.raises(ValueError, match=message):
        update([readme], folder, check=True)
    assert readme.read_text() == before


@pytest.mark.parametrize(("text", "says"), [
    ("<!-- results:speed -->\n<!-- /results:speed -->", "no such table; there are: alignment"),
    ("<!-- results:openvino_cpu -->\n", "marker without its partner"),
    ("<!-- /results:openvino_cpu -->\n", "marker without its partner"),
    ("<!-- results:openvino_cpu -->\n<!-- /results:openvino_cpu -->\n" * 2, "or twice"),
])
def test_markers_that_make_no_table_are_refused_by_name(folder, text, says):
    with pytest.raises(ValueError, match=says):
        fill(text, folder)


def test_a_marker_may_name_the_fields_of_any_file(folder):
    write(
        folder, "any",
        [{"model": "a", "latency_ms": 1.23456, "vs_fp16": 1.1}, {"model": "b", "latency_ms": None}])
    filled = fill("<!-- results:any model latency_ms -->\n<!-- /results:any -->", folder)
    assert cells(filled) == [["model", "latency ms"], ["---", "---:"], ["a", "1.235"]]
    assert fill(filled, folder) == filled
    with pytest.raises(ValueError, match="no row has all of: model, speed"):
        fill("<!-- results:any model speed -->\n<!-- /results:any -->", folder)


def test_a_table_without_its_file_names_the_file(folder):
    (folder / "openvino_cpu.json").unlink()
    with pytest.raises(ValueError, match=r"openvino_cpu\.json: missing; measure"):
        fill(README, folder)


def test_a_missing_document_is_one_clear_error_and_none_is_written(folder):
    readme = folder / "README.md"
    readme.write_text(README)
    with pytest.raises(ValueError, match=r"gone\.md: no such file"):
        update([readme, folder / "gone.md"], folder)
    assert readme.read_text() == README


def test_several_documents_are_written_or_refused_together(folder):
    documents = [folder / "README.md", folder / "page.md"]
    for document in documents:
        document.write_text(README)
    assert update(documents, folder) == documents
    documents[1].write_text(documents[1].read_text().replace("24.4", "11.1"))
    with pytest.raises(ValueError,
                       match=r"page\.md: tables differ from their result files \(latency_cpu\)"):
        update(documents, folder, check=True)


def test_numbers_are_written_as_their_column_says():
    assert Column("", "share", 0, 100, " %").cell({"share": 0.876}) == "88 %"
    assert Column("", "share", 2).cell({"share": 1.0, "share_std": 0.014}) == "1.00 ± 0.01"
    assert Column("", "share", 1).cell({"share": -0.01}) == "0.0"
    assert Column("", "share").cell({"share": None}) == Column("", "share").cell({}) == "–"


def test_a_field_that_one_seed_lacks_is_averaged_over_the_others():
    rows = [{"features": "a", "seed": seed, "recovery": value}
            for seed, value in enumerate((0.8, None, 0.9))]
    row, = over_seeds(rows, ("features",))
    assert (row["seeds"], row["features"]) == (3, "a")
    assert row["recovery"] == pytest.approx(0.85)
    assert row["recovery_std"] == pytest.approx(0.0707, abs=1e-4)
