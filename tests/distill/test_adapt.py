"""`vega3d distill adapt` of a tiny student: what it learns of a place, keeps of rooms, and says."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vega3d
from distill import joint
from distill.clips import open_clips
from distill.config import AdaptConfig, HeadTraining, StudentTraining, load_run_config
from distill.heads import initial_heads
from distill.loop import build_student
from distill.run import open_distill_run
from export.source import load_trained_run
from records.files import sha256, spec_digest
from records.outputs import folder_faults
from scenes.sources.rgbd import read_recording
from student.config import SHIPPED_BY_SIZE, StudentConfig
from student.heads import load_heads, save_heads
from student.vit import save_student
from teacher.data.dataset import Examples
from teacher.towers.tap import Tap
from teacher.towers.wan import load_wan
from teacher.training import checkpoint
from tests.fakes import FakeRooms
from tests.scenes.published import write_video
from tests.scenes.rgbd_scenes import save
from tests.scenes.test_rgbd import save_rgbd

MODEL = StudentTraining(StudentConfig(depth=1, stem="patch"), init="scratch")
HEADS = HeadTraining(width=8, descriptor_dim=8, init="scratch")
ROOMS, FEW_ROOMS = FakeRooms(train=2, val=0, test=5), FakeRooms(train=1, val=0, test=1)


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """40 frames with depth and poses: 8 clips."""
    return save(tmp_path_factory.mktemp("footage") / "box", "plain", 40)


@pytest.fixture
def adapt(tmp_path, tiny_wan, monkeypatch, request):
    """adapt(FOOTAGE, options …) by the command line, from a tiny shipped student; the folder.

    Parametrised by the student's size, ti if not given.
    """
    size = getattr(request, "param", "ti")
    tower = load_wan(tiny_wan, Tap(block=1, seeds=1))
    torch.manual_seed(0)
    training = replace(MODEL, model=replace(MODEL.model, size=size))
    student = build_student(training, spec_digest(tower.spec), torch.zeros(32), torch.ones(32), 0)
    shipped = tmp_path / "shipped"
    save_student(student, shipped)
    heads = initial_heads(student, HEADS)
    torch.nn.init.constant_(heads.depth.scale[2].bias, 2.0)  # 7.4 m: several times too far
    heads.shape = replace(heads.shape, student=sha256(shipped / "student.safetensors"))
    save_heads(heads, shipped)
    monkeypatch.setitem(SHIPPED_BY_SIZE, size, shipped)
    monkeypatch.chdir(tmp_path)

    def call(footage, *options, steps=2, rooms=FEW_ROOMS):
        monkeypatch.setattr("distill.clips.open_source", lambda *_, **__: (rooms, "rooms"))
        vega3d.main(["distill", "adapt", str(footage), "--name", "a", "--heads.steps", str(steps),
                     "--teacher.generator", str(tiny_wan), "--teacher.tap.block", "1",
                     "--teacher.tap.seeds", "1", "--student.model.depth", "1",
                     "--student.model.size", size, "--student.model.stem", "patch",
                     "--heads.batch", "2", "--heads.width", "8", "--heads.descriptor-dim", "8",
                     *options])
        return tmp_path / "runs" / "a"

    return call


def rows_of(folder):
    rows = json.loads((folder / "adapt.json").read_text())["rows"]
    assert [(row["stage"], row["frames_from"]) for row in rows] == [
        ("before", "footage"), ("before", "rooms"), ("after", "footage"), ("after", "rooms")]
    assert all(row["recording"] and row["seed"] == 0 for row in rows)
    return {(row["stage"], row["frames_from"]): row for row in rows}


def test_depth_of_a_recording_improves_on_its_last_part_and_the_run_folder_serves(adapt, box):
    folder = adapt(box, "--heads.student-lr", "1", "--heads.lr", "0.006", steps=15, rooms=ROOMS)
    rows = rows_of(folder)
    before, after = rows["before", "footage"], rows["after", "footage"]
    assert before["frames"] == 10 and rows["after", "rooms"]["frames"] == 25
    assert after["abs_rel"] < 0.7 * before["abs_rel"] and after["delta1"] > before["delta1"]
    assert {"cosine_mean", "abs_rel", "match_descriptor"} <= set(after)
    assert "normal_deg" not in after and "normal_deg" in rows["after", "rooms"]
    # frames 30 to 39, and no other of the box
    held_out = load_file(folder / "frames/heldout.safetensors")["frames"]
    calibration = load_file(folder / "frames/calibration.safetensors")["frames"]
    frames = torch.from_numpy(read_recording(box)[0].frames)
    assert torch.equal(held_out[:10], frames[30:])
    assert torch.equal(calibration[:30], frames[:30]) and len(calibration) == 30 + 10
    page = (folder / "adapt.html").read_text()
    assert "box: before and after adaptation" in page and f"{after['abs_rel']:.3f}" in page
    # other commands open the folder
    run = load_trained_run(folder)
    assert load_heads(folder / "student", run.student_sha256).shape.canonical_focal == 224
    config = load_run_config(folder)
    assert config.replay == 0.5 and config.held_out == 0.25 and config.scenes.path == box
    assert not open_distill_run(folder).labelled  # no dense teacher was trained
    assert list(folder_faults(folder)) == []


@pytest.mark.parametrize("adapt", ["s"], indirect=True)
def test_a_video_is_scored_by_the_features_alone_before_and_after(adapt, tmp_path):
    write_video(tmp_path / "phone.mp4", 20)  # of 10 a second, half are taken
    rows = rows_of(adapt(tmp_path / "phone.mp4", "--held-out", "0.5"))
    assert rows["after", "footage"]["frames"] == 5
    for stage in ("before", "after"):
        assert "cosine_mean" in rows[stage, "footage"] and "abs_rel" not in rows[stage, "footage"]
    assert "abs_rel" in rows["after", "rooms"]


def test_an_assumed_camera_is_said_in_the_file_and_on_the_page(adapt, tmp_path):
    root = few(tmp_path, 10)
    (root / "K.txt").unlink()
    folder = adapt(root)
    notes = json.loads((folder / "adapt.json").read_text())["env"]["notes"]
    assert "a focal length is assumed (53 degrees across)" in notes
    assert notes in (folder / "adapt.html").read_text()


def test_a_killed_adaptation_resumes_to_the_same_files(adapt, tmp_path, monkeypatch):
    box = few(tmp_path, 10)
    names = ("adapt.json", "adapt.html", "student/student.safetensors",
             "student/heads.safetensors", "student/joint_metrics.jsonl", "accuracy.json")
    one = adapt(box, steps=3)
    expected = {name: (one / name).read_bytes() for name in names}
    one.rename(one.with_name("b"))
    true_step, calls = joint.clip_and_step, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        true_step(*args)

    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(joint, "clip_and_step", killed)
    with pytest.raises(SystemExit):
        adapt(box, steps=3)
    assert not (one / "adapt.json").exists()
    two = adapt(box, steps=3)
    assert len(calls) == 2 + 2
    assert {name: (two / name).read_bytes() for name in names} == expected


def test_shipped_heads_go_on_at_a_tenth_of_the_rate_of_new_ones_and_the_student_at_a_third(
        adapt, tmp_path):
    adapted, new = load_run_config(adapt(few(tmp_path, 10))).heads, HeadTraining()
    assert adapted.lr == pytest.approx(new.lr / 10)
    assert adapted.lr * adapted.student_lr == pytest.approx(0.3 * new.lr * new.student_lr)


def test_every_batch_has_its_share_of_rooms():
    examples = Examples(ROOMS, ROOMS.ids("test"), {}, torch.device("cpu"))
    uniform = torch.rand(8)
    assert torch.equal(examples.draw(uniform), (uniform * 5).long())
    examples.replay = 2, 0.25  # the last two clips
    for _ in range(20):
        assert (examples.draw(torch.rand(8)) >= 3).sum() == 2
    assert set(examples.draw(torch.rand(400)).tolist()) == set(range(5))


def few(root, count):
    return save(root / "few", "plain", count)


def wrong_unit(root):
    return save(root / "unit", "plain", 12, per_metre=5000)


def unreadable(root):
    (root / "broken.mp4").write_bytes(b"no video")
    return root / "broken.mp4"


def without_depth(root):
    folder = save(root / "dark", "plain", 10)
    for path in (folder / "depth").iterdir():
        Image.fromarray(np.zeros((120, 160), np.uint16)).save(path)
    return folder


def empty(root):
    (root / "empty" / "depth").mkdir(parents=True)
    (root / "empty" / "images").mkdir()
    return root / "empty"


@pytest.mark.parametrize(("make", "why"), [
    (lambda root: few(root, 1), "less than two clips of 5 frames"),
    (lambda root: few(root, 9), "less than two clips of 5 frames"),
    (empty, "depth/ holds no .png files"),
    (unreadable, "broken.mp4"),
    (lambda root: root / "nowhere.mp4", "no such file or folder"),
    (wrong_unit, "--depth-unit 5000"),
    (without_depth, "no pixel has a depth"),
])
def test_footage_that_does_not_serve_is_one_line_and_leaves_nothing(adapt, tmp_path, capsys, make,
                                                                    why):
    with pytest.raises(SystemExit) as stopped:
        adapt(make(tmp_path))
    error = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(error) == 1 and why in error[0], error
    assert not (tmp_path / "runs").exists()


def test_a_recording_whose_depth_is_off_colour_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("distill.clips.open_source", lambda *_, **__: (FEW_ROOMS, "rooms"))
    root = save_rgbd(tmp_path / "off", offset=3)
    config = AdaptConfig(scenes=replace(AdaptConfig().scenes, path=root))
    open_clips(config, tmp_path, render=False)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"note: {root}: depth is not registered to colour" in lines[0]


@pytest.mark.parametrize(("adapt", "size"), [("ti", "ti"), ("s", "s")], indirect=["adapt"])
def test_a_default_generator_that_the_shipped_student_does_not_know_is_said(
        adapt, size, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("distill.clips.open_source", lambda *_, **__: (FEW_ROOMS, "rooms"))
    with pytest.raises(SystemExit) as stopped:
        vega3d.main(["distill", "adapt", str(few(tmp_path, 10)), "--student.model.size", size])
    assert stopped.value.code == 2
    assert f"{tmp_path / 'shipped'}: was distilled from the teacher" in capsys.readouterr().err
