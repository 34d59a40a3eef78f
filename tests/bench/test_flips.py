"""A flipped byte in each kind of file of a run: named by the stage that reads it, and by verify."""
import shutil

import pytest

from bench.recipes.flips import QUICK, call, trial
from tests.bench_run import DrawnRooms, drawn_run, use

LATENCY, ACCURACY = ["bench", "latency", "RUN", *QUICK], ["bench", "accuracy", "--run", "RUN"]
EXPORT = ["export", "onnx", "--run", "RUN"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))
    use(DrawnRooms(), monkeypatch)
    ignored = shutil.ignore_patterns("*.ckpt.safetensors")
    return shutil.copytree(drawn_run(), tmp_path / "run", ignore=ignored)


@pytest.mark.parametrize(("name", "argv", "verdict"), [
    ("config.yaml", LATENCY, "refused"), ("accuracy.json", ACCURACY, "refused"),
    ("student/student.safetensors", EXPORT, "refused"), ("student/student.json", EXPORT, "refused"),
    ("frames/calibration.safetensors", EXPORT, "refused"),
    ("frames/heldout.safetensors", LATENCY, "refused"),
    ("teacher/teacher_seed0.safetensors", ACCURACY, "refused"),
    ("manifest.json", EXPORT, "refused"), ("env.json", [], "verified"),
    ("export/model.int8.cpu.onnx.json", LATENCY, "left out"),
])
def test_a_flipped_byte_is_named(run, name, argv, verdict):
    given = [str(run) if word == "RUN" else word for word in argv]
    if given:
        given += ["--out", str(run / "bench")] if given[0] == "bench" else []
    row = trial(run / name, given, run)
    assert (row["verdict"], row["verify"]) == (verdict, "named")
    status, printed = call(["verify", str(run)])  # the byte is back
    assert status == 0, printed


def test_another_tap_in_an_old_runs_config_is_not_the_students_teacher(run):
    (run / "manifest.json").unlink()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("block: 2", "block: 1"))
    code, printed = call(["bench", "accuracy", "--run", str(run), "--out", str(run / "bench")])
    assert code == 2 and "student: was distilled from the teacher" in printed
