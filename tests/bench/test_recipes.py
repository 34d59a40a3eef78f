"""The shell recipes: valid bash, and every option they pass exists."""
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

import vega3d
from bench.recipes import wan_extraction
from bench.recipes.int8_resident import with_int8_blocks
from bench.recipes.ship_student import ship
from records import manifest
from records.files import sha256
from student.config import SHIPPED, HeadsShape, StudentConfig
from student.heads import Heads, heads_scores, load_heads, save_heads
from student.vit import Student, load_student, save_student

SCRIPTS = sorted((Path(__file__).parents[2] / "bench" / "recipes").glob("*.sh"))
OTHER_OPTIONS = {"--num_processes", "--gpu"}  # of accelerate launch, of clock_calibration


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
