"""The stage that trains heads, and their scores."""
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vega3d
from distill import heads
from distill.config import HeadTraining, StudentTraining
from distill.heads import NAME, can_train, ensure_heads, initial_heads, score
from records.files import sha256
from student.config import SHIPPED_BY_SIZE, HeadsShape, StudentConfig
from student.heads import FILE, load_heads
from student.vit import Student, load_student, save_student
from teacher.data.dataset import Examples
from tests.fakes import FakeRooms

TRAINING = HeadTraining(steps=3, batch=2, width=16, descriptor_dim=8, init="scratch",
                        training="frozen")
SHAPE = HeadsShape(canonical_focal=224.0)
CPU = torch.device("cpu")
STUDENT = Student(StudentConfig(depth=1, stem="patch"))


@cache
def rooms() -> FakeRooms:
    return FakeRooms(train=6, test=2, frames=3)


def examples(split: str = "test") -> Examples:
    return Examples(rooms(), rooms().ids(split), {}, CPU, cameras=True)


def student_in(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_student(Student(StudentConfig(depth=1, out_dim=32, stem="patch")), folder)
    return folder


def heads_of(folder: Path, config: HeadTraining = TRAINING) -> dict:
    return ensure_heads(folder, examples("train"), examples(), config, StudentTraining(), 0)


def test_heads_are_deterministic_and_kept_until_the_student_changes(tmp_path):
    folder = student_in(tmp_path / "a")
    row = heads_of(folder)
    assert row["features"] == NAME and row["seed"] == 0 and row["test_clips"] == 2
    heads_of(student_in(tmp_path / "b"))
    a, b = (load_file(tmp_path / name / FILE) for name in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)
    first = sha256(folder / FILE)
    heads_of(folder, replace(TRAINING, steps=2))
    assert sha256(folder / FILE) == first
    student_in(folder, seed=1)
    heads_of(folder)
    assert load_heads(folder, sha256(folder / "student.safetensors"))


def test_joint_training_replaces_the_student_that_the_heads_name(tmp_path):
    folder = student_in(tmp_path)
    before = sha256(folder / "student.safetensors")
    joint = replace(TRAINING, training="joint")
    heads_of(folder, joint)
    after = sha256(folder / "student.safetensors")
    assert after != before and load_heads(folder, after)
    written = (folder / FILE).stat().st_mtime_ns
    heads_of(folder, joint)  # done
    assert (folder / FILE).stat().st_mtime_ns == written
    assert not list(folder.glob("*.ckpt.*"))


def test_a_kill_between_the_two_files_trains_on_to_the_same(tmp_path, monkeypatch):
    joint = replace(TRAINING, training="joint", steps=2)
    for name in ("one", "two"):
        student_in(tmp_path / name)
    heads_of(tmp_path / "one", joint)
    with monkeypatch.context() as patch:
        def killed(*args):
            raise KeyboardInterrupt
        patch.setattr("distill.heads.save_heads", killed)
        with pytest.raises(KeyboardInterrupt):
            heads_of(tmp_path / "two", joint)
    heads_of(tmp_path / "two", joint)
    for name in ("student.safetensors", FILE):
        assert sha256(tmp_path / "one" / name) == sha256(tmp_path / "two" / name)


def test_plain_video_trains_no_heads(tmp_path, monkeypatch, capsys):
    video = FakeRooms(labelled=False)
    for rooms in (video, FakeRooms(frames=1)):
        assert not can_train(rooms.clip("train/000"))
    monkeypatch.setattr("distill.clips.open_source", lambda *_, **__: (video, "fake"))
    with pytest.raises(SystemExit) as stopped:
        vega3d.main(["distill", "heads", "--student", str(student_in(tmp_path / "student"))])
    assert stopped.value.code == 2
    assert "no depth, normals and cameras" in capsys.readouterr().err


@pytest.mark.parametrize("folder", SHIPPED_BY_SIZE.values(), ids=SHIPPED_BY_SIZE)
def test_heads_start_with_what_fits_of_the_shipped_ones(folder):
    shipped, student = load_heads(folder), load_student(folder)
    heads = initial_heads(student, HeadTraining()).state_dict()
    for name, value in shipped.state_dict().items():
        if name.startswith(("normals.", "descriptors.", "depth.near.")):
            assert torch.equal(heads[name], value)
    scratch = initial_heads(student, HeadTraining(init="scratch")).state_dict()
    assert not torch.equal(scratch["normals.near.weight"], heads["normals.near.weight"])


# --- scores: of predictions made from the truth


def truth(change=lambda depth: depth, confidence: float | None = None, blur: int = 0):
    """Predicts the true canonical depth by the frame's own clip, changed; focal length 200 px."""
    known = {clip.frames[i].tobytes(): clip.depth[i] for clip_id in rooms().ids("test")
             for clip in [rooms().clip(clip_id)] for i in range(3)}

    def predict(frames: torch.Tensor) -> dict[str, torch.Tensor]:
        found = [known.get((f * 255).round().byte().numpy().tobytes()) for f in frames]
        any_depth = next(iter(known.values()))
        depth = torch.stack([torch.from_numpy(any_depth if d is None else d) for d in found])
        depth = depth[:, None, ::2, ::2]
        if blur:
            depth = torch.nn.functional.avg_pool2d(depth, blur, 1, blur // 2,
                                                   count_include_pad=False)
        outputs = {"depth": change(depth * 224 / 200),
                   "features": torch.randn(len(frames), 4, 14, 14),
                   "normals": torch.ones(len(frames), 3, 56, 56),
                   "descriptors": torch.randn(len(frames), 8, 28, 28)}
        if confidence is not None:
            outputs["confidence"] = torch.full_like(outputs["depth"], confidence)
        return outputs

    return predict


def test_true_depth_of_the_canonical_camera_scores_one():
    scores = score(truth(confidence=0.97), examples(), SHAPE, STUDENT)
    assert scores["delta1"] == 1 and scores["abs_rel"] < 2e-3
    assert scores["edge_precision"] == scores["edge_recall"] == 1
    assert scores["edge_abs_rel"] < 2e-3
    assert (scores["share_at_90"], scores["right_at_90"]) == (1, 1)
    assert scores["confidence_error"] == pytest.approx(0.03)
    assert "share_at_80" not in scores


def test_scores_do_not_depend_on_how_many_clips_are_scored_at_once(monkeypatch):
    def predict(frames):
        grey = frames.mean(1, keepdim=True)
        return {"depth": 1 + grey[..., ::2, ::2], "confidence": grey[..., ::2, ::2],
                "features": pooled(frames, 14), "descriptors": pooled(frames, 28),
                "normals": pooled(frames, 56)}

    pooled = torch.nn.functional.adaptive_avg_pool2d
    scores = []
    for count in (1, 2, 4):  # of six clips
        monkeypatch.setitem(heads.CLIPS, "cpu", count)
        scores.append(score(predict, examples("train"), SHAPE, None))
    for other in scores[1:]:
        assert other == pytest.approx(scores[0], nan_ok=True)
    assert scores[0]["match_descriptor"] > 0 and scores[0]["scale_change_crop"] > 0


def test_a_wrong_scale_counts_in_metres_only_and_metres_follow_the_focal_length():
    scores = score(truth(lambda depth: 1.5 * depth), examples(), SHAPE, STUDENT)
    assert scores["delta1"] == 0 and scores["delta1_median"] == 1
    assert scores["abs_rel"] == pytest.approx(0.5, abs=0.01)
    first_edition = replace(SHAPE, canonical_focal=0.0)
    same = score(truth(lambda depth: depth * 200 / 224), examples(), first_edition, STUDENT)
    assert same["delta1"] == 1  # metres as they come


def test_a_blurred_edge_is_no_edge():
    sharp, blurred = (score(truth(blur=side), examples(), SHAPE, STUDENT) for side in (0, 9))
    assert blurred["edge_recall"] < 0.5 < sharp["edge_recall"]
    assert blurred["edge_abs_rel"] > 0.05 > sharp["edge_abs_rel"]


def test_a_scale_that_ignores_the_focal_length_changes_with_a_crop():
    scores = score(lambda frames: truth()(frames) | {"depth": torch.full(
        (len(frames), 1, 112, 112), 2.0)}, examples(), SHAPE, STUDENT)
    assert scores["scale_change_160"] == scores["scale_change_448"] == 0
    for name in ("crop", "corner"):  # the same depth map, by a focal length 1/0.75 as long
        assert scores[f"scale_change_{name}"] == pytest.approx(-math.log(0.75), abs=1e-5)
