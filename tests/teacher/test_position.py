"""3D positions against geometry done by hand and a plain-loop sinusoid."""
import math

import numpy as np
import torch

from teacher.language.position import mean_token_points, sine_position, video_position, world_points


def camera(t: int) -> tuple[np.ndarray, np.ndarray]:
    intrinsics = np.array([[10.0, 0, 4], [0, 10, 3], [0, 0, 1]])
    poses = np.tile(np.eye(4), (t, 1, 1))
    poses[1:, :3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]  # a quarter turn about the optical axis
    poses[1:, :3, 3] = [1, 2, 3]
    return intrinsics, poses


def test_world_points_are_where_the_camera_says():
    depth = np.full((2, 6, 8), 2.0, np.float32)
    depth[0, 0, 0] = 0
    points = world_points(depth, *camera(2))
    assert np.isnan(points[0, 0, 0]).all() and not np.isnan(points[1]).any()
    local = np.array([2 * (5.5 - 4) / 10, 2 * (1.5 - 3) / 10, 2])
    np.testing.assert_allclose(points[0, 1, 5], local, atol=1e-6)
    np.testing.assert_allclose(points[1, 1, 5], [1 - local[1], 2 + local[0], 3 + local[2]],
                               atol=1e-6)


def test_a_token_is_the_mean_of_its_known_points():
    points = np.random.default_rng(0).normal(size=(2, 6, 9, 3)).astype(np.float32)
    points[0, :2, :3] = np.nan                    # the whole first cell
    points[0, 2, 3] = np.nan                      # one pixel of another
    cells = mean_token_points(points, 3)
    np.testing.assert_allclose(cells[1, 2, 1], points[1, 4:6, 3:6].mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(cells[0, 1, 1], np.nanmean(points[0, 2:4, 3:6], (0, 1)), atol=1e-6)
    np.testing.assert_allclose(cells[0, 0, 0], np.nanmean(points[0], (0, 1)), atol=1e-6)


def test_a_frame_without_depth_is_at_the_origin_not_nan():
    assert (mean_token_points(np.full((1, 6, 6, 3), np.nan, np.float32), 3) == 0).all()


def test_sines_match_a_plain_loop():
    width, point = 20, [1.23, -20.0, 0.449]     # clipped to -15 m; steps of 0.1 m
    steps, third = [12, -150, 4], 6
    expected = []
    for step in steps:
        for i in range(third // 2):
            angle = step / 10000 ** (2 * i / third)
            expected += [math.sin(angle), math.cos(angle)]
    code = sine_position(torch.tensor(point), width)
    torch.testing.assert_close(code, torch.tensor([*expected, 0.0, 0.0]), atol=1e-5, rtol=0)


def test_points_in_one_decimetre_share_a_code_and_others_do_not():
    near = sine_position(torch.tensor([[0.51, 0, 0], [0.54, 0, 0], [0.56, 0, 0]]), 30)
    assert torch.equal(near[0], near[1]) and not torch.equal(near[1], near[2])


def test_the_pose_free_code_tells_frames_rows_and_columns_apart():
    code = video_position(2, 7, 36)
    assert code.shape == (2, 7, 7, 36)
    flat = code.flatten(0, 2)
    assert torch.unique(flat.round(decimals=4), dim=0).shape[0] == 2 * 7 * 7
    # the same place, the same code
    torch.testing.assert_close(video_position(2, 14, 36)[:, ::2, ::2], code)
