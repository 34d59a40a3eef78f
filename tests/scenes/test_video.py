"""Videos and image folders as clips without labels."""
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image

import vega3d
from scenes.clip import SPLITS
from scenes.sources.video import VideoSource


def write_video(path, seconds: float, width: int = 96, height: int = 64, fps: int = 20) -> None:
    """Frame k is grey of brightness 10 + k, with a red left and a blue right edge."""
    with imageio.get_writer(path, fps=fps, macro_block_size=8, quality=9) as writer:
        for k in range(int(seconds * fps)):
            frame = np.full((height, width, 3), 10 + k, np.uint8)
            frame[:, :16], frame[:, -16:] = (255, 0, 0), (0, 0, 255)
            writer.append_data(frame)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "walk.mp4"
    write_video(path, 8)
    return path


def test_a_video_is_cut_into_clips_in_time_order(video):
    source = VideoSource(video, frames=4, size=32, fps=5)
    ids = [i for split in SPLITS for i in source.ids(split)]
    assert len(ids) == 10 and len(source.ids("train")) == 8
    assert len(source.ids("val")) == len(source.ids("test")) == 1
    clips = [source.clip(i) for i in ids]
    assert all(c.frames.shape == (4, 3, 32, 32) and c.depth is None and c.objects == []
               for c in clips)
    brightness = np.concatenate([c.frames[:, 1, 16, 16] for c in clips]).astype(int)
    # 4 of the video's frames between two of ours
    assert len(brightness) == 40 and (np.diff(brightness) >= 2).all()


def test_crop_keeps_the_middle_and_letterbox_keeps_everything(video):
    crop = VideoSource(video, frames=1, size=48).clip("train/walk-mp4_00000").frames[0]
    boxed = VideoSource(video, frames=1, size=48,
                        fit="letterbox").clip("train/walk-mp4_00000").frames[0]
    assert crop[0, 24, 10] < 120 and boxed[0, 24, 3] > 180 and boxed[2, 24, -3] > 180
    assert boxed[:, 2, 24].max() < 30 and crop[:, 2, 24].max() < 60


def test_the_same_clip_twice_is_the_same(video):
    source = VideoSource(video, frames=4, size=32)
    clip_id = source.ids("val")[0]
    assert np.array_equal(source.clip(clip_id).frames, source.clip(clip_id).frames)


def test_a_folder_of_videos_is_split_by_video(tmp_path):
    for name in "abcd":
        write_video(tmp_path / f"{name}.mp4", 2)
    source = VideoSource(tmp_path, frames=4, size=16)
    names = {split: {i.split("/")[1].split("_")[0] for i in source.ids(split)} for split in SPLITS}
    assert names == {"train": {"a-mp4", "b-mp4"}, "val": {"c-mp4"}, "test": {"d-mp4"}}


def test_a_folder_of_images_is_one_sequence(tmp_path):
    for k in range(11):
        Image.new("RGB", (60, 40), (k * 20, 0, 0)).save(tmp_path / f"{k:03d}.png")
    source = VideoSource(tmp_path, frames=3, size=20)
    ids = [i for split in SPLITS for i in source.ids(split)]
    assert len(ids) == 3 and [len(source.ids(s)) for s in SPLITS] == [1, 1, 1]
    assert [int(f[0, 0, 0]) for i in ids
            for f in source.clip(i).frames] == [k * 20 for k in range(9)]


def test_missing_empty_and_short_inputs_are_named(tmp_path, video):
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        VideoSource(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: holds neither videos"):
        VideoSource(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"walk\.mp4: holds less than 99 frames"):
        VideoSource(video, frames=99)


def test_a_truncated_video_is_named(tmp_path, video):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(video.read_bytes()[:-len(video.read_bytes()) // 2])
    with pytest.raises(ValueError, match=r"cut\.mp4: .*(damaged|cut short)"):
        VideoSource(cut)
    (tmp_path / "text.mp4").write_text("this is no video")
    with pytest.raises(ValueError, match=r"text\.mp4: not a readable video"):
        VideoSource(tmp_path / "text.mp4")


def test_a_video_cut_short_behind_its_index_is_named(tmp_path, video):
    import subprocess

    import imageio_ffmpeg

    fast = tmp_path / "fast.mp4"  # the index in front, as phones and web sites write it
    subprocess.run([
        imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i",
        str(video), "-c", "copy", "-movflags", "+faststart",
        str(fast)
    ], check=True)
    fast.write_bytes(fast.read_bytes()[:-fast.stat().st_size // 3])
    with pytest.raises(ValueError, match=r"fast\.mp4: .*(damaged|cut short)"):
        VideoSource(fast, frames=4, size=32)


def test_a_broken_image_is_named(tmp_path):
    for k in range(2):
        Image.new("RGB", (60, 40)).save(tmp_path / f"{k}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"1\.png: damaged or not an image"):
        VideoSource(tmp_path, frames=2, size=16).clip(f"train/{tmp_path.name}_00000")


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"size": 0}, {"fps": 0.0}, {"fit": "squash"}])
def test_senseless_settings_are_refused(video, wrong):
    with pytest.raises(ValueError, match="video: got"):
        VideoSource(video, **wrong)


@pytest.mark.parametrize("name", ["a.png", "b.JPG"])
def test_show_of_one_picture_is_its_middle_square_and_leaves_the_picture(name, tmp_path,
                                                                         monkeypatch):
    monkeypatch.chdir(tmp_path)
    halves = np.zeros((224, 448, 3), np.uint8)
    halves[:, :224], halves[:, 224:] = (200, 40, 40), (40, 40, 200)
    Image.fromarray(halves).save(name, quality=95)
    before = Path(name).read_bytes()
    vega3d.main(["scenes", "show", name])
    sheet = np.asarray(Image.open(f"{name[0]}_sheet.png").convert("RGB"), int)
    assert sheet.shape[1] == 224 and Path(name).read_bytes() == before
    assert np.abs(sheet[:224, :100] - (200, 40, 40)).max() < 12
    assert np.abs(sheet[:224, 124:] - (40, 40, 200)).max() < 12


def test_show_draws_the_first_clip_of_a_video(video, tmp_path, capsys):
    from scenes.cli import show

    show(video, tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width == 9 * 224 and sheet.height > 224 and "sheet.png" in capsys.readouterr().out
