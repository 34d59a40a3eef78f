"""FP8: float8 Q/DQ around the block Linears alone, scales recomputed, refused elsewhere."""
import importlib.util
import json
import shutil
from functools import cache

import numpy as np
import onnx
import pytest
from ml_dtypes import float8_e4m3fn
from onnx import TensorProto, numpy_helper

from export.artefact import sidecar_path
from export.graph.check import check_qdq
from export.graph.fp16 import to_half
from export.graph.index import GraphIndex
from export.graph.session import OnnxModel
from export.parity import THRESHOLDS, GateError
from export.pipeline import Exporter
from export.quant.fp8 import quantize_fp8
from export.quant.int8 import Recipe
from export.source import evenly_spaced, load_trained_run, to_input
from export.tensorrt import engines, packages
from export.tensorrt.builder import precision_flags
from tests.export.test_engines import trt86
from tests.export_run import EXPORTED, fp32, gate, int8, run, trained_run
from vega3d import main

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None,
                               reason=packages.RTX.install)


@cache
def fp8() -> onnx.ModelProto:
    return quantize_fp8(fp32(), run().calibration, Recipe(frames=16))


def test_block_linears_are_float8_on_both_sides_and_nothing_else_is():
    index = GraphIndex(fp8())
    served = {
        index.readers[node.output[0]][0].name
        for node in fp8().graph.node if node.op_type == "DequantizeLinear"
    }
    assert served == {
        f"blocks.{i}.{name}/MatMul"
        for i in range(2)
        for name in ("attn.qkv", "attn.proj", "fc1", "fc2")
    }
    kinds = {
        tensor.data_type
        for tensor in fp8().graph.initializer if tensor.name.endswith(("_q", "_zero"))
    }
    assert kinds == {TensorProto.FLOAT8E4M3FN}


def test_scales_are_the_largest_magnitude_by_448():
    """Against the tensor itself, read out of the FP32 model frame by frame."""
    opened = onnx.ModelProto()
    opened.CopyFrom(fp32())
    wanted = next(node.input[0] for node in opened.graph.node if node.name == "blocks.1.fc2/MatMul")
    opened.graph.output.append(onnx.ValueInfoProto(name=wanted))
    session = OnnxModel(opened).session
    peak = max(np.abs(session.run([wanted], {"frames": to_input(frame[None])})[0]).max()
               for frame in evenly_spaced(run().calibration.frames, 16))
    assert GraphIndex(fp8()).value("blocks.1.fc2/MatMul.input_scale") == pytest.approx(
        peak / 448, rel=1e-5)


def test_weights_are_the_nearest_float8_values():
    stored = GraphIndex(fp8()).value("blocks.0.fc1/MatMul.weight_q").astype(np.float32)
    scale = GraphIndex(fp8()).value("blocks.0.fc1/MatMul.weight_scale")
    wanted = GraphIndex(fp32()).value("blocks.0.fc1.weight_t")
    assert np.abs(stored).max() == 448
    # half of 3 bits of mantissa, or of a subnormal
    step = np.maximum(np.abs(wanted) / 16, scale * 2.0**-10)
    assert (np.abs(stored * scale - wanted) <= step * 1.001).all()


def test_it_passes_its_gate_and_the_verifier_as_shipped():
    half = to_half(fp8())
    assert check_qdq(half, "trt10", want_int8=True) == [] and check_qdq(half, "jetson-thor") == []
    parity = gate()(OnnxModel(half), "fp8", "model.fp8.onnx")
    assert parity.cosine_mean < 0.99999  # it is quantised


def test_int8_is_closer_than_fp8_with_the_same_layers():
    int8_cosine, fp8_cosine = (gate().measure(OnnxModel(model)).cosine_mean
                               for model in (int8(), fp8()))
    assert int8_cosine > fp8_cosine


@pytest.mark.parametrize("target", ["jetson-orin-jp62", "trt8.6", "cpu"])
def test_a_target_without_fp8_refuses_it(target):
    assert "type" in {violation.rule for violation in check_qdq(to_half(fp8()), target)}


def _edited(name, value) -> onnx.ModelProto:
    model = onnx.ModelProto.FromString(fp8().SerializeToString())
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return model


def test_a_shifted_zero_point_is_found():
    model = _edited("blocks.0.fc1/MatMul.input_zero", np.ones((), float8_e4m3fn))
    assert ("blocks.0.fc1/MatMul.input/QuantizeLinear", "zero-point") in {
        (violation.node, violation.rule) for violation in check_qdq(model, "trt11")}


def test_ranges_that_clip_fail_the_gate():
    scales = {tensor.name: numpy_helper.to_array(tensor) / 20 for tensor in fp8().graph.initializer
              if tensor.name.endswith("input_scale")}
    model = onnx.ModelProto.FromString(fp8().SerializeToString())
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            tensor.CopyFrom(numpy_helper.from_array(scales[tensor.name], tensor.name))
    with pytest.raises(GateError):
        gate()(OnnxModel(model), "fp8", "model.fp8.onnx")


def test_gate_for_fp8_is_wider_than_int8s_and_still_a_gate():
    assert 0.99 < THRESHOLDS["fp8"].cosine_mean < THRESHOLDS["int8"].cosine_mean


def test_an_unknown_layer_is_named():
    with pytest.raises(ValueError, match=r"no layer called blocks\.9"):
        quantize_fp8(fp32(), run().calibration, Recipe(float_layers=("blocks.9.fc1/MatMul",)))


def test_tensorrt_8_has_no_flag_for_it():
    with pytest.raises(ValueError, match=r"FP8 needs TensorRT 10 or later, this is 8\.6"):
        precision_flags(trt86(), "fp8")


# --- through the command

@needs_rtx
def test_rtx_builds_it_for_ada_and_blackwell_and_names_cards_without_fp8(tmp_path, capsys):
    folder = shutil.copytree(trained_run(), tmp_path / "run")
    exporter = Exporter(load_trained_run(folder), EXPORTED, log=lambda _: None)
    exporter.gate = gate()
    built = engines.build_engines(exporter, engines.choose_build_target("rtx", (89, 120)), "fp8")
    assert [engine.path.name.split(".")[-2] for engine in built] == ["sm89", "sm120"]
    facts = json.loads(sidecar_path(built[0].path).read_text())
    assert facts["onnx"] == "model.fp8.onnx" and facts["precision"] == "fp8"
    assert facts["flags"] == []
    sidecar = json.loads(sidecar_path(folder / "export" / "model.fp8.onnx").read_text())
    assert sidecar["quantisation"]["activations"] == "float8 e4m3fn per tensor"

    with pytest.raises(SystemExit) as stop:
        main(["export", "trt", "--run", str(folder), "--fp8", "--target", "rtx"])
    assert stop.value.code == 2 and "SM 86 has no FP8" in capsys.readouterr().err
