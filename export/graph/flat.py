"""Every node of a model in one list, subgraphs' and local functions' too, and what is constant.

A value that depends on initializers alone is a constant however it is spelled: Constant's other
attributes, Identity, Transpose, Reshape, Cast, arithmetic. Small ones are computed where a rule
asks for them; of a weight only what it is made from is needed.
"""
import math
from collections import ChainMap
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import NodeProto
from onnx.reference import ReferenceEvaluator

from export.graph.files import tensor_value, without_weights
from export.graph.index import GraphIndex
from records.outputs import printable

MOST_NODES = 100_000        # after inlining of local functions
MOST_ELEMENTS = 1 << 18     # of one computed constant
COMPUTED_ELEMENTS = 1 << 26 # of all of them
RUN_ELEMENTS = 4096         # that running a node costs as much as: a millisecond
MOST_STEPS = 100            # nodes one after the other that compute a constant
MOVED_ELEMENTS = 1 << 24    # of a weight whose channels are followed
QDQ = ("QuantizeLinear", "DequantizeLinear")
# Values pass through these unchanged: TensorRT moves Q/DQ across them.
MOVERS = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split",
          "Gather", "MaxPool")
WEIGHT_MOVERS = (*MOVERS, "Cast", "Expand", "Tile", "Pad", "Concat")  # done when an engine is built
Names = ChainMap[str, str]


class FlatIndex(GraphIndex):
    """An index over `nodes`, which all have a name; tensors of subgraphs get unique ones.

    path: of the model, for weights in its data files. Raises ValueError for local functions that
    call themselves or grow beyond bounds.
    """

    def __init__(self, model: onnx.ModelProto, path: Path | None = None):
        light = without_weights(model)
        self.path, self.model = path, _inlined(light) if model.functions else light
        self.graph = self.model.graph
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._sparse = {sparse.values.name: sparse for sparse in model.graph.sparse_initializer}
        self._owners: set[str] = set()  # outputs of nodes with subgraphs
        self._scopes = count()
        self.nodes = list(self._flattened(self.graph, "", ChainMap()))
        self._index(self.nodes)
        self._sparse |= {node.output[0]: entry.sparse_tensor for node in self.nodes
                         for entry in node.attribute if entry.name == "sparse_value"}
        self._derived = self._constant_tensors()
        self._origins = self._quantised_tensors()
        self._values: dict[str, np.ndarray | None] = {}
        self._left = COMPUTED_ELEMENTS

    def input(self, node: NodeProto, position: int) -> str:
        """The name of an input; "" for one that is left out."""
        return node.input[position] if position < len(node.input) else ""

    def is_weight(self, name: str) -> bool:
        """True for what depends on constants alone, quantised or not."""
        return name in self._derived

    def moves(self, node: NodeProto) -> bool:
        """True for a node that changes no value."""
        movers = WEIGHT_MOVERS if self.is_weight("".join(node.output[:1])) else MOVERS
        return node.op_type in movers

    def origin(self, name: str) -> NodeProto | None:
        """The Q or DQ node whose output this tensor is, moved or not."""
        return self._origins.get(name)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a constant, a small computed one, or of what shape inference knows."""
        if name in self.constants:
            return tuple(self.constants[name].dims)
        value = None if name in self._shapes else self.value(name)
        return self._shapes.get(name) if value is None else value.shape

    def moved(self, node: NodeProto, value: np.ndarray) -> np.ndarray | None:
        """`value`, the first input, as the mover returns it; None if it would be too large."""
        if node.op_type in ("Identity", "Cast"):
            return value
        others = {name: self.value(name) for name in node.input[1:] if name}
        feeds = {name: other for name, other in others.items() if other is not None}
        with suppress(Exception):  # as in value()
            return self._run(node, feeds | {node.input[0]: value}, MOVED_ELEMENTS)[node.output[0]]
        return None

    def value(self, name: str) -> np.ndarray | None:
        """The value of a constant, computed if it is small; else None."""
        if name not in self._values:
            self._values[name] = None  # also while it is being computed: cycles end
            with suppress(Exception):  # numpy's and onnx's own: nothing that a rule could use
                if name in self.constants:
                    self._values[name] = tensor_value(self.constants[name], self.path)
                elif name in self._sparse:
                    self._values[name] = _dense(self._sparse[name])
                elif 0 < self._derived.get(name, 0) <= MOST_STEPS:
                    self._values |= self._computed(self.producer[name])
        return self._values[name]

    def _computed(self, node: NodeProto) -> dict[str, np.ndarray]:
        values = {name: self.value(name) for name in node.input if name}
        feeds = {name: value for name, value in values.items()
                 if value is not None and value.size <= MOST_ELEMENTS}
        return self._run(node, feeds) if len(feeds) == len(values) else {}

    def _run(self, node: NodeProto, feeds: dict[str, np.ndarray],
             most: int = MOST_ELEMENTS) -> dict[str, np.ndarray]:
        """The node's outputs, if their inferred shapes are small."""
        graph = onnx.helper.make_graph(
            [node], "g", [], [onnx.ValueInfoProto(name=name) for name in node.output if name],
            [onnx.numpy_helper.from_array(value, name) for name, value in feeds.items()])
        model = onnx.helper.make_model(graph, opset_imports=self.model.opset_import)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
        sizes = [_elements(value) for value in inferred]
        if not all(0 <= size <= most for size in sizes) or sum(sizes) > self._left:
            return {}
        self._left -= sum(sizes) + RUN_ELEMENTS
        outputs = ReferenceEvaluator(model).run(None, {})
        return dict(zip([name for name in node.output if name], outputs, strict=True))

    def _quantised_tensors(self) -> dict[str, NodeProto]:
        origins: dict[str, NodeProto] = {}
        for node in self.nodes:
            origin = node if node.op_type in QDQ else None
            if origin is None and self.moves(node):
                origin = origins.get(self.input(node, 0))
            if origin is not None:
                origins |= dict.fromkeys(node.output, origin)
        return origins

    def _constant_tensors(self) -> dict[str, int]:
        """The names of constants; how many nodes one after the other compute each."""
        derived = dict.fromkeys((*self.constants, *self._sparse), 0)
        for node in self.nodes:
            stored = node.op_type == "Constant" and not node.domain
            if (stored or node.input) and self._owners.isdisjoint(node.output) and all(
                    name in derived or not name for name in node.input):
                steps = 1 + max((derived[name] for name in node.input if name), default=0)
                derived |= dict.fromkeys(filter(None, node.output), steps)
        return derived

    @cached_property
    def types(self) -> dict[str, int]:
        return super().types | {name: t.data_type for name, t in self.constants.items()}

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
                for value in self.inferred if _elements(value) >= 0}

    def _flattened(self, graph: onnx.GraphProto, where: str, names: Names) -> Iterator[NodeProto]:
        """Nodes in order, a subgraph's before the node that owns it."""
        if where:
            self.constants |= {names[tensor.name]: tensor for tensor in graph.initializer}
        for i, node in enumerate(graph.node):
            label = printable(node.name, 100) or f"node {i} ({printable(node.op_type, 40)})"
            label = f"{label} in {where}" if where and not node.name else label
            subgraphs = [(entry.name, sub) for entry in node.attribute
                         for sub in (entry.g, *entry.graphs) if sub.node or sub.output]
            for attribute_name, sub in subgraphs:
                place = f"{printable(attribute_name, 40)} of {label}"
                scope = _scoped(sub, f"{place} {next(self._scopes)}")
                yield from self._flattened(sub, place, names.new_child(scope))
            if where or subgraphs or node.name != label:
                node = _renamed(node, label, names, bool(subgraphs))
            if subgraphs:
                self._owners.update(node.output)
            yield node


def _scoped(graph: onnx.GraphProto, place: str) -> dict[str, str]:
    """A unique name for every tensor that a subgraph defines."""
    defined = [value.name for value in graph.input] + [t.name for t in graph.initializer]
    defined += [name for node in graph.node for name in node.output]
    return {name: f"{place}/{name}" for name in defined if name}


def _renamed(node: NodeProto, label: str, names: Names, is_owner: bool) -> NodeProto:
    copy = NodeProto(op_type=node.op_type, domain=node.domain, name=label)
    copy.input.extend(names.get(name, name) for name in node.input)
    copy.output.extend(names.get(name, name) for name in node.output)
    if not is_owner:
        copy.attribute.extend(node.attribute)
    return copy


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(key: tuple[str, str], callers: tuple) -> int:
        """Nodes of a function once those that it calls are inlined."""
        if key in callers or len(callers) > 100:
            raise ValueError(f"local function {printable(key[1], 60)} calls itself, or others too "
                             "deep")
        if key not in sizes:
            sizes[key] = sum(_size(node, (*callers, key)) for node in functions[key].node)
        return sizes[key]

    def _size(node: NodeProto, callers: tuple) -> int:
        inner = sum(_size(sub, callers) for entry in node.attribute
                    for graph in (entry.g, *entry.graphs) for sub in graph.node)
        key = (node.domain, node.op_type)
        return 1 + inner + (size(key, callers) if key in functions else 0)

    if (total := sum(_size(node, ()) for node in model.graph.node)) > MOST_NODES:
        raise ValueError(f"local functions: {total:.3g} nodes once inlined, expected at most "
                         f"{MOST_NODES}")
    return onnx.inliner.inline_local_functions(model)


def _dense(sparse: onnx.SparseTensorProto) -> np.ndarray | None:
    """Its values in place, by flat positions [n] or coordinates [n,rank]; None if not small."""
    shape = tuple(sparse.dims)
    if not 0 <= math.prod(shape) <= MOST_ELEMENTS:
        return None
    values, places = tensor_value(sparse.values), tensor_value(sparse.indices)
    dense = np.zeros(shape, values.dtype)
    dense[np.unravel_index(places, shape) if places.ndim == 1 else tuple(places.T)] = values
    return dense


def _elements(value: onnx.ValueInfoProto) -> int:
    """Of an inferred tensor; -1 if its shape is not known."""
    kind = value.type.tensor_type
    dims = kind.shape.dim
    if not kind.HasField("shape") or any(dim.WhichOneof("value") != "dim_value" for dim in dims):
        return -1
    return math.prod(dim.dim_value for dim in dims)
