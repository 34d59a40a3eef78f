"""FP8 (E4M3) around the layers that INT8 quantises: for Ada (SM 89), Hopper, Blackwell and Thor.

Plain min-max: scale = largest magnitude / 448, one for a tensor, as TensorRT wants it. Its steps
grow with the value, so outlier channels cost it little and SmoothQuant would gain nothing.
"""
from collections.abc import Iterable

import numpy as np
import onnx
from ml_dtypes import float8_e4m3fn
from onnx import TensorProto, helper

from export.artefact import Facts
from export.graph.index import GraphIndex, add_constant, copy_model, replace_nodes
from export.graph.session import cpu_session
from export.quant.int8 import (
    Recipe,
    calibration_batches,
    fixed_batch,
    float_nodes,
    name_for_layers,
    unshared,
)
from export.source import Frames, to_input

E4M3_MAX = 448.0
SMS = (89, 90, 100, 103, 110, 120, 121)  # with FP8 tensor cores


def quantize_fp8(model: onnx.ModelProto, calibration: Frames, recipe: Recipe) -> onnx.ModelProto:
    """FP32 ONNX (opset >= 19) -> the same with FP8 Q/DQ. ValueError for an unknown float layer."""
    model = unshared(model)
    in_float = set(float_nodes(model, recipe))
    index = GraphIndex(model)
    inputs = {node.name: node.input[0] for node in model.graph.node if node.op_type == "MatMul"
              and node.name not in in_float and index.is_weight(node.input[1])}
    peaks = peak_magnitudes(model, inputs.values(), calibration, recipe.frames)
    nodes = []
    for node in model.graph.node:
        if node.name in inputs:
            nodes += _quantize_inputs(model, index, node, peaks[node.input[0]])
        nodes.append(node)
    replace_nodes(model.graph, nodes)
    name_for_layers(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def fp8_facts(recipe: Recipe) -> Facts:
    """What stands in the sidecar under `quantisation`."""
    return {"patch_conv": False, "head": False, "frames": recipe.frames,
            "float_layers": list(recipe.float_layers), "tool": "vega3d", "ranges": "min-max",
            "weights": "float8 e4m3fn per tensor", "activations": "float8 e4m3fn per tensor"}


def peak_magnitudes(model: onnx.ModelProto, tensors: Iterable[str], calibration: Frames,
                    most: int) -> dict[str, float]:
    """Largest magnitude of each tensor over at most `most` frames of the calibration set."""
    probed, names = copy_model(model), list(dict.fromkeys(tensors))
    del probed.graph.output[:]
    for name in names:
        probed.graph.node.extend([
            helper.make_node("Abs", [name], [f"{name}.abs"]),
            helper.make_node("ReduceMax", [f"{name}.abs"], [f"{name}.peak"], keepdims=0)])
        probed.graph.output.append(
            helper.make_tensor_value_info(f"{name}.peak", TensorProto.FLOAT, []))
    session = cpu_session(probed.SerializeToString())
    name = session.get_inputs()[0].name
    peaks = np.zeros(len(names))
    for frames in calibration_batches(calibration, most, fixed_batch(model)):
        peaks = np.maximum(peaks, session.run(None, {name: to_input(frames)}))
    return dict(zip(names, map(float, peaks), strict=True))


def _quantize_inputs(model: onnx.ModelProto, index: GraphIndex, node: onnx.NodeProto,
                     peak: float) -> list[onnx.NodeProto]:
    """Stores a MatMul's weight in FP8, in place; returns the Q and DQ nodes that it then reads."""
    x, weight = node.input
    value = index.value(weight)
    assert value is not None
    scale = _scale(float(np.abs(value).max()))
    index.set_value(weight, (value / scale).astype(float8_e4m3fn))
    for name, size in ((weight, scale), (f"{node.name}.x", _scale(peak))):
        add_constant(model, f"{name}.s", size)
        add_constant(model, f"{name}.z", np.zeros((), float8_e4m3fn))
    at, numbers = node.name, [f"{node.name}.x.s", f"{node.name}.x.z"]
    node.input[:] = [f"{at}.dq", f"{at}.w"]
    make = helper.make_node
    return [make("QuantizeLinear", [x, *numbers], [f"{at}.q"]),
            make("DequantizeLinear", [f"{at}.q", *numbers], [f"{at}.dq"]),
            make("DequantizeLinear", [weight, f"{weight}.s", f"{weight}.z"], [f"{at}.w"])]


def _scale(peak: float) -> np.ndarray:
    return np.array(max(peak, 1e-6) / E4M3_MAX, np.float32)
