"""One calibration, three spellings of the same INT8 numbers.

signed    int8 activations, zero point 0, int8 weights behind DQ: TensorRT 10, 11, RTX (what
`quantize` makes) unsigned  uint8 activations, zero point 128, same scales: exactly equal, about 2x
          faster in onnxruntime on CPU and web; its batch is open, because onnxruntime makes a Gemm
          of a static MatMul + Add, for which it has no INT8 kernel
flagged   opset 17, float weights under Q and DQ, GELU spelt with Erf: TensorRT 8.6, which refuses
int8 initialisers jetpack5  the same with LayerNorm taken apart: TensorRT 8.5, whose builder must be
told to keep it in float32
"""
import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graph.index import GraphIndex, attribute, opset

WEAKLY_TYPED_OPSET = 17
WEAKLY_TYPED_IR = 8  # TensorRT 8.6 is of the time of onnx 1.13
_SINCE_18 = {"Gelu": "spelt with Erf", "Split": "num_outputs dropped"}


def to_unsigned(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose activations are uint8 with zero point 128, its batch open. Weights stay int8.

    Raises ValueError for a model that is not symmetric int8.
    """
    unsigned = _copy(model)
    index = GraphIndex(unsigned)
    activations = {node.input[2] for node in unsigned.graph.node
                   if node.op_type == "QuantizeLinear" and not index.is_weight(node.input[0])}
    for tensor in unsigned.graph.initializer:
        if tensor.name in activations:
            zero = numpy_helper.to_array(tensor)
            if zero.dtype != np.int8 or zero.any():
                raise ValueError(
                    f"to_unsigned: got zero point {tensor.name} = {zero}, expected int8 0; "
                    "start from the signed form")
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(zero, 128, np.uint8), tensor.name))
    _open_batch(unsigned)
    return unsigned


def _open_batch(model: onnx.ModelProto) -> None:
    """Any number of frames a call: the leading size of every Reshape becomes -1, "what is left"."""
    index = GraphIndex(model)
    for node in model.graph.node:
        shape = index.value(node.input[1]) if node.op_type == "Reshape" else None
        if shape is not None and -1 not in shape:
            opened = shape.copy()
            opened[0] = -1
            index.constants[node.input[1]].CopyFrom(numpy_helper.from_array(opened, node.input[1]))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]


def to_weakly_typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for TensorRT 8.6: opset 17; each int8 weight is a float one under Q and DQ with the
    same scales.

    The float weight is the dequantised one, so quantising it again gives the same int8 values.
    """
    flagged = _copy(model)
    if opset(flagged) > WEAKLY_TYPED_OPSET:
        _spell_for_17(flagged)
    _float_weights(flagged)
    del flagged.graph.value_info[:]
    del flagged.opset_import[:]
    flagged.opset_import.append(helper.make_opsetid("", WEAKLY_TYPED_OPSET))
    flagged.ir_version = WEAKLY_TYPED_IR
    onnx.checker.check_model(flagged, full_check=True)
    return flagged


def to_jetpack5(flagged: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a flagged model without LayerNormalization: what it computes, in nine nodes named
    after it."""
    plain = _copy(flagged)
    nodes: list[onnx.NodeProto] = []
    for node in plain.graph.node:
        nodes += _taken_apart(node) if node.op_type == "LayerNormalization" else [node]
    epsilons = {
        float(attribute(node, "epsilon", 1e-5))
        for node in plain.graph.node  # type: ignore[arg-type]
        if node.op_type == "LayerNormalization"
    }
    _replace_nodes(plain.graph, nodes)
    plain.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.float32), f"norm.epsilon.{value:g}")
        for value in epsilons)
    onnx.checker.check_model(plain, full_check=True)
    return plain


def _taken_apart(norm: onnx.NodeProto) -> list[onnx.NodeProto]:
    (x, gamma, beta), (y,), at = norm.input, norm.output, norm.name
    epsilon = f"norm.epsilon.{float(attribute(norm, 'epsilon', 1e-5)):g}"  # type: ignore[arg-type]
    make = helper.make_node
    return [
        make("ReduceMean", [x], [f"{at}.mean"], name=f"{at}/Mean", axes=[-1], keepdims=1),
        make("Sub", [x, f"{at}.mean"], [f"{at}.centred"], name=f"{at}/Sub"),
        make("Mul", [f"{at}.centred", f"{at}.centred"], [f"{at}.square"], name=f"{at}/Mul"),
        make("ReduceMean", [f"{at}.square"], [f"{at}.variance"], name=f"{at}/Mean_2", axes=[-1],
             keepdims=1),
        make("Add", [f"{at}.variance", epsilon], [f"{at}.safe"], name=f"{at}/Add"),
        make("Sqrt", [f"{at}.safe"], [f"{at}.deviation"], name=f"{at}/Sqrt"),
        make("Div", [f"{at}.centred", f"{at}.deviation"], [f"{at}.unit"], name=f"{at}/Div"),
        make("Mul", [f"{at}.unit", gamma], [f"{at}.scaled"], name=f"{at}/Mul_2"),
        make("Add", [f"{at}.scaled", beta], [y], name=f"{at}/Add_2")
    ]


def _float_weights(model: onnx.ModelProto) -> None:
    index = GraphIndex(model)
    nodes = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in index.constants:
            name, scale, zero = node.input
            axis = int(attribute(node, "axis", 1))  # type: ignore[call-overload]
            index.constants[name].CopyFrom(
                numpy_helper.from_array(_dequantise(index, node, axis), name))
            nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}.q"],
                                          name=f"{node.name}/weight_q", axis=axis))
            node.input[0] = f"{name}.q"
        nodes.append(node)
    _replace_nodes(model.graph, nodes)


def _dequantise(index: GraphIndex, node: onnx.NodeProto, axis: int) -> np.ndarray:
    values, scale = index.value(node.input[0]), index.value(node.input[1])
    assert values is not None and scale is not None
    shape = [1] * values.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    return values.astype(np.float32) * scale.reshape(shape)


def _spell_for_17(model: onnx.ModelProto) -> None:
    """Rewrites the two operators of ours that opset 17 lacks or spells otherwise."""
    graph, nodes = model.graph, []
    halves = {
        "gelu.sqrt2": np.float32(2**0.5), "gelu.one": np.float32(1), "gelu.half": np.float32(0.5)
    }
    for node in graph.node:
        if node.op_type == "Gelu":
            nodes += _gelu(node)
            continue
        if node.op_type == "Split" and len(node.input) == 1:
            parts = [entry for entry in node.attribute if entry.name == "num_outputs"]
            for entry in parts:
                node.attribute.remove(entry)  # opset 17 splits evenly by the number of outputs
        nodes.append(node)
    _replace_nodes(graph, nodes)
    if any(name in node.input for node in graph.node for name in halves):
        graph.initializer.extend(
            numpy_helper.from_array(np.array(v), name) for name, v in halves.items())


def _gelu(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """x/2 * (1 + erf(x / sqrt 2)), in the order that TensorRT's fusion looks for."""
    if attribute(node, "approximate", b"none") != b"none":
        raise ValueError(
            f"to_weakly_typed: {node.name} is GELU's tanh form, expected the exact one; re-export the "
            "student"
        )
    (x,), (y,), at = node.input, node.output, node.name
    make = helper.make_node
    return [make("Div", [x, "gelu.sqrt2"], [f"{at}.div"], name=f"{at}/Div"),
            make("Erf", [f"{at}.div"], [f"{at}.erf"], name=f"{at}/Erf"),
            make("Add", [f"{at}.erf", "gelu.one"], [f"{at}.one"], name=f"{at}/Add"),
            make("Mul", [x, f"{at}.one"], [f"{at}.x"], name=f"{at}/Mul"),
            make("Mul", [f"{at}.x", "gelu.half"], [y], name=f"{at}/Mul_2")]


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    # del frees the originals
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
