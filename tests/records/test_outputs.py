"""No file of the user's is deleted or overwritten: each test is one way in which one could be."""
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import vega3d
from bench.report.page import write_report
from distill.config import RunConfig
from distill.run import choose_folder, create_folder
from infer.photos import infer_all
from records.files import atomic_write, remove_stale_scratch
from records.outputs import LIST, OutputFolder, safe_name
from records.results import Results
from scenes.clip import Clip
from scenes.rooms.source import RoomSource
from scenes.rooms.writer import render_folder
from scenes.show import contact_sheet, save_sheet
from teacher.config import PretrainConfig
from teacher.wan_nano.pretrain import pretrain

ROOT = Path(vega3d.__file__).parent


def model_with_output(path: Path, name: str) -> Path:
    """An ONNX file that `vega3d infer` takes, with one output of this name."""
    frames = helper.make_tensor_value_info("frames", TensorProto.FLOAT, [1, 3, 224, 224])
    out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 224, 224])
    graph = helper.make_graph([helper.make_node("Relu", ["frames"], [name])], "g", [frames], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    described = {"name": "frames", "layout": "NCHW", "colour": "RGB", "range": [0, 1],
                 "normalisation": "inside the graph"}
    helper.set_model_props(model, {"input": json.dumps(described)})
    onnx.save(model, path)
    return path


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "room.jpg"
    Image.fromarray(np.full((300, 300, 3), 128, np.uint8)).save(path)
    return path


@pytest.mark.parametrize("name", [".bashrc.20240101.bak", ".model.4194305.onnx", ".1.1.env",
                                  ".vega3d-tmp-notes", ".env.local.99999999.txt"])
def test_hidden_files_with_numbers_survive_the_removal_of_scratch(tmp_path, name):
    (tmp_path / name).write_text("the user's")
    remove_stale_scratch(tmp_path)
    assert (tmp_path / name).read_text() == "the user's"


def test_a_folder_that_only_looks_like_scratch_survives(tmp_path):
    (tmp_path / ".vega3d-tmp-photos").mkdir()
    (tmp_path / ".vega3d-tmp-photos" / "a.jpg").write_text("the user's")
    remove_stale_scratch(tmp_path)
    assert (tmp_path / ".vega3d-tmp-photos" / "a.jpg").is_file()


def test_scratch_of_a_living_process_survives_and_of_a_killed_one_goes(tmp_path):
    path = tmp_path / "tensorrt_rtx_1.7.1.116.engine"
    code = (f"import time; from pathlib import Path; from records.files import atomic_write\n"
            f"with atomic_write(Path({str(path)!r})) as s: s.write_text('x'); time.sleep(60)")
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        while not list(tmp_path.glob(".vega3d-tmp-*/*.engine")):
            time.sleep(0.02)
        remove_stale_scratch(tmp_path)
        assert len(list(tmp_path.glob(".vega3d-tmp-*"))) == 1
    finally:
        writer.kill()
        writer.wait()
    remove_stale_scratch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_scratch_of_this_process_survives(tmp_path):
    with atomic_write(tmp_path / "a.json") as scratch:
        scratch.write_text("{}")
        remove_stale_scratch(tmp_path)
        assert scratch.is_file()
    assert (tmp_path / "a.json").read_text() == "{}" and len(list(tmp_path.iterdir())) == 1


def test_written_files_get_the_permissions_of_the_umask(tmp_path):
    with atomic_write(tmp_path / "a") as scratch:
        os.close(os.open(scratch, os.O_CREAT, 0o600))
    with (tmp_path / "b").open("w"):
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_infer_refuses_to_overwrite_a_picture_of_the_users(tmp_path, photo):
    (tmp_path / "room_view.png").write_bytes(b"the user's")
    model = model_with_output(tmp_path / "m.onnx", "features")
    with pytest.raises(ValueError, match=r"room_view\.png: exists and was not written by this"):
        list(infer_all([model, photo], tmp_path))
    assert (tmp_path / "room_view.png").read_bytes() == b"the user's"
    assert not list(tmp_path.glob("*.npy"))  # nothing was written before the refusal


def test_infer_overwrites_its_own_files_and_not_a_changed_one(tmp_path, photo):
    model = model_with_output(tmp_path / "m.onnx", "features")
    out = tmp_path / "out"
    list(infer_all([model, photo], out))
    list(infer_all([model, photo], out))
    (out / "room_view.png").write_bytes(b"retouched")
    with pytest.raises(ValueError, match="changed since"):
        list(infer_all([model, photo], out))
    assert (out / "room_view.png").read_bytes() == b"retouched"


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/b", "..", ".hidden"])
def test_an_output_name_cannot_leave_the_folder(tmp_path, photo, name):
    out = tmp_path / "deep" / "out"
    list(infer_all([model_with_output(tmp_path / "m.onnx", name), photo], out))
    written = {p for p in tmp_path.rglob("*") if p.is_file()} - {photo, tmp_path / "m.onnx"}
    assert len(written) >= 2 and all(p.parent == out for p in written)


def test_outputs_whose_files_would_overwrite_each_other_are_refused(tmp_path, photo):
    model = onnx.load(model_with_output(tmp_path / "m.onnx", "a/b"))
    model.graph.node.append(helper.make_node("Relu", ["frames"], ["a_b"]))
    model.graph.output.append(
        helper.make_tensor_value_info("a_b", TensorProto.FLOAT, [1, 3, 224, 224]))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="outputs a/b, a_b have the same file name"):
        list(infer_all([tmp_path / "m.onnx", photo], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_safe_names():
    assert safe_name("depth") == "depth" and safe_name("model.layers.3") == "model.layers.3"
    assert safe_name("../x") == "_x" and safe_name("a/b:0") == "a_b_0" and safe_name("..") == "_"


def test_an_output_folder_removes_only_unchanged_files_of_its_own(tmp_path):
    folder = OutputFolder(tmp_path)
    for name in ("a", "b"):
        with folder.write(name) as scratch:
            scratch.write_text(name)
    (tmp_path / "b").write_text("changed")
    (tmp_path / "c").write_text("the user's")
    OutputFolder(tmp_path).remove(["a", "b", "c"])
    assert {p.name for p in tmp_path.iterdir()} == {"b", "c", LIST}


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path):
    (tmp_path / "target").write_text("the user's")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "target")
    with pytest.raises(ValueError, match="was not written by this"), \
            OutputFolder(tmp_path / "out").write("a") as scratch:
        scratch.write_text("ours")
    assert (tmp_path / "target").read_text() == "the user's"


@pytest.mark.parametrize(("listed", "says"), [
    *((text, "was not written by this") for text in ("", "[]", "{", '{"schema": 1, "files": 3}')),
    ('{"schema": 99, "files": {"a": ["x"]}}', r"another version .*\(schema 99, this one")])
def test_a_damaged_list_or_one_of_another_version_owns_nothing(tmp_path, listed, says):
    (tmp_path / LIST).write_text(listed)
    (tmp_path / "a").write_text("the user's")
    with pytest.raises(ValueError, match=says):
        OutputFolder(tmp_path).check(["a"], "--out")


def test_a_contact_sheet_refuses_another_picture(tmp_path):
    sheet = contact_sheet(Clip("a", np.zeros((1, 3, 32, 32), np.uint8)))
    save_sheet(sheet, tmp_path / "sheet.png")
    save_sheet(sheet, tmp_path / "sheet.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "holiday.png")
    before = (tmp_path / "holiday.png").read_bytes()
    with pytest.raises(ValueError, match="exists and is not a contact sheet"):
        save_sheet(sheet, tmp_path / "holiday.png")
    assert (tmp_path / "holiday.png").read_bytes() == before


def test_a_report_refuses_another_page(tmp_path):
    (tmp_path / "report.html").write_text("<p>my thesis</p>")
    with pytest.raises(ValueError, match="not a report of vega3d bench"):
        write_report(Results("bench", "", "", {}, []), tmp_path / "report.html")
    assert "thesis" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", ["", ".", "..", "latest", "cache", "../outside", "/tmp/outside",
                                  "a/b", ".hidden"])
def test_a_run_name_cannot_leave_the_folder_of_runs(tmp_path, name):
    with pytest.raises(ValueError, match="name is"):
        choose_folder(replace(RunConfig(), name=name, runs=tmp_path))


def test_a_run_refuses_a_folder_of_something_else(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "MODEL_CARD.md").write_text("the user's")
    with pytest.raises(ValueError, match="is not empty and not a run"):
        create_folder(RunConfig(), tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["MODEL_CARD.md"]
    assert not (tmp_path / "latest").exists()


def test_rendering_refuses_a_folder_of_other_safetensors(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "00000_0.safetensors").write_bytes(b"the user's weights")
    source = RoomSource(train=1, val=0, test=0, frames=1, size=32)
    with pytest.raises(ValueError, match=r"no scenes\.json"):
        render_folder(source, source.ids("train"), tmp_path, 0)
    assert (tmp_path / "train" / "00000_0.safetensors").read_bytes() == b"the user's weights"


def test_pretraining_refuses_the_folder_of_another_generator(tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not trained here"):
        pretrain(PretrainConfig(out=tmp_path), RoomSource(train=1, val=0, test=1))
    assert (tmp_path / "transformer" / "config.json").read_text() == "{}"


@pytest.mark.parametrize("entry", ["vega3d", "infer.photos"])
def test_infer_leaves_nothing_in_the_home_folder(tmp_path, photo, entry):
    home, model = tmp_path / "home", model_with_output(tmp_path / "m.onnx", "features")
    home.mkdir()
    code = {"vega3d": f"import vega3d; vega3d.main(['infer', {str(model)!r}, {str(photo)!r}, '-o', "
                      f"{str(tmp_path / 'out')!r}])",
            "infer.photos": "from pathlib import Path; from infer.photos import infer_all; "
                            f"list(infer_all([Path({str(model)!r}), Path({str(photo)!r})], "
                            f"Path({str(tmp_path / 'out')!r})))"}[entry]
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True, timeout=120)
    assert (tmp_path / "out" / "room_view.png").is_file()
    assert not list(home.rglob("*"))
