"""The recipe that kills commands: a few of its trials, and that it sees what a kill could do."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vega3d
from bench.recipes.kills import _differences, _partial
from records.results import load

ROOT = Path(vega3d.__file__).parent


def test_a_killed_training_resumes_to_the_same_files(tmp_path):
    out = tmp_path / "kills.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.recipes.kills", "--out", str(out), "--trials", "1",
         "--stages", "train", "--operations", "train", "--every", "80"],
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = load(out).rows
    assert [row["kill"] for row in rows] == ["random moment", "file operation"]
    for row in rows:
        assert row["trials"] >= 1 and row["resumed_equal"] == row["trials"], done.stdout
        assert row["partial"] == row["stuck"] == 0


@pytest.fixture
def folders(tmp_path):
    for name in ("made", "finished"):
        folder = tmp_path / name
        (folder / "student").mkdir(parents=True)
        (folder / "student" / "student.safetensors").write_bytes(b"weights")
        (folder / "model.engine.json").write_text(json.dumps({"sm": 86, "build_seconds": name}))
        (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    return tmp_path / "made", tmp_path / "finished"


def test_equal_commands_differ_in_times_alone(folders):
    assert not [*_differences(*folders), *_partial(*folders)]


@pytest.mark.parametrize(("name", "content", "partial"), [
    ("student/student.safetensors", "weig", True), ("model.engine.json", '{"sm": 8', True),
    ("metrics.jsonl", '{"epoch": 1}\n{"ep', True), ("metrics.jsonl", '{"epoch": 2}\n', False),
    ("model.engine.json", '{"sm": 89}', False), ("student/.vega3d-tmp-a/x", "", False),
    ("student/student.ckpt.safetensors", "cut", False)])
def test_what_a_kill_could_leave_is_seen(folders, name, content, partial):
    (folders[0] / name).parent.mkdir(exist_ok=True)
    (folders[0] / name).write_text(content)
    assert list(_partial(*folders)) == [name] * partial
    if not (partial and name.endswith(("json", "jsonl"))):
        assert list(_differences(*folders)) == [name]


def test_a_missing_file_is_a_difference_and_not_partial(folders):
    (folders[0] / "student" / "student.safetensors").unlink()
    assert list(_differences(*folders)) == ["student/student.safetensors"]
    assert not list(_partial(*folders))
