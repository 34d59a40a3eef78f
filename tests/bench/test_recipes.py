"""The shell recipes pass options that exist; the others run at a small size."""
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tyro.conf import Positional

import vega3d
from bench.artefacts import run_summary
from bench.latency.timing import BenchCase, time_cases
from bench.recipes import (
    app_model,
    camera_input,
    gpu_latency,
    heads_cpu,
    int8_resident,
    openvino_cpu,
    readme_picture,
    robustness,
    shipped_model,
    shipped_recovery,
    student_trainings,
    wan_extraction,
    web,
)
from bench.recipes.int8_resident import with_int8_blocks
from bench.recipes.ship_student import ship
from export.source import load_trained_run
from records import manifest
from records.files import sha256
from records.results import load
from student.config import SHIPPED, HeadsShape, StudentConfig
from student.heads import Heads, heads_scores, load_heads, save_heads
from student.vit import Student, load_student, save_student
from tests.bench_run import DrawnRooms

RECIPES = Path(__file__).parents[2] / "bench" / "recipes"
SCRIPTS, MODULES = sorted(RECIPES.glob("*.sh")), sorted(RECIPES.glob("[!_]*.py"))
OTHER_OPTIONS = {"--num_processes"}  # of accelerate launch


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_recipe_passes_only_options_that_its_verbs_have(script, capsys):
    subprocess.run(["bash", "-n", script], check=True)
    code = "\n".join(line for line in script.read_text().splitlines() if line[:1] != "#")
    verbs = re.findall(r"-m vega3d (\w+) (\w+)", code)
    options = set(OTHER_OPTIONS)
    for verb in verbs:
        with pytest.raises(SystemExit):
            vega3d.main([*verb, "--help"])
        options |= set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
    assert verbs and set(re.findall(r"(?<= )--[\w.-]+", code)) <= options


def test_the_frames_of_the_wan_recipe_do_not_depend_on_their_number():
    two, one = (wan_extraction.pictures(count, 32, 48) for count in (2, 1))
    assert two[:1].equal(one)


def test_the_wan_recipe_measures_both_vaes_in_both_precisions(tmp_path):
    wan_extraction.main(tmp_path / "wan_extraction.json", tiny=True)
    rows = json.loads((tmp_path / "wan_extraction.json").read_text())["rows"]
    timed = [row for row in rows if row["kind"] == "extraction"]
    paths = [(row["path"], row["vae"], row["precision"]) for row in timed[::2]]
    assert paths == [("reference", "wan", "bf16"), ("ours", "wan", "bf16"),
                     ("ours, tiny VAE", "taew2_1", "bf16"), ("ours", "wan", "fp8"),
                     ("ours, tiny VAE", "taew2_1", "fp8")]
    fields = {"height", "width", "frames", "vae_ms", "dit_ms", "total_ms", "peak_gib", "speedup"}
    assert all(fields <= row.keys() and 0.999 < row["cosine_min"] <= 1.001 for row in timed)
    equal = {(row["path"], row["against"]): row["cosine_min"] for row in rows
             if row["kind"] == "equality"}
    assert len(equal) == 5 and min(equal.values()) > 0.999
    assert equal["ours float32", "released float32"] > 0.999999


@pytest.mark.parametrize("size", ["ti", "b"])
def test_a_run_s_student_ships_in_bfloat16_with_heads_that_name_it(tmp_path, size):
    run, weights = tmp_path / "run", tmp_path / "weights"
    config = StudentConfig(size, 8, depth=1, stem="patch", teacher="t")
    save_student(Student(config), run / "student")
    with pytest.raises(ValueError, match="no heads here"):
        ship(run, weights)
    assert not weights.exists()
    digest = sha256(run / "student" / "student.safetensors")
    heads = Heads(HeadsShape(8, student=digest, canonical_focal=224.0))
    save_heads(heads, run / "student", {"delta1": 0.5})
    for name in ("metrics.jsonl", "joint_metrics.jsonl"):
        (run / "student" / name).write_text(f'{{"of": "{name}"}}\n')
    ship(run, weights)
    ship(run, weights)  # replaces it
    folder = weights / f"vit-{size}"
    given, shipped = load_student(run / "student"), load_student(folder)
    assert shipped.config == config
    for name, value in given.state_dict().items():
        wanted = value if name.startswith(("pixel_", "target_")) else value.bfloat16().float()
        assert torch.equal(shipped.state_dict()[name], wanted), name
    found = load_heads(folder, sha256(folder / "student.safetensors"))
    assert torch.equal(found.normals.near.weight, heads.normals.near.weight)
    assert heads_scores(folder) == {"delta1": 0.5}
    assert (folder / "joint_metrics.jsonl").read_text() == '{"of": "joint_metrics.jsonl"}\n'
    assert manifest.count(weights) == 5 and manifest.faults(weights) == []


@torch.inference_mode()
def test_int8_resident_blocks_give_the_student_s_features():
    student, frames = load_student(SHIPPED), torch.rand(1, 3, 224, 224)
    found, wanted = (one(frames) for one in (with_int8_blocks(student), student))
    assert torch.cosine_similarity(found, wanted, dim=1).min() > 0.99
    assert not torch.equal(found, wanted)


def test_the_int8_resident_recipe_keeps_the_batches_it_finished(tmp_path, monkeypatch):
    def cut(cases, _):
        if cases[0].info["batch"] == 2:
            raise KeyboardInterrupt
        time_cases(cases, gpu_latency.QUICK)

    monkeypatch.setattr(int8_resident, "time_cases", cut)
    save_student(Student(StudentConfig("ti", 8, depth=1, stem="patch")), tmp_path / "student")
    with pytest.raises(KeyboardInterrupt):
        int8_resident.main(tmp_path / "out.json", (tmp_path / "student",), (1, 2), ())
    rows = load(tmp_path / "out.json").rows
    assert [(row["batch"], row["precision"]) for row in rows] == [(1, "fp16"), (1, "int8")]
    assert rows[0]["vs_fp16"] == 1 and rows[1]["cosine_mean"] > 0.99


def test_the_gpu_recipe_runs_at_a_small_size(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_latency, "SHIPPED_BY_SIZE", {"ti": SHIPPED})
    gpu_latency.main(tmp_path / "latency_gpu.json", batch=(1,), tiny=True)
    rows = load(tmp_path / "latency_gpu.json").of("latency")
    assert [(row["artefact"], row["precision"], row["draws"]) for row in rows] == [
        ("wan2.1-t2v-1.3b", "bf16", 1), ("wan-nano", "fp32", 1), ("wan-nano", "bf16", 1),
        ("wan-nano", "fp32", 4), ("wan-nano", "bf16", 4), ("vit-ti", "fp32", None),
        ("vit-ti", "fp16", None), ("vit-ti", "int8", None)]
    assert all(row["gate"] == "passed" for row in rows)
    wan, *_, fp32, _, int8 = rows
    assert (wan["frames"], wan["height"], wan["width"], wan["weights"]) == (2, 64, 32, "random")
    assert int8["height"] == 224 and int8["cosine_mean"] < 0.9999999 < fp32["cosine_mean"]
    assert int8["vs_wan"] == pytest.approx(wan["frame_ms"] / int8["frame_ms"])


def test_the_gpu_recipe_compares_a_student_with_wan_and_the_generator_of_its_class():
    def case(artefact, precision, batch, ms, launch="graph", draws=None):
        info = {"artefact": artefact, "stage": "student" if draws is None else "generator",
                "precision": precision, "batch": batch, "frames": batch, "launch": launch,
                "draws": draws}
        return BenchCase(info, lambda: None, rounds=[np.array([ms])] * 2)

    cases = [case("wan2.1-t2v-1.3b", "bf16", 32, 1600.0, "eager", draws=1),
             case("wan-nano", "fp32", 8, 80.0, draws=1), case("wan-nano", "bf16", 8, 16.0, draws=1),
             case("wan-nano", "bf16", 8, 99.0, draws=4), case("wan-nano", "bf16", 1, 98.0, draws=1),
             case("wan-nano", "bf16", 8, 97.0, "eager", draws=1),
             case("vit-s", "fp32", 8, 2.0), case("vit-s", "int8", 8, 0.4)]
    *generators, fp32, int8 = gpu_latency.rows_of(cases)
    assert not any("vs_wan" in row for row in generators)
    assert [(row["vs_one_draw"], row["vs_wan"]) for row in (fp32, int8)] == [
        pytest.approx((40, 200)), pytest.approx((40, 1000))]


@pytest.mark.parametrize(("function", "arguments", "why"), [
    (app_model.main, "gone --out o.json", "gone: no run here"),
    (app_model.main, "gone", "required: --out; see: python -m bench.recipes.app_model --help"),
    (student_trainings.main, "all gone --work w --out o.json", "argument table: invalid choice"),
    (int8_resident.main, "", "see: python -m bench.recipes.int8_resident --help"),
    (robustness.main, "gone --out o.json", "gone: no run here"),
    (robustness.main, "--out o.json --depth-unit 0", "--depth-unit is 0.0, expected at least 1"),
    (robustness.main, "--clip 1", "see: python -m bench.recipes.robustness --help"),
    (shipped_recovery.main, "gone", "gone: no run here"),
    (student_trainings.main, "ablation gone --work w --out o.json", "gone: no run here"),
    (ship, "gone w", "gone/student: holds no student"),
    (shipped_model.make, "--run gone", "gone: no such run folder"),
    (openvino_cpu.main, "gone", "gone: no such run folder"),
    (int8_resident.main, "o.json --students gone", "gone: holds no student"),
    (web.main, "--run gone", "gone/export/page: no page here"),
    (readme_picture.draw, "gone.safetensors o.jpg", "gone.safetensors: "),
    (camera_input.main, "gone.onnx", "gone.onnx: No such file"),
    (gpu_latency.main, "o.json", "no NVIDIA GPU here")])
def test_a_recipe_says_what_is_wrong_in_one_line(function, arguments, why, tmp_path, monkeypatch,
                                                 capsys):
    monkeypatch.setattr(gpu_latency, "DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["recipe", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        vega3d.run_recipe(function)
    line, = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith("vega3d: ") and why in line, line
    assert not list(tmp_path.glob("[!w]*"))


def test_a_recipe_names_itself_for_a_package_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recipe", "a.onnx"])
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SystemExit, match="2"):
        vega3d.run_recipe(needs_h5py)
    line, = capsys.readouterr().err.splitlines()
    assert line == "vega3d: test_recipes needs the package h5py: see bench/recipes/test_recipes.py"


def needs_h5py(model: Positional[Path]) -> None:
    import h5py  # noqa: F401


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_every_recipe_ends_in_one_line(module):
    code = module.read_text()
    assert ('__name__ == "__main__"' in code) == ("run_recipe(" in code.splitlines()[-1])


@pytest.mark.parametrize(("size", "width"), [("ti", 192), ("s", 384)])
def test_a_shipped_student_becomes_a_run_that_export_and_bench_read(tmp_path, monkeypatch, size,
                                                                    width):
    rooms = DrawnRooms()
    rooms.ids = lambda split: [f"{split}/{i}" for i in range(7)]
    monkeypatch.setattr(shipped_model, "ROOMS", rooms)
    run = shipped_model.run_of_shipped(tmp_path / "run", size)
    loaded = load_trained_run(run)
    assert loaded.student.config.width == width and loaded.calibration.depth is not None
    about = run_summary(run)
    assert about["student"] == f"ViT-{size.title()}" and about["generator"] == "wan-nano"


def test_a_file_with_heads_is_compared_with_its_features_and_with_the_previous_students():
    ms = {("shipped", "features"): 4.0, ("shipped", "all"): 6.0, ("previous", "features"): 5.0,
          ("previous", "all"): 8.0}
    found = {heads_cpu.Key(*key, "ort-cpu", ".onnx"):
             BenchCase({"artefact": "a.onnx"}, int, rounds=[np.array([value])])
             for key, value in ms.items()}
    rows = [heads_cpu.row_of(key, found) for key in found]
    assert [row.get("vs_features") for row in rows] == [None, 1.5, None, 1.6]
    assert [row.get("vs_previous") for row in rows] == [0.8, 0.75, None, None]
