"""Pinhole geometry against points worked out by hand, and its own inverse."""
import numpy as np

from scenes.geometry import cell_pixels, project, reproject, transform, unproject

K = np.array([[10.0, 0, 4], [0, 20, 3], [0, 0, 1]])


def test_a_pixel_right_of_and_below_the_principal_point_is_right_of_and_below_the_axis():
    point = unproject(np.array([9.0]), np.array([5.0]), np.array([2.0]), K)
    np.testing.assert_allclose(point, [[1.0], [0.2], [2.0]])


def test_projecting_an_unprojected_pixel_gives_the_pixel_and_its_depth_back():
    columns, rows, depth = np.random.default_rng(0).uniform(0.5, 8, (3, 20))
    pixels, distance = project(unproject(columns, rows, depth, K), K)
    np.testing.assert_allclose(pixels, [columns, rows], atol=1e-12)
    np.testing.assert_array_equal(distance, depth)


def test_poses_move_camera_points_to_the_world_one_frame_each():
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, :3] = [[0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7]]  # a quarter turn about z
    points = transform(np.array([[1.0], [2.0], [3.0]]), poses)
    assert points[..., 0].tolist() == [[1, 2, 3], [3, 7, 10]]


def test_a_camera_that_moved_right_sees_the_point_further_left():
    moved = np.eye(4)
    moved[0, 3] = 1.0
    nine, five, two = np.array([[9.0], [5.0], [2.0]])
    pixels, depth = reproject(nine, five, two, K, np.eye(4), moved)
    np.testing.assert_allclose(pixels, [[4.0], [5.0]])
    assert depth.tolist() == [2.0]


def test_a_point_in_the_camera_plane_has_no_finite_pixel_and_warns_of_nothing(recwarn):
    pixels, depth = project(np.array([[1.0, 0], [0, 0], [0, 0]]), K)
    assert not np.isfinite(pixels[0]).any() and (depth == 0).all() and not recwarn.list


def test_the_middles_of_cells_follow_the_nearest_pixel_of_any_size():
    rows, columns = cell_pixels(4, 6, 2)
    assert rows.tolist() == [1, 1, 3, 3] and columns.tolist() == [1, 4, 1, 4]
