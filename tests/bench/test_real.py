"""`vega3d bench real`: scores by hand on small arrays, and a recording through exported files."""
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

import vega3d
from bench.real import depth as geometry
from bench.real import run as real
from bench.real.prior import fit, load_prior
from bench.real.views import flicker, match_scores, pairs_at, steady_pairs
from bench.recipes import rgbd_folders
from distill.heads import can_train
from records.results import load
from scenes.clip import ClipFolder, save_clip
from scenes.rooms.source import RoomSource
from scenes.sources.rgbd import read_recording
from tests.infer.models import pooling_model
from tests.scenes.rgbd_scenes import save
from tests.scenes.test_rgbd import save_rgbd

CANNOT_TELL = ("cannot tell whether depth is registered to colour: that takes more than 20 frames "
               "that differ and show things before others, found 0")  # the box has no edges
BOX = np.linspace(1, 3, 112 * 112).reshape(112, 112)


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """A stand-in for the semantic encoder: 16x16 px mean colours."""
    monkeypatch.setenv("VEGA3D_TRUST_ONNX", "1")
    monkeypatch.setattr("teacher.towers.efficientnet.SemanticEncoder",
                        lambda: torch.nn.AvgPool2d(16))


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return save(tmp_path_factory.mktemp("real") / "box", "plain", 14)


def test_each_alignment_forgives_what_it_says():
    exact = geometry.depth_scores(BOX, BOX)
    assert exact["delta1_metric"] == 1 and exact["rmse_metric_m"] < 1e-9
    scaled = geometry.depth_scores(1.3 * BOX, BOX)
    assert scaled["delta1_metric"] == 0 and scaled["abs_rel_metric"] == pytest.approx(0.3)
    assert scaled["delta1_median"] == 1 and scaled["abs_rel_median"] < 1e-9
    shifted = geometry.depth_scores(1 / (0.5 / BOX + 0.4), BOX)  # affine in 1/z
    assert shifted["delta1_median"] < 0.9 and shifted["rmse_affine_m"] < 1e-6
    constant = geometry.depth_scores(np.full_like(BOX, 2.0), BOX)
    assert constant["delta1_metric"] == pytest.approx(np.mean((BOX > 1.6) & (BOX < 2.5)), abs=1e-3)
    assert np.isnan(constant["corr"]) and scaled["corr"] == pytest.approx(1)
    half = np.where(np.arange(112) < 56, BOX, 0)  # unknown pixels do not count
    wrong = np.where(half > 0, BOX, 99)
    assert geometry.depth_scores(wrong, half)["delta1_metric"] == 1


def test_normals_of_the_box_are_its_walls(recording):
    clip = read_recording(recording, 224)[0]
    normals = geometry.true_normals(clip, 8, clip.intrinsics)  # turned by 8 degrees
    known = (normals != 0).any(0)
    assert 0.5 < known.mean() < 0.95
    world = np.tensordot(clip.poses[8][:3, :3], normals[:, known], 1)
    walls = np.abs(world).max(0)                              # along an axis of the box
    assert np.median(walls) > 0.999 and (walls > 0.98).mean() > 0.9
    assert geometry.normal_error(normals, normals) < 1e-3
    assert geometry.normal_error(-normals, normals) == pytest.approx(180)
    middle = normals[:, 28, 28]
    assert middle[2] < -0.98                                  # the wall ahead faces the camera


def test_matches_by_true_places_are_right_and_others_are_not(recording):
    clip = read_recording(recording, 224)[0]
    pairs = pairs_at(clip, 0.21)
    assert pairs and all(j - i == 4 for i, j in pairs)        # 5 cm a frame
    assert not pairs_at(clip, 3.0)
    middles = (np.arange(14) * 16 + 8)
    rows, columns = np.meshgrid(middles, middles, indexing="ij")
    places = []
    for t, pose in enumerate(clip.poses):
        z = clip.depth[t][rows, columns]
        rays = np.linalg.inv(clip.intrinsics) @ np.stack(
            [columns.ravel() + 0.5, rows.ravel() + 0.5, np.ones(196)])
        world = pose[:3, :3] @ (rays * z.ravel()) + pose[:3, 3:]
        waves = [np.sin(f * world + p) for f in (3, 7) for p in (0, np.pi / 2)]
        places.append(np.concatenate(waves).reshape(-1, 14, 14))
    exact, near = match_scores(np.stack(places), clip, pairs).mean(0)
    assert exact > 0.75 and near > 0.97
    noise = np.random.default_rng(0).normal(size=(14, 8, 14, 14))
    assert match_scores(noise, clip, pairs).mean(0)[0] < 0.05


def test_flicker_is_the_change_of_a_static_points_depth(recording):
    clip = read_recording(recording, 224)[0]
    pairs = steady_pairs(clip)
    assert len(pairs) == 13
    true = clip.depth[:, None]
    breathing = true * np.where(np.arange(14) % 2, 1.1, 1.0).reshape(-1, 1, 1, 1)
    assert np.mean(flicker(true, clip, pairs)) < 0.01
    assert np.mean(flicker(breathing, clip, pairs)) == pytest.approx(np.log(1.1), abs=0.01)


def test_rows_hold_files_and_what_stands_beside_them(recording, tmp_path, capsys):
    model = pooling_model(tmp_path / "pool.onnx", "112")
    vega3d.main(["bench", "real", str(recording), str(model), "--out", str(tmp_path / "out"),
                 "--save", str(tmp_path / "real_box.json")])
    printed = capsys.readouterr()
    assert "pool.onnx" in printed.out and printed.err == f"note: {recording}: {CANNOT_TELL}\n"
    results = load(tmp_path / "real_box.json")
    assert results.name == "real_box" and results.env["frames"] == 14
    rows = {row["file"]: row for row in results.rows}
    assert list(rows) == ["pool.onnx", "pool.onnx, steady", "constant", "row prior", "RGB window",
                          "EfficientNet-Lite0"]
    file, constant = rows["pool.onnx"], rows["constant"]
    assert {"sha256", "precision", "delta1_metric", "delta1_median", "delta1_affine", "abs_rel",
            "corr", "row_prior_affine", "match_exact_49cm", "match_within1_49cm",
            "flicker"} <= file.keys()
    clip = read_recording(recording, 224)[0]
    red = clip.frames[:, 0].reshape(14, 56, 4, 56, 4).mean((2, 4)) / 255
    depth = (1 + 5 * red) * clip.intrinsics[0, 0] / 112       # by its canonical focal length
    scores = [geometry.depth_scores(geometry.resampled(depth[t][None])[0],
                                    geometry.true_depth(clip, t)) for t in range(14)]
    for name in ("delta1_metric", "abs_rel_affine", "corr"):
        assert file[name] == pytest.approx(np.mean([s[name] for s in scores]), abs=2e-3), name
    truth = geometry.true_depth(clip, 0)
    assert constant["delta1_affine"] > 0 and constant["corr"] is None and (truth > 0).all()
    window = rows["RGB window"]
    assert window["match_exact_21cm"] > 0.1 and "delta1_metric" not in window
    steady = rows["pool.onnx, steady"]
    assert steady["flicker"] < file["flicker"] and steady["sha256"] == file["sha256"]
    assert steady["match_exact_49cm"] == file["match_exact_49cm"]
    assert steady["drift"] == pytest.approx(1, abs=0.05) and "drift" not in file
    assert file["row_prior_affine"] == rows["row prior"]["delta1_affine"]
    assert rows["row prior"]["normal_deg"] < 90 and file.get("normal_deg") is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "median-scaled" in page and "row prior" in page and "data:image/png" in page
    assert Image.open(tmp_path / "out" / "frames.png").width == 6 * 160


@pytest.mark.parametrize(("options", "why"), [
    ({"per_metre": 5000}, "5000 values a metre: two views agree"), ({"count": 0}, "no .png files")])
def test_depth_in_another_unit_ends_in_one_line(options, why, tmp_path, capsys):
    root = save(tmp_path / "box", "plain", **{"count": 12, **options})
    for name in ("images", "depth"):
        (root / name).mkdir(exist_ok=True)
    with pytest.raises(SystemExit) as stopped:
        vega3d.main(["bench", "real", str(root), str(pooling_model(tmp_path / "m.onnx")),
                     "--out", str(tmp_path / "out")])
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and why in line and len(line.splitlines()) == 1, line
    assert not (tmp_path / "out").exists()


def test_what_makes_scores_doubtful_is_said(tmp_path):
    one = real.read_recorded(save(tmp_path / "one", "plain", 1), 224, 99, None)
    assert one.notes == [CANNOT_TELL, "one frame: no matches and no flicker"]
    root = save(tmp_path / "none", "plain", 3)
    (root / "poses.txt").unlink()
    assert real.read_recorded(root, 224, 99, None).notes == [
        CANNOT_TELL, "no poses: no matches and no flicker"]
    shifted = real.read_recorded(save_rgbd(tmp_path / "off", offset=3), 224, 99, None).notes
    assert len(shifted) == 1 and "not registered to colour: its edges lie +1" in shifted[0]
    true = real.Predictor({"file": "x"}, lambda clip: {
        "depth": clip.depth[:, None], "descriptors": np.ones((len(clip.frames), 1, 14, 14))})
    for clips in (one.clips, real.read_recorded(root, 224, 99, None).clips):  # one; without poses
        row = real.measure(true, clips, (0.49,))
        assert row["delta1_metric"] > 0.99
        assert row["flicker"] is None and row["match_exact_49cm"] is None


def test_an_assumed_camera_and_baselines_without_pairs_are_said_in_the_file_and_on_the_page(
        tmp_path, capsys):
    root, out = save(tmp_path / "box", "plain", 12), tmp_path / "out"
    model = pooling_model(tmp_path / "m.onnx", "112")

    def notes(*options):
        vega3d.main(["bench", "real", str(root), str(model), "--out", str(out), *options])
        found = load(out / "real.json").env["notes"]
        printed = capsys.readouterr().err.splitlines()
        assert found == "; ".join(line.removeprefix(f"note: {root}: ") for line in printed)
        return found

    assert notes("--baselines", "9").endswith(
        "no two frames about 9 m apart show the same things: no matches there")
    (root / "K.txt").unlink()
    found = notes()
    assert "a focal length is assumed (53 degrees across)" in found
    assert "no poses" not in found and "m apart" not in found  # without a camera none are used
    assert "a focal length is assumed (53 degrees across)" in (out / "report.html").read_text()


def test_a_folder_of_clips_is_a_recording_each(tmp_path, recording):
    clip = read_recording(recording, 224, most=2)[0]
    for name in ("a", "b"):
        clip.id = f"test/{name}"
        save_clip(clip, tmp_path / "clips" / "test" / f"{name}.safetensors")
    found = real.read_recorded(tmp_path / "clips", 224, 99, None)
    assert found.frames == 4 and len(found.clips) == 2
    with pytest.raises(ValueError, match="not of 160 px"):
        real.read_recorded(tmp_path / "clips", 160, 99, None)


def test_the_prior_is_that_of_rooms():
    shipped, small = load_prior(), fit(RoomSource(train=2, val=0, test=0, frames=2, seed=5))
    for prior in (shipped, small):
        assert prior.rows_m.shape == (56,) and prior.normals.shape == (56, 3)
        assert prior.rows_m[-1] < prior.rows_m[20]            # the floor is near
        assert np.allclose(np.linalg.norm(prior.normals, axis=1), 1, atol=1e-3)
    assert 1 < shipped.constant_m < 4 and shipped.normals[-1, 1] < -0.5  # the floor faces up


def test_nyus_test_frames_become_a_folder(tmp_path, monkeypatch):
    depths = np.full((3, 640, 480), 2.5)
    images = np.zeros((3, 3, 640, 480), np.uint8)
    images[2, 1] = 200
    content = {"depths": depths, "images": images}

    class File(SimpleNamespace):
        __enter__ = lambda self: content                      # noqa: E731
        __exit__ = lambda *_: None                            # noqa: E731

    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=lambda *_: File()))
    scipy.io.savemat(tmp_path / "splits.mat", {"testNdxs": [[1], [3]]})
    (tmp_path / "nyu.mat").touch()
    rgbd_folders.nyuv2(tmp_path / "nyu.mat", tmp_path / "splits.mat", tmp_path / "out")
    clip = read_recording(tmp_path / "out", 224)[0]
    assert clip.frames.shape == (2, 3, 224, 224) and (clip.frames[1, 1] == 200).all()
    assert clip.depth.max() == 2.5 and (clip.depth[:, 112, 112] == 2.5).all()
    assert (clip.depth == 0).any() and clip.intrinsics[0, 0] == pytest.approx(518.858 * 224 / 480)


@pytest.mark.parametrize(("arguments", "why"), [
    ("nyuv2 no.mat splits.mat out", "splits.mat: No such file"), ("clips gone out", "gone: "),
    ("clips gone out --depth-unit 0", "--depth-unit is 0.0, expected at least 1"),
    ("clip gone out", "clip, gone, out; Available subcommands: stereo, nyuv2, clips; see: python "
     "-m bench.recipes.rgbd_folders --help")])
def test_a_recording_or_a_verb_that_is_not_there_is_one_line(arguments, why, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rgbd_folders", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        vega3d.run_recipe(rgbd_folders.stereo, rgbd_folders.nyuv2, rgbd_folders.clips)
    line, = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith("vega3d: ") and why in line, line


def test_a_recording_becomes_labelled_clips_of_near_views(tmp_path, monkeypatch, capsys):
    root = save(tmp_path / "walk", "plain", 30)  # 5 cm and a degree a frame
    rgbd_folders.clips(root, tmp_path / "out")
    folder, recorded = ClipFolder(tmp_path / "out"), read_recording(root)[0]
    assert folder.ids("test") == ["test/00000", "test/00001", "test/00002"]
    clip = folder.clip("test/00001")
    assert can_train(clip) and np.array_equal(clip.frames, recorded.frames[[9, 11, 13, 15, 18]])
    assert np.array_equal(clip.poses, recorded.poses[[9, 11, 13, 15, 18]])
    truth = geometry.true_normals(recorded, 18, recorded.intrinsics)
    assert np.abs(clip.normals[4, :, ::4, ::4] / 127 - truth).max() < 0.005 and truth.any()
    turning = recorded.poses.copy()
    turning[:, :3, :3] = np.eye(3)
    turning[::2, :3, :3] = np.diag([-1.0, 1, -1])  # every second frame looks back
    assert [frames[-1] for frames in rgbd_folders.clip_frames(turning)] == [10, 19, 28]
    monkeypatch.setattr(sys, "argv", ["rgbd_folders", "clips", str(root), str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        vega3d.run_recipe(rgbd_folders.stereo, rgbd_folders.clips)
    assert capsys.readouterr().err == f"vega3d: {tmp_path}/out/test: File exists\n"
    (root / "poses.txt").unlink()
    with pytest.raises(ValueError, match="has no poses"):
        rgbd_folders.clips(root, tmp_path / "none")
