"""OpenVINO IR: equal to the student, INT8 where it is meant to be, written only past the gate."""
import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
import torch

from bench.artefacts import exported, find
from bench.latency.backends import student_cases
from export import openvino
from export.artefact import sidecar_path
from export.graph.session import TorchModel
from export.parity import GateError, token_cosine
from export.pipeline import Exporter, Options
from export.quant.int8 import Recipe
from export.source import load_trained_run, to_input
from records import manifest
from student.config import StudentConfig
from student.vit import Student
from tests.export_run import gate, run, trained_run
from vega3d import main

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def int8_run(tmp_path_factory):
    """(a copy of the run with its INT8 IR, the file)."""
    folder = shutil.copytree(trained_run(), tmp_path_factory.mktemp("openvino") / "run")
    manifest.create(folder)
    return folder, openvino.export_openvino(exporter(folder))


def exporter(folder, **options) -> Exporter:
    made = Exporter(load_trained_run(folder), Options(recipe=Recipe(frames=16), **options),
                    log=lambda _: None)
    made.gate = gate()
    return made


@pytest.mark.parametrize("config", [StudentConfig(size="s", depth=1, out_dim=8, stem="patch"),
                                    StudentConfig(size="ti", depth=1, out_dim=8, stem="lite0")])
def test_the_rewritten_float_model_equals_torch_at_any_width_stem_and_batch(config):
    student = Student(config, pretrained_stem=False).eval()
    frames = to_input(run().heldout.frames[:3])
    model = openvino.OpenVinoModel(openvino.float_model(student, 2), precision="f32")
    assert np.abs(model(frames) - TorchModel(student)(frames)).max() < 1e-3


def test_int8_passes_the_gate_and_keeps_attention_in_integers(int8_run):
    _, file = int8_run
    assert file.parity["cosine_mean"] > 0.999 and file.facts["quantisation"]["patch_conv"]
    model = openvino.OpenVinoModel(file.path, precision="f32").compiled.get_runtime_model()
    ran = [(node.get_rt_info()["layerType"].value, node.get_rt_info()["runtimePrecision"].value)
           for node in model.get_ops() if "runtimePrecision" in node.get_rt_info()]
    depth = run().student.config.depth
    assert sum(kind.startswith("FullyConnected") and "8" in how for kind, how in ran) == 4 * depth
    assert any(kind == "Convolution" and "8" in how for kind, how in ran)
    # the fused attention, or its two products
    assert sum(kind in ("Subgraph", "MatMul") and "8" in how for kind, how in ran) >= depth


def test_an_ir_is_two_listed_files_and_a_sidecar_and_is_made_again_if_one_is_damaged(int8_run):
    folder, file = int8_run
    weights = file.path.with_suffix(".bin")
    assert manifest.is_listed(file.path) and manifest.is_listed(weights)
    facts = json.loads(sidecar_path(file.path).read_text())
    assert facts["precision"] == "int8" and facts["size_mb"] > weights.stat().st_size / 1e6
    again = exporter(folder)
    assert openvino.export_openvino(again).reused
    intact = weights.read_bytes()
    try:
        weights.write_bytes(intact[:-1] + b"x")
        assert openvino.found(again) is None
        with pytest.raises(ValueError, match="was changed; make one with: vega3d export openvino"):
            find(file.path)
        names = [artefact.path.name for artefact in exported(folder)[0]]
        assert file.path.name not in names
    finally:
        weights.write_bytes(intact)


def test_a_file_that_fails_the_gate_is_not_written(int8_run, tmp_path, monkeypatch):
    folder = shutil.copytree(int8_run[0], tmp_path / "run")
    monkeypatch.setattr(openvino, "quantize", lambda model, _: openvino.float_model(
        Student(run().student.config, pretrained_stem=False).eval()))
    before = (folder / "export" / openvino.INT8.file).read_bytes()
    other = exporter(folder)
    other.options = Options(recipe=Recipe(frames=17))
    with pytest.raises(GateError, match="is not written"):
        openvino.export_openvino(other)
    assert (folder / "export" / openvino.INT8.file).read_bytes() == before


def test_bench_times_the_ir_beside_onnxruntime_by_default(int8_run):
    ((file,), _) = find(int8_run[1].path)
    frames = to_input(run().heldout.frames[:1])
    cases, missing = student_cases([file], torch.from_numpy(frames), (1,), (), 1)
    assert [(case.info["backend"], case.info["precision"]) for case in cases] == [
        ("openvino", "int8")]
    assert not [row for row in missing if "openvino" in row["what"]]
    got = cases[0].call()[0]
    assert token_cosine(got, gate().reference[:1]).mean() > 0.99


def test_a_signal_is_handled_after_models_ended_in_the_order_of_their_beginning(int8_run):
    """In a fork: OpenVINO's plugins would leave it a freed stack to handle signals on."""
    models = [openvino.OpenVinoModel(int8_run[1].path) for _ in range(2)]
    while models:
        del models[0]
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
        signal.raise_signal(signal.SIGTERM)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_without_the_package_the_command_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SystemExit) as stopped:
        main(["export", "openvino", "--run", str(tmp_path)])
    assert stopped.value.code == 2
    assert "pip install 'vega3d-edge[openvino]'" in capsys.readouterr().err
