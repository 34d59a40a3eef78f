"""The table of what a generator adds to the semantic encoder."""
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.recipes import alignment
from bench.recipes.alignment import Probing, part
from scenes.clip import save_clip
from teacher.probing.probes import probe_set
from tests.fakes import FakeRooms


@pytest.fixture
def clips(tmp_path):
    rooms = FakeRooms(train=0, val=4, test=2)
    for split in ("val", "test"):
        for clip_id in rooms.ids(split):
            save_clip(rooms.clip(clip_id), tmp_path / "rooms" / f"{clip_id}.safetensors")
    for clip_id in rooms.ids("test"):
        clip = replace(rooms.clip(clip_id), normals=None, poses=None, instances=None, objects=[])
        save_clip(clip, tmp_path / "real" / f"{clip_id}.safetensors")
    return tmp_path


def test_the_table_holds_controls_and_generators_on_rooms_and_recorded_frames(
        clips, tiny_wan, monkeypatch):
    out = clips / "alignment.json"
    monkeypatch.setattr(alignment, "LEVELS", (300,))
    monkeypatch.setattr(sys, "argv", [
        "x", str(tiny_wan), "--clips", str(clips / "rooms"), "--real", str(clips / "real"),
        "--out", str(out), "--draws", "1", "--shipped", str(tiny_wan)])
    alignment.main()
    rows = json.loads(out.read_text())["rows"]
    names = ["random-weights ViT-S", "VAE latents", "RGB patches", "position only", tiny_wan.name]
    assert [(row["generator"], row["frames_from"]) for row in rows] == [
        (name, where) for name in names for where in ("rooms", "real")]
    assert [row["shipped"] for row in rows] == 8 * [False] + 2 * [True]
    rooms, real = rows[-2:]
    assert rooms["t"] == 0.3 and 0 <= rooms["block"] < 3 and rooms["draws"] == 1
    assert (rooms["probe_clips"], rooms["test_clips"], real["test_clips"]) == (4, 2, 2)
    assert rooms["depth_gain"] == pytest.approx(
        rooms["depth_r2_fused"] - rooms["depth_r2_semantic"])
    assert rooms["depth_gain_low"] <= rooms["depth_gain"] <= rooms["depth_gain_high"]
    assert rooms["depth_r2_random_fused"] != rooms["depth_r2_fused"]
    assert "normal_cos_alone" in rooms and "normal_cos_alone" not in real
    assert real["match_exact"] is None and 0 <= rooms["match_exact"] <= rooms["match_within1"] <= 1


def test_features_that_hold_the_depth_gain_what_the_encoder_lacks(clips):
    probing = Probing(clips / "rooms", None, 1, torch.device("cpu"))
    train, test = probing.pairs["rooms"][0]
    truth = [one.depth[:, :, None].clamp_min(0.1).log().half() for one in (train, test)]
    scores = probing.score(train, test, *truth)
    assert scores["depth_r2_alone"] > 0.99 and scores["depth_r2_fused"] > 0.95
    assert scores["depth_gain"] > 0


def test_a_part_of_a_probe_set_is_those_clips():
    rooms = FakeRooms(train=3)
    full = probe_set([rooms.clip(i) for i in rooms.ids("train")])
    one = part(full, slice(1, 2))
    assert torch.equal(one.depth, full.depth[1:2]) and one.keys == full.keys
    assert np.array_equal(one.frames, full.frames[1:2])
