"""Disturbances of clips with known labels, and the recipe on a tiny run."""
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bench.recipes import robustness
from distill.config import HeadTraining, RunConfig, ScenesConfig, StudentTraining, TeacherConfig
from distill.run import open_distill_run
from distill.stages import run_distillation
from export.artefact import save_onnx
from export.graph.export_onnx import export_onnx, interface, traced
from export.presets import attach
from records.results import load
from student.config import StudentConfig
from student.heads import load_heads
from student.vit import load_student
from teacher.config import DenseTraining
from teacher.towers.tap import Tap
from tests.fakes import FakeRooms
from tests.scenes.test_rgbd import save_rgbd

ROOMS = FakeRooms(train=4, test=2, frames=3)


@pytest.fixture(scope="module")
def clip():
    return ROOMS.clip("test/000")


def test_light_changes_what_it_names_and_nothing_else(clip):
    frames = clip.frames.astype(int)
    assert np.abs(robustness.lit(clip).frames - frames).max() <= 1
    half = robustness.lit(clip, ln_exposure=np.log(0.5)).frames
    assert np.abs(half - frames / 2).max() <= 1
    blurred = robustness.lit(clip, blur_px=6.0).frames.astype(int)
    assert np.abs(blurred.mean() - frames.mean()) < 1
    assert np.abs(np.diff(blurred[0, 0])).mean() < 0.8 * np.abs(np.diff(frames[0, 0])).mean()
    dim = robustness.lit(clip, vignette=0.5).frames
    middle, corner = (slice(110, 114),) * 2, (slice(0, 2),) * 2
    assert np.abs(dim[0, 0][middle] - frames[0, 0][middle]).max() <= 1
    assert np.abs(dim[0, 0][corner] - frames[0, 0][corner] * 0.5).max() <= 2
    dark = robustness.lit(clip, ln_exposure=np.log(0.15), noise=0.08).frames
    assert dark.mean() < 0.3 * frames.mean() and (dark[0] != dark[1]).mean() > 0.3


def test_a_hidden_part_is_not_scored(clip):
    found = robustness.hidden(clip, 0.25)
    gone = (found.depth == 0) & (clip.depth > 0)
    assert gone.mean((1, 2)) == pytest.approx(0.25, abs=0.01)
    assert (found.frames.transpose(0, 2, 3, 1)[gone] == 90).all()
    assert (found.frames.transpose(0, 2, 3, 1)[~gone] == clip.frames.transpose(0, 2, 3, 1)[~gone]
            ).all() and (found.normals.transpose(0, 2, 3, 1)[gone] == 0).all()


def test_things_are_scored_alone_if_they_are_seen(clip):
    found = robustness.only(clip, ["red square"])
    assert ((found.depth > 0) == (clip.instances == 2)).all()
    assert robustness.only(clip, ["mirror"]) is None
    assert robustness.look_alikes(clip) == []
    chairs = [replace(clip.objects[1], id=i) for i in (2, 3, 4)]
    assert robustness.look_alikes(replace(clip, objects=chairs)) == ["red square"]


def test_a_longer_lens_shows_the_middle_larger_at_the_same_depth(clip):
    found = robustness.longer_lens(clip, 2.0)
    assert found.intrinsics[0, 0] == 400 and found.intrinsics[0, 2] == pytest.approx(112)
    assert (found.instances[0] == 2).sum() == pytest.approx(4 * (clip.instances[0] == 2).sum(),
                                                            rel=0.05)
    assert found.depth[0, 112, 112] == clip.depth[0, 112, 112]
    assert (found.frames[0, :, 0, 0] == clip.frames[0, :, 56, 56]).all()


def test_every_disturbance_has_a_row_of_each_model_that_it_concerns(tiny_wan, tmp_path, capsys,
                                                                    monkeypatch):
    monkeypatch.setattr("distill.clips.open_source", lambda *_: (ROOMS, "fake"))
    run = run_distillation(RunConfig(
        name="a", runs=tmp_path / "runs", scenes=ScenesConfig(clips_per_room=1),
        teacher=TeacherConfig(str(tiny_wan), Tap(block=1, seeds=1),
                              DenseTraining(epochs=1, batch=3, width=8), ()),
        student=StudentTraining(StudentConfig(depth=1, stem="patch"), init="scratch", epochs=1,
                                batch=4),
        heads=HeadTraining(steps=1, batch=2, width=8, init="scratch")))
    student, heads = load_student(run / "student"), load_heads(run / "student")
    inputs = {"features": (student.config.out_dim, 14, 14), "frames": (3, 224, 224)}
    (run / "export/edge/onnx").mkdir(parents=True)
    save_onnx(attach(export_onnx(student), traced(heads, inputs, heads.shape.outputs)),
              run / "export/edge/onnx/model.onnx", {**interface(student), "precision": "int8"})
    other = ROOMS.clip("test/001")
    glass = replace(other, objects=[other.objects[0], replace(other.objects[1], name="mirror",
                                                              surface="mirror")])
    monkeypatch.setattr(robustness, "rendered", lambda *_, **style: [glass])
    monkeypatch.setattr(robustness, "STREAM", 9)
    robustness.main(run, out=tmp_path / "robustness.json", clips=1)
    rows = load(tmp_path / "robustness.json").rows
    found = {(row["perturbation"], row["level"], row["model"]): row for row in rows}
    assert len(found) == len(rows)
    kinds = {row["perturbation"] for row in rows}
    assert kinds >= {"none", "motion blur", "low light", "exposure", "vignette", "occlusion",
                     "lens", "reflective things alone", "filmed rooms", "focal length",
                     "steady, pose noise", "steady, depth noise", "steady, long stream"}
    for (kind, level, model), row in found.items():
        clean = found["none", "held-out rooms", model]
        assert 0 <= row["delta1"] <= 1 and row["abs_rel"] > 0 and row["normal_deg"] > 0
        assert row["change"] == pytest.approx(row["delta1"] - clean["delta1"])
        assert (row["match"] is None) == (kind == "reflective things alone")
        stateless = not kind.startswith(("steady", "focal"))
        assert ((kind, level, "teacher") in found) == stateless
    student, file = (found["none", "held-out rooms", name] for name in ("student", "int8"))
    assert file["abs_rel"] == pytest.approx(student["abs_rel"], rel=1e-3)
    near, far = (found["focal length", level, "student"] for level in ("-10%", "+10%"))
    assert near["abs_rel"] != far["abs_rel"] and near["match"] == student["match"]
    assert Image.open(tmp_path / "robustness.png").width == 3 * 160
    assert "motion blur" in capsys.readouterr().out


def test_depth_in_another_unit_is_said_before_anything_is_measured(tmp_path, monkeypatch):
    root = save_rgbd(tmp_path / "a", poses=False)
    for path in (root / "depth").iterdir():  # in 1/5000 m
        Image.fromarray(5 * np.asarray(Image.open(path))).save(path)
    with pytest.raises(ValueError, match="give --depth-unit 5000"):
        robustness.main(out=tmp_path / "out.json", real=root)
    given: list = []
    monkeypatch.setattr(robustness, "open_distill_run", lambda *_: None)
    monkeypatch.setattr(robustness, "measure", lambda *args: given.append(args[3]))
    robustness.main(tmp_path, out=tmp_path / "out.json", real=root, depth_unit=5000)
    assert given[0].id == "a" and given[0].depth.max() == 4


def test_the_shipped_student_and_file_are_scored_on_rooms_of_their_own(tmp_path):
    folder = robustness.shipped_run(tmp_path / "runs" / "shipped", 1, None)
    run = open_distill_run(folder, render=True)
    assert run.source.ids("test") == ["test/00000_0"]
    clips = [run.source.clip("test/00000_0")]
    one = robustness.Condition("none", "held-out rooms", clips)
    student, file = robustness.condition_rows(one, robustness.models(run), run)
    assert (student["model"], file["model"]) == ("student", "int8")
    assert student["delta1"] > 0.5 and file["delta1"] == pytest.approx(student["delta1"], abs=0.03)
