"""RGB-D folders of TUM, 7-Scenes, ScanNet and plain: one recording, whichever layout it is in."""
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from scenes.sources.registration import inverted_poses, likelier_unit
from scenes.sources.rgbd import find_recording, read_recording
from tests.scenes.rgbd_scenes import DEPTH_CAMERA, poses, save, view

LAYOUTS = ("plain", "tum", "7scenes", "scannet")


def truth(count: int, size: int) -> np.ndarray:
    """[T,size,size] m of the middle square, 120 px."""
    at = ((np.arange(size) + 0.5) * 120 / size).astype(int)
    return np.stack([view(pose)[1][np.ix_(at, at + 20)] for pose in poses(count)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_metres_and_poses(layout, tmp_path):
    clip = read_recording(save(tmp_path / "r", layout, 12), size=112)[0]
    assert clip.frames.shape == (12, 3, 112, 112)
    assert np.abs(clip.depth - truth(12, 112)).max() < 0.002
    assert np.allclose(clip.poses, poses(12), atol=1e-5)
    assert clip.intrinsics[0, 0] == pytest.approx(120 * 112 / 120)
    assert clip.intrinsics[0, 2] == pytest.approx(56)
    fewer = read_recording(tmp_path / "r", size=112, most=3)[0]
    assert np.array_equal(fewer.depth, clip.depth[[0, 5, 11]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_depth_camera_of_its_own_is_moved_to_the_colour_camera(layout, tmp_path):
    root = save(tmp_path / "r", layout, 4, depth_camera=DEPTH_CAMERA)
    moved = read_recording(root, size=120)[0]
    error = np.abs(moved.depth / np.where(moved.depth > 0, truth(4, 120), np.nan) - 1)
    assert np.nanmedian(error) < 0.003 and np.nanpercentile(error, 95) < 0.03
    assert (moved.depth > 0).mean() > 0.75


def test_frames_that_lost_tracking_and_colours_without_depth_are_left_out(tmp_path):
    root = save(tmp_path / "scan", "scannet", 5)
    (root / "pose" / "2.txt").write_text("-inf -inf -inf -inf\n" * 4)
    clip = read_recording(root, size=60)[0]
    assert len(clip.frames) == 4 and np.allclose(clip.poses, poses(5)[[0, 1, 3, 4]], atol=1e-5)
    root = save(tmp_path / "tum", "tum", 5)
    lines = (root / "depth.txt").read_text().splitlines()
    (root / "depth.txt").write_text("\n".join(lines[:3]))
    assert len(read_recording(root, size=60)[0].frames) == 3


def test_tums_cameras_are_taken_by_name_and_said(tmp_path):
    root = save(tmp_path / "rgbd_dataset_freiburg2_desk", "tum", 2)
    (root / "K.txt").unlink()
    assert find_recording(root).camera[0, 0] == pytest.approx(520.9)
    with pytest.raises(ValueError, match="is 160x120, but the camera matrix is of another picture"):
        read_recording(root, size=120)  # TUM's are 640x480
    assert "TUM's camera is taken (freiburg2)" in find_recording(root).notes[0]
    plain = save(tmp_path / "plain", "plain", 2)
    (plain / "K.txt").unlink()
    clip, notes = read_recording(plain, size=120)
    assert clip.intrinsics is None and clip.poses is None
    assert len(notes) == 1 and "has no camera matrix" in notes[0]


@pytest.mark.parametrize("motion", [True, False])
@pytest.mark.parametrize(("stored", "read"), [(5000, 1000), (1000, 5000), (1000, 1000)])
def test_depth_in_another_unit_is_noticed(motion, stored, read, tmp_path):
    """By what two views of a moving camera see, else by rooms that are too large or too small."""
    root = save(tmp_path / "r", "plain", 12, per_metre=stored)
    clip = read_recording(root, size=112, per_metre=read)[0]
    if not motion:
        clip.poses = None
    found = likelier_unit(clip, read)
    assert (found is None) == (stored == read)
    if found:
        assert found[0] == stored
        assert ("two views agree" in found[1]) == motion


@pytest.mark.parametrize(("why", "changed"), [
    ("not a rotation", lambda poses: poses.transpose(0, 2, 1)),
    ("not a rotation", lambda poses: poses * (2, 2, 2, 1)),
    ("not a rotation", lambda poses: poses * (-1, 1, 1, 1)),
    ("not a rotation", lambda poses: 0 * poses),
    ("not a rotation", lambda poses: np.nan * poses)])
def test_poses_that_are_no_rigid_motion_are_refused(why, changed, tmp_path):
    root = save(tmp_path / "r", "plain", 12)
    np.savetxt(root / "poses.txt", changed(poses(12)).reshape(12, 16))
    with pytest.raises(ValueError, match=why) as error:
        read_recording(root, size=112)
    assert str(root) in str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_poses_from_world_to_camera_are_noticed(layout, tmp_path):
    for inverted in (False, True):
        root = save(tmp_path / str(inverted), layout, 8, inverted=inverted)
        says = rf"{root}: .*world to camera: .* with the inverse poses, .*: invert each pose"
        with pytest.raises(ValueError, match=says) if inverted else nullcontext():
            read_recording(root, size=112)


def test_a_camera_that_turns_on_the_spot_or_stands_has_no_inverted_poses(tmp_path):
    """Far from the origin, where the inverses seem to move, and where nothing moves."""
    turning = poses(8)
    turning[:, :3, 3] = 0.9, 0, -0.8
    for name, at in (("turning", turning), ("standing", turning[:1].repeat(8, 0))):
        clip = read_recording(save(tmp_path / name, "plain", 8, at=at), size=112)[0]
        assert not inverted_poses(clip, 1000)


@pytest.mark.parametrize("matrix", [
    ((1200, 0, 800), (0, 1200, 600), (0, 0, 1)), ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((1e300, 0, 80), (0, 1e300, 60), (0, 0, 1)), ((120, 0, 0), (0, 120, 0), (80, 60, 1))])
def test_a_camera_matrix_of_other_pictures_is_refused(matrix, tmp_path):
    root = save(tmp_path / "r", "plain", 2)
    np.savetxt(root / "K.txt", matrix)
    with pytest.raises(ValueError, match="camera matrix"):
        read_recording(root)


@pytest.mark.parametrize("kind", ["float metres", "whole metres"])
def test_depth_in_metres_is_refused(kind, tmp_path):
    root = save(tmp_path / "r", "plain", 3)
    for path in (root / "depth").iterdir():
        metres = np.asarray(Image.open(path)) / 1000
        image = Image.fromarray(metres.astype(np.float32 if kind[0] == "f" else np.uint16))
        image.save(path, "TIFF" if kind[0] == "f" else "PNG")
    with pytest.raises(ValueError, match=r"16-bit PNG|--depth-unit 1, or"):
        read_recording(root, size=112)


@pytest.mark.parametrize(("layout", "name", "content", "why"), [
    ("plain", "K.txt", "0 0 0\n0 0 0\n0 0 1", "not a camera matrix"),
    ("scannet", "intrinsic/intrinsic_color.txt", "0 0 0 0\n" * 4, "not a camera matrix"),
    ("tum", "groundtruth.txt", "0.0 1 2 3", "position .3. and quaternion"),
    ("tum", "depth.txt", "now depth/0.png", "does not begin with a time"),
    ("7scenes", "frame-000001.pose.txt", "1 0 0", "expected 4 x 4"),
    ("scannet", "depth/0.png", "no picture", "damaged or not an image")])
def test_what_cannot_be_read_is_named(layout, name, content, why, tmp_path):
    root = save(tmp_path / "r", layout, 2)
    (root / name).write_text(content)
    with pytest.raises(ValueError, match=why) as error:
        read_recording(root)
    assert name in str(error.value)


def test_a_folder_of_none_of_the_layouts_and_pictures_of_other_shapes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected rgb\.txt and depth\.txt, frame-"):
        read_recording(tmp_path)
    root = save(tmp_path / "r", "7scenes", 2)
    (root / "frame-000001.depth.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"frame-000001\.depth\.png"):
        read_recording(root)
    root = save(tmp_path / "s", "plain", 2)
    Image.fromarray(np.ones((100, 300), np.uint16)).save(root / "depth" / "1.png")
    with pytest.raises(ValueError, match="is 300x100, its picture 160x120"):
        read_recording(root)
