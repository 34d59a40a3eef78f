"""The ONNX dialects of one INT8 calibration: the same numbers, stored as each runtime reads them.

signed        int8 activations with zero point 0, int8 weights behind DQ: TensorRT 10, 11 and RTX
unsigned      uint8 activations with zero point 128 and the same scales, exactly equal: about 2x
              faster in onnxruntime on CPU and web. Its batch is open, because onnxruntime turns a
              static MatMul + Add into Gemm, for which it has no INT8 kernel
weakly typed  opset 17, float weights under Q and DQ, GELU written with Erf: TensorRT 8.6
jetpack5      weakly typed, with LayerNormalization decomposed: TensorRT 8.5
"""
from functools import partial

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graph.index import (
    GraphIndex,
    add_constant,
    attribute,
    broadcast_scale,
    channel_axis,
    copy_model,
    opset,
    remove_attribute,
    replace_nodes,
)

WEAKLY_TYPED_OPSET = 17
WEAKLY_TYPED_IR = 8  # that of onnx 1.13, as old as TensorRT 8.6
_GELU_CONSTANTS = {"gelu.sqrt2": 2**0.5, "gelu.one": 1, "gelu.half": 0.5}


def to_unsigned(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with uint8 activations and an open batch. ValueError if not symmetric int8."""
    unsigned = copy_model(model)
    index = GraphIndex(unsigned)
    zero_points = {node.input[2] for node in unsigned.graph.node
                   if node.op_type == "QuantizeLinear" and not index.is_weight(node.input[0])}
    for tensor in unsigned.graph.initializer:
        if tensor.name in zero_points:
            zero = numpy_helper.to_array(tensor)
            if zero.dtype != np.int8 or zero.any():
                raise ValueError(f"to_unsigned: got zero point {tensor.name} = {zero}, "
                                 "expected int8 0; start from the signed form")
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(zero, 128, np.uint8), tensor.name))
    _open_batch(unsigned)
    return unsigned


def to_weakly_typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for TensorRT 8.6: opset 17, int8 weights dequantised under a Q of the same scale."""
    copy = copy_model(model)
    if opset(copy) > WEAKLY_TYPED_OPSET:
        _to_opset_17(copy)
    _float_weights(copy)
    del copy.graph.value_info[:]
    del copy.opset_import[:]
    copy.opset_import.append(helper.make_opsetid("", WEAKLY_TYPED_OPSET))
    copy.ir_version = WEAKLY_TYPED_IR
    onnx.checker.check_model(copy, full_check=True)
    return copy


def to_jetpack5(weakly_typed: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a weakly typed model with each LayerNormalization decomposed into nine nodes."""
    copy = copy_model(weakly_typed)
    nodes: list[onnx.NodeProto] = []
    epsilons: dict[str, float] = {}
    for node in copy.graph.node:
        if node.op_type == "LayerNormalization":
            epsilon = float(attribute(node, "epsilon", 1e-5))  # type: ignore[arg-type]
            name = f"norm.epsilon.{epsilon:g}"
            epsilons[name] = epsilon
            nodes += _decomposed_layernorm(node, name)
        else:
            nodes.append(node)
    replace_nodes(copy.graph, nodes)
    for name, epsilon in epsilons.items():
        add_constant(copy, name, np.float32(epsilon))
    onnx.checker.check_model(copy, full_check=True)
    return copy


def _open_batch(model: onnx.ModelProto) -> None:
    """Sets the leading size of every Reshape to -1, "what is left": any number of frames fits."""
    index = GraphIndex(model)
    for node in model.graph.node:
        shape = index.value(node.input[1]) if node.op_type == "Reshape" else None
        if shape is not None and -1 not in shape:
            index.set_value(node.input[1], np.array([-1, *shape[1:]], shape.dtype))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]


def _to_opset_17(model: onnx.ModelProto) -> None:
    """Rewrites the two operators that opset 17 lacks (Gelu) or writes otherwise (Split)."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Split" and len(node.input) == 1:
            remove_attribute(node, "num_outputs")  # opset 17 splits evenly by that of its outputs
        nodes += _erf_gelu(node) if node.op_type == "Gelu" else [node]
    has_gelu = len(nodes) > len(model.graph.node)
    replace_nodes(model.graph, nodes)
    if has_gelu:
        for name, value in _GELU_CONSTANTS.items():
            add_constant(model, name, np.float32(value))


def _erf_gelu(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """x/2 * (1 + erf(x / sqrt 2)), in the order that TensorRT's fusion looks for."""
    if attribute(node, "approximate", b"none") != b"none":
        raise ValueError(f"to_weakly_typed: {node.name} is GELU's tanh form, expected the exact "
                         "one; re-export the student")
    (x,), (y,), at = node.input, node.output, node.name
    make = helper.make_node
    return [make("Div", [x, "gelu.sqrt2"], [f"{at}.div"], name=f"{at}/Div"),
            make("Erf", [f"{at}.div"], [f"{at}.erf"], name=f"{at}/Erf"),
            make("Add", [f"{at}.erf", "gelu.one"], [f"{at}.one"], name=f"{at}/Add"),
            make("Mul", [x, f"{at}.one"], [f"{at}.x"], name=f"{at}/Mul"),
            make("Mul", [f"{at}.x", "gelu.half"], [y], name=f"{at}/Mul_2")]


def _float_weights(model: onnx.ModelProto) -> None:
    """int8 constant -> DQ becomes float constant -> Q -> DQ, with the same scales."""
    index, nodes = GraphIndex(model), []
    for node in model.graph.node:
        weight = index.value(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is not None:
            name, scale_name, zero = node.input
            scale = index.value(scale_name)
            assert scale is not None
            scale = broadcast_scale(scale, node, weight.ndim)
            index.set_value(name, weight.astype(np.float32) * scale)
            nodes.append(helper.make_node("QuantizeLinear", [name, scale_name, zero], [f"{name}.q"],
                                          name=f"{node.name}/weight_q", axis=channel_axis(node)))
            node.input[0] = f"{name}.q"
        nodes.append(node)
    replace_nodes(model.graph, nodes)


def _decomposed_layernorm(norm: onnx.NodeProto, epsilon: str) -> list[onnx.NodeProto]:
    (x, gamma, beta), (y,), at = norm.input, norm.output, norm.name
    make = helper.make_node
    mean = partial(make, "ReduceMean", axes=[-1], keepdims=1)
    return [mean([x], [f"{at}.mean"], name=f"{at}/Mean"),
            make("Sub", [x, f"{at}.mean"], [f"{at}.centred"], name=f"{at}/Sub"),
            make("Mul", [f"{at}.centred", f"{at}.centred"], [f"{at}.square"], name=f"{at}/Mul"),
            mean([f"{at}.square"], [f"{at}.variance"], name=f"{at}/Mean_2"),
            make("Add", [f"{at}.variance", epsilon], [f"{at}.safe"], name=f"{at}/Add"),
            make("Sqrt", [f"{at}.safe"], [f"{at}.deviation"], name=f"{at}/Sqrt"),
            make("Div", [f"{at}.centred", f"{at}.deviation"], [f"{at}.unit"], name=f"{at}/Div"),
            make("Mul", [f"{at}.unit", gamma], [f"{at}.scaled"], name=f"{at}/Mul_2"),
            make("Add", [f"{at}.scaled", beta], [y], name=f"{at}/Add_2")]
