"""Training of the student's heads: it learns, is deterministic, and is skipped when done."""
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.config import HeadTraining
from distill.heads import NAME, _initial_heads, can_train, ensure_heads, score_heads
from records.files import sha256
from student.config import SHIPPED, HeadsShape, StudentConfig
from student.heads import FILE, Heads, load_heads
from student.vit import Student, load_student, save_student
from tests.fakes import FakeRooms

SHAPE = HeadsShape(in_dim=32, width=16, descriptor_dim=8)
TRAINING = HeadTraining(steps=60, batch=4, width=16, descriptor_dim=8, init="scratch")
CPU = torch.device("cpu")


@cache
def rooms() -> FakeRooms:
    return FakeRooms(train=6, test=2, frames=3)


def student_in(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_student(Student(StudentConfig(depth=1, out_dim=32)), folder)
    return folder


def test_training_learns_depth_and_matches_and_is_deterministic(tmp_path):
    row = ensure_heads(student_in(tmp_path / "a"), rooms(), TRAINING, 0, CPU)
    assert row["features"] == NAME and row["seed"] == 0
    assert row["delta1"] > 0.5 and row["match_descriptor"] > 0.3 > row["match_chance"]
    untrained = score_heads(load_student(tmp_path / "a"), Heads(SHAPE).eval(), rooms(), CPU)
    assert row["delta1"] > untrained["delta1"] + 0.2 and row["normal_deg"] < untrained["normal_deg"]
    ensure_heads(student_in(tmp_path / "b"), rooms(), TRAINING, 0, CPU)
    a, b = (load_file(tmp_path / name / FILE) for name in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_heads_are_kept_until_the_student_changes(tmp_path):
    folder = student_in(tmp_path)
    quick = HeadTraining(steps=1, batch=2, width=8, descriptor_dim=8, init="scratch")
    ensure_heads(folder, rooms(), quick, 0, CPU)
    first = sha256(folder / FILE)
    ensure_heads(folder, rooms(), replace(quick, steps=2, init="shipped"), 0, CPU)
    assert sha256(folder / FILE) == first
    student_in(folder, seed=1)
    ensure_heads(folder, rooms(), quick, 0, CPU)
    assert load_heads(folder, sha256(folder / "student.safetensors"))


def test_plain_video_trains_no_heads(tmp_path):
    video = FakeRooms(labelled=False)
    assert not can_train(video) and not can_train(FakeRooms(frames=1))
    with pytest.raises(ValueError, match="no depth, normals and cameras"):
        ensure_heads(student_in(tmp_path), video, TRAINING, 0, CPU)


def test_heads_that_start_from_the_shipped_ones_name_their_own_student() -> None:
    shipped = load_heads(SHIPPED)
    own = replace(shipped.shape, student="another")
    heads = _initial_heads(load_student(SHIPPED), own, HeadTraining())
    assert heads.shape.student == "another"
    for name, value in shipped.state_dict().items():
        torch.testing.assert_close(heads.state_dict()[name], value)
