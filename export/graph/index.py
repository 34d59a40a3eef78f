"""Who makes and who reads each tensor of an ONNX graph: the one view that every pass and every rule
here needs."""
from collections import defaultdict

import numpy as np
import onnx
from onnx import numpy_helper

ONNX_DOMAINS = ("", "ai.onnx")


class GraphIndex:
    """A read-only index of a model's main graph; build a new one after editing the graph."""

    def __init__(self, model: onnx.ModelProto):
        self.graph = model.graph
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producer = {output: node for node in model.graph.node for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node)
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    def source(self, name: str) -> onnx.NodeProto | None:
        """The node that writes tensor `name`; None for an input of the graph and for a constant."""
        return self.producer.get(name)

    def value(self, name: str) -> np.ndarray | None:
        """The constant behind tensor `name`, or None if it is computed."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def is_weight(self, name: str) -> bool:
        """True for a constant, also behind Q/DQ (int8 initialiser -> DQ, or float initialiser -> Q
        -> DQ)."""
        node = self.producer.get(name)
        if node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            return self.is_weight(node.input[0])
        return name in self.constants

    def attention_products(self) -> list[onnx.NodeProto]:
        """q k^T and softmax v: the MatMuls with no weight among their inputs (found by structure,
        not by name)."""
        return [node for node in self.graph.node
                if node.op_type == "MatMul" and not any(map(self.is_weight, node.input))]


def opset(model: onnx.ModelProto) -> int:
    """The version of the standard operator set; raises ValueError if the model imports none."""
    for entry in model.opset_import:
        if entry.domain in ONNX_DOMAINS:
            return entry.version
    raise ValueError(
        "opset: got a model without the standard operator set, expected one; re-export it")


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """The value of an attribute of `node`, or `default`."""
    for entry in node.attribute:
        if entry.name == name:
            return onnx.helper.get_attribute_value(entry)
    return default


def rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Gives tensors new names, in place, wherever they are made, read or stored."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
        for i, name in enumerate(node.output):
            node.output[i] = names.get(name, name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
