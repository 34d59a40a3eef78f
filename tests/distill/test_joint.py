"""The student and its heads trained together."""
from functools import cache

import numpy as np
import torch

from distill.config import JointTraining, StudentTraining
from distill.correspondence import batched_matching_cells, matching_cells
from distill.heads import score_heads
from distill.joint import draw_pairs, train_jointly
from student.config import HeadsShape, StudentConfig
from student.heads import Heads
from student.vit import Student
from teacher.data.dataset import Examples
from tests.fakes import FakeRooms

CPU = torch.device("cpu")
SHAPE = HeadsShape(in_dim=32, width=16, descriptor_dim=8)


@cache
def rooms() -> FakeRooms:
    return FakeRooms(train=6, test=2, frames=3)


def examples() -> Examples:
    return Examples(rooms(), rooms().ids("train"), {}, CPU, cameras=True)


def trained(tmp_path, steps=40):
    torch.manual_seed(0)
    student, heads = Student(StudentConfig(depth=1, out_dim=32)), Heads(SHAPE)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    config = JointTraining(steps=steps, batch=4, lr=2e-3, feature_weight=0.0)
    train_jointly(student, heads, examples(), config, StudentTraining(), 0, tmp_path)
    return student, heads, before


def test_matches_of_a_batch_are_those_of_each_pair():
    clip = rooms().clip("test/000")
    pairs = [(0, 1), (2, 0), (1, 2)]
    a, b = (torch.tensor([pair[i] for pair in pairs]) for i in (0, 1))
    depth, poses = torch.from_numpy(clip.depth), torch.from_numpy(clip.poses)
    intrinsics = torch.from_numpy(clip.intrinsics).expand(3, 3, 3)
    found = batched_matching_cells(depth[a], depth[b], intrinsics, poses[a], poses[b], 28)
    for one, (i, j) in zip(found, pairs, strict=True):
        np.testing.assert_allclose(one, matching_cells(clip, i, j, 28), rtol=1e-4, atol=1e-4)
    assert not found.isnan().all()


def test_pairs_are_two_frames_of_one_clip_and_follow_from_seed_and_step():
    batch = draw_pairs(examples(), 5, 28, seed=1, step=2)
    first, second = batch.examples["poses"][:, :3, 3].chunk(2)
    assert (first != second).any(1).all() and len(batch.examples["frames"]) == 10
    again = draw_pairs(examples(), 5, 28, seed=1, step=2)
    assert torch.equal(batch.examples["frames"], again.examples["frames"])
    other = draw_pairs(examples(), 5, 28, seed=1, step=3)
    assert not torch.equal(batch.examples["frames"], other.examples["frames"])


def test_clips_read_from_disk_give_the_same_pairs(monkeypatch):
    held = draw_pairs(examples(), 4, 28, seed=0, step=0)
    monkeypatch.setattr("teacher.data.dataset.CPU_BUDGET", 0)
    streamed = draw_pairs(examples(), 4, 28, seed=0, step=0)
    assert all(torch.equal(held.examples[k], streamed.examples[k]) for k in held.examples)


def test_joint_training_changes_the_student_and_learns_depth_and_matches(tmp_path):
    student, heads, before = trained(tmp_path)
    scores = score_heads(student, heads, rooms(), CPU)
    torch.manual_seed(0)
    untrained = score_heads(Student(StudentConfig(depth=1, out_dim=32)).eval(), Heads(SHAPE).eval(),
                            rooms(), CPU)
    assert scores["delta1"] > untrained["delta1"] + 0.2
    assert scores["match_descriptor"] > untrained["match_descriptor"] + 0.1
    assert not torch.equal(student.state_dict()["patch_embed.weight"],
                           before["patch_embed.weight"])
    assert not list(tmp_path.iterdir())  # no checkpoint stays


def test_equal_trainings_give_equal_weights(tmp_path):
    one, two = (trained(tmp_path, steps=3)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
