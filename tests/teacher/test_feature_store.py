import json

import pytest
import torch

from teacher.data.dataset import Examples, moments
from teacher.data.feature_store import FeatureStore, fill
from teacher.towers.controls import FixedNoise, RGBPatches, Zeros
from tests.fakes import FakeRooms

CPU = torch.device("cpu")


@pytest.fixture
def rooms():
    return FakeRooms(train=4, frames=2)


def filled(root, rooms, tower=None):
    tower = tower or FixedNoise()
    store = FeatureStore(root, tower.spec, "clips-1")
    fill(store, tower, rooms, rooms.ids("train"), CPU)
    return store


def test_a_store_returns_the_tower_s_features(tmp_path, rooms):
    store = filled(tmp_path, rooms, RGBPatches())
    wanted = RGBPatches().features(
        torch.from_numpy(rooms.clip("train/001").frames)[None].float() / 255)[0]
    assert store.get("train/001").dtype == torch.float16
    torch.testing.assert_close(store.get("train/001").float(), wanted, atol=1e-3, rtol=1e-3)


def test_another_configuration_is_never_a_hit(tmp_path, rooms):
    first = filled(tmp_path, rooms)
    assert "train/000" in first
    for spec, key in (({**first.spec, "seed": 9}, "clips-1"), (FixedNoise().spec, "clips-2")):
        assert "train/000" not in FeatureStore(tmp_path, spec, key)
    assert "train/000" in FeatureStore(tmp_path, FixedNoise().spec, "clips-1")


def test_a_manifest_of_another_configuration_is_refused(tmp_path, rooms):
    store = filled(tmp_path, rooms)
    manifest = store.folder / "manifest.json"
    manifest.write_text(json.dumps({**store.spec, "seed": 3}))
    with pytest.raises(ValueError, match="another configuration \\(seed: 3 stored, 0 requested\\)"):
        filled(tmp_path, rooms)
    manifest.write_text(json.dumps({**store.spec, "format": 7}))
    with pytest.raises(ValueError, match=r"another version .*\(format 7, this one reads 1\)"):
        filled(tmp_path, rooms)
    manifest.write_text("{")
    with pytest.raises(ValueError, match="not a manifest"):
        filled(tmp_path, rooms)


def test_a_damaged_file_is_refused_and_a_missing_one_extracted_again(tmp_path, rooms):
    store = filled(tmp_path, rooms)
    file = store.folder / "train/002.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="damaged"):
        FeatureStore(tmp_path, FixedNoise().spec, "clips-1").get("train/002")
    file.unlink()
    assert filled(tmp_path, rooms).get("train/002").shape == (2, 64, 14, 14)


def test_only_a_damaged_file_is_extracted_again(tmp_path, rooms, capsys):
    store = filled(tmp_path, rooms)
    damaged, other = (store.folder / f"train/00{i}.safetensors" for i in (2, 1))
    intact, before = damaged.read_bytes(), other.stat()
    damaged.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    filled(tmp_path, rooms)
    assert "002.safetensors: damaged" in capsys.readouterr().out
    assert damaged.read_bytes() == intact and other.stat() == before


def test_a_killed_fill_goes_on_where_it_stopped(tmp_path, rooms):
    class Killed(FixedNoise):
        def features(self, frames):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().features(frames)

    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, rooms, Killed())
    store = FeatureStore(tmp_path, FixedNoise().spec, "clips-1")
    with (store.folder / "files.jsonl").open("a") as log:
        log.write('{"clip": "train/0')  # the line the kill cut
    counted = Killed()
    counted.calls = 10
    filled(tmp_path, rooms, counted)
    assert counted.calls == 12
    assert not list(store.folder.rglob(".*"))


def test_a_full_disk_is_one_line_before_any_work(tmp_path, rooms, monkeypatch):
    from teacher.data import feature_store

    monkeypatch.setattr(feature_store.shutil, "disk_usage",
                        lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ValueError, match=r"features need 0\.0 GB, the disk has 0\.0 GB free"):
        filled(tmp_path, rooms)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_features_that_are_not_finite_are_refused(tmp_path):
    store = FeatureStore(tmp_path, Zeros().spec, "clips-1")
    with pytest.raises(ValueError, match="not finite"):
        store.put("train/000", torch.full((1, 256, 14, 14), 1e6))
    assert "train/000" not in store


def test_a_tower_that_blows_up_midway_stops_the_fill_and_leaves_complete_files(tmp_path, rooms):
    class Exploding(FixedNoise):
        calls = 0

        def features(self, frames):
            self.calls += 1
            return super().features(frames) * (torch.inf if self.calls == 2 else 1)

    tower = Exploding()
    with pytest.raises(ValueError, match=r"features of train/001: not finite"):
        filled(tmp_path, rooms, tower)
    store = FeatureStore(tmp_path, tower.spec, "clips-1")
    assert "train/000" in store and "train/001" not in store and not list(store.folder.rglob(".*"))
    assert "train/003" in filled(tmp_path, rooms, tower)


def test_clips_go_to_the_tower_in_order_and_each_is_stored_under_its_own_name(tmp_path):
    rooms = FakeRooms(train=6, frames=2)
    store = filled(tmp_path, rooms, RGBPatches())
    for clip_id in rooms.ids("train"):
        wanted = RGBPatches().features(
            torch.from_numpy(rooms.clip(clip_id).frames)[None].float() / 255)[0]
        torch.testing.assert_close(store.get(clip_id).float(), wanted, atol=1e-3, rtol=1e-3)


def test_streamed_examples_equal_those_in_memory(tmp_path, rooms, monkeypatch):
    from teacher.data import dataset

    stores = {"generative": filled(tmp_path, rooms)}
    in_memory = Examples(rooms, rooms.ids("train"), stores, CPU)
    monkeypatch.setattr(dataset, "CPU_BUDGET", 0)
    streamed = Examples(rooms, rooms.ids("train"), stores, CPU)
    assert in_memory._all is not None and streamed._all is None
    assert in_memory.steps(4) == streamed.steps(4) == 2
    for examples in (in_memory, streamed):
        epoch = list(examples.batches(4, seed=0, epoch=0))
        assert len(epoch) == 2
        assert {k: tuple(v.shape[1:])
                for k, v in epoch[0].items()} == {
                    "frames": (3, 224, 224), "generative": (64, 14, 14), "depth": (56, 56),
                    "normals": (3, 56, 56), "classes": (56, 56), "patch_depth": (14, 14)
                }
        rest = list(examples.batches(4, seed=0, epoch=0, skip=1))
        assert len(rest) == 1 and torch.equal(rest[0]["frames"], epoch[1]["frames"])
        assert not torch.equal(next(examples.batches(4, 0, 1))["frames"], epoch[0]["frames"])


def test_moments_are_the_channels_mean_and_deviation(tmp_path, rooms):
    examples = Examples(rooms, rooms.ids("train"), {"rgb": filled(tmp_path, rooms, RGBPatches())},
                        CPU)
    mean, std = moments(examples, lambda e: e["rgb"].float())
    tokens = torch.cat([e["rgb"].float() for _, e in examples.in_order()]).transpose(0,
                                                                                     1).flatten(1)
    torch.testing.assert_close(mean, tokens.mean(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(std, tokens.std(1), atol=1e-3, rtol=1e-3)


def test_more_frames_a_batch_than_there_are_is_refused(tmp_path, rooms):
    examples = Examples(rooms, rooms.ids("train"), {}, CPU)
    with pytest.raises(ValueError, match="8 frames are fewer than one batch of 64"):
        examples.steps(64)
    with pytest.raises(ValueError, match="no clips in this split"):
        Examples(rooms, [], {}, CPU)
