import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scenes.dense import DenseScores, DenseTargets, dense_targets, patch_depth
from teacher.config import DenseTraining
from teacher.data.dataset import Examples
from teacher.data.feature_store import FeatureStore, fill
from teacher.dense import (
    DenseShape,
    DenseTeacher,
    dense_loss,
    load_teacher,
    score,
    train_dense_teacher,
)
from teacher.fusion import TokenGate
from teacher.towers.controls import FixedNoise
from tests.fakes import FakeRooms

CPU = torch.device("cpu")


def test_the_gate_is_one_sigmoid_a_token_over_both_normed_streams():
    fusion = TokenGate(5, 7, 8)
    sem, gen = torch.randn(2, 5, 14, 14), torch.randn(2, 7, 14, 14)
    out, gate = fusion(sem, gen)
    assert out.shape == (2, 8, 14, 14) and gate.shape == (2, 1, 14, 14)
    s = F.layer_norm(fusion.project_semantic(sem[1, :, 3, 4]), (8,))
    g = F.layer_norm(fusion.project_generative(gen[1, :, 3, 4]), (8,))
    share = torch.sigmoid(fusion.gate.weight[0] @ torch.cat([s, g]) + fusion.gate.bias[0])
    torch.testing.assert_close(gate[1, 0, 3, 4], share)
    torch.testing.assert_close(out[1, :, 3, 4], share * s + (1 - share) * g)


def test_semantic_only_is_the_same_norm_without_the_second_stream():
    fusion = TokenGate(5, 7, 8)
    out, gate = fusion(torch.randn(1, 5, 14, 14), None)
    assert torch.equal(gate, torch.ones(1, 1, 14, 14))
    torch.testing.assert_close(out.mean(1), torch.zeros(1, 14, 14), atol=1e-5, rtol=0)


def test_a_teacher_with_a_generative_stream_must_be_given_one():
    model = DenseTeacher(DenseShape(5, 7, classes=4, width=8))
    with pytest.raises(ValueError, match="got none"):
        model(torch.zeros(1, 5, 14, 14), None)


def test_dense_loss_is_zero_for_the_truth_and_ignores_the_unknown():
    depth = torch.rand(2, 56, 56) + 1
    depth[:, :10] = 0
    normals = F.normalize(torch.randn(2, 3, 56, 56), dim=1)
    stored = (normals * 127).round().to(torch.int8)
    stored[:, :, :10] = 0
    classes = torch.randint(4, (2, 56, 56), dtype=torch.uint8)
    logits = F.one_hot(classes.long(), 4).permute(0, 3, 1, 2).float() * 50
    classes[:, :10] = 255
    out = type("Out", (),
               {"log_depth": depth.clamp_min(1e-3).log(), "normals": normals, "logits": logits})
    assert dense_loss(out, depth, stored, classes).item() < 1e-3
    out.log_depth = out.log_depth + 0.5
    assert dense_loss(out, depth, stored, classes).item() == pytest.approx(0.5, abs=2e-3)


def test_scores_by_hand():
    truth = DenseTargets(np.array([[[2.0, 2.0, 0.0, 4.0]]], np.float32),
                         np.array([[[[0] * 4], [[0] * 4], [[127, 127, 0, 127]]]], np.int8),
                         np.array([[[0, 0, 1, 255]]], np.uint8))
    depth = np.array([[[2.4, 2.6, 9.0, 4.0]]], np.float32)  # 20 % off, 30 % off, unknown, exact
    normals = np.zeros((1, 3, 1, 4), np.float32)
    # 0, 90, unknown, 0 degrees
    normals[0, :, 0] = np.array([[0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 0, 3]]).T
    scores = DenseScores(3)
    scores.add(depth, normals, np.array([[[0, 1, 1, 0]]]), truth)
    found = scores.result()
    assert found["delta1"] == pytest.approx(2 / 3)
    assert found["abs_rel"] == pytest.approx((0.2 + 0.3 + 0) / 3, rel=1e-5)
    assert found["normal_deg"] == pytest.approx(30, abs=1e-3)
    assert found["miou"] == pytest.approx((1 / 2 + 1 / 2) / 2)      # class 2 is not in the truth


def test_targets_are_the_middle_of_each_cell_and_patches_average_what_is_known():
    clip = FakeRooms().clip("train/000")
    targets = dense_targets(clip)
    assert targets.depth.shape == (5, 56, 56) and targets.depth[0, 3, 9] == clip.depth[0, 14, 38]
    assert targets.classes.max() < 255
    clip.depth[0, :16, :16] = 0
    clip.depth[0, 0, 0] = 3
    patches = patch_depth(clip)
    assert patches.shape == (5, 14, 14) and patches[0, 0, 0] == 3
    assert patches[1, 2, 3] == pytest.approx(clip.depth[1, 32:48, 48:64].mean(), rel=1e-5)
    with pytest.raises(ValueError, match="videos can only be distilled from"):
        dense_targets(FakeRooms(labelled=False).clip("train/000"))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    rooms, root, sets = FakeRooms(train=6, frames=5), tmp_path_factory.mktemp("features"), {}
    tower = FixedNoise()
    store = FeatureStore(root, {**tower.spec, "tower": "semantic"}, "fake")
    for split in ("train", "test"):
        fill(store, tower, rooms, rooms.ids(split), CPU)
        sets[split] = Examples(rooms, rooms.ids(split), {"semantic": store}, CPU)
    return sets


def leak(example):
    """A generative stream that holds the answer: log patch depth in every channel."""
    return example["patch_depth"].float().log()[:, None].expand(-1, 8, -1, -1)


def shape(generative):
    from scenes.furniture.pack import CLASSES

    return DenseShape(64, generative, len(CLASSES), width=16)


def test_a_stream_that_holds_depth_beats_semantic_only_on_depth(examples, tmp_path):
    config = DenseTraining(epochs=40, batch=10, lr=5e-3, width=16)
    scores = {}
    for name, stream, dim in (("with", leak, 8), ("without", lambda e: None, 0)):
        model = train_dense_teacher(name, examples["train"], stream, shape(dim), config, 0,
                                    tmp_path)
        scores[name], rows = score(model, examples["test"], stream)
        assert len(rows) == 3 and all(0 <= r["delta1"] <= 1 for r in rows)
    assert scores["with"]["abs_rel"] < 0.7 * scores["without"]["abs_rel"]


def test_a_killed_head_training_resumes_to_the_same_weights(examples, tmp_path, monkeypatch):
    from teacher.training.checkpoint import Checkpoint

    config = DenseTraining(epochs=3, batch=10, width=16)
    complete = train_dense_teacher("whole", examples["train"], leak, shape(8), config, 0,
                                   tmp_path / "a")
    saved = Checkpoint.save

    def killing(self, step):
        saved(self, step)
        if step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", killing)
    with pytest.raises(KeyboardInterrupt):
        train_dense_teacher("whole", examples["train"], leak, shape(8), config, 0, tmp_path / "b")
    monkeypatch.setattr(Checkpoint, "save", saved)
    train_dense_teacher("whole", examples["train"], leak, shape(8), config, 0, tmp_path / "b")
    resumed = load_teacher(tmp_path / "b", "whole")
    state = resumed.state_dict()
    assert set(state) == set(complete.state_dict())
    for name, value in complete.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_missing_teacher_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"teacher_seed0\.safetensors: no such teacher"):
        load_teacher(tmp_path, "teacher_seed0")
