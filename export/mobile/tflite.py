"""ONNX -> a LiteRT flatbuffer (.tflite), in operators that GPU delegates run.

litert-torch 0.10 would bring jax (0.9 GB) and cannot be installed beside tyro: its xdsl excludes
the typing-extensions that tyro needs. Here a tensor [N,C,...] of the ONNX graph is stored plain or
with its channels last, [N,...,C], as LiteRT's convolutions read it, and is transposed only where a
node needs the other. Inputs and outputs have their channels last.
"""
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from export.graph.index import GraphIndex
from export.parity import Precision
from records.files import to_json

SMALL = 1024      # elements: constants up to this size stay float32
_ELEMENTWISE = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Max": "MAXIMUM",
                "Min": "MINIMUM", "Exp": "EXP", "Log": "LOG", "Sqrt": "SQRT", "Relu": "RELU",
                "Tanh": "TANH", "Sigmoid": "LOGISTIC", "Gelu": "GELU", "Pow": "MUL"}
_REDUCED = {"ReduceSum": "SUM", "ReduceMean": "MEAN"}
_OPTIONS = {"SUM": "Reducer", "MEAN": "Reducer", "BATCH_MATMUL": "BatchMatMul"}  # unlike the names
_VERSIONS = {"DEQUANTIZE": 3, "FULLY_CONNECTED": 5}  # the first with float16 and keepNumDims
_HYBRID = 12  # version of FULLY_CONNECTED with int8 weights per channel


def to_tflite(model: onnx.ModelProto, precision: Precision, facts: dict[str, Any]) -> bytes:
    """fp16: weights of half the size, arithmetic as the runtime chooses; int8: linear layers with
    weights per output channel and activations quantised at run time, the rest as fp16.

    facts: stored as metadata `vega3d`. Raises ValueError for what has no translation.
    """
    return _Translator(model, precision).translated(facts)


class _Flatbuffer:
    """Tensors, operators and buffers of one subgraph, in the schema's object API."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema
        self.schema: Any = schema
        self.buffers, self.codes = [self.new("Buffer")], dict[tuple[str, int], int]()
        self.graph = self.new("SubGraph", tensors=[], operators=[])

    def new(self, kind: str, **fields: Any) -> Any:
        table = getattr(self.schema, f"{kind}T")()
        for name, value in fields.items():
            setattr(table, name, value)
        return table

    def tensor(self, name: str, shape: Sequence[int], data: np.ndarray | None = None,
               scales: np.ndarray | None = None) -> int:
        """Its index; float32, or of the type of `data`, a constant. scales: of int8 rows."""
        kind = "FLOAT32" if data is None else data.dtype.name.upper()
        quantization = None if scales is None else self.new(
            "QuantizationParameters", scale=scales.astype(np.float32),
            zeroPoint=np.zeros(len(scales), np.int64))
        self.graph.tensors.append(self.new(
            "Tensor", name=name, shape=list(shape), type=getattr(self.schema.TensorType, kind),
            buffer=0 if data is None else self.buffer(data.tobytes()), quantization=quantization))
        return len(self.graph.tensors) - 1

    def shape(self, tensor: int) -> list[int]:
        return self.graph.tensors[tensor].shape

    def buffer(self, content: bytes) -> int:
        self.buffers.append(self.new("Buffer", data=np.frombuffer(content, np.uint8)))
        return len(self.buffers) - 1

    def operator(self, kind: str, inputs: Sequence[int], output: int, version: int = 0,
                 **options: Any) -> int:
        """Adds an operator; returns `output`. options: fields of its table of options, if any."""
        key = kind, version or _VERSIONS.get(kind, 1)
        operator = self.new("Operator", opcodeIndex=self.codes.setdefault(key, len(self.codes)),
                            inputs=list(inputs), outputs=[output])
        table = _OPTIONS.get(kind, kind.title().replace("_", "")) + "Options"
        if hasattr(self.schema.BuiltinOptions, table):
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, table)
            operator.builtinOptions = self.new(table, **options)
        self.graph.operators.append(operator)
        return output

    def serialise(self, inputs: dict[str, int], outputs: dict[str, int], facts: dict) -> bytes:
        import flatbuffers
        self.graph.inputs, self.graph.outputs = [*inputs.values()], [*outputs.values()]
        codes = []
        for kind, version in self.codes:
            code = getattr(self.schema.BuiltinOperator, kind)
            codes.append(self.new("OperatorCode", builtinCode=code, version=version,
                                  deprecatedBuiltinCode=min(code, 127)))
        ends = [[self.new("TensorMap", name=name, tensorIndex=index)
                 for name, index in tensors.items()] for tensors in (inputs, outputs)]
        signature = self.new("SignatureDef", signatureKey=b"serving_default", inputs=ends[0],
                             outputs=ends[1])
        content = to_json(facts, sort_keys=True).encode()
        model = self.new("Model", version=3, subgraphs=[self.graph], operatorCodes=codes,
                         signatureDefs=[signature], buffers=self.buffers, metadata=[
                             self.new("Metadata", name=b"vega3d", buffer=self.buffer(content))])
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


class _Translator:
    """`stored` holds the tensors of the ONNX graph as (name, whether its channels are last)."""

    def __init__(self, model: onnx.ModelProto, precision: Precision):
        self.precision, self.file, self.index = precision, _Flatbuffer(), GraphIndex(model)
        self.shapes = {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
                       for value in self.index.inferred}
        self.stored: dict[tuple[str, bool], int] = {}

    def translated(self, facts: dict[str, Any]) -> bytes:
        graph, inputs, outputs = self.index.graph, {}, {}
        for value in graph.input:
            inputs[value.name] = self.file.tensor(value.name, _last(self.shapes[value.name]))
            self.stored[value.name, True] = inputs[value.name]
        for node in graph.node:
            attributes = {entry.name: onnx.helper.get_attribute_value(entry)
                          for entry in node.attribute}
            if not self.has(node.output[0], False):  # else a bias that is already added
                _RULES.get(node.op_type, _Translator.untranslated)(self, node, attributes)
        for value in graph.output:
            outputs[value.name] = self.get(value.name, True)
        return self.file.serialise(inputs, outputs, facts)

    def untranslated(self, node: NodeProto, attributes: dict) -> None:
        raise ValueError(f"export litert: {node.name}: no translation of {node.op_type} with "
                         f"{attributes or 'these inputs'}; add one to export/mobile/tflite.py")

    def has(self, name: str, last: bool) -> bool:
        return (name, last) in self.stored

    def is_last(self, node: NodeProto) -> bool:
        """Whether an input of the node is stored only with its channels last."""
        return not all(self.has(name, False) or self.index.is_weight(name) for name in node.input)

    def get(self, name: str, last: bool) -> int:
        """The tensor in this layout; transposed if it is stored in the other."""
        constant = self.index.value(name)
        if constant is not None and not self.has(name, last):
            moved = np.moveaxis(constant, 1, -1) if last and constant.ndim > 2 else constant
            self.stored[name, last] = self.constant(name, moved)
        elif not self.has(name, last):
            axes = range(len(self.shapes[name]))
            order = _last(axes) if last else [_last(axes).index(axis) for axis in axes]
            self.emit("TRANSPOSE", [self.stored[name, not last], self.integers(order)], name, last)
        return self.stored[name, last]

    def operand(self, name: str, last: bool, rank: int) -> int:
        """`get`, for an operation of `rank` axes: where channels are last, a constant of fewer axes
        first gets those that broadcasting would add."""
        constant = self.index.value(name)
        if constant is None or not last or not 0 < constant.ndim < rank:
            return self.get(name, last)
        constant = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
        return self.constant(name, np.moveaxis(constant, 1, -1))

    def emit(self, kind: str, inputs: Sequence[int], name: str, last: bool, **options: Any) -> None:
        """Adds the operator that computes tensor `name` of the ONNX graph, in this layout."""
        shape = _last(self.shapes[name]) if last else self.shapes[name]
        self.stored[name, last] = self.file.operator(kind, inputs, self.file.tensor(name, shape),
                                                     **options)

    def constant(self, name: str, value: np.ndarray) -> int:
        """A float32 tensor, in the file as float16 if it is large and the precision allows."""
        value = np.ascontiguousarray(value, np.float32).reshape(value.shape or (1,))
        if self.precision == "fp32" or value.size <= SMALL:
            return self.file.tensor(name, value.shape, value)
        half = self.file.tensor(f"{name}.fp16", value.shape, value.astype(np.float16))
        return self.file.operator("DEQUANTIZE", [half], self.file.tensor(name, value.shape))

    def integers(self, values: Sequence[Any]) -> int:
        array = np.array(values, np.int32)
        return self.file.tensor("", array.shape, array)

    def elementwise(self, node: NodeProto, attributes: dict) -> None:
        last, kind = self.is_last(node), _ELEMENTWISE[node.op_type]
        rank = len(self.shapes[node.output[0]])
        inputs = [self.operand(name, last, rank) for name in node.input]
        if node.op_type == "Pow":
            if self.index.value(node.input[1]) != 2:
                self.untranslated(node, attributes)
            inputs[1] = inputs[0]
        options = {"approximate": attributes.get("approximate") == b"tanh"}
        self.emit(kind, inputs, node.output[0], last, **options if kind == "GELU" else {})

    def clip(self, node: NodeProto, attributes: dict) -> None:
        if len(list(filter(None, node.input))) != 3:
            self.untranslated(node, attributes)
        last = self.is_last(node)
        x, low, high = (self.get(name, last) for name in node.input)
        above = self.file.tensor(f"{node.name}/MAXIMUM", self.file.shape(x))
        self.emit("MINIMUM", [self.file.operator("MAXIMUM", [x, low], above), high],
                  node.output[0], last)

    def reduce(self, node: NodeProto, attributes: dict) -> None:
        axes = self.index.value(node.input[1])
        if axes is None or not attributes.get("keepdims", 1):
            return self.untranslated(node, attributes)
        last, all_axes = self.is_last(node), range(len(self.shapes[node.input[0]]))
        order = [*(_last(all_axes) if last else all_axes)]
        inputs = [self.get(node.input[0], last),
                  self.integers([order.index(int(axis) % len(order)) for axis in axes])]
        self.emit(_REDUCED[node.op_type], inputs, node.output[0], last, keepDims=True)

    def softmax(self, node: NodeProto, attributes: dict) -> None:
        rank, axis = len(self.shapes[node.input[0]]), attributes.get("axis", -1)
        last = rank == 4 and axis == 1  # over the channels
        if not last and axis not in (-1, rank - 1):
            self.untranslated(node, attributes)
        self.emit("SOFTMAX", [self.get(node.input[0], last)], node.output[0], last, beta=1.0)

    def matmul(self, node: NodeProto, _: dict) -> None:
        x, weight = self.get(node.input[0], False), self.index.value(node.input[1])
        if weight is None or weight.ndim != 2:
            y = self.get(node.input[1], False)
            return self.emit("BATCH_MATMUL", [x, y], node.output[0], False)
        name, bias, weight = node.output[0], -1, np.ascontiguousarray(weight.T)
        for reader in self.index.readers[name] if len(self.index.readers[name]) == 1 else ():
            for other in reader.input if reader.op_type == "Add" else ():
                if other in self.index.constants and len(self.index.constants[other].dims) == 1:
                    name, bias = reader.output[0], self.get(other, False)
        if self.precision == "int8":
            scales = np.maximum(np.abs(weight).max(1), 1e-12) / 127       # [out]
            quantised = np.rint(weight / scales[:, None]).astype(np.int8)
            tensor = self.file.tensor(node.input[1], weight.shape, quantised, scales)
        else:
            tensor = self.constant(node.input[1], weight)
        self.emit("FULLY_CONNECTED", [x, tensor, bias], name, False, keepNumDims=True,
                  version=_HYBRID if self.precision == "int8" else 0)

    def convolution(self, node: NodeProto, attributes: dict) -> None:
        weight, *biases = (self.index.value(name) for name in node.input[1:])  # [O,I/groups,h,w]
        channels, groups = self.shapes[node.input[0]][1], attributes.get("group", 1)
        padding = None if weight is None else self.padding(node, attributes, weight.shape[2:])
        if weight is None or padding is None or groups not in (1, channels):
            return self.untranslated(node, attributes)
        bias = np.zeros(len(weight)) if not biases or biases[0] is None else biases[0]
        for reader in self.index.readers[node.output[0]]:
            if reader.op_type == "DepthToSpace":  # PyTorch's channels are [C,b,b], LiteRT's [b,b,C]
                block = onnx.helper.get_node_attr_value(reader, "blocksize")
                order = np.arange(len(weight)).reshape(-1, block * block).T.ravel()
                weight, bias = weight[order], bias[order]
        options = {"depthMultiplier": len(bias) // channels} if groups > 1 else {}
        for name, key in (("stride{}", "strides"), ("dilation{}Factor", "dilations")):
            options |= zip(map(name.format, "HW"), attributes.get(key, (1, 1)), strict=True)
        weight = weight.transpose((1, 2, 3, 0) if groups > 1 else (0, 2, 3, 1))
        inputs = [self.get(node.input[0], True), self.constant(node.input[1], weight),
                  self.constant(f"{node.name}.bias", bias)]
        self.emit("DEPTHWISE_CONV_2D" if groups > 1 else "CONV_2D", inputs, node.output[0], True,
                  padding=padding, **options)

    def padding(self, node: NodeProto, attributes: dict, kernel: Sequence[int]) -> int | None:
        """SAME or VALID; None where neither is the node's."""
        pads, same = attributes.get("pads", (0, 0, 0, 0)), []
        for size, k, stride, dilation in zip(
                self.shapes[node.input[0]][2:], kernel, attributes.get("strides", (1, 1)),
                attributes.get("dilations", (1, 1)), strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
            same.append((total // 2, total - total // 2))
        if [tuple(pads[0::2]), tuple(pads[1::2])] == same:
            return self.file.schema.Padding.SAME
        return None if any(pads) else self.file.schema.Padding.VALID

    def depth_to_space(self, node: NodeProto, attributes: dict) -> None:
        before = self.index.source(node.input[0])  # whose channels this has put in order
        if (before is None or before.op_type != "Conv" or attributes.get("mode") != b"CRD"
                or len(self.index.readers[node.input[0]]) > 1):
            self.untranslated(node, attributes)
        self.emit("DEPTH_TO_SPACE", [self.get(node.input[0], True)], node.output[0], True,
                  blockSize=attributes["blocksize"])

    def transpose(self, node: NodeProto, attributes: dict) -> None:
        """No operator where one layout of the input is the other of the output."""
        name, perm = node.input[0], list(attributes["perm"])
        plain = list(range(len(perm)))
        orders = {False: plain, True: [*_last(plain)]}
        for source, target in ((a, b) for a in orders for b in orders if self.has(name, a)):
            if [orders[source].index(perm[axis]) for axis in orders[target]] == plain:
                self.stored[node.output[0], target] = self.stored[name, source]
                return
        self.emit("TRANSPOSE", [self.get(name, False), self.integers(perm)], node.output[0], False)

    def reshape(self, node: NodeProto, _: dict) -> None:
        """In place where batch and channels stay."""
        name, before = node.input[0], self.shapes[node.input[0]]
        after = self.shapes[node.output[0]]
        last = min(len(before), len(after)) > 2 and before[:2] == after[:2] and self.has(name, True)
        shape = _last(after) if last else after
        self.emit("RESHAPE", [self.get(name, last), self.integers(shape)], node.output[0], last,
                  newShape=list(shape))


_RULES: dict[str, Callable[[_Translator, NodeProto, dict], None]] = {
    **dict.fromkeys(_ELEMENTWISE, _Translator.elementwise),
    **dict.fromkeys(_REDUCED, _Translator.reduce), "Clip": _Translator.clip,
    "Softmax": _Translator.softmax, "MatMul": _Translator.matmul, "Conv": _Translator.convolution,
    "DepthToSpace": _Translator.depth_to_space, "Transpose": _Translator.transpose,
    "Reshape": _Translator.reshape}


def _last(shape: Sequence[int]) -> tuple[int, ...]:
    """[N,C,...] -> [N,...,C]; of fewer than three axes as it is."""
    return (shape[0], *shape[2:], shape[1]) if len(shape) > 2 else tuple(shape)
