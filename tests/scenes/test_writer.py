"""Clips on disk: rendering a folder, resuming it, refusing what is wrong, and looking at one."""
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

import vega3d
from records import manifest
from records.files import write_json
from scenes.clip import Clip, ClipFolder, frames_of, load_clip, save_clip
from scenes.furniture.pack import Pack
from scenes.questions.stored import load_questions
from scenes.rooms import writer
from scenes.rooms.source import RoomSource
from scenes.rooms.writer import render_folder
from scenes.show import contact_sheet
from teacher.wan_nano.pretrain import gather_frames


@pytest.fixture
def source() -> RoomSource:
    return RoomSource(train=3, val=1, test=1, frames=2, size=40)


def test_a_rendered_folder_reads_back_what_was_rendered(tmp_path, source):
    ids = [*source.ids("train"), *source.ids("val"), *source.ids("test")]
    assert render_folder(source, ids, tmp_path, 0) == 5
    folder = ClipFolder(tmp_path)
    assert folder.ids("train") == source.ids("train") and folder.ids("test") == source.ids("test")
    read, made = folder.clip("val/00000_0"), source.clip("val/00000_0")
    assert np.array_equal(read.frames, made.frames) and np.array_equal(read.depth, made.depth)
    assert np.array_equal(folder.frames_of("val/00000_0"), made.frames)
    assert np.array_equal(frames_of(source, "val/00000_0"), frames_of(folder, "val/00000_0"))
    assert read.objects == made.objects and read.room_size == made.room_size
    card = json.loads((tmp_path / "scenes.json").read_text())
    assert card["seed"] == 0 and card["furniture"] == source.furniture.digest and card["versions"][
        "moderngl"]


def test_a_second_run_renders_only_what_is_missing_or_damaged(tmp_path, source):
    ids = source.ids("train")
    render_folder(source, ids[:2], tmp_path, 0)
    whole = tmp_path / f"{ids[0]}.safetensors"
    before = whole.stat().st_mtime_ns
    cut = tmp_path / f"{ids[1]}.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"damaged .* render it again"):
        ClipFolder(tmp_path).frames_of(ids[1])
    assert render_folder(source, ids, tmp_path, 0) == 2
    assert whole.stat().st_mtime_ns == before
    assert load_clip(cut).id == ids[1]
    assert render_folder(source, ids, tmp_path, 0) == 0


def digests_in(folder: Path) -> dict[str, str]:
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    return {name: facts["sha256"] for name, facts in listed.items() if name != "scenes.json"}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("workers", [0, 2])
def test_rendered_clips_are_listed_without_being_read(tmp_path, monkeypatch, source, workers):
    with monkeypatch.context() as patch:
        read, digest = [], manifest.digest
        patch.setattr(manifest, "digest", lambda path: read.append(path.name) or digest(path))
        render_folder(source, source.ids("train")[:2], tmp_path, workers)
        patch.setattr(writer, "load_clip", lambda path: pytest.fail(f"{path} was read"))
        assert render_folder(source, source.ids("train")[:2], tmp_path, 0) == 0
        assert set(read) == {"scenes.json"}
    clips = list(tmp_path.glob("train/*.safetensors"))
    assert digests_in(tmp_path) == {f"train/{path.name}": sha256(path) for path in clips}
    assert len(clips) == 2 and not manifest.faults(tmp_path)


def test_what_an_interrupted_render_wrote_is_listed_and_not_read_when_it_goes_on(
        tmp_path, monkeypatch, source):
    render, ids = RoomSource.clip, source.ids("train")
    cut = tmp_path / f"{ids[0]}.safetensors"
    cut.parent.mkdir()

    def interrupted(source, clip_id):
        if clip_id == ids[2]:
            raise KeyboardInterrupt
        return render(source, clip_id)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RoomSource, "clip", interrupted)
        render_folder(source, ids, tmp_path, 0)
    assert set(digests_in(tmp_path)) == {f"{i}.safetensors" for i in ids[:2]}
    cut.write_bytes(b"cut")
    manifest.forget([cut])  # as after a kill, which lists nothing
    with monkeypatch.context() as patch:
        read = []
        patch.setattr(writer, "load_clip", lambda path: read.append(path) or load_clip(path))
        assert render_folder(source, ids, tmp_path, 0) == 2
        assert cut in read
        assert tmp_path / f"{ids[1]}.safetensors" not in read
    assert digests_in(tmp_path) == {f"{i}.safetensors": sha256(tmp_path / f"{i}.safetensors")
                                    for i in ids}


def test_clips_questions_and_packs_of_another_version_are_named_as_such(tmp_path, source):
    other = r"was written by another version of vega3d-edge \(schema 2, this one reads 1\)"
    for name in ("scenes.json", "questions.json"):
        write_json({"schema": 2, "key": source.key, "clips": 3}, tmp_path / name)
    with pytest.raises(ValueError, match=rf"scenes\.json: {other}; .* or use another folder"):
        render_folder(source, [], tmp_path, 0)
    with pytest.raises(ValueError, match=rf"questions\.json: {other}; .* or import it again"):
        load_questions(tmp_path)
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as pack:
        pack.writestr("manifest.json", '{"schema": 2, "pieces": []}')
    with pytest.raises(ValueError, match=rf"pack\.zip: {other}; make one with"):
        RoomSource(pack=tmp_path / "pack.zip")


def test_more_rooms_go_on_in_the_same_folder_but_another_seed_does_not(tmp_path, source):
    render_folder(source, source.ids("train")[:1], tmp_path, 0)
    more = RoomSource(train=5, frames=2, size=40)
    assert render_folder(more, more.ids("train")[:2], tmp_path, 0) == 1
    other = RoomSource(train=1, frames=2, size=40, seed=7)
    with pytest.raises(ValueError, match=r"holds clips with .* expected .* use another folder"):
        render_folder(other, other.ids("train"), tmp_path, 0)


def test_a_full_disk_is_refused_before_any_work(tmp_path, source, monkeypatch):
    monkeypatch.setattr(writer.shutil, "disk_usage",
                        lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(ValueError, match=r"need 0\.0 GB, the disk has 0\.0 GB free"):
        render_folder(source, source.ids("train"), tmp_path, 0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"need 0\.0 GB, the disk has 0\.0 GB free"):
        gather_frames(source, source.ids("train"), tmp_path / "train.npy", 0)  # of pretrain
    assert not list(tmp_path.iterdir())


def test_depth_with_nan_is_refused(tmp_path, source):
    clip = source.clip("train/00000_0")
    depth = clip.depth.copy()
    depth[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        Clip(id="x", frames=clip.frames, depth=depth)
    clip.depth[0, 0, 0] = np.nan  # past the check; the reader catches it
    save_clip(clip, tmp_path / "train" / "a.safetensors")
    with pytest.raises(ValueError, match="NaN"):
        load_clip(tmp_path / "train" / "a.safetensors")


def test_a_contact_sheet_shows_every_row_the_clip_has(source):
    clip = source.clip("train/00001_0")
    sheet = contact_sheet(clip)
    assert sheet.width == 2 * 40 and sheet.height > 4 * 40
    bare = contact_sheet(Clip(id="video/0", frames=clip.frames))
    assert bare.height < 2 * 40 + 40
    pixels = np.asarray(sheet)[:160]
    assert all(pixels[r:r + 40].std() > 5 for r in (0, 40, 80, 120))


def test_render_and_show_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    vega3d.main([
        "scenes", "render", "--n", "2", "--frames", "1", "--size", "32", "--workers", "0", "--out",
        "clips"
    ])
    clips = sorted((tmp_path / "clips").glob("*/*.safetensors"))
    assert len(clips) == 2 and "2 new" in capsys.readouterr().out
    vega3d.main(["scenes", "show", str(clips[0]), "--out", "sheet.png"])
    assert Image.open(tmp_path / "sheet.png").width == 32


def test_workers_of_a_killed_render_end(tmp_path):
    command = ["-m", "vega3d", "scenes", "render", "--n", "40", "--frames", "5", "--workers", "2",
               "--out", str(tmp_path)]
    parent = subprocess.Popen([sys.executable, *command], cwd=Path(vega3d.__file__).parent,
                              stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("train/*.safetensors")):
        assert parent.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=20)[1]
    assert len(list(tmp_path.glob("*/*.safetensors"))) < 40


@pytest.mark.parametrize("command, says", [
    ("scenes show nowhere.safetensors", "nowhere.safetensors"),
    ("scenes show broken.safetensors", "not a complete clip file"),
    ("scenes render --n 0", "expected at least 1"),
    ("scenes render --n 1 --furniture nowhere.zip --workers 0", "no such pack"),
    ("scenes pack --out p.zip --library nowhere", "holds no .sh3f library"),
])
def test_a_wrong_command_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys, command, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(SystemExit) as stop:
        vega3d.main(command.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and says in error and error.count(
        "\n") == 1 and "Traceback" not in error


def test_a_printed_command_can_be_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    vega3d.main(["scenes", "render", "--n", "1", "--frames", "1", "--size", "16", "--workers", "0",
                 "--out", "my clips"])
    printed = shlex.split(capsys.readouterr().out.partition("look at one with: ")[2])
    assert printed == ["vega3d", "scenes", "show", "my clips/train/00000_0.safetensors"]
    vega3d.main(printed[1:])
    with pytest.raises(ValueError, match="scenes render --out 'no clips'"):
        ClipFolder("no clips")
    with pytest.raises(ValueError, match="scenes pack --out 'no pack'"):
        Pack.load(Path("no pack"))
