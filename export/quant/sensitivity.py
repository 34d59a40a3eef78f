"""Which layers cost INT8 its accuracy, and how few of them have to go back to half to stay within a
budget.

NNCF's own accuracy control restores a layer's weight but leaves SmoothQuant's multiplier on its
input (cosine .876 was returned as a success): here the layers are left out, the model is quantised
afresh, and always measured again.
"""
from collections.abc import Callable

import onnx

from export.graph.index import GraphIndex
from export.graph.session import OnnxModel
from export.parity import Gate, GateError, token_cosine
from export.source import to_input

# 1,568 tokens order the layers well enough; the model chosen is measured on all frames
RANKING_FRAMES = 8


def within_budget(model: onnx.ModelProto, max_drop: float, gate: Gate,
                  requantize: Callable[[list[str]], onnx.ModelProto],
                  log: Callable[[str], None]) -> tuple[onnx.ModelProto, list[str]]:
    """The INT8 model with the fewest layers returned to half (1, 2, 4, ... worst first) whose mean
    token cosine is within `max_drop` of 1, and those layers' names.

    Raises GateError if even half of all layers in float is not enough: then INT8 has nothing left
    to win.
    """
    drop = _drop(model, gate)
    log(f"INT8 drop {drop:.6f} of mean cosine (budget {max_drop:g})")
    if drop <= max_drop:
        return model, []
    ranking = rank(model, gate)
    count = 1
    while count <= len(ranking) // 2:
        floats = [name for name, _ in ranking[:count]]
        model = requantize(floats)
        drop = _drop(model, gate)
        log(f"INT8 drop {drop:.6f} with {count} layers in half: {', '.join(floats)}")
        if drop <= max_drop:
            return model, floats
        count *= 2
    raise GateError(
        f"--max-drop {max_drop:g}: still {drop:.6f} with half of the {len(ranking)} INT8 layers "
        "returned; use FP16, or a larger budget")


def rank(model: onnx.ModelProto, gate: Gate) -> list[tuple[str, float]]:
    """(layer, mean cosine won by letting its input through unquantised), the most costly first."""
    frames = to_input(gate.heldout.frames[:RANKING_FRAMES])
    reference = gate.reference[:RANKING_FRAMES]
    whole = float(token_cosine(reference, OnnxModel(model)(frames)).mean())
    won = [(name, float(token_cosine(reference,
                                     OnnxModel(bypassed(model, name))(frames)).mean()) - whole)
           for name in quantized_layers(model)]
    return sorted(won, key=lambda entry: -entry[1])


def quantized_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes whose activation goes through Q/DQ, in graph order."""
    index = GraphIndex(model)
    return [
        node.name for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv") and (source := index.source(node.input[0]))
        is not None and source.op_type == "DequantizeLinear"
    ]


def bypassed(model: onnx.ModelProto, layer: str) -> onnx.ModelProto:
    """A copy in which `layer` reads its input as it was before Q/DQ."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    index = GraphIndex(copy)
    for node in copy.graph.node:
        if node.name == layer:
            dequantizer = index.source(node.input[0])
            quantizer = dequantizer and index.source(dequantizer.input[0])
            if quantizer is None or quantizer.op_type != "QuantizeLinear":
                raise ValueError(
                    f"bypassed: got {layer}, whose input has no Q/DQ, expected a quantised layer")
            node.input[0] = quantizer.input[0]
    return copy


def _drop(model: onnx.ModelProto, gate: Gate) -> float:
    return 1 - gate.measure(OnnxModel(model)).cosine_mean
