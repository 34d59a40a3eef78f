"""The student's own heads: what they promise, matches that are exact, training that learns and
repeats itself."""
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill.config import HeadTraining
from distill.correspondence import MatchScores, matching_cells, rgb_patches
from distill.heads import NAME, _initial_heads, can_train, ensure_heads, score_heads
from distill.losses import match_loss
from records.files import sha256
from student.config import SHIPPED, HeadsShape, StudentConfig
from student.heads import FILE, Heads, fit_pca, heads_scores, load_heads, save_heads
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


def test_answers_have_the_promised_shapes_and_ranges():
    answers = Heads(SHAPE)(5 * torch.randn(2, 32, 14, 14))
    assert [list(a.shape) for a in answers] == [[2, 1, 56, 56], [2, 3, 56, 56], [2, 8, 28, 28],
                                                [2, 3, 14, 14]]
    assert answers.depth.min() > 0.0999 and answers.depth.max() < 50.01
    assert answers.colours.min() >= 0 and answers.colours.max() <= 1
    for unit in (answers.normals, answers.descriptors):
        assert (unit.norm(dim=1) - 1).abs().max() < 0.01


def test_a_descriptor_does_not_know_where_it_is_but_depth_does():
    heads, x = Heads(SHAPE), torch.randn(1, 32, 14, 14)
    for head in (heads.depth, heads.normals):
        torch.nn.init.normal_(head.positions)
    here, moved = heads(x), heads(x.roll(2, dims=3))
    inner = slice(14, 18)  # away from the padding's reach and from the seam of the roll
    assert torch.allclose(moved.descriptors[..., 12:16, 14:18], here.descriptors[..., 12:16, 10:14],
                          atol=1e-5)
    assert not torch.allclose(moved.depth[..., inner, 28:36], here.depth[..., inner, 20:28],
                              atol=1e-3)


def test_colours_are_the_three_main_directions_of_the_features():
    heads = Heads(SHAPE)
    spread = torch.ones(32)
    spread[[3, 7, 11]] = torch.tensor([9.0, 6.0, 4.0])
    x = torch.randn(20, 32, 14, 14) * spread.view(1, -1, 1, 1) + 5
    fit_pca(heads, x)
    weight = heads.colours.weight[:, :, 0, 0].abs()
    assert weight.argmax(1).tolist() == [3, 7, 11]
    inside = heads.colours(x)
    assert 0.97 < ((inside >= 0) & (inside <= 1)).float().mean() < 0.99  # 1st to 99th percentile


def test_heads_come_back_as_they_were_and_only_for_their_student(tmp_path):
    heads = Heads(HeadsShape(in_dim=32, width=16, descriptor_dim=8, student="abc")).eval()
    save_heads(heads, tmp_path, {"delta1": 0.5})
    again, x = load_heads(tmp_path, "abc"), torch.randn(1, 32, 14, 14)
    assert all(torch.equal(a, b) for a, b in zip(heads(x), again(x), strict=True))
    assert heads_scores(tmp_path) == {"delta1": 0.5}
    with pytest.raises(ValueError, match="was trained on student abc, expected def; train them"):
        load_heads(tmp_path, "def")


@pytest.mark.parametrize("damage", [None, b"", b"not safetensors at all", "another net"])
def test_missing_or_broken_heads_are_one_line(tmp_path, damage):
    if damage == "another net":
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(1)}, tmp_path / FILE, metadata={"shape": '{"in_dim": 32}'})
    elif damage is not None:
        (tmp_path / FILE).write_bytes(damage)
    with pytest.raises(ValueError, match="train them with: vega3d distill heads") as raised:
        load_heads(tmp_path)
    assert "\n" not in str(raised.value)


def test_places_are_where_the_cameras_say():
    """The camera slides right by 0.05 m a frame: what is z away moves left by 200 * 0.05 / z px."""
    clip = rooms().clip("train/000")
    found = matching_cells(clip, 0, 2, 28).reshape(28, 28, 2)
    z = clip.depth[0, 4::8, 4::8]  # pixels 8i+4, right of middle
    row, column = np.mgrid[0:28, 0:28]
    expected = (8 * column + 4.5 - 200 * 0.1 / z) / 8 - 0.5
    seen = ~np.isnan(found[..., 0])
    assert 0.8 < seen.mean() < 1
    assert np.abs(found[..., 0] - expected)[seen].max() < 1e-3
    assert np.abs(found[..., 1] - (row + 0.5 / 8))[seen].max() < 1e-3
    assert not seen[:, 0].all()  # left the picture


def test_what_the_square_hides_has_no_place():
    clip = rooms().clip("train/000")
    back, there = matching_cells(clip, 0, 2, 28).reshape(28, 28, 2), clip.depth[2]
    near = clip.depth[0, 4::8, 4::8] == 1.5
    wall = ~near & ~np.isnan(back[..., 0])
    at = ((back[wall] + 0.5) * 8).astype(int)
    assert wall.any() and (there[at[:, 1].clip(0, 223), at[:, 0].clip(0, 223)] > 1.6).all()
    hidden = np.isnan(back[..., 0]) & ~near
    assert hidden[:, 2:].any()  # not only at the picture's edge


def test_match_loss_wants_the_true_cell_and_nothing_else():
    torch.manual_seed(0)
    view = torch.nn.functional.normalize(torch.randn(1, 16, 6, 6), dim=1)
    row, column = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    true = torch.stack([column, row], -1).reshape(1, 36, 2)
    exact = match_loss(view.flatten(2), view, true)
    assert exact < 0.1 < 1 < match_loss(view.flatten(2), view, true.flip(1))
    unseen = torch.full_like(true, float("nan"))
    assert match_loss(view.flatten(2), view, unseen) == 0
    half = true.clone()
    half[:, ::2] = float("nan")  # only what is seen counts
    assert match_loss(view.flatten(2)[..., 1::2], view, true[:, 1::2]) == pytest.approx(
        match_loss(view.flatten(2), view, half).item())


def test_scores_are_one_for_perfect_matches_and_chance_is_counted():
    row, column = np.divmod(np.arange(196), 14)
    still = np.stack([column, row], 1).astype(np.float32)
    unique = torch.eye(196).reshape(196, 14, 14)
    scores = MatchScores(14)
    scores.add({"good": (unique, unique), "bad": (unique, unique.flip(1).flip(2))}, still)
    found = scores.result()
    assert found["match_good"] == 1 and found["match_same_place"] == 1
    assert found["match_bad"] == pytest.approx(4 / 196)  # the middle four
    inner, edges, corners = 12 * 12 * 9, 4 * 12 * 6, 4 * 4
    assert found["match_chance"] == pytest.approx((inner + edges + corners) / 196**2)


def test_colour_windows_ignore_brightness_and_follow_the_picture():
    frames = rooms().clip("train/001").frames[:1].clip(0, 200)
    plain, bright = rgb_patches(frames, 28), rgb_patches(frames + 30, 28)
    assert plain.shape == (1, 192, 28, 28)
    assert torch.allclose(plain[..., 2:-2, 2:-2], bright[..., 2:-2, 2:-2], atol=1e-5)


def test_training_learns_depth_and_places_and_repeats_itself(tmp_path):
    row = ensure_heads(student_in(tmp_path / "a"), rooms(), TRAINING, 0, CPU)
    assert row["features"] == NAME and row["seed"] == 0
    assert row["delta1"] > 0.5 and row["match_descriptor"] > 0.3 > row["match_chance"]
    untrained = score_heads(*_untrained(tmp_path / "a"), rooms(), CPU)
    assert row["delta1"] > untrained["delta1"] + 0.2 and row["normal_deg"] < untrained["normal_deg"]
    ensure_heads(student_in(tmp_path / "b"), rooms(), TRAINING, 0, CPU)
    a, b = (load_file(tmp_path / name / FILE) for name in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_heads_are_kept_until_the_student_changes(tmp_path):
    folder, quick = student_in(tmp_path), HeadTraining(steps=1, batch=2, width=8, descriptor_dim=8,
                                                       init="scratch")
    ensure_heads(folder, rooms(), quick, 0, CPU)
    first = sha256(folder / FILE)
    ensure_heads(folder, rooms(), HeadTraining(steps=2, batch=2, width=8, descriptor_dim=8), 0, CPU)
    assert sha256(folder / FILE) == first
    student_in(folder, seed=1)
    ensure_heads(folder, rooms(), quick, 0, CPU)
    assert load_heads(folder, sha256(folder / "student.safetensors"))


def test_plain_video_trains_no_heads(tmp_path):
    video = FakeRooms(labelled=False)
    assert not can_train(video) and not can_train(FakeRooms(frames=1))
    with pytest.raises(ValueError, match="no depth, normals and cameras"):
        ensure_heads(student_in(tmp_path), video, TRAINING, 0, CPU)


def _untrained(folder: Path) -> tuple[Student, Heads]:
    return load_student(folder), Heads(SHAPE).eval()


def test_the_shipped_heads_are_those_of_the_shipped_student():
    # else train them again: its card says how
    assert load_heads(SHIPPED, sha256(SHIPPED / "student.safetensors"))
    scores = heads_scores(SHIPPED)
    assert scores["match_descriptor"] > 2 * scores["match_rgb"] > 4 * scores["match_chance"]


def test_heads_that_go_on_from_the_shipped_ones_name_their_own_student() -> None:
    shipped = load_heads(SHIPPED)
    own = replace(shipped.shape, student="another")
    heads = _initial_heads(load_student(SHIPPED), own, HeadTraining())
    assert heads.shape.student == "another"
    for name, value in shipped.state_dict().items():
        torch.testing.assert_close(heads.state_dict()[name], value)
