"""The core, which `vega3d infer` and the examples need: Python 3.9, and Windows."""
import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vega3d

ROOT = Path(vega3d.__file__).parent
FILES = sorted([ROOT / "vega3d.py", *(ROOT / "infer").glob("*.py"),
                *(ROOT / "records").glob("*.py"), *(ROOT / "examples").rglob("*.py")])
PYTHONS = [python for python in sorted(Path.home().glob(".pyenv/versions/3.*/bin/python3"))
           if int(python.parts[-3].split(".")[1]) >= 9]
TRAINING = ("progress", "yaml_files")  # modules of records that need packages of the extra `train`
# imports modules beside stand-ins of the packages, and reads the types of the arguments
IMPORTS = """
import importlib, sys
from typing import get_type_hints
from unittest.mock import MagicMock
for name in ("numpy", "onnxruntime", "PIL", "tyro"):
    sys.modules[name] = MagicMock()
for name in sys.argv[1:]:
    importlib.import_module(name)
for verb in sys.modules["infer.cli"].VERBS.values():
    get_type_hints(verb, include_extras=True)
"""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_and_the_examples_are_python_3_9(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    strict = [call.lineno for call in calls for key in call.keywords
              if getattr(call.func, "id", "") == "zip" and key.arg == "strict"]
    assert not strict, "zip(strict=) needs Python 3.10"


@pytest.mark.parametrize("python", PYTHONS, ids=lambda python: python.parts[-3])
def test_the_core_is_imported_by_every_python_from_3_9_on(python):
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES
               if "examples" not in path.parts and path.stem not in ("__init__", *TRAINING)]
    done = subprocess.run([python, "-c", IMPORTS, *modules], capture_output=True, text=True,
                          cwd=ROOT, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr


def test_no_module_of_records_hides_one_of_the_standard_library():
    """records/runtime.py is run as a script, with its folder first in the path."""
    assert not {path.stem for path in (ROOT / "records").glob("*.py")} & sys.stdlib_module_names


def test_a_command_of_training_says_which_python_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    with pytest.raises(SystemExit) as stop:
        vega3d.main(["distill", "run"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == ("vega3d: distill needs Python 3.11 or later, this is 3.9; "
                                       "with it run infer, verify, env\n")
