"""The shell recipes: valid bash, and every option they pass exists."""
import re
import subprocess
from pathlib import Path

import pytest

import vega3d
from bench.recipes.wan_extraction import pictures

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
