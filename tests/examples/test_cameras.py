"""video.py and realsense.py without a camera: a file, and stubs of tkinter, v4l2 and pyrealsense2.

The stubs: a webcam is ffmpeg's test picture, a window keeps its pictures, a RealSense sees what the
model sees, 10 % nearer.
"""
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, ImageOps

from infer.model import SHIPPED, Model
from records.ffmpeg import probe

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str, *arguments: object, monkeypatch) -> dict:
    """The module, after `main` with these arguments."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    module = runpy.run_path(str(EXAMPLES / name), run_name="example")
    module["main"]()
    return module


@pytest.fixture
def clip(tmp_path) -> Path:
    path = tmp_path / "walk.mp4"
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i",
                    "testsrc=duration=1:size=160x120:rate=5", "-pix_fmt", "yuv420p", str(path)],
                   check=True)
    return path


def test_a_video_becomes_one_with_depth_beside_it(clip, tmp_path, monkeypatch, capsys):
    out = tmp_path / "depth.mp4"
    example("video.py", clip, "-o", out, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert said.startswith("5 frames, ") and "focal length 224 px of 224 (assumed" in said
    assert len(probe(out).times) == 5 and probe(out).fps == pytest.approx(5)
    with pytest.raises(SystemExit, match=r"gone\.mp4"):  # no webcam's name
        example("video.py", "gone.mp4", monkeypatch=monkeypatch)


@pytest.fixture
def window(monkeypatch) -> list[Image.Image]:
    shown: list[Image.Image] = []
    stub = ModuleType("tkinter")
    root = SimpleNamespace(title=str, protocol=lambda *a: None, quit=None, update=lambda: None,
                           destroy=lambda: shown.append("closed"))
    stub.Tk = lambda: root
    stub.Label = lambda root: SimpleNamespace(pack=lambda: None,
                                              configure=lambda image: shown.append(image))
    monkeypatch.setitem(sys.modules, "tkinter", stub)
    monkeypatch.setitem(sys.modules, "PIL.ImageTk", SimpleNamespace(PhotoImage=lambda image: image))
    monkeypatch.setattr("PIL.ImageTk", SimpleNamespace(PhotoImage=lambda image: image),
                        raising=False)
    return shown


def test_without_an_output_a_window_shows_frame_and_depth(clip, window, monkeypatch, capsys):
    example("video.py", clip, "--frames", 2, monkeypatch=monkeypatch)
    first, second, last = window
    assert first.size == second.size == (896, 448) and last == "closed"
    left, right = np.asarray(first)[:, :448], np.asarray(first)[:, 448:]
    assert left.std() > 30 and not (left == right).all()


def test_a_webcam_gives_its_newest_picture(tmp_path, window, monkeypatch, capsys):
    camera = tmp_path / "ffmpeg"
    real = imageio_ffmpeg.get_ffmpeg_exe()
    camera.write_text(f"#!{sys.executable}\nimport os, sys\nargs = sys.argv[1:]\n"
                      "at = args.index('-f')\nassert args[at:at + 4] == ['-f', 'v4l2', '-i', "
                      "'/dev/video3'], args\nargs[at:at + 4] = ['-f', 'lavfi', '-i', "
                      f"'testsrc=size=160x120:rate=30']\nos.execv({real!r}, [{real!r}, *args])\n")
    camera.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(camera))
    example("video.py", "3", "--frames", 3, monkeypatch=monkeypatch)
    assert len(window) == 4 and capsys.readouterr().out.startswith("3 frames")
    camera.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(SystemExit, match="webcam 3: gives no picture"):
        example("video.py", "3", "--frames", 3, monkeypatch=monkeypatch)


def realsense(colour: np.ndarray, depth_mm: np.ndarray, focal: float) -> ModuleType:
    """A stub of pyrealsense2 whose every frame is this one."""
    frame = SimpleNamespace(
        get_color_frame=lambda: SimpleNamespace(get_data=lambda: colour),
        get_depth_frame=lambda: SimpleNamespace(get_data=lambda: depth_mm))
    sensor = SimpleNamespace(get_depth_scale=lambda: 0.001)
    stream = SimpleNamespace(get_intrinsics=lambda: SimpleNamespace(fx=focal))
    profile = SimpleNamespace(
        get_device=lambda: SimpleNamespace(first_depth_sensor=lambda: sensor),
        get_stream=lambda which: SimpleNamespace(as_video_stream_profile=lambda: stream))
    stub = ModuleType("pyrealsense2")
    stub.stream, stub.format = SimpleNamespace(color=1, depth=2), SimpleNamespace(rgb8=3, z16=4)
    stub.config = lambda: SimpleNamespace(enable_stream=lambda *a: None)
    stub.align = lambda stream: SimpleNamespace(process=lambda frames: frames)
    stub.pipeline = lambda: SimpleNamespace(start=lambda config: profile, stop=lambda: None,
                                            wait_for_frames=lambda: frame)
    return stub


def test_a_realsense_s_depth_is_compared_cell_by_cell(monkeypatch, capsys):
    colour = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    colour = colour.repeat(40, 0).repeat(40, 1)
    square = np.asarray(ImageOps.fit(Image.fromarray(colour), (224, 224),
                                     Image.Resampling.BICUBIC))
    depth = Model(SHIPPED)(square.transpose(2, 0, 1)[None], 500 * 224 / 480)["depth"][0, 0]
    sensor = np.zeros((480, 640), np.uint16)  # nothing outside of the square, nor in its first rows
    nearer = np.asarray(Image.fromarray(depth / 1.1).resize((480, 480), Image.Resampling.NEAREST))
    sensor[100:, 80:560] = np.round(1000 * nearer)[100:]
    monkeypatch.setitem(sys.modules, "pyrealsense2", realsense(colour, sensor, 500.0))
    example("realsense.py", "--frames", 2, monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[-1].startswith("mean: ")
    for line in lines:
        assert "AbsRel 0.100, delta1 1.000, model / sensor 1.10" in line


def test_a_realsense_that_is_not_there_is_one_line(monkeypatch):
    def no_device():
        raise RuntimeError("No device connected")

    stub = realsense(np.zeros((480, 640, 3), np.uint8), np.zeros((480, 640), np.uint16), 500.0)
    stub.pipeline = no_device
    monkeypatch.setitem(sys.modules, "pyrealsense2", stub)
    with pytest.raises(SystemExit, match=r"realsense.py: No device connected"):
        example("realsense.py", monkeypatch=monkeypatch)
