"""Correspondence scores of features with a known answer, and the overall score."""
import math

import numpy as np
import pytest
import torch

from teacher.probing.correspondence import (
    centre_points,
    correspondence_scores,
    correspondence_sums,
    noise_snr,
    prototypes,
)
from teacher.probing.tap_search import pooled_score
from tests.fakes import FakeRooms


def place_code(points, seed=0, waves=64, scale=4.0):
    """Smooth random Fourier features of the world point: the same place says the same in every
    view."""
    draw = torch.Generator().manual_seed(seed)
    w = scale * torch.randn(3, waves, generator=draw, dtype=torch.float64)
    return torch.cat([(points @ w).sin(), (points @ w).cos()], -1).nan_to_num(0).float()


@pytest.fixture(scope="module")
def views():
    rooms = FakeRooms(test=4, frames=9)
    return torch.stack([centre_points(rooms.clip(i), [0, 4, 8])
                        for i in rooms.ids("test")])  # [4,3,196,3]


def correspondence(features, points):
    sums = correspondence_sums(features, points)
    return correspondence_scores({name: value.sum() for name, value in sums.items()})


def as_grid(tokens):
    return tokens.transpose(2, 3).unflatten(3, (14, 14))


def test_token_points_lie_on_the_wall_in_world_coordinates():
    clip = FakeRooms(frames=9).clip("test/000")
    points = centre_points(clip, [0, 8])
    wall = (clip.instances[[0, 8]][:, 8::16, 8::16].reshape(2, -1) == 1)
    x, z = points[..., 0][wall], points[..., 2][wall]
    slope = ((z - z.mean()) * (x - x.mean())).sum() / ((x - x.mean()) ** 2).sum()
    # one plane, from both cameras
    assert (z - z.mean() - slope * (x - x.mean())).abs().max() < 1e-3
    clip.depth[0] = 0
    assert centre_points(clip, [0]).isnan().all()


def test_a_view_s_tokens_in_a_voxel_are_one_unit_prototype():
    points = torch.tensor([[0.01, 0, 0], [0.11, 0, 0], [0.09, 0, 0], [math.nan] * 3]).double()
    tokens = torch.tensor([[2.0, 0], [0, 1], [0, 2.0], [9, 9]])
    shifted = points + torch.tensor([0.1, 0, 0])  # what the first view sees second, it sees first
    found = prototypes(torch.stack([tokens, tokens])[None], torch.stack([points, shifted])[None])
    mean = torch.tensor([0.5**0.5, 0.5**0.5])
    one = torch.stack([mean, torch.tensor([0, 1.0]), torch.zeros(2), torch.zeros(2)])
    torch.testing.assert_close(found.unit, torch.stack([one, one])[None])
    assert found.voxel.tolist() == [[[0, 1, -1, -1], [1, 2, -1, -1]]]


def test_clips_do_not_touch_each_other(views):
    features = torch.randn(4, 3, 8, 14, 14)
    features = (features - features.mean((0, 1, 3, 4), keepdim=True))
    views = views.clone()
    views[1, 2, 50:] = torch.nan
    views[2] = torch.nan
    found = correspondence_sums(features, views)
    order = [2, 0, 3, 1]
    again = correspondence_sums(features[order], views[order])
    for name, value in found.items():
        np.testing.assert_allclose(again[name], value[order], rtol=1e-4, atol=1e-4)
    assert found["corr_auc_clips"].tolist() == [1, 1, 0, 1] and found["corr_asked"][2] == 0


def test_features_of_the_place_score_high_and_noise_scores_nothing(views):
    place = correspondence(as_grid(place_code(views)), views)
    noise = correspondence(torch.randn(4, 3, 128, 14, 14), views)
    assert place["corr_x100"] > 95 and place["corr_auc"] > 0.97 and place["corr_std_auc"] > 0.97
    assert place["corr_pck"] > 0.9 and abs(place["corr_random_x100"]) < 15
    assert abs(
        noise["corr_x100"]) < 3 and abs(noise["corr_auc"] - 0.5) < 0.05 and noise["corr_pck"] < 0.4


def test_one_huge_channel_fools_the_published_score_and_not_the_others(views):
    noise = torch.randn(4, 3, 64, 14, 14)
    noise[:, :, 5] += 100
    found = correspondence(noise, views)
    assert found["corr_x100"] > 97 and found["corr_random_x100"] > 97  # "97.0", of nothing at all
    assert abs(found["corr_std_x100"]) < 5 and abs(found["corr_auc"] - 0.5) < 0.05


def test_a_code_of_image_position_is_not_correspondence(views):
    position = torch.randn(1, 1, 64, 14, 14).expand(4, 3, -1, -1, -1)
    found, place = (correspondence(f, views) for f in (position, as_grid(place_code(views))))
    assert found["corr_pck"] < place["corr_pck"] - 0.3 and found[
        "corr_std_x100"] < place["corr_std_x100"] - 30


def test_views_that_share_nothing_have_no_score(views):
    apart = views + 100 * torch.arange(3).view(1, 3, 1, 1)
    found = correspondence(torch.randn(4, 3, 8, 14, 14), apart)
    assert math.isnan(found["corr_x100"]) and math.isnan(found["corr_auc"]) and math.isnan(
        found["corr_pck"])
    assert not math.isnan(found["corr_random_x100"])
    alone = correspondence(torch.randn(4, 1, 8, 14, 14), views[:, :1])
    assert all(math.isnan(score) for score in alone.values())


def test_noise_snr_is_the_ratio_of_the_variances():
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(1, 20000, 4, generator=draw) * torch.tensor([1.0, 2, 3, 4])
    seeds = torch.randn(4, 20000, 4, generator=draw)
    found = noise_snr(image + seeds)
    assert found["snr"] == pytest.approx((1 + 4 + 9 + 16) / 4, rel=0.05)
    assert found["snr_median"] == pytest.approx(4, rel=0.1)  # lower of the two middle ones
    assert noise_snr(seeds)["snr"] < 0.02
    with pytest.raises(ValueError, match="got 1 seeds"):
        noise_snr(seeds[:1])


TABLE_4 = {  # arXiv 2603.19235, table 4; columns as the paper's nine
    "base": (58.1, 51.7, 58.0, 52.7, 83.8, 41.3, 102.1, 30.1, 58.6),
    "DINOv3": (61.1, 54.2, 59.6, 54.1, 80.6, 41.1, 105.9, 30.5, 61.9),
    "V-JEPA": (61.7, 54.9, 60.2, 54.7, 79.8, 41.5, 106.6, 30.7, 61.2),
    "VGGT": (62.3, 55.3, 60.1, 54.5, 82.8, 42.0, 105.8, 30.5, 61.4),
    "SVD": (61.3, 54.8, 59.9, 54.6, 80.9, 41.9, 105.1, 30.1, 61.3),
    "SD2.1": (62.1, 55.1, 60.3, 54.9, 83.0, 42.0, 106.8, 30.4, 60.6),
    "Vmem": (62.5, 55.7, 60.2, 54.7, 82.0, 41.9, 106.0, 30.0, 61.4),
    "SEVA": (62.3, 55.5, 60.1, 54.5, 82.5, 42.1, 107.6, 30.8, 60.9),
    "VAE": (62.0, 55.1, 60.3, 54.8, 83.7, 42.3, 106.0, 30.5, 61.4),
    "VACE": (62.2, 55.3, 60.3, 55.0, 82.8, 42.7, 107.8, 31.0, 61.8),
    "T2V": (63.2, 56.2, 60.8, 55.1, 83.2, 42.2, 106.3, 30.4, 61.3),
}
GROUPS = {"discriminative": ("DINOv3", "V-JEPA", "VGGT"),
          "generative": ("SVD", "SD2.1", "Vmem", "SEVA", "VAE", "VACE", "T2V")}


def overall_score(table):
    return dict(zip(table, pooled_score(np.array([*table.values()], float)), strict=True))


def test_overall_score_in_two_groups_is_the_published_number():
    published = {
        "discriminative": {"base": 13.58, "DINOv3": 61.63, "V-JEPA": 77.54, "VGGT": 88.24},
        "generative": {
            "base": 12.22, "SVD": 52.06, "SD2.1": 70.57, "Vmem": 63.75, "SEVA": 75.28, "VAE": 77.29,
            "VACE": 89.32, "T2V": 82.41
        }
    }
    for group, rows in published.items():
        found = overall_score({row: TABLE_4[row] for row in ("base", *GROUPS[group])})
        assert found == pytest.approx(rows, abs=0.006)


def test_pooled_overall_score_compares_the_groups():
    found = overall_score(TABLE_4)
    by_hand = {
        "base": 13.6, "DINOv3": 51.8, "V-JEPA": 61.8, "VGGT": 71.5, "SVD": 55.6, "SD2.1": 71.9,
        "Vmem": 66.2, "SEVA": 77.0, "VAE": 77.5, "VACE": 90.0, "T2V": 83.3
    }
    assert found == pytest.approx(by_hand, abs=0.06)
    assert overall_score({"a": (1, 5), "b": (3, 5)}) == {"a": 0, "b": 100}
