"""What must not run in float16: a LayerNorm taken apart, whose squares overflow at 256 (85.2 -> 18.96 % on a ViT)."""
from collections.abc import Iterator

import onnx
from onnx import TensorProto

from export.wiring import Wiring

Fault = tuple[str, str, str]  # node, rule, why


def half_precision_faults(model: onnx.ModelProto) -> Iterator[Fault]:
    """(node, rule, why) of each LayerNorm taken apart in float16, or whole but with float16 statistics."""
    types = _tensor_types(model)
    wiring = Wiring(model)
    for node in model.graph.node:
        if _squares(wiring, node) and types.get(node.output[0]) == TensorProto.FLOAT16:
            yield (node.name, "layernorm", "a decomposed LayerNorm squares in float16 and overflows past 256; "
                                           "export at opset >= 17, where it is one op")
        if node.op_type == "LayerNormalization" and types.get(node.input[0]) == TensorProto.FLOAT16:
            stash = next((entry.i for entry in node.attribute if entry.name == "stash_type"), 1)
            if stash != TensorProto.FLOAT:
                yield (node.name, "layernorm", "keeps its statistics in float16; set stash_type to 1 (float32)")


def _squares(wiring: Wiring, node: onnx.NodeProto) -> bool:
    """x**2 or x*x, read by a ReduceMean: the variance of a LayerNorm (or RMSNorm)."""
    if node.op_type == "Pow":
        exponent = wiring.value(node.input[1])
        squares = exponent is not None and exponent.size == 1 and float(exponent.ravel()[0]) == 2
    else:
        squares = node.op_type == "Mul" and node.input[0] == node.input[1]
    return squares and any(reader.op_type == "ReduceMean" for reader in wiring.readers[node.output[0]])


def _tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # a broken graph is reported by the rule "valid"; its types are unknown here
        inferred = model
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}
