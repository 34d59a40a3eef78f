"""ONNX files with weights in data files: read, measured and digested whole; odd places refused."""
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bench.artefacts import find
from export.graph.check import check_qdq, summary
from export.graph.files import data_files, read_onnx
from export.graph.session import OnnxModel
from records.files import sha256
from tests.onnx_graphs import model_of, quantised_linear, save_external, value
from vega3d import main

make = helper.make_node


def conv(path: Path, seed: int = 0) -> Path:
    """A patch embedding with its weights in a data file."""
    weights = np.random.default_rng(seed).normal(size=(8, 3, 16, 16)).astype(np.float32)
    model = model_of([make("Conv", ["frames", "P"], ["y"], "patch", strides=[16, 16])],
                     {"P": weights}, [value("frames", [1, 3, 224, 224])],
                     [value("y", [1, 8, 14, 14])])
    return save_external(model, path)


def test_weights_and_scales_in_a_data_file_are_checked(tmp_path):
    good = save_external(quantised_linear(), tmp_path / "good.onnx")
    model = read_onnx(good)
    assert check_qdq(model, path=good) == [] and summary(model).startswith("1 of 1")
    bad = quantised_linear(xs=np.float32(-1), ws=np.full(12, np.nan, np.float32))
    bad = save_external(bad, tmp_path / "bad.onnx")
    found = {(v.node, v.rule) for v in check_qdq(read_onnx(bad), path=bad)}
    assert found == {("q", "scale"), ("dq", "scale"), ("wdq", "scale")}
    floating = save_external(model_of([make("MatMul", ["x", "F"], ["y"])],
                                      {"F": np.full((16, 12), np.inf, np.float32)}),
                             tmp_path / "inf.onnx")
    assert [v.rule for v in check_qdq(read_onnx(floating), path=floating)] == ["finite"]


def test_a_data_file_is_found_from_any_folder_and_counted(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    path = conv(tmp_path / "models" / "m.onnx")
    monkeypatch.chdir(tmp_path)
    (artefact,), _ = find(Path("models/m.onnx"))
    assert artefact.size_mb == pytest.approx((8 * 3 * 256 * 4 + path.stat().st_size) / 1e6)
    frames = np.random.default_rng(1).random((1, 3, 224, 224), np.float32)
    assert OnnxModel(Path("models/m.onnx"))(frames).shape == (1, 8, 14, 14)


def test_models_that_differ_in_their_data_alone_have_other_digests(tmp_path):
    digests = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        path = conv(tmp_path / str(seed) / "m.onnx", seed)
        digests.append((sha256(path), find(path)[0][0].sha256))
    (graph, first), (same_graph, second) = digests
    assert graph == same_graph and first != second
    inline = onnx.load(path)
    onnx.save(inline, tmp_path / "inline.onnx")
    assert find(tmp_path / "inline.onnx")[0][0].sha256 == sha256(tmp_path / "inline.onnx")


def refused(path: Path, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["export", "check", str(path)])
    line = capsys.readouterr().err
    assert stop.value.code == 2 and path.name in line and len(line.splitlines()) == 1, line
    return line


def _missing(data: Path) -> None:
    data.unlink()


def _folder(data: Path) -> None:
    data.unlink()
    data.mkdir()


def _pipe(data: Path) -> None:
    data.unlink()
    os.mkfifo(data)


def _link_out(data: Path) -> None:
    outside = data.parent.parent / "outside.data"
    data.rename(outside)
    data.symlink_to(outside)


def _short(data: Path) -> None:
    data.write_bytes(data.read_bytes()[:-1])


@pytest.mark.parametrize(("damage", "why"), [
    (_missing, "m.onnx.data is missing"), (_folder, "is not a regular file"),
    (_pipe, "is not a regular file"), (_link_out, "is not in the model's folder"),
    (_short, "does not hold")])
def test_a_damaged_data_file_is_named(tmp_path, capsys, damage, why):
    (tmp_path / "models").mkdir()
    path = conv(tmp_path / "models" / "m.onnx")
    damage(path.with_name("m.onnx.data"))
    assert why in refused(path, capsys)


@pytest.mark.parametrize(("location", "why"), [
    ("../m.onnx.data", "not in the model's folder"), ("/etc/passwd", "not in the model's folder"),
    ("a/../../m.onnx.data", "not in the model's folder"), ("/dev/zero", "not in the model's"),
    ("other\x1b[31m", r"other\x1b[31m is missing"), (".", "not in the model's folder")])
def test_a_place_outside_the_folder_is_refused(tmp_path, capsys, location, why):
    (tmp_path / "models").mkdir()
    path = save_external(quantised_linear(), tmp_path / "models" / "m.onnx", location)
    assert why in refused(path, capsys)


@pytest.mark.parametrize("entries", [{"offset": -4}, {"offset": 2**62}, {"length": 2**62},
                                     {"length": -1}, {"offset": "x"}, {"length": "9" * 5000}])
def test_a_place_beyond_the_data_file_is_refused(tmp_path, capsys, entries):
    path = save_external(quantised_linear(), tmp_path / "m.onnx", **entries)
    assert "does not hold" in refused(path, capsys)


def test_a_cache_of_links_is_read(tmp_path):
    """As huggingface_hub keeps files: a folder of links into a folder of blobs."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    conv(tmp_path / "m.onnx")
    for name, blob in (("m.onnx", "a1"), ("m.onnx.data", "b2")):
        (tmp_path / name).rename(tmp_path / "blobs" / blob)
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / blob)
    path = tmp_path / "snapshot" / "m.onnx"
    assert data_files(read_onnx(path), path) == [path.with_name("m.onnx.data")]


def test_a_model_above_2_gb_is_checked_by_path(tmp_path, capsys):
    """2 GiB of zeros in a sparse file."""
    side, size = 16_384, 2**31
    weights = TensorProto(name="W", data_type=TensorProto.FLOAT, dims=[2, side, side],
                          data_location=TensorProto.EXTERNAL)
    for key, entry in (("location", "big.data"), ("length", str(size))):
        weights.external_data.add(key=key, value=entry)
    model = model_of([make("MatMul", ["x", "W"], ["y"], "l")], None, [value("x", [1, side])],
                     [value("y", [2, 1, side])])
    model.graph.initializer.append(weights)
    onnx.save(model, tmp_path / "big.onnx")
    with (tmp_path / "big.data").open("wb") as file:
        file.truncate(size)
    main(["export", "check", str(tmp_path / "big.onnx")])
    assert "ok for trt10" in capsys.readouterr().out
