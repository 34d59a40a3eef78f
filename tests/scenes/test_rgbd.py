"""A folder of recorded RGB-D frames: reader and the halves that probes use."""
import numpy as np
import pytest
import torch
from PIL import Image

from scenes.sources.rgbd import read_recording
from teacher.config import AlignmentConfig
from teacher.probing import alignment

FRAMES = 48


def save_rgbd(root, offset=0, poses=True):
    """Bright boxes before a dark wall, 80x64 px; depth is `offset` px to the right of colour."""
    (root / "images").mkdir(parents=True)
    (root / "depth").mkdir()
    rng = np.random.default_rng(0)
    for i in range(FRAMES):
        depth = np.full((64, 80), 4000, np.uint16)
        for _ in range(4):
            x, y = rng.integers(8, 60), rng.integers(4, 46)
            depth[y:y + 12, x:x + 12] = 1000 + 100 * rng.integers(10)
        colour = np.where(depth < 4000, 200, 40).astype(np.uint8)
        Image.fromarray(np.stack([colour] * 3, 2)).save(root / "images" / f"{i}.png")
        Image.fromarray(np.roll(depth, offset, 1)).save(root / "depth" / f"{i}.png")
    np.savetxt(root / "K.txt", [[70, 0, 40], [0, 70, 32], [0, 0, 1]])
    if poses:
        np.savetxt(root / "poses.txt", np.tile(np.eye(4).reshape(1, 16), (FRAMES, 1)))
    return root


def test_the_middle_square_keeps_its_depth_and_camera(tmp_path):
    clip = read_recording(save_rgbd(tmp_path / "a"), size=64)[0]
    raw = np.asarray(Image.open(tmp_path / "a" / "depth" / "10.png"))
    assert np.array_equal(clip.depth[10], (raw[:, 8:72] / 1000).astype(np.float32))
    assert clip.intrinsics[0].tolist() == [70, 0, 32] and clip.poses.shape == (FRAMES, 4, 4)
    assert read_recording(tmp_path / "a")[0].intrinsics[0, 0] == 70 * 3.5  # at 224 px


@pytest.mark.parametrize(("name", "content", "message"), [
    ("K.txt", "1 2", "not a camera matrix"), ("poses.txt", "1 2 3", "holds 1 x 3 numbers"),
    ("K.txt", "a", "not a table of numbers")])
def test_a_bad_file_is_named(tmp_path, name, content, message):
    root = save_rgbd(tmp_path / "a")
    (root / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        read_recording(root)


def test_halves_share_no_frame_and_rows_have_both_probes_and_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "_HALF", 24)
    monkeypatch.setattr("teacher.probing.ridge.mlp", lambda x, y, x_test, seed, batch, stop:
                        y.mean(0).expand(len(x_test), -1))
    recorded, _ = read_recording(save_rgbd(tmp_path / "a", poses=False))
    halves, chosen = alignment.recorded_halves(recorded)
    assert [len(half) for half in halves] == [12, 12] and chosen == 6
    assert halves[1].rooms.tolist() == [0] * 6 + [1] * 6
    assert len({x.numpy().tobytes() for half in halves for x in half.frames.flatten(0, 1)}) == 48
    table = alignment.Alignment(AlignmentConfig(redraws=1), torch.device("cpu"), 0, halves, chosen)
    x = [torch.full((12, 2, 1, 14, 14), float(i)) for i in range(2)]
    for (fit, choice, test), half in zip(table.trials(x), (0, 1), strict=True):
        assert fit.data.frames.equal(halves[half].frames[:6])
        assert choice.data.frames.equal(halves[half].frames[6:])
        assert test.data.frames.equal(halves[1 - half].frames)
        assert choice.scale is fit.scale is test.scale
        assert (fit.parts["x"].unique(), test.parts["x"].unique()) == (half, 1 - half)
    features = table.frame_features(lambda x: x.mean(2, keepdim=True)[..., 8::16, 8::16])
    row = table.measure({"generator": "grey"}, [features], [features])
    assert (row["frames_from"], row["probe_clips"], row["test_clips"]) == ("real", 6, 12)
    assert row["depth_r2_alone"] > 0.7 > 0.1 > abs(row["depth_r2_alone_mlp"])
    assert row["depth_random_gain"] == row["depth_gain"] > 0 == row["depth_gain_mlp_way1"]
    assert np.isnan(row["match_exact"]) and "normal_cos_alone" not in row
    assert 1 < row["depth_p1_m"] < row["depth_p99_m"] == pytest.approx(4)


def test_a_recording_whose_depth_is_off_colour_is_not_probed(tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "_HALF", 24)
    root = save_rgbd(tmp_path / "a", offset=3)  # 10 px of 224
    config = AlignmentConfig(rgbd=root)
    with pytest.raises(ValueError, match=f"{root}: depth is not registered to colour: its edges "
                                         r"lie \+1\d px across"):
        alignment.probe_alignment(config, None, 0, "cpu", 1)


def test_a_recording_that_cannot_fit_a_probe_is_refused(tmp_path):
    with pytest.raises(ValueError, match="48 frames give 24 a half, expected 80"):
        alignment.recorded_halves(read_recording(save_rgbd(tmp_path / "a"))[0])
    (tmp_path / "a" / "K.txt").unlink()
    (tmp_path / "a" / "poses.txt").unlink()
    with pytest.raises(ValueError, match=r"no camera matrix; write it to K\.txt"):
        alignment.recorded_halves(read_recording(tmp_path / "a")[0])
