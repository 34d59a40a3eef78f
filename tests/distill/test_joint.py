"""The student and its heads trained together: pairs, crops, what is learnt, and resuming."""
from dataclasses import replace
from functools import cache

import pytest
import torch

from distill import joint
from distill.config import HeadTraining, StudentTraining
from distill.heads import initial_heads, predictions, score
from distill.joint import cropped_pairs, cropped_view, draw_pairs, train_jointly
from records.files import read_rows
from student.config import HeadsShape, StudentConfig
from student.heads import StudentWithHeads
from student.vit import Student
from teacher.data.dataset import Examples
from teacher.training import checkpoint
from tests.fakes import FakeRooms

CPU = torch.device("cpu")
TRAINING = HeadTraining(steps=24, batch=3, lr=3e-3, width=16, descriptor_dim=8, student_lr=1.0,
                        feature_weight=0.0, init="scratch")
SHAPE = HeadsShape(in_dim=32, width=16, descriptor_dim=8, canonical_focal=224.0)


@cache
def rooms() -> FakeRooms:
    return FakeRooms(train=6, test=2, frames=3)


def examples(split: str = "train") -> Examples:
    return Examples(rooms(), rooms().ids(split), {}, CPU, cameras=True)


def untrained() -> StudentWithHeads:
    torch.manual_seed(0)
    student = Student(StudentConfig(depth=1, out_dim=32, stem="patch"))
    return StudentWithHeads(student, initial_heads(student, TRAINING))


def trained(folder, config: HeadTraining = TRAINING) -> StudentWithHeads:
    model = untrained()
    train_jointly(model, examples(), config, StudentTraining(), 0, folder)
    return model


def test_pairs_are_two_frames_of_one_clip_and_follow_from_seed_and_step():
    (one, draws), (again, _), (other, _) = (draw_pairs(examples(), 5, seed=1, step=step)
                                            for step in (2, 2, 3))
    first, second = one["poses"][::2, :3, 3], one["poses"][1::2, :3, 3]
    assert (first != second).any(1).all() and len(one["frames"]) == 10 and draws.shape == (5, 3)
    assert torch.equal(one["frames"], again["frames"])
    assert not torch.equal(one["frames"], other["frames"])
    part, part_draws = draw_pairs(examples(), 5, seed=1, step=2, part=slice(2, 4))
    assert torch.equal(part["frames"], one["frames"][4:8]) and torch.equal(part_draws, draws[2:4])


def test_clips_read_from_disk_give_the_same_pairs(monkeypatch):
    held, _ = draw_pairs(examples(), 4, seed=0, step=0)
    monkeypatch.setattr("teacher.data.dataset.CPU_BUDGET", 0)
    streamed, _ = draw_pairs(examples(), 4, seed=0, step=0)
    assert all(torch.equal(held[k], streamed[k]) for k in held)


def test_a_crop_is_what_a_camera_of_longer_focal_length_sees():
    """A point of the crop, unprojected by its own intrinsics, is where the complete frame says."""
    example, _ = draw_pairs(examples(), 3, seed=0, step=0)
    example["frames"] = example["frames"].float() / 255
    windows = torch.tensor([[0.6, 0.3, 0.1]]).expand(6, 3)
    view = cropped_view(example, windows, 112)
    assert view["focal"] == pytest.approx([200 / 0.6] * 6)
    row, column = 30, 70
    z = view["depth"][:, row, column]
    x = (column + 0.5 - view["intrinsics"][:, 0, 2]) / view["intrinsics"][:, 0, 0] * z
    y = (row + 0.5 - view["intrinsics"][:, 1, 2]) / view["intrinsics"][:, 1, 1] * z
    u, v = 200 * x / z + 112, 200 * y / z + 112  # in the complete frame
    pixel = example["pixel_depth"].float()[:, v.long()[0], u.long()[0]]
    torch.testing.assert_close(z, pixel, rtol=2e-3, atol=0)
    seen = view["frames"][:, :, 2 * row:2 * row + 2, 2 * column:2 * column + 2].mean((2, 3))
    area = example["frames"][:, :, v.long()[0] - 1:v.long()[0] + 2, u.long()[0] - 1:u.long()[0] + 2]
    assert ((seen >= area.amin((2, 3)) - 1e-4) & (seen <= area.amax((2, 3)) + 1e-4)).all()


def test_first_frames_are_cropped_and_their_depth_is_of_the_canonical_camera():
    example, _ = draw_pairs(examples(), 2, seed=0, step=0)
    example["frames"] = example["frames"].float() / 255
    draws = torch.tensor([[1.0, 0.5, 0.5], [0.0, 0.5, 0.5]])  # the smallest crop; none
    cells = torch.arange(784)
    pairs = cropped_pairs(example, draws, SHAPE, cells)
    middle = example["pixel_depth"].float()[:, 112, 112]
    scale = torch.tensor([224 / (200 / 0.6), 224 / 200, 224 / 200, 224 / 200])
    torch.testing.assert_close(pairs.depth[:, 56, 56], middle * scale, rtol=2e-3, atol=0)
    torch.testing.assert_close(pairs.frames[1:], example["frames"][1:], atol=1e-4, rtol=0)
    # at the middle of both views: a crop moves matches together by its size
    target = pairs.targets[0].reshape(28, 28, 2)[13, :, 0]
    step = (target[1:] - target[:-1]).nanmedian().item()
    assert step == pytest.approx(0.6, abs=0.05)
    uncropped = pairs.targets[1].reshape(28, 28, 2)[13, :, 0]
    assert (uncropped[1:] - uncropped[:-1]).nanmedian().item() == pytest.approx(1, abs=0.05)


def test_joint_training_learns_depth_and_matches(tmp_path):
    model, before = trained(tmp_path), untrained()
    scores, chance = (score(predictions(m), examples("test"), m.heads.shape, m.student)
                      for m in (model, before))
    assert scores["delta1"] > chance["delta1"] + 0.2
    assert scores["match_descriptor"] > chance["match_descriptor"] + 0.1
    moved = model.student.patch_embed.weight - before.student.patch_embed.weight
    assert moved.abs().max() > 1e-3
    rows = read_rows(tmp_path / "joint_metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(2, 25, 2))
    for name in ("relative", "scale", "match"):
        assert rows[-1][f"{name}_loss"] < rows[0][f"{name}_loss"]


def test_a_frozen_student_stays_as_it_was(tmp_path):
    model = trained(tmp_path, replace(TRAINING, student_lr=0.0, steps=3)).student.state_dict()
    before = untrained().student.state_dict()
    assert all(torch.equal(before[name], value) for name, value in model.items())


def test_a_killed_training_resumes_to_the_same_weights_and_rows(tmp_path, monkeypatch):
    config = replace(TRAINING, steps=6, batch=1)
    one = trained(tmp_path / "one", config).state_dict()
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    true_step, calls = joint.clip_and_step, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        true_step(*args)

    monkeypatch.setattr(joint, "clip_and_step", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "two", config)
    two = trained(tmp_path / "two", config).state_dict()
    assert len(calls) == 4 + 3
    assert all(torch.equal(one[name], two[name]) for name in one)
    rows = [(tmp_path / name / "joint_metrics.jsonl").read_bytes() for name in ("one", "two")]
    assert rows[0] == rows[1]
