"""The tables of short student trainings, on a tiny run."""
import fcntl
import json
import sys
from dataclasses import replace

import pytest

import vega3d
from bench.recipes import shipped_recovery, student_trainings
from distill.config import HeadTraining, RunConfig, ScenesConfig, StudentTraining, TeacherConfig
from distill.stages import run_distillation
from scenes.clip import save_clip
from student.config import StudentConfig
from student.vit import load_student
from teacher.config import DenseTraining
from teacher.towers.tap import Tap
from tests.fakes import FakeRooms

ROOMS = FakeRooms(train=4, test=2, frames=3)


@pytest.fixture
def run(tmp_path, tiny_wan, monkeypatch):
    monkeypatch.setattr("distill.clips.open_source", lambda *_: (ROOMS, "fake"))
    tiny = StudentConfig(depth=1, stem="patch")
    monkeypatch.setattr(student_trainings, "StudentTraining",
                        lambda **options: StudentTraining(model=tiny, **options))
    return run_distillation(RunConfig(
        name="a", runs=tmp_path / "runs", scenes=ScenesConfig(clips_per_room=1),
        teacher=TeacherConfig(str(tiny_wan), Tap(block=1, seeds=1),
                              DenseTraining(epochs=1, batch=3, width=8), ("zeros",)),
        student=StudentTraining(tiny, init="scratch", epochs=1, batch=4),
        heads=HeadTraining(steps=0)))


def table(monkeypatch, run, tmp_path, name, *options):
    out = tmp_path / f"{name}.json"
    monkeypatch.setattr(sys, "argv", ["x", name, str(run), "--work", str(tmp_path / name), "--out",
                                      str(out), "--epochs", "1", "--batch", "4", *options])
    student_trainings.main()
    return json.loads(out.read_text())["rows"] if out.is_file() else None


def test_processes_share_an_ablation_and_the_last_one_writes_its_table(monkeypatch, run, tmp_path):
    monkeypatch.setattr(student_trainings, "VARIANTS", {
        "base": {}, "no smooth L1": {"l1_weight": 0.0}})
    options = ("--seeds", "0")
    (tmp_path / "ablation").mkdir()
    with (tmp_path / "ablation/0_base.lock").open("w") as other:  # another process trains it
        fcntl.flock(other, fcntl.LOCK_EX)
        assert table(monkeypatch, run, tmp_path, "ablation", *options) is None
    assert [p.name for p in (tmp_path / "ablation").glob("*.json")] == ["0_no-smooth-L1.json"]
    rows = table(monkeypatch, run, tmp_path, "ablation", *options)
    assert [row["variant"] for row in rows] == ["base", "no smooth L1"]
    assert rows[0]["cosine_mean"] != rows[1]["cosine_mean"]
    assert all(-1 <= row["cosine_bright"] <= 1 and row["train_frames"] == 12 for row in rows)
    monkeypatch.setattr(student_trainings, "_Trainer", lambda *_: pytest.fail("trained again"))
    assert table(monkeypatch, run, tmp_path, "ablation", *options) == rows


def test_a_shipped_student_of_another_teacher_is_one_line(monkeypatch, run, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["x", str(run), "--out", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit, match="2"):
        vega3d.run_recipe(shipped_recovery.main)
    line, = capsys.readouterr().err.splitlines()
    assert "vit-ti: was distilled from the teacher" in line and not (tmp_path / "out.json").exists()


def test_what_a_table_needs_is_looked_for_before_it_trains(monkeypatch, run, tmp_path):
    monkeypatch.setattr(student_trainings, "Examples", lambda *_: pytest.fail("read clips"))
    save_clip(ROOMS.clip("train/000"), tmp_path / "real" / "train" / "0.safetensors")
    with pytest.raises(ValueError, match="real: holds no clips of split test"):
        table(monkeypatch, run, tmp_path, "arms", "--real", str(tmp_path / "real"))
    (run / "accuracy.json").unlink()
    with pytest.raises(ValueError, match=r"accuracy\.json: missing; run again"):
        table(monkeypatch, run, tmp_path, "arms")


def test_the_four_arms_have_equal_steps_and_each_adds_one_thing(monkeypatch, run, tmp_path):
    stem = {"model": StudentConfig(depth=2, stem="patch"), "augment": ("photometric",)}
    monkeypatch.setattr(student_trainings, "VARIANTS", {
        "patch stem": {}, "patch stem, photometric": {"augment": ("photometric", )},
        "photometric": stem})
    rows = table(monkeypatch, run, tmp_path, "arms", "--seeds", "0", "--head-steps", "2")
    assert [row["arm"] for row in rows] == list(student_trainings.ARMS)
    assert {row["steps"] for row in rows} == {3 + 2}
    assert {row["labelled_rooms"] for row in rows} == {ScenesConfig().train}
    assert len({row["cosine_mean"] for row in rows}) == 4


def test_the_label_table_trains_each_way_with_equal_steps(monkeypatch, run, tmp_path):
    for clip_id in ROOMS.ids("test"):
        clip = replace(ROOMS.clip(clip_id), normals=None, instances=None, objects=[])
        save_clip(clip, tmp_path / "real" / f"{clip_id}.safetensors")
    rows = table(monkeypatch, run, tmp_path, "labels", "--seeds", "0", "--rooms", "2",
                 "--head-steps", "2", "--real", str(tmp_path / "real"))
    assert [row["training"] for row in rows[::2]] == list(student_trainings.MODES)
    assert {row["steps"] for row in rows} == {3 + 2}
    for rooms, real in zip(rows[::2], rows[1::2], strict=True):
        assert (rooms["frames_from"], real["frames_from"]) == ("rooms", "real")
        assert rooms["normal_deg"] > 0 and real["normal_deg"] is None
        assert rooms["delta1"] == pytest.approx(real["delta1"])  # the same clips
    frozen, going_on = rows[0], rows[4]
    assert frozen["cosine_mean"] != going_on["cosine_mean"]


def test_the_shipped_student_and_its_file_replace_the_generator(monkeypatch, run, tmp_path):
    out = tmp_path / "shipped_recovery.json"
    with pytest.raises(ValueError, match="was distilled from the teacher"):
        shipped_recovery.main(run, out)
    student = load_student(run / "student")
    monkeypatch.setattr(shipped_recovery, "SHIPPED", run / "student")
    monkeypatch.setattr(shipped_recovery, "load_file", lambda _: student)  # in the file's place
    shipped_recovery.main(run, out)
    rows = {row["features"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["teacher", "semantic_only", "zeros", "shipped_fp32", "shipped_int8"]
    trained = {row["features"]: row for row in json.loads((run / "accuracy.json").read_text())}
    for name in ("shipped_fp32", "shipped_int8"):
        for score in ("delta1", "normal_deg", "cosine_mean"):
            wanted = trained["student_fp32"][score]
            assert rows[name][score] == pytest.approx(wanted, rel=1e-3)
