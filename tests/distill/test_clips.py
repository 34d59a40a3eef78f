import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import scenes.clip
from distill.clips import check_paths, open_source
from distill.config import RunConfig, ScenesConfig
from distill.run import DistillRun
from scenes.clip import ClipFolder, save_clip
from teacher.data.feature_store import FeatureStore
from teacher.towers.controls import FixedNoise
from teacher.towers.tap import Tap
from tests.fakes import FakeRooms

ROOMS = ScenesConfig(train=1, val=0, test=1, clips_per_room=1, frames=1, workers=0)


def test_rooms_are_rendered_once_and_found_again(tmp_path, monkeypatch, capsys):
    source, key = open_source(ROOMS, tmp_path, render=True)
    assert source.ids("train") == ["train/00000_0"] and source.ids("val") == []
    clip = source.clip("test/00000_0")
    assert clip.depth is not None and clip.frames.shape == (1, 3, 224, 224)
    monkeypatch.setattr("scenes.rooms.writer.render_clips",
                        lambda *_: pytest.fail("rendered again"))
    again, same = open_source(ROOMS, tmp_path, render=True)
    assert same == key and np.array_equal(again.clip("test/00000_0").frames, clip.frames)
    monkeypatch.undo()
    path = tmp_path / key / "test" / "00000_0.safetensors"
    intact = path.read_bytes()
    path.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"00000_0\.safetensors: damaged .* render it again"):
        again.clip("test/00000_0")
    open_source(ROOMS, tmp_path, render=True)
    assert path.read_bytes() == intact and "damaged" in capsys.readouterr().out


def test_missing_clips_are_rendered_only_with_render(tmp_path):
    with pytest.raises(ValueError, match="lacks 2 of the run's 2 clips"):
        open_source(ROOMS, tmp_path, render=False)


def test_a_folder_of_clips_is_used_as_it_is(tmp_path):
    rooms = FakeRooms(train=2, test=1, frames=1)
    for split in ("train", "test"):
        for clip_id in rooms.ids(split):
            save_clip(rooms.clip(clip_id), tmp_path / f"{clip_id}.safetensors")
    source, key = open_source(ScenesConfig(path=tmp_path), tmp_path / "cache", render=True)
    assert source.ids("train") == ["train/000", "train/001"]
    assert source.clip("test/000").objects[1].name == "red square"
    (tmp_path / "train/001.safetensors").unlink()
    assert open_source(ScenesConfig(path=tmp_path), tmp_path / "cache", render=True)[1] != key


def test_a_folder_of_pictures_is_unlabelled_video(tmp_path):
    for i in range(40):
        Image.fromarray(np.full((64, 96, 3), 5 * i, np.uint8)).save(tmp_path / f"{i:03d}.png")
    source, _ = open_source(ScenesConfig(path=tmp_path, frames=1), tmp_path / "cache", render=True)
    assert source.ids("train") and source.ids("test")
    assert source.clip(source.ids("train")[0]).depth is None


def key_of(path: Path) -> str:
    return open_source(ScenesConfig(path=path, frames=1), path / "cache", render=False)[1]


@pytest.mark.parametrize("kind", ["clips", "pictures"])
def test_stray_files_do_not_change_the_key(tmp_path, monkeypatch, kind):
    folder = tmp_path / "mine"
    if kind == "clips":
        for clip_id in ("train/000", "test/000"):
            save_clip(FakeRooms().clip(clip_id), folder / f"{clip_id}.safetensors")
    else:
        folder.mkdir()
        for i in range(4):
            Image.new("RGB", (32, 32), (i, 0, 0)).save(folder / f"{i}.png")
    key = key_of(folder)
    (folder / "runs" / "001").mkdir(parents=True)
    for name in (".DS_Store", "Thumbs.db", "README.md", "runs/001/student.safetensors",
                 "runs/env.json", "._0.png"):
        (folder / name).write_bytes(b"of a file manager, or of ours")
    if kind == "clips":
        (folder / "train" / "._000.safetensors").write_bytes(b"resource fork")
        (folder / "train" / "Thumbs.db").write_bytes(b"thumbnails")
    assert key_of(folder) == key
    monkeypatch.chdir(folder)
    assert key_of(Path()) == key_of(folder.absolute()) == key  # however the folder is named


def test_a_path_with_nothing_in_it_is_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "none", Path("/nowhere/video.mp4")):
        with pytest.raises(ValueError, match=str(path)):
            open_source(ScenesConfig(path=path), tmp_path / "cache", render=True)


def test_opening_a_folder_of_clips_lists_it_once_and_reads_no_clip(tmp_path, monkeypatch):
    rooms = FakeRooms(train=9, test=3, frames=1)
    for clip_id in (*rooms.ids("train"), *rooms.ids("test")):
        save_clip(rooms.clip(clip_id), tmp_path / f"{clip_id}.safetensors")
    (tmp_path / "train/001-b.safetensors").write_bytes(b"")  # before 001.safetensors
    listed, headers = [], []
    listdir, opened = os.listdir, scenes.clip.safe_open
    monkeypatch.setattr("os.listdir", lambda path: listed.append(path) or listdir(path))
    monkeypatch.setattr("scenes.clip.safe_open",
                        lambda path, *rest: headers.append(path) or opened(path, *rest))
    source, _ = open_source(ScenesConfig(path=tmp_path), tmp_path / "cache", render=False)
    assert source.ids("train")[:3] == ["train/000", "train/001-b", "train/001"]
    assert [len(source.ids(split)) for split in ("train", "val", "test", "train")] == [10, 0, 3, 10]
    assert len(listed) == 2 and not headers


def test_headers_are_read_only_of_clips_without_features(tmp_path, monkeypatch):
    rooms, tower = FakeRooms(train=6, test=1, frames=1), FixedNoise()
    tower.tap = Tap()  # as a run's tower has
    for clip_id in (*rooms.ids("train"), *rooms.ids("test")):
        save_clip(rooms.clip(clip_id), tmp_path / f"{clip_id}.safetensors")
    source = ClipFolder(tmp_path)
    stores = {n: FeatureStore(tmp_path / n, tower.spec, "a") for n in ("semantic", "generative")}
    run = DistillRun(tmp_path, RunConfig(), None, source, tower, tower, stores)
    monkeypatch.setattr(DistillRun, "device", torch.device("cpu"))
    monkeypatch.setattr("distill.run.Examples", lambda *args, **_: args)
    read, shapes = [], ClipFolder.shapes
    monkeypatch.setattr(ClipFolder, "shapes", lambda self, i: read.append(i) or shapes(self, i))
    run.examples("train")
    assert read == ["train/000", *source.ids("train")]
    stores["generative"].folder.joinpath("train/004.safetensors").unlink()
    read.clear()
    run.examples("train")
    assert read == ["train/000", "train/004"]


def test_features_go_into_no_folder_that_holds_something_else(tmp_path):
    (tmp_path / "features").mkdir()
    config = RunConfig(features=tmp_path / "features")
    check_paths(config)
    (tmp_path / "features" / f"wan-{'0' * 16}").mkdir()
    check_paths(config)
    (tmp_path / "when-it-does-not-help.md").touch()  # 16 characters after a hyphen
    with pytest.raises(ValueError, match="holds no features; give runs/NAME/features"):
        check_paths(RunConfig(features=tmp_path))
