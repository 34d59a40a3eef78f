from functools import cache

import numpy as np
import pytest
import torch

from distill.correspondence import (
    best_matches,
    chance_of_match,
    matching_cells,
    rgb_patches,
    right_matches,
)
from scenes.clip import Clip
from tests.fakes import FakeRooms


@cache
def clip(clip_id: str) -> Clip:
    return FakeRooms(train=2, frames=3).clip(clip_id)


def test_cells_match_where_the_cameras_say():
    """The camera slides right by 0.05 m a frame: what is z away moves left by 200 * 0.05 / z px."""
    found = matching_cells(clip("train/000"), 0, 2, 28).reshape(28, 28, 2)
    z = clip("train/000").depth[0, 4::8, 4::8]  # pixels 8i+4, right of middle
    row, column = np.mgrid[0:28, 0:28]
    expected = (8 * column + 4.5 - 200 * 0.1 / z) / 8 - 0.5
    visible = ~np.isnan(found[..., 0])
    assert 0.8 < visible.mean() < 1
    assert np.abs(found[..., 0] - expected)[visible].max() < 1e-3
    assert np.abs(found[..., 1] - (row + 0.5 / 8))[visible].max() < 1e-3
    assert not visible[:, 0].all()  # left the frame


def test_cells_that_the_square_occludes_have_no_match():
    depth = clip("train/000").depth
    found = matching_cells(clip("train/000"), 0, 2, 28).reshape(28, 28, 2)
    square = depth[0, 4::8, 4::8] == 1.5
    visible_wall = ~square & ~np.isnan(found[..., 0])
    pixels = ((found[visible_wall] + 0.5) * 8).astype(int).clip(0, 223)
    assert visible_wall.any() and (depth[2, pixels[:, 1], pixels[:, 0]] > 1.6).all()
    hidden = np.isnan(found[..., 0]) & ~square
    assert hidden[:, 2:].any()  # not only at the frame's edge


def test_matches_are_right_within_a_cell_and_chance_is_counted():
    order = torch.arange(196)
    still = torch.stack([order % 14, order // 14], 1).float()
    unique = torch.eye(196).reshape(1, 196, 14, 14)
    turned, pair = unique.flip(2).flip(3), torch.stack([still, still])
    best = best_matches(torch.cat([unique, unique]), torch.cat([unique, turned]))
    assert best[0].equal(order) and best[1].equal(order.flip(0))
    right = right_matches(best, pair)
    assert right[:196].all() and len(right) == 392
    assert right[196:].sum() == 4  # the middle four
    inner, edges, corners = 12 * 12 * 9, 4 * 12 * 6, 4 * 4
    chance = chance_of_match(pair)
    assert len(chance) == 392
    assert chance.mean().item() == pytest.approx((inner + edges + corners) / 196**2)
    pair[1, ::2] = torch.nan  # not visible
    assert len(right_matches(best, pair)) == len(chance_of_match(pair)) == 196 + 98
    fine = torch.full((1, 28 * 28, 2), 10.0)  # two cells of 28x28 are one of 14x14
    assert chance_of_match(fine).mean().item() == pytest.approx(5 * 5 / 28**2)
    assert right_matches(torch.full((1, 28 * 28), 12 * 28 + 8), fine).all()
    assert not right_matches(torch.full((1, 28 * 28), 13 * 28 + 8), fine).any()


def test_rgb_patches_ignore_brightness():
    frames = torch.from_numpy(clip("train/001").frames[:1].clip(0, 200)) / 255
    plain, bright = rgb_patches(frames, 28), rgb_patches(frames + 30 / 255, 28)
    assert plain.shape == (1, 192, 28, 28)
    assert torch.allclose(plain[..., 2:-2, 2:-2], bright[..., 2:-2, 2:-2], atol=1e-5)
