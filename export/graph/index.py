"""An index of an ONNX graph's producers and readers, and the edits that passes share."""
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

ONNX_DOMAINS = ("", "ai.onnx")  # of the standard operators


class GraphIndex:
    """A read-only index of a model's main graph; build a new one after editing the graph."""

    def __init__(self, model: onnx.ModelProto):
        self.model, self.graph = model, model.graph
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._index(model.graph.node)

    def _index(self, nodes: Iterable[onnx.NodeProto]) -> None:
        self.producer: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in nodes:
            self.producer |= dict.fromkeys(node.output, node)
            for name in node.input:
                self.readers[name].append(node)
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    def source(self, name: str) -> onnx.NodeProto | None:
        """The node that writes tensor `name`; None for a graph input or an initializer."""
        return self.producer.get(name)

    def value(self, name: str) -> np.ndarray | None:
        """The constant value of tensor `name`, or None if it is computed."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def set_value(self, name: str, value: np.ndarray) -> None:
        self.constants[name].CopyFrom(numpy_helper.from_array(value, name))

    def is_weight(self, name: str) -> bool:
        """True for a constant, also behind Q/DQ: int8 -> DQ, or float -> Q -> DQ."""
        node = self.producer.get(name)
        if node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            return self.is_weight(node.input[0])
        return name in self.constants

    @cached_property
    def inferred(self) -> list[onnx.ValueInfoProto]:
        """What shape inference can tell of tensors."""
        try:
            graph = onnx.shape_inference.infer_shapes(self.model).graph
        except Exception:  # an invalid graph: what it declares is all there is
            graph = self.graph
        return [*graph.value_info, *graph.input, *graph.output]

    @cached_property
    def types(self) -> dict[str, int]:
        """The element type of every tensor that shape inference can tell."""
        types = {value.name: value.type.tensor_type.elem_type for value in self.inferred}
        return types | {tensor.name: tensor.data_type for tensor in self.graph.initializer}


def opset(model: onnx.ModelProto) -> int:
    """The version of the standard operator set. Raises ValueError if the model imports none."""
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


def remove_attribute(node: onnx.NodeProto, name: str) -> None:
    for entry in [entry for entry in node.attribute if entry.name == name]:
        node.attribute.remove(entry)


def channel_axis(node: onnx.NodeProto) -> int:
    """The axis of a Q or DQ node's per-channel scales (ONNX's default is 1)."""
    return int(attribute(node, "axis", 1))  # type: ignore[call-overload]


def broadcast_scale(scale: np.ndarray, node: onnx.NodeProto, rank: int) -> np.ndarray:
    """The scale of a Q or DQ node, reshaped to multiply a tensor of `rank` axes."""
    shape = [1] * rank
    if scale.size > 1:
        shape[channel_axis(node)] = scale.size
    return scale.reshape(shape)


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def add_constant(model: onnx.ModelProto, name: str, value: np.ndarray | np.generic) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def copy_constant(model: onnx.ModelProto, tensor: TensorProto, name: str) -> None:
    copy = model.graph.initializer.add()
    copy.CopyFrom(tensor)
    copy.name = name


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Gives the graph copies of these nodes, in order: `del` frees those that are its own."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def redirect(nodes: Sequence[onnx.NodeProto], old: str, new: str) -> None:
    """Lets every reader of tensor `old` read `new`."""
    for node in nodes:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


def rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Renames tensors, in place, wherever they are written, read or stored."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
        for i, name in enumerate(node.output):
            node.output[i] = names.get(name, name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
