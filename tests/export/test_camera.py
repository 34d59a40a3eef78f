"""A camera's frames inside the graph give the features of frames prepared by Pillow."""
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image, ImageOps

from bench.artefacts import find
from bench.latency.backends import student_cases
from export.artefact import save_onnx
from export.camera import (
    _cosine,
    export_camera,
    frame_size,
    reduced_square,
    square_frame,
    to_nv12,
    with_camera_input,
)
from export.graph.export_onnx import interface
from export.graph.session import OnnxModel
from export.parity import GateError, token_cosine
from export.pipeline import FP32, INT8_CPU, ExportedFile
from export.source import to_input
from infer.model import SHIPPED, Model
from tests.export_run import fp32, run


def enlarged(height: int, width: int) -> np.ndarray:
    """Held-out frames as a camera of this size would give them, uint8 [4,H,W,3]."""
    pictures = [Image.fromarray(frame.transpose(1, 2, 0)) for frame in run().heldout.frames[:4]]
    return np.stack([np.asarray(ImageOps.fit(each, (width, height))) for each in pictures])


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> ExportedFile:
    path = tmp_path_factory.mktemp("camera") / "model.onnx"
    return ExportedFile(path, FP32, save_onnx(fp32(), path, interface(run().student)), False)


@pytest.mark.parametrize("kind", ["uint8-nhwc", "nv12"])
@pytest.mark.parametrize("size", [(480, 640), (720, 480), (700, 720), (224, 224)])
def test_features_are_those_of_the_prepared_centre_square(kind, size):
    frames = enlarged(*size)
    model = OnnxModel(with_camera_input(fp32(), kind, *size))
    got = model(frames if kind == "uint8-nhwc" else to_nv12(frames))
    expected = OnnxModel(fp32())(np.concatenate([reduced_square(frame, 224) for frame in frames]))
    assert token_cosine(expected, got).mean() > 0.999
    if kind == "uint8-nhwc" and size == (224, 224):
        assert np.abs(expected - got).max() < 1e-4
    shifted = np.roll(frames, 40, axis=2)
    moved = model(shifted if kind == "uint8-nhwc" else to_nv12(shifted))
    assert token_cosine(expected, moved).mean() < 0.99  # the test can tell another crop


@pytest.mark.parametrize("kind", ["uint8-nhwc", "nv12"])
def test_the_shipped_model_takes_a_cameras_frames(kind):
    """Its features depend on blur more than those of an untrained one."""
    file = SimpleNamespace(path=SHIPPED, spec=INT8_CPU)
    model = with_camera_input(onnx.load(SHIPPED), kind, 480, 640)
    assert _cosine(SimpleNamespace(run=run()), file, model, kind, (480, 640)) > 0.999


@pytest.mark.parametrize(("kind", "size"), [
    ("uint8-nhwc", "200x640"), ("nv12", "482x640"), ("nv12", "big"), ("uint8-nhwc", "99999x640"),
    ("uint8-nhwc", "-480x640"), ("uint8-nhwc", "480x640x3")])
def test_a_size_that_cannot_be_is_refused(kind, size):
    with pytest.raises(ValueError, match=f"--size: got {size}, expected"):
        frame_size(size, kind, 224)
    assert frame_size("480x640", kind, 224) == (480, 640)


def test_infer_and_bench_read_such_a_file_by_its_metadata(plain):
    exporter = SimpleNamespace(run=run(), log=lambda _: None)
    (file,) = export_camera(exporter, [plain], "uint8-nhwc", (480, 640))
    assert file.path.name == "model.uint8-nhwc.onnx" and file.facts["camera_cosine"] > 0.999
    assert file.facts["input"]["shape"] == [1, 480, 640, 3]
    (again,) = export_camera(exporter, [plain], "uint8-nhwc", (480, 640))
    assert again.reused
    model = Model(file.path)
    assert model.px == 480
    frame = enlarged(480, 480)[:1]
    got = model(frame.transpose(0, 3, 1, 2))["features"]
    assert token_cosine(OnnxModel(plain.path)(square_frame(frame[0], 224)), got).mean() > 0.998
    ((artefact,), _) = find(file.path)
    frames = torch.from_numpy(to_input(run().heldout.frames[:1]))
    cases, _ = student_cases([artefact], frames, (1,), ("ort-cpu",), 1)
    (timed,) = cases[0].call()
    assert timed.shape == got.shape


def test_a_prefix_that_changes_the_features_is_not_written(plain, tmp_path, monkeypatch):
    path = shutil.copy(plain.path, tmp_path / "model.onnx")
    monkeypatch.setattr("export.camera.reduced_square",
                        lambda frame, px: square_frame(frame[::-1].copy(), px))
    exporter = SimpleNamespace(run=run(), log=lambda _: None)
    with pytest.raises(GateError, match="differ from those of prepared frames"):
        export_camera(exporter, [ExportedFile(path, FP32, plain.facts, False)], "nv12", (480, 640))
    assert not list(tmp_path.glob("*.nv12.onnx"))
