"""The shell recipes: valid bash, and every option they pass exists."""
import re
import subprocess
from pathlib import Path

import pytest
import torch

import vega3d
from bench.recipes.int8_resident import with_int8_blocks
from bench.recipes.wan_extraction import pictures
from student.config import SHIPPED
from student.vit import load_student

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
    assert pictures(2, 32, 48)[:1].equal(pictures(1, 32, 48))


@torch.inference_mode()
def test_int8_resident_blocks_give_the_student_s_features():
    student, frames = load_student(SHIPPED), torch.rand(1, 3, 224, 224)
    found, wanted = (one(frames) for one in (with_int8_blocks(student), student))
    assert torch.cosine_similarity(found, wanted, dim=1).min() > 0.99
    assert not torch.equal(found, wanted)
