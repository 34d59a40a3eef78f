"""Which layers cost INT8 its accuracy, and how few must return to half precision for a budget.

NNCF's accuracy control restores a layer's weight but leaves SmoothQuant's multiplier on its input
(it returned cosine .876 as a success). Here the model is quantised again without those layers.
"""
from collections.abc import Callable

import onnx

from export.graph.index import GraphIndex, copy_model
from export.graph.session import OnnxModel
from export.parity import Gate, GateError, token_cosine
from export.source import to_input

RANKING_FRAMES = 8  # 1,568 tokens rank the layers; the chosen model is measured on all frames


def within_budget(model: onnx.ModelProto, max_drop: float, gate: Gate,
                  requantize: Callable[[list[str]], onnx.ModelProto],
                  log: Callable[[str], None]) -> tuple[onnx.ModelProto, list[str]]:
    """(model, layers) with 1, 2, 4, ... layers back in half, worst first, until 1 - mean token
    cosine is at most `max_drop`. GateError if half of them are not enough."""
    drop = _drop(model, gate)
    log(f"INT8 drop {drop:.6f} of mean cosine (budget {max_drop:g})")
    if drop <= max_drop:
        return model, []
    ranking = rank(model, gate)
    count = 1
    while count <= len(ranking) // 2:
        float_layers = [name for name, _ in ranking[:count]]
        model = requantize(float_layers)
        drop = _drop(model, gate)
        log(f"INT8 drop {drop:.6f} with {count} layers in half: {', '.join(float_layers)}")
        if drop <= max_drop:
            return model, float_layers
        count *= 2
    raise GateError(
        f"--max-drop {max_drop:g}: still {drop:.6f} with half of the {len(ranking)} INT8 layers "
        "returned; use FP16, or a larger budget")


def rank(model: onnx.ModelProto, gate: Gate) -> list[tuple[str, float]]:
    """(layer, gain in mean cosine if its input is not quantised), largest gain first."""
    frames = to_input(gate.heldout.frames[:RANKING_FRAMES])
    reference = gate.reference[:RANKING_FRAMES]

    def mean_cosine(candidate: onnx.ModelProto) -> float:
        return float(token_cosine(reference, OnnxModel(candidate)(frames)).mean())

    complete = mean_cosine(model)
    gains = [(name, mean_cosine(bypassed(model, name)) - complete)
             for name in quantized_layers(model)]
    return sorted(gains, key=lambda entry: -entry[1])


def quantized_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes whose activation goes through Q/DQ, in graph order."""
    nodes = model.graph.node
    dequantised = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    return [node.name for node in nodes
            if node.op_type in ("MatMul", "Gemm", "Conv") and node.input[0] in dequantised]


def bypassed(model: onnx.ModelProto, layer: str) -> onnx.ModelProto:
    """A copy in which `layer` reads its input as it was before Q/DQ."""
    copy = copy_model(model)
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
