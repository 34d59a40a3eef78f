"""Videos: every frame upright, in millimetres, beside its depth; and what is said about them."""
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from records.ffmpeg import probe
from records.files import SCRATCH
from tests.infer.models import pooling_model, run_infer

FRAMES = 6


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    monkeypatch.setenv("VEGA3D_TRUST_ONNX", "1")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """plain: red from 0 in frame 0 by 30 a frame; turned: its upper half black; deep: 10 bits."""
    folder = tmp_path_factory.mktemp("videos")
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
    red = "color=black:s=160x120:r=10:d=0.6,format=gbrp,geq=r='30*N':g=0:b=0"
    top = red.replace("'30*N'", "'if(gt(Y,59),200,0)'")
    codec = ["-c:v", "libx264", "-crf", "1"]
    for name, source, colours in (("plain", red, "yuv444p"), ("deep", red, "yuv420p10le"),
                                  ("half", top, "yuv444p")):
        subprocess.run([*program, "-f", "lavfi", "-i", source, *codec, "-pix_fmt", colours,
                        folder / f"{name}.mp4"], check=True)
    subprocess.run([*program, "-display_rotation", "90", "-i", folder / "half.mp4", "-c", "copy",
                    folder / "turned.mp4"], check=True)
    return folder


def depths(folder) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]) / 1000


def test_depth_of_every_frame_is_written_in_millimetres(videos, tmp_path, capsys):
    model, out = pooling_model(tmp_path / "m.onnx"), tmp_path / "out"
    for folder in (out, out / "plain_depth_mm"):
        scratch = folder / f"{SCRATCH}of-a-killed-one"
        scratch.mkdir(parents=True)
        (scratch / "lock").touch()
    for _ in range(2):  # the second replaces what the first wrote
        code, line = run_infer(capsys, model, videos / "plain.mp4", "-o", out)
        assert code == 0 and f"{FRAMES} frames" in line and "bits" not in line
    assert not list(out.rglob(f"{SCRATCH}*"))
    found = depths(out / "plain_depth_mm")
    assert found.shape == (FRAMES, 56, 56)
    expected = 1 + 5 * 30 * np.arange(FRAMES) / 255
    assert np.abs(found.mean((1, 2)) - expected).max() < 0.06
    facts = probe(out / "plain.mp4")
    assert len(facts.times) == FRAMES and facts.fps == pytest.approx(10)
    assert facts.shorter_px == 448  # the frame and its depth, side by side


def test_turned_video_is_read_upright_and_said_to_be(videos, tmp_path, capsys):
    code, line = run_infer(capsys, pooling_model(tmp_path / "m.onnx"), videos / "turned.mp4",
                           "-o", tmp_path / "out")
    assert code == 0 and "is stored turned by 90 degrees and is read upright" in line
    half = depths(tmp_path / "out" / "turned_depth_mm")[0]
    sides = half[:, :20].mean(), half[:, 36:].mean()
    assert abs(sides[0] - sides[1]) > 3 and half[:20].std() > 1  # left against right, not up


def test_ten_bits_are_read_and_said(videos, tmp_path, capsys):
    code, line = run_infer(capsys, pooling_model(tmp_path / "m.onnx"), videos / "deep.mp4",
                           "-o", tmp_path / "out")
    assert code == 0 and "has 10 bits a colour, of which the upper 8 are read" in line
    found = depths(tmp_path / "out" / "deep_depth_mm").mean((1, 2))
    assert np.abs(found - 1 - 5 * 30 * np.arange(FRAMES) / 255).max() < 0.1


def test_what_is_no_video_or_would_be_overwritten_is_refused(videos, tmp_path, capsys):
    model, out = pooling_model(tmp_path / "m.onnx"), tmp_path / "out"
    cut, text = tmp_path / "cut.mp4", tmp_path / "text.mp4"
    cut.write_bytes((videos / "plain.mp4").read_bytes()[:900])
    text.write_text("no video")
    mine = out / "plain_depth_mm" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    bare = pooling_model(tmp_path / "bare.onnx", outputs=("descriptors",))
    cases = [((model, cut), "not a readable video"), ((model, text), "not a readable video"),
             ((model, tmp_path / "gone.mp4"), "No such file"), ((bare, cut), "has no depth"),
             ((model, videos / "plain.mp4"), "mine.png: exists and was not written by this"),
             ((model, videos / "half.mp4", "--ply"), "--ply: is for photos")]
    for args, why in cases:
        code, line = run_infer(capsys, *args, "-o", out)
        assert code == 2 and why in line and len(line.splitlines()) == 1, line
    assert mine.read_bytes() == b"mine" and not list(out.glob("*.mp4"))
