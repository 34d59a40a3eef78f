"""`vega3d teacher probe --generators`: what features add to the semantic encoder's."""
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import vega3d
from records.results import Results, load, save
from scenes.clip import ClipFolder, save_clip
from teacher.probing import alignment
from teacher.probing.alignment import COMBINATIONS, read_splits
from teacher.probing.probe_set import Inputs, ProbeSet
from teacher.probing.ridge import match_terms, ridge_terms, scores
from tests.fakes import FakeRooms
from tests.scenes.test_rgbd import save_rgbd


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder, rooms = tmp_path_factory.mktemp("rooms"), FakeRooms(train=4, val=2, test=3)
    for split in ("train", "val", "test"):
        for clip_id in rooms.ids(split):
            save_clip(rooms.clip(clip_id), folder / f"{clip_id}.safetensors")
    return folder


def read(clips) -> list[ProbeSet]:
    return read_splits(ClipFolder(clips), (4, 2, 3), 0)


def test_the_table_holds_controls_and_generators_with_their_ruler(clips, tiny_wan, tmp_path):
    out = tmp_path / "alignment.json"
    vega3d.main(["teacher", "probe", "--generators", str(tiny_wan), "--rooms", str(clips),
                 "--shipped", str(tiny_wan), "--draws", "1", "--redraws", "2",
                 "--noise-levels", "300", "--device", "cpu", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["generator"] for row in rows][:6] == [
        "place only", "semantic encoder", "RGB patches", "VAE latents", "random-weights ViT-S",
        tiny_wan.name]
    assert [row["seeds"] for row in rows[:6]] == [1, 1, 1, 1, 2, 1]
    row = rows[5]
    assert row["t"] == 0.3 and 0 <= row["block"] < 3 and (row["draws"], row["grid"]) == (1, 14)
    assert (row["probe_clips"], row["val_clips"], row["test_clips"]) == (4, 2, 3)
    assert row["fov_low_deg"] == pytest.approx(58.5, abs=0.1)
    assert row["depth_gain"] == pytest.approx(row["depth_r2_fused"] - row["depth_r2_semantic"])
    assert row["depth_gain_low"] <= row["depth_gain"] <= row["depth_gain_high"]
    assert row["depth_r2_random_fused"] != row["depth_r2_fused"]
    assert 0 <= row["match_exact"] <= row["match_within1"] <= 1 == round(row["cosine_to_fp32"], 5)
    assert rows[0]["match_exact"] is None
    assert rows[1]["depth_r2_alone"] == pytest.approx(rows[1]["depth_r2_semantic"], abs=1e-4)


def test_recorded_frames_join_the_rows_of_rooms_and_leave_them_as_they_are(tiny_wan, tmp_path,
                                                                           monkeypatch, capsys):
    monkeypatch.setattr(alignment, "_HALF", 24)
    monkeypatch.setattr(alignment, "CACHE", tmp_path / "cache")
    monkeypatch.setattr("teacher.probing.ridge.mlp", lambda x, y, x_test, seed, batch, stop:
                        y.mean(0).expand(len(x_test), -1))
    monkeypatch.setattr(alignment.Alignment, "_cosine", lambda *_: 1.0)
    monkeypatch.setattr(sys, "argv", ["vega3d", "teacher", "probe", "--rgbd", "place"])
    rooms = {"generator": tiny_wan.name, "frames_from": "rooms", "block": 1, "t": 0.3, "draws": 1,
             "noise": "shared", "shipped": True, "depth_gain": 0.25}
    out = tmp_path / "alignment.json"
    save(Results("alignment", "on a GPU", "abc", {"gpu": "H200"}, [rooms]), out)
    command = ["teacher", "probe", "--generators", str(tiny_wan), "--redraws", "1", "--device",
               "cpu", "--rgbd", str(save_rgbd(tmp_path / "place", poses=False)), "--out", str(out)]
    vega3d.main(command)
    found = load(out)
    first, row = found.rows
    assert first == rooms and (found.command, found.commit) == ("on a GPU", "abc")
    assert (row["frames_from"], row["block"], row["t"], row["shipped"]) == ("real", 1, 0.3, True)
    assert row["command"] == "vega3d teacher probe --rgbd place" and row["commit"] != "abc"
    assert row["depth_random_gain"] != row["depth_gain"] and row["untrained_seeds"] == 1
    assert len([*(tmp_path / "cache").iterdir()]) == 2 * 2  # halves, and trained, drawn
    monkeypatch.setattr(alignment.Alignment, "_blocks", None)  # not extracted again
    vega3d.main(command)
    assert [row["frames_from"] for row in load(out).rows] == ["rooms", "real"]
    for path in (tmp_path / "place" / "depth").iterdir():  # in 1/5000 m
        Image.fromarray(5 * np.asarray(Image.open(path))).save(path)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        vega3d.main(command)
    assert "give --depth-unit 5000" in capsys.readouterr().err
    vega3d.main([*command, "--depth-unit", "5000"])
    again = load(out).rows[1]
    assert again == row and again["depth_p99_m"] == pytest.approx(4, abs=1e-3)
    with pytest.raises(SystemExit, match="2"):
        vega3d.main([*command[:3], "wan-nano", *command[4:]])


def inputs(splits, parts):
    fit = Inputs(splits[0], parts[0])
    return fit, *(Inputs(split, part, fit.scale) for split, part in
                  zip(splits[1:], parts[1:], strict=True))


def test_one_pass_gives_the_probes_of_every_combination(clips):
    splits = read(clips)
    truth = [one.depth[:, :, None].clamp_min(0.1).log() for one in splits]
    noise = [torch.randn(len(one), 2, 3, 14, 14) for one in splits]
    found = ridge_terms(*inputs(splits, [{"semantic": a, "x": b} for a, b in
                                         zip(noise, truth, strict=True)]), COMBINATIONS)
    r2 = {name: scores(terms)["depth_r2"] for name, terms in found.items()}
    assert r2["alone"][0] > 0.999 and r2["fused"][0] > 0.999 and r2["semantic"][0] < 0.95
    alone = ridge_terms(*inputs(splits, [{"x": b} for b in noise]), {"x": ("x", )})
    assert scores(alone["x"])["depth_r2"] == pytest.approx(r2["semantic"], abs=1e-3)


def test_the_penalty_is_the_best_on_validation_rooms(clips):
    splits = read(clips)
    x = [torch.randn(len(one), 2, 200, 14, 14, generator=torch.Generator().manual_seed(i))
         for i, one in enumerate(splits)]
    sets = inputs([splits[0][:1], splits[1], splits[1]], [{"x": x[0][:1]}, {"x": x[1]},
                                                          {"x": x[1]}])
    best = ridge_terms(*sets, {"x": ("x", )})["x"]["error"].sum()
    on_itself = ridge_terms(sets[0], sets[0], sets[2], {"x": ("x", )})["x"]["error"].sum()
    assert best < on_itself  # on itself the smallest penalty is the best


def test_intervals_draw_rooms_and_features_of_the_very_point_match(clips):
    test = read(clips)[2]
    x = torch.randn(3, 2, 32, 14, 14)
    flat = x.flatten(3)
    for i, row in enumerate(test.matches):
        for token, target in enumerate(row.tolist()):
            if target >= 0:
                flat[i, 0, :, token] = flat[i, 1, :, target]
    found = scores(match_terms(test, x))
    assert found["match_exact"][0] > 0.95 and (found["match_within1"] >= found["match_exact"]).all()
    one_room = replace(test, rooms=torch.zeros(3, dtype=torch.long))
    assert np.ptp(scores(match_terms(one_room, x))["match_exact"]) == 0


def test_a_folder_without_validation_rooms_is_one_line(clips, tmp_path, capsys):
    save_clip(FakeRooms().clip("train/000"), tmp_path / "train" / "000.safetensors")
    with pytest.raises(SystemExit, match="2"):
        vega3d.main(["teacher", "probe", "--generators", "wan-nano", "--rooms", str(tmp_path),
                     "--device", "cpu"])
    assert "no clips in val" in capsys.readouterr().err
