import json
import os
import signal
from pathlib import Path

import pytest
import torch

from records import manifest
from teacher.data.dataset import Examples, moments
from teacher.data.feature_store import FeatureStore, _Claims, fill
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
    rows = [json.loads(line) for line in (store.folder / "files.jsonl").read_text().splitlines()]
    assert [row["clip"] for row in rows] == rooms.ids("train")  # none is lost behind the cut one
    filled(tmp_path, rooms, counted)
    assert counted.calls == 12


def test_clips_that_another_process_puts_meanwhile_are_not_damaged_nor_extracted_again(
        tmp_path, rooms, capsys, monkeypatch):
    tower = FixedNoise()
    late = FeatureStore(tmp_path, tower.spec, "clips-1")
    prepare = late.prepare

    def prepare_while_another_fills(missing):
        monkeypatch.setattr(late, "prepare", prepare)
        filled(tmp_path, rooms)
        prepare(missing)

    monkeypatch.setattr(late, "prepare", prepare_while_another_fills)
    monkeypatch.setattr(tower, "features", None)  # may not be called
    fill(late, tower, rooms, rooms.ids("train"), CPU)
    assert all(clip_id in late for clip_id in rooms.ids("train"))
    assert "damaged" not in capsys.readouterr().out


def test_a_kill_at_any_point_of_a_put_leaves_no_file_that_is_not_in_the_list(
        tmp_path, rooms, capsys, monkeypatch):
    replace = Path.replace

    def killed(path, target):
        if path.name == "002.safetensors":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        filled(tmp_path, rooms)
    store = FeatureStore(tmp_path, FixedNoise().spec, "clips-1")
    listed = {json.loads(row)["clip"]
              for row in (store.folder / "files.jsonl").read_text().splitlines()}
    there = {str(path.relative_to(store.folder).with_suffix(""))
             for path in store.folder.glob("*/*.safetensors")}
    assert there == {"train/000", "train/001"} and listed == there | {"train/002"}
    assert "train/001" in store and "train/002" not in store
    assert "train/002" in filled(tmp_path, rooms) and "damaged" not in capsys.readouterr().out


def test_processes_that_divide_the_clips_otherwise_extract_none_twice(tmp_path, rooms):
    ids, one = rooms.ids("train"), torch.ones(2, 8, 14, 14)
    store = FeatureStore(tmp_path, FixedNoise().spec, "clips-1")
    store.prepare([])
    claimed, told = os.pipe()
    wait, go_on = os.pipe()
    if os.fork() == 0:  # takes the middle of what this process has as one group
        with _Claims(store, [ids[1:3]]) as claims:
            claims.left()
            group, missing = claims.take()
            signal.alarm(60)  # ends this process if the test fails meanwhile
            os.write(told, b"1")
            os.read(wait, 1)
            for clip_id in missing:
                store.put(clip_id, one * 2)
            claims.release(group)
        os.write(told, b"2")
        os._exit(0)
    assert os.read(claimed, 1) == b"1"
    with _Claims(store, [ids[:2], ids[2:]]) as claims:
        assert claims.left()
        assert claims.take() == (ids[:1], ids[:1]) and claims.take() is None
        store.put(ids[0], one)
        os.write(go_on, b"1")
        assert os.read(claimed, 1) == b"2"
        assert claims.left() and claims.take() == (ids[2:], ids[3:])
    assert store.get(ids[2])[0, 0, 0, 0] == 2


def test_a_clip_that_another_process_extracted_again_is_read_as_it_is_now(tmp_path, rooms):
    first = filled(tmp_path, rooms)
    path = first.folder / "train/001.safetensors"
    path.write_bytes(b"x" * path.stat().st_size)
    other = FeatureStore(tmp_path, FixedNoise().spec, "clips-1")
    other.put("train/001", torch.full((2, 64, 14, 14), 3.0))  # other bytes, as by another GPU
    assert (first.get("train/001") == 3).all()
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ValueError, match="damaged"):
        FeatureStore(tmp_path, FixedNoise().spec, "clips-1").get("train/001")


def test_a_list_that_grows_while_a_run_lists_its_files_is_not_damaged(tmp_path, rooms, monkeypatch):
    store, listed = filled(tmp_path / "features", rooms), []
    manifest.create(tmp_path)
    for grow_at in (manifest.digest, manifest.stamp):  # before the look at the time, or after it
        name = grow_at.__name__

        def then_put(path, call=grow_at, name=name):
            found = call(path)
            if path.name == "files.jsonl" and name not in listed:
                listed.append(name)
                store.put("train/009", torch.ones(2, 8, 14, 14))
            return found

        with monkeypatch.context() as patch:
            patch.setattr(manifest, name, then_put)
            manifest.record([store.folder / "files.jsonl"])
        assert listed[-1] == name and not manifest.fault(store.folder / "files.jsonl")


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
