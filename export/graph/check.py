"""Checks where Q/DQ nodes are and what they hold, without the device, on any ONNX model.

Each rule prevents a known failure: what TensorRT refuses (a zero point), what it computes wrongly
(Q/DQ on the residual stream: 85 % -> 0-5 %), and what silently leaves the INT8 path (a Linear
quantised on one side only). A new rule is a function in NODE_RULES.
"""
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from export.graph.files import tensor_value, without_weights
from export.graph.flat import MOVED_ELEMENTS, QDQ, FlatIndex
from export.graph.index import ONNX_DOMAINS, attribute, channel_axis, opset
from export.graph.targets import Target, get_target
from records.outputs import printable

FLOAT8 = "float8_e4m3fn"
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
LINEAR = ("MatMul", "Gemm", "Conv", "ConvTranspose")
WRONG_ANYWHERE = ("valid", "finite", "scale")  # rules that are more than advice to onnxruntime
CHUNK = 1 << 22  # values looked at in one go
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
    is_advice: bool = False  # the target runs it, but not well

    def __str__(self) -> str:
        return f"{'advice: ' * self.is_advice}{self.node}: {self.rule}: {self.why}"


def check_qdq(model: onnx.ModelProto, target: Target | str = "trt10", want_int8: bool = False,
              path: Path | None = None) -> list[Violation]:
    """Every broken rule, the graph's first; empty is a pass. want_int8: something is quantised.

    path: of the model, if its weights may lie in data files.
    """
    target = get_target(target) if isinstance(target, str) else target
    broken = list(_graph_violations(model, target))
    try:
        index = FlatIndex(model, path)
    except (ValueError, RecursionError, onnx.checker.ValidationError) as error:  # local functions
        return [*broken, Violation("graph", "valid", printable(error))]
    broken += _constant_violations(index)
    for node in index.nodes:
        for rule in NODE_RULES:
            broken += [Violation(node.name, name, why, target.runs_all
                                 and name not in WRONG_ANYWHERE)
                       for name, why in rule(index, node, target)]
    if want_int8 and not any(node.op_type == "QuantizeLinear" for node in index.nodes):
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
    index = FlatIndex(model)
    linear = [node for node in index.nodes
              if node.op_type in LINEAR and any(map(index.is_weight, node.input))]
    quantised = sum(_is_dequantised(index, node.input[0]) for node in linear)
    counted = f"{quantised} of {len(linear)} layers with weights are INT8"
    inlined = f"; its {len(model.functions)} local functions inlined" if model.functions else ""
    return (counted if quantised else "nothing in it is INT8") + inlined


def _graph_violations(model: onnx.ModelProto, target: Target) -> Iterator[Violation]:
    try:
        onnx.checker.check_model(without_weights(model))
    except (onnx.checker.ValidationError, ValueError) as error:
        yield Violation("graph", "valid", printable(error, 160))
    if model.functions and not target.functions:
        yield Violation("graph", "functions", f"{target.what} does not read local functions; "
                        "inline them with onnx.inliner.inline_local_functions")
    if target.runs_all:
        return
    low, high = target.opset
    try:
        version = opset(model)
    except ValueError as error:
        yield Violation("graph", "opset", str(error))
        return
    if not low <= version <= high:
        yield Violation("graph", "opset", f"{version} is outside {low}..{high}, what {target.what} "
                        f"reads; use {target.dialect} of a vega3d export")


def _constant_violations(index: FlatIndex) -> Iterator[Violation]:
    for name, tensor in index.constants.items():
        readers, shown = index.readers[name], printable(name, 100)
        is_scale = bool(readers) and readers[0].op_type in QDQ and name == readers[0].input[1]
        try:
            value = tensor_value(tensor, index.path).reshape(-1)
        except ValueError as error:
            yield Violation(shown, "valid", printable(error, 160))
            continue
        if tensor.data_type in FLOATS and not is_scale and not all(
                np.isfinite(value[i:i + CHUNK]).all() for i in range(0, value.size, CHUNK)):
            yield Violation(shown, "finite", "holds NaN or infinity")


# The rules of one node: each yields (rule, why) for what it finds wrong.
Found = Iterator[tuple[str, str]]
NodeRule = Callable[[FlatIndex, onnx.NodeProto, Target], Found]


def _operator(index: FlatIndex, node: onnx.NodeProto, target: Target) -> Found:
    """Standard float operators that the target has; integer ones hide INT8 from its builder."""
    if _is_foreign(node):
        name = printable(f"{node.domain} {node.op_type}", 100)
        where = "for onnxruntime alone" if target.runs_all else f"not for {target.what}"
        yield ("operator", f"{name} is {where}; use ONNX's own operators, and for INT8 "
               "QuantizeLinear and DequantizeLinear")
    if node.op_type == "LayerNormalization" and not target.layernorm:
        yield "operator", f"{target.what} does not know it; use {target.dialect}"


def _scale(index: FlatIndex, node: onnx.NodeProto, target: Target) -> Found:
    if node.op_type not in QDQ:
        return
    scale = index.value(index.input(node, 1))
    if scale is None or not scale.size:
        if not target.runs_all:
            yield "scale", NOT_CONSTANT
        return
    if not (np.isfinite(scale) & (scale > 0)).all():
        yield "scale", f"must be positive and finite, got {scale.min():g} .. {scale.max():g}"
    if scale.dtype == np.float16 and not target.half_scales:
        yield "scale-type", f"float16, which {target.what} does not read; use {target.dialect}"


def _zero_point(index: FlatIndex, node: onnx.NodeProto, target: Target) -> Found:
    """The integer type and the zero point that the target wants; zero in FP8."""
    if node.op_type not in QDQ or index.value(index.input(node, 1)) is None:
        return
    is_weight = index.is_weight(index.input(node, 0))
    wanted, zero_point = ("int8", 0) if is_weight else target.activations
    dtype, given = _quantised_type(index, node), index.input(node, 2)
    zero = index.value(given) if given else np.zeros(1, np.int8)
    if zero is None:
        yield "zero-point", NOT_CONSTANT
    elif dtype == FLOAT8 and target.fp8:
        if zero.astype(np.float32).any():
            yield "zero-point", f"must be 0 in {FLOAT8}: it is a floating-point format"
    elif dtype == "int32" and is_weight and target.runs_all:
        return  # a bias
    elif dtype and dtype != wanted:
        side = "weights" if is_weight else "activations"
        yield "type", f"{dtype} {side}; {target.what} wants {wanted}"
    elif zero_point is not None and (zero != zero_point).any():
        got = int(zero.ravel()[(zero != zero_point).argmax()])
        yield "zero-point", f"must be {zero_point}, got {got}: quantise symmetrically"


def _quantised_type(index: FlatIndex, node: onnx.NodeProto) -> str | None:
    """numpy's name of the type that a Q writes or a DQ reads; None if nothing tells it."""
    zero = index.value(index.input(node, 2))
    if zero is not None:
        return zero.dtype.name
    if node.op_type == "QuantizeLinear":
        kind = attribute(node, "output_dtype", 0) or TensorProto.UINT8
    else:
        source = index.origin(index.input(node, 0))
        if source is not None and source.op_type == "QuantizeLinear":
            return _quantised_type(index, source)
        kind = index.types.get(index.input(node, 0), 0)
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(kind).name  # type: ignore[arg-type]
    except KeyError:
        return None


def _per_channel(index: FlatIndex, node: onnx.NodeProto, target: Target) -> Found:
    """Activations have one scale; a weight's scales run along its output axis."""
    scale = index.value(index.input(node, 1)) if node.op_type in QDQ else None
    if scale is None or scale.size == 1:
        return
    if not index.is_weight(node.input[0]):
        yield "per-tensor", f"an activation has one scale, this has {scale.size}"
        return
    shape, axis = _weight_shape(index, node.input[0]), channel_axis(node)
    if shape is None or scale.ndim > 1:  # unknown; or scales of blocks
        return
    axis += len(shape) * (axis < 0)
    if not 0 <= axis < len(shape) or shape[axis] != scale.size:
        yield "axis", f"{scale.size} scales along axis {axis} of a weight {list(shape)}"
        return
    for reader, position, movers in _consumers(index, node):
        yield from _misplaced(index, shape, axis, reader, position, movers)


def _misplaced(index: FlatIndex, shape: tuple[int, ...], axis: int, reader: onnx.NodeProto,
               position: int, movers: Sequence[onnx.NodeProto]) -> Found:
    """Numbers the channels along `axis`, moves them as the weight, and sees where they are read."""
    if math.prod(shape) > MOVED_ELEMENTS or 0 in shape:
        return
    sizes = [-1 if i == axis else 1 for i in range(len(shape))]
    channels = np.arange(shape[axis], dtype=np.int32).reshape(sizes)
    moved: np.ndarray | None = np.broadcast_to(channels, shape)
    for mover in movers:
        moved = None if moved is None else index.moved(mover, moved)
    output_axis = None if moved is None else _output_axis(reader, position, moved.ndim)
    if moved is None or output_axis is None or not moved.size:
        return
    columns = np.moveaxis(moved, output_axis, 0).reshape(moved.shape[output_axis], -1)
    if (columns != columns[:, :1]).any():
        through = f", through {movers[-1].name}" if movers else ""
        yield "axis", (f"scales run along axis {axis}, outputs of {reader.name} along "
                       f"{output_axis}{through}")


def _pairing(index: FlatIndex, node: onnx.NodeProto, target: Target) -> Found:
    """Q is followed by its DQ, with the same numbers; weights are stored as the target reads."""
    if node.op_type == "QuantizeLinear":
        readers = [reader for name in node.output for reader in index.readers[name]]
        if not readers or any(reader.op_type != "DequantizeLinear" and not _moves_weight(
                index, reader) for reader in readers):
            yield "pair", "a QuantizeLinear is read by its DequantizeLinear and by nothing else"
    if node.op_type != "DequantizeLinear":
        return
    name = index.input(node, 0)
    source, quantizer = index.source(name), index.origin(name)
    if quantizer is None and index.is_weight(name):
        if target.float_weights:
            yield "weights", (f"int8 initialiser; {target.what} wants float weights under Q and DQ "
                              f"({target.dialect})")
        return
    if source is None:
        yield "pair", "dequantises an input of the graph"
        return
    if quantizer is None or quantizer.op_type != "QuantizeLinear" or (
            source is not quantizer and not index.is_weight(name)):
        yield "pair", f"dequantises the output of {printable(source.op_type, 40)}"
        return
    for i, what in ((1, "scale"), (2, "zero point")):
        ours, theirs = (index.value(index.input(n, i)) for n in (node, quantizer))
        if ours is not None and theirs is not None and not np.array_equal(ours, theirs):
            yield "pair", f"its {what} is not that of {quantizer.name}"


def _placement(index: FlatIndex, node: onnx.NodeProto, target: Target) -> Found:
    """A layer with a weight reads dequantised tensors on both sides; other nodes read none."""
    dequantised = [_is_dequantised(index, name) for name in node.input]
    if not any(dequantised) or node.op_type in QDQ or index.moves(node) or _is_foreign(node):
        return
    if node.op_type not in LINEAR:
        why = WHY_NOT.get(node.op_type, f"{printable(node.op_type, 40)} stays in half")
        yield "placement", f"reads Q/DQ; {why}"
    elif not any(map(index.is_weight, node.input)):
        yield "placement", "an attention product reads Q/DQ; leave both in half, where they fuse"
    elif not all(dequantised[:2]):
        side = "activation" if dequantised[1] else "weight"
        yield "half-quantised", f"its {side} has no Q/DQ, so it would run in floating point"
    for _ in filter(None, dequantised[2:] if not target.runs_all else ()):
        yield "bias", "is quantised; a bias stays floating point"


def _layernorm(index: FlatIndex, node: onnx.NodeProto, target: Target) -> Found:
    """LayerNorm's statistics are float32: float16 squares overflow past 256."""
    if _squares(index, node) and index.types.get("".join(node.output[:1])) == TensorProto.FLOAT16:
        yield "layernorm", ("a decomposed LayerNorm squares in float16 and overflows past 256; "
                            "export at opset >= 17, where it is one op")
    if (node.op_type == "LayerNormalization"
            and index.types.get(index.input(node, 0)) == TensorProto.FLOAT16
            and attribute(node, "stash_type", TensorProto.FLOAT) != TensorProto.FLOAT):
        yield "layernorm", "keeps its statistics in float16; set stash_type to 1 (float32)"


NODE_RULES: tuple[NodeRule, ...] = (_operator, _scale, _zero_point, _per_channel, _pairing,
                                    _placement, _layernorm)


def _is_foreign(node: onnx.NodeProto) -> bool:
    return (node.op_type not in QDQ
            and (node.op_type in INTEGER_OPS or node.domain not in ONNX_DOMAINS))


def _is_dequantised(index: FlatIndex, name: str) -> bool:
    origin = index.origin(name)
    return origin is not None and origin.op_type == "DequantizeLinear"


def _moves_weight(index: FlatIndex, node: onnx.NodeProto) -> bool:
    return index.moves(node) and all(map(index.is_weight, node.output))


def _consumers(index: FlatIndex, node: onnx.NodeProto
               ) -> Iterator[tuple[onnx.NodeProto, int, list[onnx.NodeProto]]]:
    """(layer, which of its inputs, the movers between) that read a Q or DQ's weight."""
    found: list[tuple[str, list[onnx.NodeProto]]] = [(node.output[0], [])]
    seen = set()
    while found:
        name, movers = found.pop()
        for reader in () if name in seen else index.readers[name]:
            if reader.op_type in LINEAR:
                yield reader, list(reader.input).index(name), movers
            elif reader.op_type == "DequantizeLinear" and index.input(reader, 0) == name:
                found += [(output, movers) for output in reader.output[:1]]
            elif _moves_weight(index, reader) and index.input(reader, 0) == name:
                found += [(output, [*movers, reader]) for output in reader.output[:1]]
        seen.add(name)


def _output_axis(node: onnx.NodeProto, position: int, rank: int) -> int | None:
    """The axis of the layer's outputs in an operand; None where there is none."""
    axes: dict[tuple[str, int], int] = {
        ("Gemm", 0): 1 if attribute(node, "transA", 0) else 0,
        ("Gemm", 1): 0 if attribute(node, "transB", 0) else 1,
        ("MatMul", 0): rank - 2, ("MatMul", 1): rank - 1, ("Conv", 1): 0, ("ConvTranspose", 1): 1}
    axis = axes.get((node.op_type, position))
    return axis if axis is not None and rank > 1 else None


def _weight_shape(index: FlatIndex, name: str) -> tuple[int, ...] | None:
    seen = set()
    while (node := index.source(name)) is not None and node.op_type in QDQ and name not in seen:
        seen.add(name)
        name = index.input(node, 0)
    return index.shape(name)


def _squares(index: FlatIndex, node: onnx.NodeProto) -> bool:
    """x**2 or x*x, read by a ReduceMean: the variance of a LayerNorm (or RMSNorm)."""
    if node.op_type == "Pow":
        exponent = index.value(index.input(node, 1))
        squares = exponent is not None and exponent.size == 1 and float(exponent.ravel()[0]) == 2
    else:
        squares = node.op_type == "Mul" and index.input(node, 0) == index.input(node, 1)
    return squares and any(reader.op_type == "ReduceMean"
                           for name in node.output for reader in index.readers[name])
