"""Checks where Q/DQ nodes are and what they hold, without the device, on any ONNX model.

Each rule prevents a known failure: what TensorRT refuses (a zero point), what it computes wrongly
(Q/DQ on the residual stream: 85 % -> 0-5 %), and what silently leaves the INT8 path (a Linear
quantised on one side only). A new rule is a function in NODE_RULES.
"""
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from export.graph.index import ONNX_DOMAINS, GraphIndex, attribute, channel_axis, opset
from export.graph.targets import Target, get_target

FLOAT8 = "float8_e4m3fn"
QDQ = ("QuantizeLinear", "DequantizeLinear")
LINEAR = ("MatMul", "Gemm", "Conv", "ConvTranspose")
# Values pass through these unchanged: TensorRT moves Q/DQ across them.
MOVERS = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split",
          "Gather", "MaxPool")
INTEGER_OPS = ("MatMulInteger", "QLinearMatMul", "QLinearConv", "ConvInteger",
               "DynamicQuantizeLinear")
NOT_CONSTANT = "is computed at run time; it must be a constant"
WHY_NOT = {
    "Add": "a residual Add stays in half: its range (1e3) leaves INT8 nothing for the rest",
    "LayerNormalization": "LayerNorm stays in half: INT8 inputs lose the small channels that it "
                          "scales up",
    "Softmax": "Softmax stays in half: its inputs are exponents",
    "Gelu": "GELU stays in half",
    "Erf": "GELU (Erf) stays in half",
    "Mul": "elementwise products stay in half",
    "Div": "elementwise quotients stay in half",
}


@dataclass(frozen=True)
class Violation:
    node: str
    rule: str
    why: str

    def __str__(self) -> str:
        return f"{self.node}: {self.rule}: {self.why}"


def check_qdq(model: onnx.ModelProto, target: Target | str = "trt10",
              want_int8: bool = False) -> list[Violation]:
    """Every broken rule, the graph's first; empty is a pass. want_int8: something is quantised."""
    target = get_target(target) if isinstance(target, str) else target
    index = GraphIndex(model)
    broken = [*_graph_violations(index, target), *_constant_violations(index)]
    for node in model.graph.node:
        for rule in NODE_RULES:
            name = node.name or node.output[0]
            broken += [Violation(name, *found) for found in rule(index, node, target)]
    if want_int8 and not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        broken.append(Violation("graph", "quantised",
                                "no Q/DQ at all: every layer would run in floating point"))
    return broken


def brief(broken: list[Violation], most: int = 3) -> list[str]:
    """A line each; a rule broken for one reason at many nodes gives `most` lines and a count."""
    counts = Counter((violation.rule, violation.why) for violation in broken)
    seen: Counter[tuple[str, str]] = Counter()
    lines = []
    for violation in broken:
        reason = violation.rule, violation.why
        seen[reason] += 1
        if seen[reason] <= most:
            is_cut = seen[reason] == most < counts[reason]
            more = f" (and {counts[reason] - most} more)" if is_cut else ""
            lines.append(f"{violation}{more}")
    return lines


def summary(model: onnx.ModelProto) -> str:
    """How much of a model is quantised, as a phrase."""
    index = GraphIndex(model)
    linear = [node for node in model.graph.node
              if node.op_type in LINEAR and any(map(index.is_weight, node.input))]
    quantised = sum(_is_dequantised(index, node.input[0]) for node in linear)
    counted = f"{quantised} of {len(linear)} layers with weights are INT8"
    return counted if quantised else "nothing in it is INT8"


def read_onnx(path: Path) -> onnx.ModelProto:
    """Raises ValueError for a missing file and for one that is no ONNX model."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected an ONNX model")
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's DecodeError, or onnx's own for missing external data
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{path}: not an ONNX model ({reason})") from error
    if not model.graph.node:
        raise ValueError(f"{path}: not an ONNX model (it holds no node)")
    return model


def _graph_violations(index: GraphIndex, target: Target) -> Iterator[Violation]:
    try:
        onnx.checker.check_model(index.model)
    except (onnx.checker.ValidationError, ValueError) as error:
        yield Violation("graph", "valid", " ".join(str(error).split())[:160])
    (low, high), version = target.opset, opset(index.model)
    if not low <= version <= high:
        yield Violation("graph", "opset", f"{version} is outside {low}..{high}, what {target.what} "
                        f"reads; use {target.dialect} of a vega3d export")


def _constant_violations(index: GraphIndex) -> Iterator[Violation]:
    for name, tensor in index.constants.items():
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            value, readers = index.value(name), index.readers[name]
            is_scale = bool(readers) and readers[0].op_type in QDQ
            if value is not None and not is_scale and not np.isfinite(value).all():
                yield Violation(name, "finite", "holds NaN or infinity")


# The rules of one node: each yields (rule, why) for what it finds wrong.
Found = Iterator[tuple[str, str]]
NodeRule = Callable[[GraphIndex, onnx.NodeProto, Target], Found]


def _operator(index: GraphIndex, node: onnx.NodeProto, target: Target) -> Found:
    """Standard float operators that the target has; integer ones hide INT8 from its builder."""
    if _is_foreign(node):
        yield ("operator", f"{node.domain} {node.op_type}".strip() + f" is not for {target.what}; "
               "write INT8 as QuantizeLinear and DequantizeLinear")
    if node.op_type == "LayerNormalization" and not target.layernorm:
        yield "operator", f"{target.what} does not know it; use {target.dialect}"


def _scale(index: GraphIndex, node: onnx.NodeProto, target: Target) -> Found:
    if node.op_type not in QDQ:
        return
    scale = index.value(node.input[1])
    if scale is None:
        yield "scale", NOT_CONSTANT
        return
    if not (np.isfinite(scale) & (scale > 0)).all():
        yield "scale", f"must be positive and finite, got {scale.min():g} .. {scale.max():g}"
    if scale.dtype == np.float16 and not target.half_scales:
        yield "scale-type", f"float16, which {target.what} does not read; use {target.dialect}"


def _zero_point(index: GraphIndex, node: onnx.NodeProto, target: Target) -> Found:
    """The integer type and the zero point that the target wants; zero in FP8."""
    if node.op_type not in QDQ or index.value(node.input[1]) is None:
        return
    is_weight = index.is_weight(node.input[0])
    dtype, zero_point = ("int8", 0) if is_weight else target.activations
    is_given = len(node.input) > 2 and node.input[2]
    zero = index.value(node.input[2]) if is_given else np.zeros((), np.uint8)
    if zero is None:
        yield "zero-point", NOT_CONSTANT
    elif zero.dtype.name == FLOAT8 and target.fp8:
        if zero.astype(np.float32).any():
            yield "zero-point", f"must be 0 in {FLOAT8}: it is a floating-point format"
    elif zero.dtype.name != dtype:
        side = "weights" if is_weight else "activations"
        yield "type", f"{zero.dtype.name} {side}; {target.what} wants {dtype}"
    elif (zero != zero_point).any():
        got = int(zero.ravel()[(zero != zero_point).argmax()])
        yield "zero-point", f"must be {zero_point}, got {got}: quantise symmetrically"


def _per_channel(index: GraphIndex, node: onnx.NodeProto, target: Target) -> Found:
    """Activations have one scale; a weight's scales run along its output axis."""
    scale = index.value(node.input[1]) if node.op_type in QDQ else None
    if scale is None or scale.size == 1:
        return
    if not index.is_weight(node.input[0]):
        yield "per-tensor", f"an activation has one scale, this has {scale.size}"
        return
    shape, axis = _weight_shape(index, node.input[0]), channel_axis(node)
    axis += len(shape) * (axis < 0)
    if axis >= len(shape) or shape[axis] != scale.size:
        yield "axis", f"{scale.size} scales along axis {axis} of a weight {list(shape)}"
        return
    for reader, position in _consumers(index, node.output[0]):
        output_axis = _output_axis(reader, len(shape))
        if position == 1 and output_axis is not None and axis != output_axis:
            yield "axis", (f"scales run along axis {axis}, outputs of {reader.name} along "
                           f"{output_axis}")


def _pairing(index: GraphIndex, node: onnx.NodeProto, target: Target) -> Found:
    """Q is followed by its DQ, with the same numbers; weights are stored as the target reads."""
    if node.op_type == "QuantizeLinear":
        readers = index.readers[node.output[0]]
        if not readers or any(reader.op_type != "DequantizeLinear" for reader in readers):
            yield "pair", "a QuantizeLinear is read by its DequantizeLinear and by nothing else"
    if node.op_type != "DequantizeLinear":
        return
    quantizer = index.source(node.input[0])
    if quantizer is None:
        if node.input[0] not in index.constants:
            yield "pair", "dequantises an input of the graph"
        elif target.float_weights:
            yield "weights", (f"int8 initialiser; {target.what} wants float weights under Q and DQ "
                              f"({target.dialect})")
        return
    if quantizer.op_type != "QuantizeLinear":
        yield "pair", f"dequantises the output of {quantizer.op_type}"
        return
    for i, what in ((1, "scale"), (2, "zero point")):
        ours, theirs = (index.value(n.input[i]) if len(n.input) > i else None
                        for n in (node, quantizer))
        if ours is not None and theirs is not None and not np.array_equal(ours, theirs):
            yield "pair", f"its {what} is not that of {quantizer.name}"


def _placement(index: GraphIndex, node: onnx.NodeProto, target: Target) -> Found:
    """A layer with a weight reads dequantised tensors on both sides; other nodes read none."""
    dequantised = [_is_dequantised(index, name) for name in node.input]
    if not any(dequantised) or node.op_type in (*QDQ, *MOVERS) or _is_foreign(node):
        return
    if node.op_type not in LINEAR:
        why = WHY_NOT.get(node.op_type, f"{node.op_type} stays in half")
        yield "placement", f"reads Q/DQ; {why}"
    elif not any(map(index.is_weight, node.input)):
        yield "placement", "an attention product reads Q/DQ; leave both in half, where they fuse"
    elif not all(dequantised[:2]):
        side = "activation" if dequantised[1] else "weight"
        yield "half-quantised", f"its {side} has no Q/DQ, so it would run in floating point"
    for _ in filter(None, dequantised[2:]):
        yield "bias", "is quantised; a bias stays floating point"


def _layernorm(index: GraphIndex, node: onnx.NodeProto, target: Target) -> Found:
    """LayerNorm's statistics are float32: float16 squares overflow past 256."""
    if _squares(index, node) and index.types.get(node.output[0]) == TensorProto.FLOAT16:
        yield "layernorm", ("a decomposed LayerNorm squares in float16 and overflows past 256; "
                            "export at opset >= 17, where it is one op")
    if (node.op_type == "LayerNormalization"
            and index.types.get(node.input[0]) == TensorProto.FLOAT16
            and attribute(node, "stash_type", TensorProto.FLOAT) != TensorProto.FLOAT):
        yield "layernorm", "keeps its statistics in float16; set stash_type to 1 (float32)"


NODE_RULES: tuple[NodeRule, ...] = (_operator, _scale, _zero_point, _per_channel, _pairing,
                                    _placement, _layernorm)


def _is_foreign(node: onnx.NodeProto) -> bool:
    return (node.op_type not in QDQ
            and (node.op_type in INTEGER_OPS or node.domain not in ONNX_DOMAINS))


def _is_dequantised(index: GraphIndex, name: str) -> bool:
    node = index.source(name)
    while node is not None and node.op_type in MOVERS:
        node = index.source(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def _consumers(index: GraphIndex, name: str) -> Iterator[tuple[onnx.NodeProto, int]]:
    """(layer, which of its inputs) reading `name`, directly or through the weight's own DQ."""
    for reader in index.readers[name]:
        if reader.op_type == "DequantizeLinear":
            yield from _consumers(index, reader.output[0])
        elif reader.op_type in LINEAR:
            yield reader, list(reader.input).index(name)


def _output_axis(node: onnx.NodeProto, rank: int) -> int | None:
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"MatMul": rank - 1, "Conv": 0, "ConvTranspose": 1}.get(node.op_type)


def _weight_shape(index: GraphIndex, name: str) -> tuple[int, ...]:
    while (node := index.source(name)) is not None:
        name = node.input[0]
    return tuple(index.constants[name].dims)


def _squares(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """x**2 or x*x, read by a ReduceMean: the variance of a LayerNorm (or RMSNorm)."""
    if node.op_type == "Pow":
        exponent = index.value(node.input[1])
        squares = exponent is not None and exponent.size == 1 and float(exponent.ravel()[0]) == 2
    else:
        squares = node.op_type == "Mul" and node.input[0] == node.input[1]
    return squares and any(reader.op_type == "ReduceMean"
                           for reader in index.readers[node.output[0]])
