"""The corpus: each case in a process of its own, forked from one that has imported everything."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.run import corpus

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("options", [(), pytest.param(("--heavy",), marks=pytest.mark.heavy)])
def test_every_hostile_input_is_one_line_and_exit_code_2_and_writes_nothing(options):
    done = subprocess.run([sys.executable, "-m", "tests.hostile.run", *options], cwd=ROOT,
                          capture_output=True, text=True)
    faults = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and not faults, done.stdout + done.stderr[-2000:]
    count = len(corpus(heavy=bool(options)))
    assert count > 300 and f"{count} of {count} cases clean" in done.stderr


def test_cases_have_names_of_their_own():
    names = [(case.kind, case.name) for case in corpus(heavy=True)]
    assert len(set(names)) == len(names)


def test_every_number_of_every_configuration_has_a_range():
    from tests.hostile.corpus_numbers import options, verbs

    found = [(words, option, ranges) for words, owner in verbs()
             for option, _, ranges, _ in options(owner)]
    assert len(found) > 100
    assert not [(words, option) for words, option, ranges in found if not ranges]
