"""Videos of phones, browsers and screens: their own frames, upright, with square pixels, or a line.

The videos are made by ffmpeg: a dark picture with a white disc; its brightness tells the time.
"""
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from records.ffmpeg import probe
from scenes.cli import show
from scenes.clip import SPLITS
from scenes.sources.video import VideoSource
from scenes.sources.vsibench import _evenly_spaced

DISC = ("color=black:s=160x120:r=30:d=6,format=gray,geq=lum='if(lt(hypot(X-80,Y-60),40),235,"
        "20+20*floor(T))'")


def ffmpeg(*arguments) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)],
                   check=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """6 s of 30 fps; the brightness around the disc is 20 + 20 a second."""
    path = tmp_path_factory.mktemp("videos") / "plain.mp4"
    ffmpeg("-f", "lavfi", "-i", DISC, "-pix_fmt", "yuv420p", "-c:v", "libx264", "-crf", 10, path)
    return path


def clips(path, **options) -> list[np.ndarray]:
    source = VideoSource(path, frames=5, **options)
    return [source.clip(i).frames for split in SPLITS for i in source.ids(split)]


def seconds(frames: np.ndarray) -> list[int]:
    """Of each frame, the second that its background tells."""
    background = frames[:, 1, 5, 5].astype(float)
    return np.round((background - background.min()) / 20).astype(int).tolist()


def same(a: list[np.ndarray], b: list[np.ndarray], most: float = 6) -> bool:
    return len(a) == len(b) and bool(
        np.abs(np.concatenate(a).astype(int) - np.concatenate(b)).mean() < most)


@pytest.fixture(scope="module")
def expected(plain) -> list[np.ndarray]:
    found = clips(plain)
    assert seconds(np.concatenate(found)) == [i // 5 for i in range(30)]
    return found


def test_a_recording_without_a_duration_gives_its_frames(plain, expected, tmp_path, capfd):
    with (tmp_path / "a.webm").open("wb") as file:  # a pipe: as a browser's MediaRecorder writes
        subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", plain, "-c:v",
                        "libvpx", "-b:v", "2M", "-f", "webm", "-"], stdout=file, check=True)
    assert same(clips(tmp_path / "a.webm"), expected)
    assert capfd.readouterr() == ("", "")


def test_audio_may_be_longer_or_shorter_than_the_video(plain, expected, tmp_path):
    for length in (9, 2):
        path = tmp_path / f"{length}.mp4"
        ffmpeg("-i", plain, "-f", "lavfi", "-i", f"sine=d={length}", "-c:v", "copy", path)
        assert same(clips(path), expected)


def test_a_video_that_starts_behind_its_audio_is_read_from_its_first_frame(plain, expected,
                                                                         tmp_path):
    path = tmp_path / "late.mp4"
    ffmpeg("-itsoffset", 0.7, "-i", plain, "-f", "lavfi", "-i", "sine=d=8", "-map", 0, "-map", 1,
           "-c:v", "copy", path)
    assert probe(path).times[0] == pytest.approx(0.7, abs=0.05)
    assert same(clips(path), expected)


def test_a_slow_video_gives_each_of_its_frames_once_and_it_is_said(plain, tmp_path, capsys):
    ffmpeg("-i", plain, "-vf", "fps=1:round=down", "-c:v", "libx264", tmp_path / "slow.mp4")
    found = clips(tmp_path / "slow.mp4")
    assert [seconds(clip) for clip in found] == [[0, 1, 2, 3, 4]]
    assert "slow.mp4: runs at 1 fps, not the 5 that clips take" in capsys.readouterr().err


def test_a_video_of_varying_frame_rate_keeps_its_times(plain, expected, tmp_path, capsys):
    path = tmp_path / "screen.mp4"  # no frames between the second and the fourth second
    ffmpeg("-i", plain, "-vf", "select='lt(t,2)+gte(t,4)'", "-fps_mode", "vfr", "-c:v", "libx264",
           path)
    found = clips(path)
    assert [seconds(clip)[0] for clip in found] == [0, 0, 0, 0, 0, 0] and len(found) == 6
    levels = [int(clip[2, 1, 5, 5]) for clip in found]
    assert levels[1] == levels[2] == levels[3] and levels[0] < levels[1] < levels[4] < levels[5]
    assert re.search(r"screen.mp4: [23]\d % of the frames at 5 fps rep", capsys.readouterr().err)


def test_pixels_are_square(plain, tmp_path):
    path = tmp_path / "anamorphic.mp4"  # the disc is stored at half its width
    ffmpeg("-i", plain, "-vf", "scale=80:120,setsar=2", "-c:v", "libx264", path)
    for fit, size in (("crop", 224), ("letterbox", 224)):
        disc = clips(path, fit=fit, size=size)[0][0, 1] > 200
        height, width = disc.any(1).sum(), disc.any(0).sum()
        assert abs(height / width - 1) < 0.06 and height > 100, fit
    assert not VideoSource(path, frames=5).as_first and VideoSource(plain, frames=5).as_first


def test_a_rotated_video_is_upright(plain, tmp_path):
    path = tmp_path / "rotated.mp4"
    ffmpeg("-i", plain, "-vf", "drawbox=0:0:30:120:red:fill", "-c:v", "libx264", tmp_path / "a.mp4")
    ffmpeg("-display_rotation", 90, "-i", tmp_path / "a.mp4", "-c", "copy", path)
    frame = clips(path, fit="letterbox")[0][0].astype(int)
    red = frame[0] - frame[1] > 100
    rows, columns = np.nonzero(red)
    assert rows.min() > 180 and np.ptp(columns) > 150  # the left edge is at the bottom


@pytest.mark.parametrize("name", ["12:30.mp4", "-v.mp4", "a b%d.mp4", "concat:a.mp4"])
def test_a_name_is_a_file_s_and_no_protocol_or_option(plain, expected, tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(plain.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert same(clips(Path(name)), expected, 0.001)


def test_10_bits_and_odd_sizes_are_read(plain, expected, tmp_path):
    ffmpeg("-i", plain, "-pix_fmt", "yuv420p10le", "-c:v", "libx265", "-x265-params",
           "log-level=error", "-crf", 10, tmp_path / "deep.mp4")
    ffmpeg("-i", plain, "-vf", "scale=161:121", "-pix_fmt", "yuv444p", "-c:v", "libx264",
           tmp_path / "odd.mp4")
    for name in ("deep.mp4", "odd.mp4"):
        assert same(clips(tmp_path / name), expected), name


def test_hdr_is_said(plain, tmp_path, capsys):
    ffmpeg("-i", plain, "-t", 2, "-pix_fmt", "yuv420p10le", "-color_trc", "arib-std-b67", "-c:v",
           "libx265", "-x265-params", "log-level=error:transfer=arib-std-b67", tmp_path / "a.mp4")
    clips(tmp_path / "a.mp4")
    assert "a.mp4: is HDR (arib-std-b67)" in capsys.readouterr().err


def test_a_video_of_one_frame_is_one_clip_of_one_frame(plain, tmp_path):
    ffmpeg("-i", plain, "-frames:v", 1, "-c:v", "libx264", tmp_path / "one.mp4")
    assert VideoSource(tmp_path / "one.mp4", frames=1).ids("train") == ["train/one-mp4_00000"]
    with pytest.raises(ValueError, match=r"one\.mp4: holds less than 5 frames"):
        VideoSource(tmp_path / "one.mp4", frames=5)
    assert len(_evenly_spaced(tmp_path / "one.mp4", 3, 32)) == 3


def test_files_without_a_video_are_named(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=d=3", tmp_path / "sound.mp4")
    with pytest.raises(ValueError, match=r"sound\.mp4: holds no video stream"):
        VideoSource(tmp_path / "sound.mp4")


@pytest.mark.parametrize("suffix", ["mkv", "avi", "mp4"])
def test_a_video_that_was_cut_short_is_named(plain, tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    ffmpeg("-i", plain, "-c:v", "mpeg4", "-movflags", "+faststart", path)
    path.write_bytes(path.read_bytes()[:-path.stat().st_size // 3])
    with pytest.raises(ValueError, match=rf"cut\.{suffix}: .*(damaged|cut short)"):
        VideoSource(path, frames=5)


def test_many_evenly_spaced_frames_are_chosen_in_order(plain):
    frames = _evenly_spaced(plain, 300, 32)  # more than ffmpeg takes in one sum
    assert seconds(frames) == sorted(seconds(frames)) and len(frames) == 300
    assert all(49 <= seconds(frames).count(i) <= 51 for i in range(6))


def test_show_says_nothing_but_the_sheet_s_path(plain, tmp_path, capfd):
    show(plain, tmp_path / "sheet.png")
    assert capfd.readouterr() == (f"{tmp_path / 'sheet.png'}\n", "")


def test_two_clips_are_one_to_train_on_and_one_to_test(plain, tmp_path):
    ffmpeg("-i", plain, "-t", 2, "-c:v", "libx264", tmp_path / "short.mp4")
    source = VideoSource(tmp_path / "short.mp4", frames=5)
    assert [len(source.ids(split)) for split in SPLITS] == [1, 0, 1]
