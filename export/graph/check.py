"""Where Q/DQ may sit and what it may hold, checked without the device: each rule is an INT8 ViT
somebody lost.

Works on any ONNX model. What TensorRT refuses (a zero point), what it accepts and gets wrong (Q/DQ
on the residual
stream: 85 % -> 0-5 %), and what silently leaves the INT8 path (a Linear quantised on one side
only).
"""
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from export.graph.fp16 import half_precision_faults
from export.graph.index import ONNX_DOMAINS, GraphIndex, attribute, opset
from export.graph.targets import Target, target_called

FLOAT8 = "float8_e4m3fn"
LINEAR = ("MatMul", "Gemm", "Conv", "ConvTranspose")
# Values pass through these unchanged: TensorRT moves Q/DQ across them.
MOVERS = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split",
          "Gather", "MaxPool")
INTEGER_OPS = ("MatMulInteger", "QLinearMatMul", "QLinearConv", "ConvInteger",
               "DynamicQuantizeLinear")
WHY_NOT = {
    "Add": "a residual Add stays in half: its range (1e3) leaves INT8 nothing for the rest",
    "LayerNormalization": "LayerNorm stays in half: INT8 inputs lose the small channels that it "
                          "scales up",
    "Softmax": "Softmax stays in half: its inputs are exponents", "Gelu": "GELU stays in half",
    "Erf": "GELU (Erf) stays in half", "Mul": "elementwise products stay in half",
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
    """Every broken rule, in graph order; an empty list is a pass.

    want_int8: also require that something is quantised (an export that lost its Q/DQ is not an INT8
    model).
    """
    target = target_called(target) if isinstance(target, str) else target
    index = GraphIndex(model)
    found = [*_file(model, target), *_constants(index)]
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += _numbers(index, node, target)
            found += _pairing(index, node, target)
        elif node.op_type in INTEGER_OPS or node.domain not in ONNX_DOMAINS:
            found.append(
                Violation(
                    node.name, "operator", f"{node.domain} {node.op_type}".strip() +
                    f" is not for {target.what}; spell INT8 as QuantizeLinear, DequantizeLinear"))
        else:
            found += _placement(index, node)
        if node.op_type == "LayerNormalization" and not target.layernorm:
            found.append(
                Violation(node.name, "operator",
                          f"{target.what} does not know it; use {target.dialect}"))
    found += [Violation(*fault) for fault in half_precision_faults(model)]
    if want_int8 and not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        found.append(
            Violation("graph", "quantised",
                      "no Q/DQ at all: every layer would run in floating point"))
    return found


def brief(broken: list[Violation], most: int = 3) -> list[str]:
    """A line each, but where one rule breaks for one reason at many nodes, the first few and how
    many more."""
    places = Counter((violation.rule, violation.why) for violation in broken)
    seen: Counter[tuple[str, str]] = Counter()
    lines = []
    for violation in broken:
        reason = violation.rule, violation.why
        seen[reason] += 1
        if seen[reason] <= most:
            more = places[reason] - most
            lines.append(
                f"{violation}{f' (and {more} more)' if more > 0 and seen[reason] == most else ''}")
    return lines


def read_onnx(path: Path) -> onnx.ModelProto:
    """Raises ValueError for a missing file and for one that is no ONNX model."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected an ONNX model")
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's DecodeError, or onnx's own for missing external data
        raise ValueError(
            f"{path}: not an ONNX model ({' '.join(str(error).split())[:100]})") from error
    if not model.graph.node:
        raise ValueError(f"{path}: not an ONNX model (it holds no node)")
    return model


def summary(model: onnx.ModelProto) -> str:
    """How much of a model is quantised, in words."""
    index = GraphIndex(model)
    linear = [
        node for node in model.graph.node
        if node.op_type in LINEAR and any(map(index.is_weight, node.input))
    ]
    quantised = sum(_is_dequantised(index, node.input[0]) for node in linear)
    return f"{quantised} of {len(linear)} layers with weights are INT8" if quantised else "nothing in it is INT8"


def _file(model: onnx.ModelProto, target: Target) -> Iterator[Violation]:
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        yield Violation("graph", "valid", " ".join(str(error).split())[:160])
    low, high = target.opset
    if not low <= opset(model) <= high:
        yield Violation(
            "graph", "opset", f"{opset(model)} is outside {low}..{high}, what {target.what} reads; "
            f"use {target.dialect} of a vega3d export")


def _constants(index: GraphIndex) -> Iterator[Violation]:
    for name, tensor in index.constants.items():
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            value = index.value(name)
            reader = index.readers[name][0] if index.readers[name] else None
            is_scale = reader is not None and reader.op_type in ("QuantizeLinear",
                                                                 "DequantizeLinear")
            if value is not None and not is_scale and not np.isfinite(value).all():
                yield Violation(name, "finite", "holds NaN or infinity")


def _numbers(index: GraphIndex, node: onnx.NodeProto, target: Target) -> Iterator[Violation]:
    """Scale, zero point, type and axis of one Q or DQ."""
    at = node.name or node.output[0]
    scale = index.value(node.input[1])
    if scale is None:
        yield Violation(at, "scale", "is computed at run time; it must be a constant")
        return
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        yield Violation(at, "scale",
                        f"must be positive and finite, got {scale.min():g} .. {scale.max():g}")
    if scale.dtype == np.float16 and not target.half_scales:
        yield Violation(at, "scale-type",
                        f"float16, which {target.what} does not read; use {target.dialect}")
    is_weight = index.is_weight(node.input[0])
    wanted, zero_point = ("int8", 0) if is_weight else target.activations
    zero = index.value(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(
        (), np.uint8)
    if zero is None:
        yield Violation(at, "zero-point", "is computed at run time; it must be a constant")
    elif zero.dtype.name == FLOAT8 and target.fp8:
        if zero.astype(np.float32).any():
            yield Violation(at, "zero-point",
                            f"must be 0 in {FLOAT8}: it is a floating-point format")
    elif zero.dtype.name != wanted:
        yield Violation(
            at, "type", f"{zero.dtype.name} {'weights' if is_weight else 'activations'}; "
            f"{target.what} wants {wanted}")
    elif (zero != zero_point).any():
        got = int(zero.ravel()[(zero != zero_point).argmax()])
        yield Violation(at, "zero-point",
                        f"must be {zero_point}, got {got}: quantise symmetrically")
    if scale.size > 1:
        yield from _per_channel(index, node, scale, is_weight, at)


def _per_channel(index: GraphIndex, node: onnx.NodeProto, scale: np.ndarray, is_weight: bool,
                 at: str) -> Iterator[Violation]:
    if not is_weight:
        yield Violation(at, "per-tensor", f"an activation has one scale, this has {scale.size}")
        return
    shape = _weight_shape(index, node.input[0])
    axis = int(attribute(node, "axis", 1))  # type: ignore[call-overload]
    axis += len(shape) * (axis < 0)
    if axis >= len(shape) or shape[axis] != scale.size:
        yield Violation(at, "axis",
                        f"{scale.size} scales along axis {axis} of a weight {list(shape)}")
        return
    for reader, position in _consumers(index, node.output[0]):
        output_axis = _output_axis(reader, len(shape))
        if position == 1 and output_axis is not None and axis != output_axis:
            yield Violation(
                at, "axis",
                f"scales run along axis {axis}, outputs of {reader.name} along {output_axis}")


def _pairing(index: GraphIndex, node: onnx.NodeProto, target: Target) -> Iterator[Violation]:
    """Q must be followed by its DQ, with the same numbers; weights stored as the target reads
    them."""
    at = node.name or node.output[0]
    if node.op_type == "QuantizeLinear":
        readers = index.readers[node.output[0]]
        if not readers or any(reader.op_type != "DequantizeLinear" for reader in readers):
            yield Violation(at, "pair",
                            "a QuantizeLinear is read by its DequantizeLinear and by nothing else")
        return
    quantizer = index.source(node.input[0])
    if quantizer is None:
        if node.input[0] not in index.constants:
            yield Violation(at, "pair", "dequantises an input of the graph")
        elif target.weights == "float":
            yield Violation(
                at, "weights",
                f"int8 initialiser; {target.what} wants float weights under Q and DQ "
                f"({target.dialect})")
        return
    if quantizer.op_type != "QuantizeLinear":
        yield Violation(at, "pair", f"dequantises the output of {quantizer.op_type}")
        return
    for i, what in ((1, "scale"), (2, "zero point")):
        ours, theirs = (index.value(n.input[i]) if len(n.input) > i else None
                        for n in (node, quantizer))
        if ours is not None and theirs is not None and not np.array_equal(ours, theirs):
            yield Violation(at, "pair", f"its {what} is not that of {quantizer.name}")


def _placement(index: GraphIndex, node: onnx.NodeProto) -> Iterator[Violation]:
    """A node reads dequantised tensors on both sides, and is a layer with a weight; or it reads
    none."""
    dequantised = [_is_dequantised(index, name) for name in node.input]
    if not any(dequantised) or node.op_type in MOVERS:
        return
    at = node.name or node.output[0]
    if node.op_type not in LINEAR:
        why = WHY_NOT.get(node.op_type, f"{node.op_type} stays in half")
        yield Violation(at, "placement", f"reads Q/DQ; {why}")
    elif not any(map(index.is_weight, node.input)):
        yield Violation(at, "placement",
                        "an attention product reads Q/DQ; leave both in half, where they fuse")
    elif not all(dequantised[:2]):
        side = "activation" if dequantised[1] else "weight"
        yield Violation(at, "half-quantised",
                        f"its {side} has no Q/DQ, so it would run in floating point")
    for name in node.input[2:]:
        if _is_dequantised(index, name):
            yield Violation(at, "bias", "is quantised; a bias stays floating point")


def _is_dequantised(index: GraphIndex, name: str) -> bool:
    node = index.source(name)
    while node is not None and node.op_type in MOVERS:
        node = index.source(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def _consumers(index: GraphIndex, name: str) -> Iterator[tuple[onnx.NodeProto, int]]:
    """(node, which of its inputs) reading `name`, directly or through the weight's own DQ."""
    for reader in index.readers[name]:
        if reader.op_type == "DequantizeLinear":
            yield from _consumers(index, reader.output[0])
        elif reader.op_type in LINEAR:
            yield reader, list(reader.input).index(name)


def _output_axis(node: onnx.NodeProto, rank: int) -> int | None:
    if node.op_type == "MatMul":
        return rank - 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type)


def _weight_shape(index: GraphIndex, name: str) -> tuple[int, ...]:
    node = index.source(name)
    while node is not None:
        name = node.input[0]
        node = index.source(name)
    return tuple(index.constants[name].dims)
