"""Point clouds and matches: the right places, colours and counts."""
import numpy as np
import pytest
from PIL import Image

from infer.geometry import depth_mm, match_picture, mutual_matches
from scenes.sources.scannet import read_ply_vertices
from tests.infer.models import DEPTH_M, photo, pooling_model, run_infer


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    monkeypatch.setenv("VEGA3D_TRUST_ONNX", "1")


def test_points_project_to_their_pixels_at_their_depth(tmp_path, capsys):
    model, picture = pooling_model(tmp_path / "m.onnx"), photo(tmp_path / "a.png", (300, 300))
    code, line = run_infer(capsys, model, picture, "--ply", "--focal", 450, "-o", tmp_path / "out")
    assert code == 0 and "focal length 336 px of 224 (--focal)" in line
    points = read_ply_vertices(tmp_path / "out" / "a.ply")
    depth = np.load(tmp_path / "out" / "a_depth.npy")
    assert np.allclose(points[:, 2], depth.ravel())
    rows, columns = np.mgrid[:56, :56]
    pixels = 336 * points[:, :2] / points[:, 2:] + 112
    cells = np.stack([4 * columns + 2, 4 * rows + 2], -1).reshape(-1, 2)
    assert np.allclose(pixels, cells, atol=0.01)
    content = (tmp_path / "out" / "a.ply").read_bytes().partition(b"end_header\n")[2]
    red = np.frombuffer(content, np.uint8).reshape(-1, 15)[:, 12]
    assert np.abs(1 + DEPTH_M * red / 255 - points[:, 2]).max() < 0.06  # the depth is the red


def test_millimetres_are_rounded_and_what_is_too_far_is_unknown():
    assert depth_mm(np.array([[0.0004, 0.0006, 1.2345, 65.535, 65.6, 1e9]])).tolist() == [
        [0, 1, 1234, 65535, 0, 0]]


def test_mutual_matches_find_a_shift():
    wide = np.random.default_rng(0).normal(size=(16, 28, 31))
    pairs = mutual_matches(wide[:, :, 3:], wide[:, :, :28])
    assert len(pairs) >= 28 * 25
    right = np.abs(pairs[:, 2] - pairs[:, 0] - 3 / 28) + np.abs(pairs[:, 3] - pairs[:, 1]) < 1e-5
    assert right.sum() == 28 * 25 and pairs[right, 4].min() > 0.999
    frame = np.zeros((3, 224, 224), np.uint8)
    drawn = match_picture(frame, frame, pairs)
    assert drawn.shape == (448, 904, 3) and (drawn[:, :448].max() > 100)


def test_two_photos_are_matched_and_another_number_is_refused(tmp_path, capsys):
    model = pooling_model(tmp_path / "m.onnx")
    blocks = np.random.default_rng(0).integers(0, 255, (28, 32, 3), np.uint8)
    for name, at in (("a", 0), ("b", 4)):  # b sees what a does, 4 cells further left
        pixels = np.kron(blocks[:, at:at + 28], np.ones((8, 8, 1), np.uint8))
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    files = tmp_path / "a.png", tmp_path / "b.png"
    code, line = run_infer(capsys, model, *files, "--matches", "-o", tmp_path / "out")
    assert code == 0 and "mutual matches of descriptors" in line
    pairs = np.load(tmp_path / "out" / "a_b_matches.npy")
    assert (np.abs(pairs[:, 0] - pairs[:, 2] - 4 / 28) < 1e-5).mean() > 0.7
    assert Image.open(tmp_path / "out" / "a_b_matches.png").size == (904, 448)
    code, line = run_infer(capsys, model, files[0], "--matches", "-o", tmp_path / "one")
    assert code == 2 and "--matches: got 1 photos and 0 videos" in line
    assert not (tmp_path / "one").exists()
    bare = pooling_model(tmp_path / "bare.onnx", outputs=("depth",))
    code, line = run_infer(capsys, bare, *files, "--matches", "-o", tmp_path / "bare")
    assert code == 2 and "has no descriptors" in line
