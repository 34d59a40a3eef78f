"""`vega3d infer`: arrays as onnxruntime computes them, pictures of these, no torch."""
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import vega3d
from export.artefact import save_onnx
from export.graph.export_onnx import export_onnx, interface, traced
from export.presets import attach
from infer.photos import read_photo
from infer.pictures import FAR_M, NEAR_M, depth_colours, frame_pca_colours, normal_colours
from records import files, interrupts, manifest
from student.config import HeadsShape, StudentConfig
from student.heads import Heads
from student.vit import Student
from tests.infer.models import run_infer
from tests.point_match import match

OUTPUTS = HeadsShape().outputs
ROOT = Path(vega3d.__file__).parent


@cache
def parts() -> tuple[onnx.ModelProto, onnx.ModelProto, dict]:
    student = Student(StudentConfig(depth=1, out_dim=16, stem="patch"))
    heads = Heads(HeadsShape(in_dim=16, width=8))
    heads_model = traced(heads, {"features": (16, 14, 14), "frames": (3, 224, 224)}, OUTPUTS)
    return export_onnx(student), heads_model, interface(student)


@pytest.fixture
def model(tmp_path) -> Path:
    student, heads, facts = parts()
    save_onnx(attach(student, heads), tmp_path / "model.onnx", facts)
    return tmp_path / "model.onnx"


@pytest.fixture
def photo(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "room.jpg")
    return tmp_path / "room.jpg"


def test_arrays_are_what_the_file_says_and_pictures_are_there(model, photo, tmp_path, capsys):
    code, line = run_infer(capsys, model, photo, "-o", tmp_path / "out")
    assert code == 0 and "depth" in line
    import onnxruntime as ort

    frame = read_photo(photo, 224)[None].astype(np.float32) / 255
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = ["features", *OUTPUTS]
    expected = dict(zip(names, session.run(names, {"frames": frame}), strict=True))
    for name in ("features", "depth", "normals", "descriptors"):
        found = np.load(tmp_path / "out" / f"room_{name}.npy")
        assert np.abs(found - expected[name][0].squeeze()).max() < 1e-5, name
    for name in ("view", "depth", "normals", "pca"):
        assert Image.open(tmp_path / "out" / f"room_{name}.png").size == (448, 448)
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [".vega3d-files.json"]


def test_a_model_of_features_alone_gives_features_and_says_what_is_missing(photo, tmp_path, capsys):
    student, _, facts = parts()
    save_onnx(student, tmp_path / "plain.onnx", facts)
    code, line = run_infer(capsys, tmp_path / "plain.onnx", photo, "-o", tmp_path / "out")
    assert code == 0 and "no depth in this model" in line
    written = {path.name for path in (tmp_path / "out").glob("[!.]*")}
    assert written == {"room_view.png", "room_pca.png", "room_features.npy"}


def test_a_foreign_model_is_refused_in_one_line(photo, tmp_path, capsys):
    onnx.save(parts()[0], tmp_path / "foreign.onnx")                                  # no metadata
    save_onnx(parts()[0], tmp_path / "other.onnx",
              {"input": {**parts()[2]["input"], "range": [0, 255]}})
    (tmp_path / "text.onnx").write_text("not a model")
    for name, why in (("foreign.onnx", "does not describe its input"),
                      ("other.onnx", "range [0, 255]"), ("text.onnx", "cannot load it"),
                      ("gone.onnx", "no such model")):
        code, line = run_infer(capsys, tmp_path / name, photo, "-o", tmp_path / "out")
        assert code == 2 and why in line and len(line.splitlines()) == 1, line
    assert not (tmp_path / "out").exists()


def identity(path: Path, kind: int, shape: list) -> Path:
    """A graph that returns its input, with the metadata of an exported file."""
    given, returned = (helper.make_tensor_value_info(name, kind, shape)
                       for name in ("frames", "features"))
    node = helper.make_node("Identity", ["frames"], ["features"])
    graph = helper.make_graph([node], "g", [given], [returned])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    save_onnx(model, path, {"input": parts()[2]["input"]})
    return path


@pytest.mark.parametrize(("kind", "shape", "why"), [
    (TensorProto.INT64, [1, 3, 224, 224], "tensor(int64)"),
    (TensorProto.FLOAT, [1, 3, "h", "w"], "'h', 'w'"),
    (TensorProto.FLOAT, [1, 4, 224, 224], "[1, 4, 224, 224]"),
    (TensorProto.FLOAT, [1, 3, 224, 192], "[1, 3, 224, 192]")])
def test_a_model_whose_frames_are_not_what_its_metadata_says_is_refused(
        kind, shape, why, photo, tmp_path, capsys):
    path = identity(tmp_path / "odd.onnx", kind, shape)
    code, line = run_infer(capsys, path, photo, "-o", tmp_path / "out")
    assert code == 2 and why in line and "takes another input" in line, line
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_file_with_damaged_weights_is_refused_before_anything_is_written(
        model, photo, tmp_path, capsys):
    damaged = onnx.load(model)
    tensor = max(damaged.graph.initializer, key=lambda t: len(t.raw_data))
    tensor.raw_data = b"\xff" * len(tensor.raw_data)                                   # NaN
    onnx.save(damaged, model)
    model.with_name(f"{model.name}.json").unlink()  # it would say so first
    code, line = run_infer(capsys, model, photo, "-o", tmp_path / "out")
    assert code == 2 and "features is not finite" in line and len(line.splitlines()) == 1, line
    assert not (tmp_path / "out").exists()


def test_a_broken_or_huge_photo_is_refused_in_one_line(model, photo, tmp_path, capsys):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(photo.read_bytes()[:2000])
    noise = tmp_path / "noise.png"
    noise.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    huge = tmp_path / "huge.png"
    Image.new("1", (30000, 20000)).save(huge)
    large = tmp_path / "large.png"
    Image.new("1", (14000, 14000)).save(large)  # more than Pillow's own limit
    assert read_photo(large, 224).shape == (3, 224, 224)
    for path, why in ((cut, "damaged or not an image"), (noise, "damaged or not an image"),
                      (huge, "expected at most 250 million"),
                      (tmp_path / "gone.jpg", "No such file or directory")):
        code, line = run_infer(capsys, model, path, "-o", tmp_path / "out")
        assert code == 2 and why in line and len(line.splitlines()) == 1, line
    assert not (tmp_path / "out").exists()


def test_what_would_be_written_is_looked_at_first(model, photo, tmp_path, capsys):
    (tmp_path / "a_file").write_text("mine")
    twin = tmp_path / "twin" / photo.name
    twin.parent.mkdir()
    twin.write_bytes(photo.read_bytes())
    for args, why in (((photo, "-o", tmp_path / "a_file"), "a_file: exists and is no folder"),
                      ((photo, twin, "-o", tmp_path / "out"), "two photos named room"),
                      ((photo, "-o", tmp_path / "out", "--threads", "-1"), "--threads is -1")):
        code, line = run_infer(capsys, model, *args)
        assert code == 2 and why in line and len(line.splitlines()) == 1, line
    assert (tmp_path / "a_file").read_text() == "mine" and not (tmp_path / "out").exists()


def test_names_that_are_too_long_and_links_to_nowhere_are_refused(model, photo, tmp_path, capsys):
    long, nowhere, out = tmp_path / f"{'n' * 250}.jpg", tmp_path / "nowhere", tmp_path / "out"
    long.write_bytes(photo.read_bytes())
    nowhere.symlink_to("nothing")
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").symlink_to("b.jpg")
    for args, why in (((long, "-o", out), "_view.png: File name too long"),
                      ((photo, "-o", nowhere), "nowhere: exists and is no folder"),
                      ((folder, "-o", out), "a.jpg: No such file")):
        code, line = run_infer(capsys, model, *args)
        assert code == 2 and why in line and len(line.splitlines()) == 1, line
    assert not out.exists()


def test_pictures_that_it_wrote_into_the_folder_of_photos_are_no_photos(model, photo, tmp_path,
                                                                        capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a\x1b[2J.jpg").write_bytes(photo.read_bytes())
    for _ in range(2):
        code, printed = run_infer(capsys, model, folder, "-o", folder)
        assert code == 0 and len(printed.splitlines()) == 1 and "\x1b" not in printed


def test_a_photo_is_turned_upright_and_its_middle_is_taken(tmp_path):
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 255  # the middle square is white
    pixels[:50, 100:200] = (255, 0, 0)  # its upper half red
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 3  # stored upside down
    image.save(tmp_path / "turned.png", exif=exif)
    frame = read_photo(tmp_path / "turned.png", 224)
    assert (frame[:, 200, 112] == (255, 0, 0)).all() and (frame[:, 20, 112] == 255).all()


def test_it_runs_without_torch_or_any_training_package(model, photo, tmp_path):
    forbidden = ("torch", "onnx", "safetensors", "rich", "diffusers", "transformers", "matplotlib")
    args = ["infer", str(model), str(photo), "-o", str(tmp_path / "out")]
    done = without(forbidden, args, tmp_path)
    assert done.returncode == 0 and "depth" in done.stdout, done.stderr


def test_it_runs_as_on_windows(model, photo, tmp_path, capsys, monkeypatch):
    """Without fcntl, and where no folder can be opened and no pipe waited for."""
    opened = os.open

    def open_file(path, *args, **options):
        if os.path.isdir(path) and "dir_fd" not in options:  # as shutil.rmtree opens them
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    def no_pipes(*_args):
        raise AssertionError("a pipe is waited for")

    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(manifest, "fcntl", None)
    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(interrupts, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(interrupts, "_watch", no_pipes)
    for _ in range(2):  # the second replaces the files of the first
        code, line = run_infer(capsys, model, photo, "-o", tmp_path / "out")
        assert code == 0 and "depth" in line
    assert {path.name for path in (tmp_path / "out").glob("*.npy")} >= {"room_depth.npy"}
    assert not list((tmp_path / "out").glob(".vega3d-tmp*"))


def test_a_command_that_needs_the_training_packages_says_how_to_get_them(tmp_path):
    done = without(("torch",), ["distill", "run", "--name", "x"], tmp_path)
    assert done.returncode == 2 and done.stderr.strip().endswith(
        "pip install 'vega3d-edge[train]'"), done.stderr


def without(packages: tuple[str, ...], args: list[str],
            folder: Path) -> subprocess.CompletedProcess:
    """vega3d ARGS in a process where these packages are not installed."""
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name}}", name=name)
sys.meta_path.insert(0, Missing())
import vega3d
vega3d.main({args!r})"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_colours_run_from_near_to_far_and_follow_the_normal():
    ramp = depth_colours(np.array([[0.0, NEAR_M, 2.0, FAR_M, 99.0]]))[0].astype(int)
    assert (ramp[0] == ramp[1]).all() and (ramp[3] == ramp[4]).all()
    assert (np.diff(ramp[1:4].sum(1)) < 0).all()  # darker with distance
    # right, up, to the camera
    facing = np.array([[1, 0, 0], [0, -1, 0], [0, 0, -1]], float).T[:, None]
    assert (normal_colours(facing)[0] == [[255, 128, 128], [128, 255, 128], [128, 128, 255]]).all()


def test_frame_pca_colours_tell_two_regions_apart():
    features = np.random.default_rng(0).normal(0, 0.01, (8, 14, 14))
    features[3, :, 7:] += 5
    colours = frame_pca_colours(features).astype(int)
    assert abs(colours[:, :7, 0].mean() - colours[:, 7:, 0].mean()) > 200


def test_match_finds_a_shifted_view_between_cells():
    rng = np.random.default_rng(1)
    wide = rng.normal(size=(16, 28, 31))
    wide /= np.linalg.norm(wide, axis=0)
    # three cells to the right
    x, y, similarity = match(wide[:, :, 3:], wide[:, :, :28], 10.5 / 28, 7.5 / 28)
    assert x == pytest.approx(13.5 / 28, abs=0.01) and y == pytest.approx(7.5 / 28, abs=0.01)
    assert similarity.shape == (28, 28) and similarity.max() == pytest.approx(1)
