"""float16 for everything that is not INT8; inputs and outputs stay float32 behind a Cast.

An own pass because onnxruntime's converter leaves nodes unsorted, value_info stale and duplicate
names on this graph. It knows exactly the operators the student has. LayerNormalization stays one op
whose statistics are float32 by its stash_type, so it is safe as it stands; `fp32_ops` keeps
operators wholly in float32 where parity asks for it.
"""
from collections.abc import Collection, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph.index import ONNX_DOMAINS, GraphIndex, attribute, opset

KNOWN = {
    "Add", "Cast", "Concat", "Constant", "Conv", "DequantizeLinear", "Div", "Erf", "Gather", "Gelu",
    "Gemm", "Identity", "LayerNormalization", "MatMul", "Mul", "QuantizeLinear", "Reshape", "Shape",
    "Slice", "Softmax", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze"
}
FP16_MAX = 65504.0
SMALLEST_SCALE = 2.0**-17  # below it fp16 is subnormal, and rounding costs a scale more than 0.4 %
_SCALE_OPSET = 19          # Q/DQ took float16 scales then


def to_half(model: onnx.ModelProto, fp32_ops: Collection[str] = ()) -> onnx.ModelProto:
    """A float16 copy of an FP32 (or INT8 with FP32 around) model, checked in full.

    fp32_ops: operator types kept in float32 between Casts, e.g. ("LayerNormalization", "Softmax").
    Raises ValueError for an unknown operator, an opset below 19 under Q/DQ, or a constant beyond
    float16's range.
    """
    _refuse_unknown(model)
    half = onnx.ModelProto()
    half.CopyFrom(model)
    _lift_small_scales(half)
    wide = _wide_constants(half, fp32_ops)
    nodes = _enter(half) + _cast_around(half, fp32_ops, wide)
    _leave(half, nodes)
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    del half.graph.value_info[:]  # its types were float32
    onnx.checker.check_model(half, full_check=True)
    return half


def _refuse_unknown(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type not in KNOWN or node.domain not in ONNX_DOMAINS:
            raise ValueError(
                f"to_half: got operator {node.domain}{node.op_type} at {node.name}, expected only "
                "those that the student has; add it to KNOWN once its float16 behaviour is tested")
        if node.op_type == "QuantizeLinear" and opset(model) < _SCALE_OPSET:
            raise ValueError(
                f"to_half: got opset {opset(model)} with Q/DQ, expected >= {_SCALE_OPSET}; "
                "float16 scales came with it")


def _lift_small_scales(model: onnx.ModelProto) -> None:
    """Scales that float16 would round to nothing are raised, and int8 weights behind them rounded
    again."""
    index = GraphIndex(model)
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or (scale := index.value(node.input[1])) is None:
            continue
        lifted = np.maximum(scale, np.float32(SMALLEST_SCALE))
        if (lifted == scale).all():
            continue
        values = index.value(node.input[0])
        if values is not None:
            shape = [1] * values.ndim
            if scale.size > 1:
                shape[int(attribute(node, "axis", 1))] = scale.size  # type: ignore[call-overload]
            again = np.rint(values * (scale / lifted).reshape(shape)).astype(values.dtype)
            index.constants[node.input[0]].CopyFrom(numpy_helper.from_array(again, node.input[0]))
        index.constants[node.input[1]].CopyFrom(numpy_helper.from_array(lifted, node.input[1]))


def _wide_constants(model: onnx.ModelProto, fp32_ops: Collection[str]) -> dict[str, str]:
    """Turns float constants to float16, leaving a float32 twin of each that an island reads: {name:
    twin}."""
    readers = GraphIndex(model).readers
    wide: dict[str, str] = {}
    for tensor in list(model.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        if any(node.op_type in fp32_ops for node in readers[tensor.name]):
            twin = model.graph.initializer.add()
            twin.CopyFrom(tensor)
            twin.name = wide[tensor.name] = f"{tensor.name}.fp32"
        if tensor.name in wide and all(node.op_type in fp32_ops for node in readers[tensor.name]):
            model.graph.initializer.remove(tensor)
        else:
            tensor.CopyFrom(_halved(tensor))
    for node in model.graph.node:
        for entry in node.attribute:
            if node.op_type == "Constant" and entry.t.data_type == TensorProto.FLOAT:
                entry.t.CopyFrom(_halved(entry.t))
            if node.op_type == "Cast" and entry.name == "to" and entry.i == TensorProto.FLOAT:
                entry.i = TensorProto.FLOAT16
    return wide


def _halved(tensor: TensorProto) -> TensorProto:
    value = numpy_helper.to_array(tensor)
    worst = float(np.abs(value).max(initial=0))
    if not worst <= FP16_MAX:
        raise ValueError(
            f"to_half: got {tensor.name} up to {worst:g}, expected <= {FP16_MAX:g} (float16's "
            "range); ship this student in FP32")
    return numpy_helper.from_array(value.astype(np.float16), tensor.name)


def _enter(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    casts = []
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            _rewire(model.graph.node, value.name, f"{value.name}.fp16")
            casts.append(_cast(value.name, f"{value.name}.fp16", TensorProto.FLOAT16))
    return casts


def _cast_around(model: onnx.ModelProto, fp32_ops: Collection[str],
                 wide: dict[str, str]) -> list[onnx.NodeProto]:
    nodes = []
    for node in model.graph.node:
        if node.op_type not in fp32_ops:
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            node.input[i] = wide.get(name) or f"{node.name}.in{i}"
            if name not in wide:
                nodes.append(_cast(name, node.input[i], TensorProto.FLOAT))
        out, node.output[0] = node.output[0], f"{node.name}.fp32"
        nodes += [node, _cast(node.output[0], out, TensorProto.FLOAT16)]
    return nodes


def _leave(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    for value in model.graph.output:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            for node in nodes:
                for i, name in enumerate(node.output):
                    if name == value.name:
                        node.output[i] = f"{value.name}.fp16"
            _rewire(nodes, value.name, f"{value.name}.fp16")
            nodes.append(_cast(f"{value.name}.fp16", value.name, TensorProto.FLOAT))


def _rewire(nodes: Collection[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=to)


Fault = tuple[str, str, str]  # node, rule, why


def half_precision_faults(model: onnx.ModelProto) -> Iterator[Fault]:
    """(node, rule, why) of each LayerNorm taken apart in float16, or whole but with float16
    statistics."""
    types = _tensor_types(model)
    index = GraphIndex(model)
    for node in model.graph.node:
        if _squares(index, node) and types.get(node.output[0]) == TensorProto.FLOAT16:
            yield (node.name, "layernorm",
                   "a decomposed LayerNorm squares in float16 and overflows past 256; "
                   "export at opset >= 17, where it is one op")
        if node.op_type == "LayerNormalization" and types.get(node.input[0]) == TensorProto.FLOAT16:
            stash = next((entry.i for entry in node.attribute if entry.name == "stash_type"), 1)
            if stash != TensorProto.FLOAT:
                yield (node.name, "layernorm",
                       "keeps its statistics in float16; set stash_type to 1 (float32)")


def _squares(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """x**2 or x*x, read by a ReduceMean: the variance of a LayerNorm (or RMSNorm)."""
    if node.op_type == "Pow":
        exponent = index.value(node.input[1])
        squares = exponent is not None and exponent.size == 1 and float(exponent.ravel()[0]) == 2
    else:
        squares = node.op_type == "Mul" and node.input[0] == node.input[1]
    return squares and any(reader.op_type == "ReduceMean"
                           for reader in index.readers[node.output[0]])


def _tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # a broken graph is reported by the rule "valid"; its types are unknown here
        inferred = model
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}
