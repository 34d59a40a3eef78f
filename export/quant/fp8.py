"""FP8 (E4M3) around the same layers as INT8: for GPUs whose tensor cores have it, Ada (SM 89),
Hopper, Blackwell, Thor.

Plain min-max: scale = largest magnitude / 448, one for a tensor, weights and activations alike, as
TensorRT wants it. Its steps grow with the value, so outlier channels cost it little and SmoothQuant
has nothing to win.
"""
from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime as ort
from ml_dtypes import float8_e4m3fn
from onnx import TensorProto, helper, numpy_helper

from export.artefact import Facts
from export.graph.index import GraphIndex
from export.quant.int8 import Recipe, ignored, name_for_layers, unshared
from export.source import Frames, evenly_spaced, to_input

E4M3_MAX = 448.0
SMS = (89, 90, 100, 103, 110, 120, 121)  # with FP8 tensor cores


def quantize_fp8(model: onnx.ModelProto, calibration: Frames, recipe: Recipe) -> onnx.ModelProto:
    """FP32 ONNX (opset >= 19) -> the same with FP8 Q/DQ around the Linears that `recipe` names,
    FP32 elsewhere.

    Raises ValueError if a name in `recipe.float_layers` is no layer of the model.
    """
    model = unshared(model)
    left_out = set(ignored(model, recipe))
    index = GraphIndex(model)
    chosen = [
        node for node in model.graph.node if node.op_type == "MatMul" and node.name not in left_out
        and index.is_weight(node.input[1])
    ]
    peaks = largest(model, [node.input[0] for node in chosen], calibration, recipe.frames)
    nodes = []
    for node in model.graph.node:
        if node in chosen:
            x, weight = node.input
            value = index.value(weight)
            assert value is not None
            scale = _scale(float(np.abs(value).max()))
            _store(model, index, weight, (value / scale).astype(float8_e4m3fn))
            for name, size in ((weight, scale), (f"{node.name}.x", _scale(peaks[x]))):
                model.graph.initializer.append(numpy_helper.from_array(size, f"{name}.s"))
                model.graph.initializer.append(_zero(f"{name}.z"))
            own = [f"{node.name}.x.s", f"{node.name}.x.z"]
            nodes += [
                helper.make_node("QuantizeLinear", [x, *own], [f"{node.name}.q"]),
                helper.make_node("DequantizeLinear", [f"{node.name}.q", *own], [f"{node.name}.dq"]),
                helper.make_node("DequantizeLinear", [weight, f"{weight}.s", f"{weight}.z"],
                                 [f"{node.name}.w"])
            ]
            node.input[0], node.input[1] = f"{node.name}.dq", f"{node.name}.w"
        nodes.append(node)
    # del frees the originals
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    name_for_layers(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def fp8_facts(recipe: Recipe) -> Facts:
    """What stands in the sidecar under `quantisation`."""
    return {
        "patch_conv": False, "head": False, "frames": recipe.frames,
        "float_layers": list(recipe.float_layers), "tool": "vega3d", "ranges": "min-max",
        "weights": "float8 e4m3fn per tensor", "activations": "float8 e4m3fn per tensor"
    }


def largest(model: onnx.ModelProto, tensors: Iterable[str], calibration: Frames,
            most: int) -> dict[str, float]:
    """Largest magnitude of each tensor over at most `most` frames of the calibration set."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = list(dict.fromkeys(tensors))
    for name in names:
        watched.graph.node.extend([
            helper.make_node("Abs", [name], [f"{name}.abs"]),
            helper.make_node("ReduceMax", [f"{name}.abs"], [f"{name}.peak"], keepdims=0)
        ])
    del watched.graph.output[:]
    watched.graph.output.extend(
        helper.make_tensor_value_info(f"{name}.peak", TensorProto.FLOAT, []) for name in names)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(watched.SerializeToString(), options,
                                   providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    peaks = np.zeros(len(names))
    for frame in evenly_spaced(calibration.frames, most):
        frames = np.repeat(to_input(frame[None]), batch if isinstance(batch, int) else 1, 0)
        peaks = np.maximum(peaks, session.run(None, {session.get_inputs()[0].name: frames}))
    return dict(zip(names, map(float, peaks), strict=True))


def _scale(peak: float) -> np.ndarray:
    return np.array(max(peak, 1e-6) / E4M3_MAX, np.float32)


def _zero(name: str) -> TensorProto:
    return numpy_helper.from_array(np.zeros((), float8_e4m3fn), name)


def _store(model: onnx.ModelProto, index: GraphIndex, name: str, value: np.ndarray) -> None:
    index.constants[name].CopyFrom(numpy_helper.from_array(value, name))
