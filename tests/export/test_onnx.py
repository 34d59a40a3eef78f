"""The ONNX file equals the student, its graph is clean, and stale or broken inputs are noticed."""
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from export.artefact import (
    PACKAGE,
    save_onnx,
    sidecar_path,
    source_digest,
    up_to_date,
)
from export.graph.dialects import to_unsigned
from export.graph.export_onnx import export_onnx, interface
from export.graph.index import copy_model
from export.graph.session import OnnxModel, TorchModel
from export.parity import GateError, token_cosine
from export.pipeline import Exporter, Options
from export.quant.int8 import Recipe, calibration_batches, fixed_batch, quantize
from export.quant.layer_diff import layerwise
from export.source import evenly_spaced, load_trained_run, to_input
from records.files import atomic_write, sha256
from student.config import StudentConfig
from student.vit import Student
from tests.export_run import fp32, gate, run, trained_run
from vega3d import main


@pytest.fixture
def run_copy(tmp_path) -> Path:
    """A copy of the trained run that a test may write in."""
    return shutil.copytree(trained_run(), tmp_path / "run")


def test_onnx_equals_torch():
    frames = to_input(run().heldout.frames[:3])
    assert np.abs(OnnxModel(fp32())(frames) - TorchModel(run().student)(frames)).max() < 1e-4


def test_graph_holds_the_model_and_no_shape_arithmetic():
    depth = run().student.config.depth
    ops = Counter(node.op_type for node in fp32().graph.node)
    # qkv, two attention products, proj, fc1, fc2; and the head
    assert ops["MatMul"] == 6 * depth + 1
    assert ops["LayerNormalization"] == 2 * depth + 1
    assert ops["Gelu"] == depth and ops["Softmax"] == depth
    for op in ("Shape", "Slice", "Squeeze", "Unsqueeze", "Gather", "Concat", "Erf", "Pow",
               "ReduceMean", "Cast"):
        assert not ops[op], f"{ops[op]} {op}"
    reshapes = [node for node in fp32().graph.node if node.op_type == "Reshape"]
    assert reshapes and not any(node.attribute for node in reshapes)  # allowzero means nothing here


def test_nodes_and_weights_are_named_for_their_modules():
    names = {node.name for node in fp32().graph.node}
    assert {"patch_embed/Conv", "blocks.0.attn.qkv/MatMul", "blocks.1.fc2/MatMul",
            "head/MatMul"} <= names
    assert len(names) == len(fp32().graph.node)
    assert "blocks.0.attn.qkv.weight_t" in {tensor.name for tensor in fp32().graph.initializer}


def test_same_student_gives_the_same_bytes(tmp_path):
    again = export_onnx(run().student)
    facts = interface(run().student)
    save_onnx(fp32(), tmp_path / "a.onnx", facts)
    save_onnx(again, tmp_path / "b.onnx", facts)
    assert sha256(tmp_path / "a.onnx") == sha256(tmp_path / "b.onnx")


def test_file_contains_no_path_of_this_machine():
    content = fp32().SerializeToString()
    assert len(content) > 1e6
    for trace in (b"site-packages", b"/work", b"vit.py", str(Path.home()).encode()):
        assert trace not in content


def test_dynamic_batch_runs_at_every_size_and_equals_static():
    model = export_onnx(run().student, batch="dynamic")
    frames = to_input(run().heldout.frames[:5])
    dynamic = OnnxModel(model)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not Counter(node.op_type for node in model.graph.node)["Shape"]
    for n in (1, 2, 5):
        assert np.abs(dynamic(frames[:n]) - OnnxModel(fp32())(frames[:n])).max() < 1e-4


def test_static_batch_fills_up_its_last_chunk():
    student = Student(StudentConfig(depth=1, out_dim=8, stem="patch"))
    model = OnnxModel(export_onnx(student, batch=2))
    assert model(to_input(run().heldout.frames[:3])).shape == (3, 8, 14, 14)


def test_metadata_and_sidecar_describe_input_and_output(tmp_path):
    path = tmp_path / "model.onnx"
    sidecar = save_onnx(fp32(), path, {**interface(run().student), "precision": "fp32"})
    metadata = OnnxModel(path).session.get_modelmeta().custom_metadata_map
    facts = {name: json.loads(metadata[name]) for name in ("input", "output")}
    assert facts["input"]["range"] == [0, 1] and facts["input"]["layout"] == "NCHW"
    assert facts["output"]["grid"] == [14, 14]
    assert len(facts["output"]["target_std"]) == run().student.config.out_dim
    on_disk = json.loads(sidecar_path(path).read_text())
    assert on_disk == json.loads(json.dumps(sidecar)) and on_disk["sha256"] == sha256(path)


def test_a_batch_of_zero_is_refused():
    with pytest.raises(ValueError, match="got batch 0, expected >= 1"):
        export_onnx(run().student, batch=0)


def test_killed_write_leaves_neither_file_nor_scratch(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "model.onnx") as scratch:
        scratch.write_bytes(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_model_with_other_inputs_is_named(tmp_path):
    other = onnx.ModelProto.FromString(fp32().SerializeToString())
    other.graph.input.append(
        onnx.helper.make_tensor_value_info("pose", onnx.TensorProto.FLOAT, [1, 4, 4]))
    with pytest.raises(ValueError,
                       match=r"got inputs \(frames .*, pose .*\), expected one frames tensor"):
        OnnxModel(other)


def test_truncated_or_foreign_file_is_not_up_to_date(tmp_path):
    path = tmp_path / "model.onnx"
    save_onnx(fp32(), path, {"cache_key": "one"})
    assert up_to_date(path, "one", print)
    assert not up_to_date(path, "another", print)
    path.write_bytes(path.read_bytes()[:-1])
    assert not up_to_date(path, "one", print)


def test_command_exports_every_file_once(run_copy, capsys):
    main(["export", "onnx", "--run", str(run_copy)])
    out = run_copy / "export"
    exported = {path.name: path.stat().st_mtime_ns for path in out.glob("*.onnx")}
    assert set(exported) == {"model.onnx", "model.fp16.onnx", "model.int8.onnx",
                             "model.int8.cpu.onnx", "model.int8.flagged.onnx"}
    sidecars = {name: json.loads(sidecar_path(out / name).read_text()) for name in exported}
    assert all(facts["parity"]["frames"] == 32 for facts in sidecars.values())
    calibration = json.loads((out / "calibration.json").read_text())
    assert calibration["frames"] == 300 == len(calibration["frame_digests"])
    assert onnx.load(out / "model.int8.onnx").opset_import[0].version == 20
    assert sidecars["model.int8.cpu.onnx"]["input"]["shape"][0] == "dynamic"
    verdict = sidecars["model.int8.cpu.onnx"]["verdict"]
    assert verdict["int8_ms"] > 0 and verdict["other"] in ("fp32", "bf16")
    assert "CPU 1 thread" in verdict["line"]
    assert " ".join(verdict["line"].split()) in " ".join(capsys.readouterr().out.split())

    main(["export", "onnx", "--run", str(run_copy)])
    assert capsys.readouterr().out.count("up to date") == 3
    assert exported == {path.name: path.stat().st_mtime_ns for path in out.glob("*.onnx")}

    main(["export", "onnx", "--run", str(run_copy), "--precision", "fp32", "--batch", "2"])
    assert OnnxModel(out / "model.onnx").input.shape[0] == 2


def test_another_student_is_exported_again(run_copy):
    main(["export", "onnx", "--run", str(run_copy), "--precision", "fp32"])
    before = sha256(run_copy / "export" / "model.onnx")
    weights = run_copy / "student" / "student.safetensors"
    state = load_file(weights)
    save_file({**state, "head.bias": state["head.bias"] + 1}, weights)
    main(["export", "onnx", "--run", str(run_copy), "--precision", "fp32"])
    assert sha256(run_copy / "export" / "model.onnx") != before


PYTHON_FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def test_source_digest_covers_every_sub_package():
    folders = {path.parent.as_posix() for path in PYTHON_FILES}
    assert {".", "graph", "quant", "tensorrt", "jetson", "web"} <= folders


@pytest.mark.parametrize("edited", PYTHON_FILES, ids=str)
def test_an_edit_anywhere_in_export_changes_the_source_digest(tmp_path, edited):
    copy = shutil.copytree(PACKAGE, tmp_path / "export", ignore=shutil.ignore_patterns("*.pyc"))
    before = source_digest(copy)
    assert before == source_digest()
    with (copy / edited).open("a") as file:
        file.write("\n# edited\n")
    assert source_digest(copy) != before


def test_edited_code_exports_again_what_was_up_to_date(run_copy, monkeypatch):
    def reused() -> bool:
        exporter = Exporter(load_trained_run(run_copy), log=lambda _: None)
        exporter.gate = gate()
        return exporter.export("fp32")[0].reused

    assert [reused(), reused()] == [False, True]
    monkeypatch.setattr("export.pipeline.source_digest", lambda: "of edited code")
    assert [reused(), reused()] == [False, True]


def _no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def _no_student(folder: Path) -> None:
    shutil.rmtree(folder / "student")


def _no_frames(folder: Path) -> None:
    (folder / "frames" / "heldout.safetensors").unlink()


def _truncated_frames(folder: Path) -> None:
    path = folder / "frames" / "heldout.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _few_frames(folder: Path) -> None:
    save_file({"frames": run().heldout.frames[:5]}, folder / "frames" / "heldout.safetensors")


def _float_frames(folder: Path) -> None:
    save_file({"frames": to_input(run().heldout.frames)}, folder / "frames" / "heldout.safetensors")


def _unwritable(folder: Path) -> None:
    shutil.rmtree(folder / "export")
    # root may write in any folder
    (folder / "export").write_text("a file where the folder should be")


@pytest.mark.parametrize(("damage", "message"), [
    (_no_folder, "no such run folder; make one with: vega3d distill run"),
    (_no_student, "holds no student"),
    (_no_frames, "no heldout frames"),
    (_truncated_frames, "not a safetensors file"),
    (_few_frames, "got 5 frames, expected >= 32"),
    (_float_frames, "got frames float32"),
    (_unwritable, "exists and is no folder"),
])
def test_bad_run_is_one_line_and_exit_2(run_copy, capsys, damage, message):
    damage(run_copy)
    with pytest.raises(SystemExit) as stop:
        main(["export", "onnx", "--run", str(run_copy), "--precision", "fp32"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]
    assert not list(run_copy.glob("export/*.onnx"))


def test_runs_latest_is_followed_to_the_run_it_names(run_copy, tmp_path):
    (tmp_path / "latest").symlink_to(run_copy)
    assert load_trained_run(tmp_path / "latest").out == run_copy.resolve() / "export"


@pytest.mark.parametrize(("option", "message"), [
    (("--max-drop", "-1"), "--max-drop is -1.0"), (("--max-drop", "nan"), "--max-drop is nan"),
    (("--batch", "0"), "--batch is 0"), (("--qat", "-1"), "--qat is -1")])
def test_an_impossible_option_is_refused_at_once(run_copy, capsys, option, message):
    with pytest.raises(SystemExit) as stop:
        main(["export", "onnx", "--run", str(run_copy), *option])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]
    assert not list(run_copy.glob("export/*.onnx"))


def test_int8_is_calibrated_at_the_models_batch():
    float_model = export_onnx(run().student, 3)
    quantised = quantize(float_model, run().calibration, Recipe(frames=8))
    frames = to_input(run().heldout.frames[:4])
    reference = TorchModel(run().student)(frames)
    for model in (quantised, to_unsigned(quantised)):
        assert token_cosine(reference, OnnxModel(model)(frames)).mean() > 0.99
    assert OnnxModel(quantised).input.shape[0] == 3
    assert layerwise(float_model, quantised, frames[[0] * 3])


def test_batches_of_calibration_hold_every_frame_and_repeat_the_last():
    frames = run().calibration
    model = copy_model(fp32())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    batches = calibration_batches(frames, 32, fixed_batch(model))
    expected = evenly_spaced(frames.frames, 32)
    assert batches.shape == (11, 3, 3, 224, 224)
    assert (batches.reshape(33, 3, 224, 224)[:32] == expected).all()
    assert (batches[-1, 2] == expected[-1]).all()
    assert calibration_batches(frames, 32).shape == (32, 1, 3, 224, 224)


def test_an_export_that_fails_leaves_the_earlier_files(run_copy):
    def exporter(batch: int) -> Exporter:
        made = Exporter(load_trained_run(run_copy), Options(batch), lambda _: None)
        made.fp32, made.gate = fp32(), gate()
        return made

    def fails(*args):
        raise GateError("failed")
    exporter(1).export("fp32")
    before = {path.name: path.read_bytes() for path in (run_copy / "export").iterdir()}
    failing = exporter(2)
    failing.gate = fails
    with pytest.raises(GateError):
        failing.export("fp32")
    assert before == {path.name: path.read_bytes() for path in (run_copy / "export").iterdir()}
    assert set(before) == {"model.onnx", "model.onnx.json"}
