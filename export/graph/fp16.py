"""float16 for everything that is not INT8 or FP8; inputs and outputs stay float32 behind a Cast.

A pass of our own, because onnxruntime's converter leaves nodes unsorted, value_info stale and
duplicate names. LayerNormalization stays one op with float32 statistics (its stash_type).
"""
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph.index import (
    ONNX_DOMAINS,
    GraphIndex,
    broadcast_scale,
    copy_model,
    opset,
    redirect,
    replace_nodes,
)

SUPPORTED_OPS = {"Add", "Cast", "Clip", "Concat", "Constant", "Conv", "DequantizeLinear", "Div",
                 "Erf", "Gather", "Gelu", "Gemm", "Identity", "LayerNormalization", "MatMul", "Mul",
                 "QuantizeLinear", "Reshape", "Shape", "Slice", "Softmax", "Split", "Squeeze",
                 "Sub", "Transpose", "Unsqueeze"}
FP16_MAX = 65504.0
SMALLEST_SCALE = 2.0**-17  # below it fp16 is subnormal, and rounding costs a scale more than 0.4 %
_SCALE_OPSET = 19          # Q/DQ took float16 scales then


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float16 copy of an FP32 model, or of an INT8 one with FP32 around; checked in full.

    Raises ValueError for an unsupported operator or opset, or a constant beyond float16's range.
    """
    _check_supported(model)
    half = copy_model(model)
    _lift_small_scales(half)
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(_halved(tensor))
    _convert_casts(half)
    nodes = [*_cast_inputs(half), *half.graph.node]
    _cast_outputs(half, nodes)
    replace_nodes(half.graph, nodes)
    del half.graph.value_info[:]  # its types were float32
    onnx.checker.check_model(half, full_check=True)
    return half


def _check_supported(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type not in SUPPORTED_OPS or node.domain not in ONNX_DOMAINS:
            raise ValueError(
                f"to_half: got operator {node.domain}{node.op_type} at {node.name}, expected only "
                "those of the student; add it to SUPPORTED_OPS once its float16 behaviour is "
                "tested")
        if node.op_type == "QuantizeLinear" and opset(model) < _SCALE_OPSET:
            raise ValueError(f"to_half: got opset {opset(model)} with Q/DQ, expected >= "
                             f"{_SCALE_OPSET}, which has float16 scales")


def _lift_small_scales(model: onnx.ModelProto) -> None:
    """Raises scales that float16 would round to zero, and requantises the int8 weights behind."""
    index = GraphIndex(model)
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or (scale := index.value(node.input[1])) is None:
            continue
        lifted = np.maximum(scale, np.float32(SMALLEST_SCALE))
        if (lifted == scale).all():
            continue
        values = index.value(node.input[0])
        if values is not None:
            ratio = broadcast_scale(scale / lifted, node, values.ndim)
            index.set_value(node.input[0], np.rint(values * ratio).astype(values.dtype))
        index.set_value(node.input[1], lifted)


def _convert_casts(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for entry in node.attribute:
            if node.op_type == "Constant" and entry.t.data_type == TensorProto.FLOAT:
                entry.t.CopyFrom(_halved(entry.t))
            if node.op_type == "Cast" and entry.name == "to" and entry.i == TensorProto.FLOAT:
                entry.i = TensorProto.FLOAT16


def _halved(tensor: TensorProto) -> TensorProto:
    value = numpy_helper.to_array(tensor)
    largest = float(np.abs(value).max(initial=0))
    if not largest <= FP16_MAX:
        raise ValueError(
            f"to_half: got {tensor.name} up to {largest:g}, expected <= {FP16_MAX:g} (float16's "
            "range); ship this student in FP32")
    return numpy_helper.from_array(value.astype(np.float16), tensor.name)


def _cast_inputs(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    casts = []
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            redirect(model.graph.node, value.name, f"{value.name}.fp16")
            casts.append(_cast(value.name, f"{value.name}.fp16", TensorProto.FLOAT16))
    return casts


def _cast_outputs(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    for value in model.graph.output:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            half = f"{value.name}.fp16"
            for node in nodes:
                node.output[:] = [half if name == value.name else name for name in node.output]
            redirect(nodes, value.name, half)
            nodes.append(_cast(half, value.name, TensorProto.FLOAT))


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=to)
