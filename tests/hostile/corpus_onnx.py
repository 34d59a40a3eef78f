"""ONNX files for `vega3d infer`, `export check` and `bench latency`."""
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper
from PIL import Image

from records import runtime
from tests.hostile.case import Case
from tests.onnx_graphs import FRAMES, infer_model, model_of, quantised_linear, save_external, value

FILE = "hostile.onnx"
SECONDS = 2  # of a trial run: what never ends need not take long to show it
make = helper.make_node
FLOAT = TensorProto.FLOAT
Content = ModelProto | bytes
Graphs = dict[str, Callable[[], Content]]


def relu(frames: list, **fields) -> ModelProto:
    return infer_model([make("Relu", ["frames"], ["features"])], None, frames, **fields)


def sized(*frames: int | str) -> Callable[[], Content]:
    return lambda: relu(list(frames))


def with_output(name: str, shape: list[int], kind: int = FLOAT) -> Callable[[], Content]:
    """A constant output of this name and shape."""
    def build() -> Content:
        tensor = helper.make_tensor("shape", TensorProto.INT64, [len(shape)], shape)
        fill = onnx.numpy_helper.from_array(
            np.zeros(1, helper.tensor_dtype_to_np_dtype(kind)), "fill")
        nodes = [make("Constant", [], ["s"], value=tensor),
                 make("ConstantOfShape", ["s"], [name], value=fill)]
        return infer_model(nodes, outputs=[onnx.ValueInfoProto(name=name)])
    return build


def grows(*nodes: onnx.NodeProto, **constants: np.ndarray) -> Callable[[], Content]:
    """Nodes whose last output, "features", would not fit into memory."""
    return lambda: infer_model(nodes, constants, outputs=[onnx.ValueInfoProto(name="features")])


def endless(scan: bool = False, inner: bool = False) -> Content:
    """A Loop without an end, over a few numbers; scan: that also collects an output."""
    body = [make("Identity", ["c"], ["c_out"]), make("Add", ["s", "s"], ["s_out"])]
    outputs = [value("c_out", [], TensorProto.BOOL), value("s_out", [])]
    if inner:
        graph = endless().graph.node[-1].attribute[0].g
        body.append(make("Loop", ["", "c", "s"], ["unread"], body=graph))
    if scan:
        body.append(make("Identity", ["s"], ["each"]))
        outputs.append(value("each", []))
    graph = helper.make_graph(body, "body", [value("i", [], TensorProto.INT64),
                              value("c", [], TensorProto.BOOL), value("s", [])], outputs)
    names = ["features", "all"] if scan else ["features"]
    return infer_model(
        [make("ReduceMax", ["frames"], ["m"], keepdims=0), make("Less", ["m", "big"], ["yes"]),
         make("Loop", ["", "yes", "m"], names, body=graph)], {"big": np.float32(1e9)},
        outputs=[onnx.ValueInfoProto(name=name) for name in names])


def functions(*bodies: list[onnx.NodeProto]) -> Content:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("here", 1)]
    protos = [helper.make_function("here", f"f{i}", ["a"], ["b"], body, opsets)
              for i, body in enumerate(bodies)]
    call = make(f"f{len(bodies) - 1}", ["frames"], ["features"], domain="here")
    return infer_model([call], functions=protos, domains=["here"])


def doubling(levels: int) -> Content:
    call = [[make(f"f{i}", ["a"], ["t"], domain="here"), make(f"f{i}", ["t"], ["b"], domain="here")]
            for i in range(levels)]
    return functions([make("Relu", ["a"], ["b"])], *call)


def metadata(**entries: object) -> Callable[[], Content]:
    return lambda: relu([1, 3, 224, 224], metadata={
        key: text if isinstance(text, str) else json.dumps(text) for key, text in entries.items()})


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, length = b"", len(payload)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + payload


def nested(depth: int) -> Content:
    """If in the branch of If in the branch of If …"""
    graph = b""
    for _ in range(depth):
        attribute = field(1, b"then_branch") + field(6, graph)
        graph = field(1, field(4, b"If") + field(5, attribute))
    return b"\x08\x08" + field(7, graph) + field(8, b"\x10\x11")


INFER: Graphs = {
    "batch 0": sized(0, 3, 224, 224), "batch -1": sized(-1, 3, 224, 224),
    "batch 2^62": sized(2**62, 3, 224, 224), "batch 2^31": sized(2**31, 3, 224, 224),
    "batch 7": sized(7, 3, 224, 224), "size 0": sized(1, 3, 0, 0), "size -5": sized(1, 3, -5, -5),
    "size 2^62": sized(1, 3, 2**62, 2**62), "size 100000": sized(1, 3, 100_000, 100_000),
    "size 2^31": sized(1, 3, 2**31, 2**31), "channels 0": sized(1, 0, 224, 224),
    "an open size": sized("n", 3, "h", "w"), "five axes": sized(1, 3, 8, 224, 224),
    "no axes": sized(),
    "no outputs": lambda: relu([1, 3, 224, 224], outputs=[]),
    "no inputs": lambda: model_without_inputs(),
    "two inputs": lambda: two_inputs(),
    **{f"depth of shape {shape}": with_output("depth", shape)
       for shape in ([], [1], [1, 4], [1, 4, 4], [1, 1, 4, 4, 4], [1, 2, 4, 4], [2, 1, 4, 4],
                     [1, 1, 0, 0], [0, 1, 4, 4])},
    "normals of two channels": with_output("normals", [1, 2, 4, 4]),
    "colours of one channel": with_output("colours", [1, 1, 4, 4]),
    "features of two axes": with_output("features", [1, 8]),
    "an output without the batch": with_output("other", [3]),
    "65 outputs": lambda: infer_model(
        [make("Relu", ["frames"], [f"o{i}"]) for i in range(65)],
        outputs=[onnx.ValueInfoProto(name=f"o{i}") for i in range(65)]),
    "an output of text": lambda: infer_model(
        [make("Cast", ["frames"], ["features"], to=TensorProto.STRING)],
        outputs=[onnx.ValueInfoProto(name="features")]),
    "a sequence": lambda: infer_model(
        [make("SequenceConstruct", ["frames"], ["features"])],
        outputs=[onnx.ValueInfoProto(name="features")]),
    "NaN": lambda: infer_model([make("Mul", ["frames", "nan"], ["features"])],
                               {"nan": np.float32("nan")}),
    "outputs that share a file name": lambda: infer_model(
        [make("Relu", ["frames"], [name]) for name in ("a/b", "a\\b")],
        outputs=[onnx.ValueInfoProto(name=name) for name in ("a/b", "a\\b")]),
    "a loop without end": endless,
    "a loop without end that collects": lambda: endless(scan=True),
    "a loop without end in a loop": lambda: endless(inner=True),
    "ConstantOfShape": with_output("features", [1, 3, 2**20, 2**20]),
    "ConstantOfShape of int64": with_output("features", [2**62], TensorProto.INT64),
    "Expand": grows(make("Expand", ["frames", "n"], ["features"]),
                    n=np.array([2**20, 3, 224, 224])),
    "Tile": grows(make("Tile", ["frames", "n"], ["features"]), n=np.array([2**20, 9, 9, 9])),
    "Range": grows(make("Range", ["a", "b", "c"], ["features"]), a=np.int64(0), b=np.int64(2**50),
                   c=np.int64(1)),
    "Pad": grows(make("Pad", ["frames", "n"], ["features"]),
                 n=np.array([0, 0, 9, 9, 2**17, 2**17, 0, 0])),
    "Resize": grows(make("Resize", ["frames", "", "n"], ["features"]),
                    n=np.array([1, 1, 2000, 2000], np.float32)),
    "an outer product": grows(
        make("Reshape", ["frames", "column"], ["c"]), make("Reshape", ["frames", "row"], ["r"]),
        make("MatMul", ["c", "r"], ["features"]), column=np.array([-1, 1]), row=np.array([1, -1])),
    "OneHot": grows(make("Cast", ["frames"], ["i"], to=7),
                    make("OneHot", ["i", "n", "v"], ["features"]), n=np.int64(2**40),
                    v=np.zeros(2, np.float32)),
    "twenty times twice as large": grows(
        *(make("Concat", [f"t{i}" if i else "frames"] * 2, [f"t{i + 1}"], axis=0)
          for i in range(20)), make("Identity", ["t20"], ["features"])),
    "a function that calls itself": lambda: functions([make("f0", ["a"], ["b"], domain="here")]),
    "functions that double 40 times": lambda: doubling(40),
    "metadata nested 100000 deep": metadata(input="[" * 100_000),
    "metadata, closed": metadata(input="[" * 5000 + "]" * 5000),
    "metadata of another range": metadata(input={**FRAMES, "range": [0, "9" * 100_000]}),
    "metadata with an escape": metadata(input={**FRAMES, "layout": "\x1b[2J\x07"}),
    "metadata that is no object": metadata(input="3"),
    "metadata twice": metadata(input='{"name": "frames", "name": "frames"}'),
    "a name of control characters": lambda: infer_model(
        [make("\x1b[31mNo", ["frames"], ["features"], "\x1b]0;x\x07")]),
    "a name of 100 kB": lambda: infer_model([make("N" * 100_000, ["frames"], ["features"])]),
}

# seconds each, and of the kind of others: outside CI
HEAVY = {"batch 2^31", "size 2^31", "channels 0", "ConstantOfShape of int64", "OneHot", "Resize",
         "a loop without end in a loop", "a loop without end that collects", "metadata, closed",
         *(f"depth of shape {shape}" for shape in ([1], [1, 4, 4], [1, 1, 4, 4, 4], [0, 1, 4, 4]))}


def model_without_inputs() -> Content:
    model = relu([1, 3, 224, 224])
    del model.graph.input[:]
    return model


def two_inputs() -> Content:
    model = relu([1, 3, 224, 224])
    model.graph.input.append(value("more", [1]))
    return model


def broken_tensor(**changes) -> Callable[[], Content]:
    """A weight whose fields do not fit each other."""
    def build() -> Content:
        model = model_of([make("MatMul", ["x", "W"], ["y"])], {"W": np.ones((16, 12), np.float32)})
        for key, entry in changes.items():
            if key == "dims":
                del model.graph.initializer[0].dims[:]
                model.graph.initializer[0].dims.extend(entry)
            else:
                setattr(model.graph.initializer[0], key, entry)
        return model
    return build


def lonely(op: str, **attributes) -> Callable[[], Content]:
    """A node without inputs, in a graph that also holds an INT8 Linear."""
    def build() -> Content:
        model = quantised_linear()
        model.graph.node.append(make(op, [], ["z"], **attributes))
        return model
    return build


def cycle(*ops: str) -> Callable[[], Content]:
    return lambda: model_of(
        [make(op, [f"t{(i + 1) % len(ops)}"], [f"t{i}"]) for i, op in enumerate(ops)]
        + [make("MatMul", ["x", "t0"], ["y"])])


def version(number: int, domain: str = "") -> Callable[[], Content]:
    def build() -> Content:
        model = quantised_linear()
        model.opset_import[0].version, model.opset_import[0].domain = number, domain
        return model
    return build


CHECK: Graphs = {
    **{f"{op} without inputs": lonely(op) for op in (
        "QuantizeLinear", "DequantizeLinear", "LayerNormalization", "Pow", "Mul", "MatMul", "Cast",
        "Transpose", "Reshape")},
    "a node without outputs": lambda: model_of([make("MatMul", ["x", "x"], [])]),
    "a cycle": cycle("Relu", "Relu"), "a cycle of Identity": cycle("Identity", "Identity"),
    "a node that reads itself": cycle("Transpose"),
    "a cycle of DequantizeLinear": lambda: model_of(
        [make("DequantizeLinear", ["a", "s"], ["b"]), make("DequantizeLinear", ["b", "s"], ["a"]),
         make("MatMul", ["x", "a"], ["y"])], {"s": np.ones(3, np.float32)}),
    "nested 5000 deep": lambda: nested(5000), "nested 200 deep": lambda: nested(200),
    "nested 25 deep": lambda: nested(25),
    "a type that is none": broken_tensor(data_type=999),
    "a shape beyond its values": broken_tensor(dims=[2**40, 2**20]),
    "a negative shape": broken_tensor(dims=[-16, -12]),
    "a shape of 2^62": broken_tensor(dims=[2**62]),
    "too few bytes": broken_tensor(raw_data=b"123"),
    "opset 2^62": version(2**62), "opset -1": version(-1), "opset 0": version(0),
    "no standard operators": version(1, "nobody"),
    "a scale behind 2^40 zeros": lambda: quantised_linear(
        [make("ConstantOfShape", ["n"], ["ws"]), make("DequantizeLinear", ["W", "ws"], ["Wd"])],
        n=np.array([2**40]), without=["ws"]),
    "a scale behind a loop": lambda: model_of(
        [*endless().graph.node[-1:], make("QuantizeLinear", ["x", "features"], ["y"])],
        {"yes": np.array(True), "m": np.float32(1)}),
    "a function that calls itself": INFER["a function that calls itself"],
    "functions that double 40 times": INFER["functions that double 40 times"],
    "text": lambda: b"this is no model", "nothing": lambda: b"", "zeros": lambda: bytes(10_000),
    "half a file": lambda: quantised_linear().SerializeToString()[:-300],
    "noise": lambda: np.random.default_rng(0).bytes(5000),
    "a length of 2^60": lambda: b"\x3a" + b"\xff" * 8 + b"\x0f",
}
BENCH: Graphs = {name: INFER[name] for name in (
    "batch 0", "batch -1", "batch 2^62", "size 0", "size -5", "size 2^62", "size 100000",
    "no outputs", "no inputs", "two inputs", "a loop without end", "Tile", "Expand",
    "an outer product", "functions that double 40 times")} | {
    name: CHECK[name] for name in ("nested 5000 deep", "a cycle", "half a file", "opset 2^62")}


def places() -> Iterator[Case]:
    for name, location in {"a pipe": "pipe", "a folder": "folder", "an absolute path": "/etc/hosts",
                           "a device": "/dev/zero", "a path outside": "../outside.data",
                           "a missing file": "gone.data", "a name with an escape": "\x1b[2J",
                           "a link outside": "link"}.items():
        for args in (["export", "check", FILE], ["bench", "latency", FILE]):
            yield Case("onnx", f"{args[0]}: data in {name}", _external(location, args), FILE)
    for make_special, name in ((os.mkfifo, "a pipe"), (os.mkdir, "a folder")):
        for args in (["export", "check", FILE], ["bench", "latency", FILE],
                     ["infer", FILE, "photo.png", "-o", "out"]):
            yield Case("onnx", f"{args[0]}: the model is {name}", _special(make_special, args),
                       FILE)


def graphs() -> Iterator[Case]:
    for args, contents in ((["infer", FILE, "photo.png", "-o", "out"], INFER),
                           (["export", "check", FILE], CHECK), (["bench", "latency", FILE], BENCH)):
        for name, build in contents.items():
            yield Case("onnx", f"{args[0]}: {name}", _graph(build, args), FILE, name in HEAVY)
    for name in ("a loop without end", "Tile", "no outputs", "a cycle", "nested 25 deep"):
        yield Case("onnx", f"export --target cpu: {name}",
                   _graph(INFER.get(name) or CHECK[name],
                          ["export", "check", FILE, "--target", "cpu"]),
                   FILE)


def _graph(build: Callable[[], Content], args: list[str]) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        runtime.SECONDS = SECONDS
        content = build()
        data = content if isinstance(content, bytes) else content.SerializeToString()
        (folder / FILE).write_bytes(data)
        Image.new("RGB", (64, 64)).save(folder / "photo.png")
        return args
    return write


def _external(location: str, args: list[str]) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        model = infer_model([make("Mul", ["frames", "w"], ["features"])],
                            {"w": np.ones((3, 224, 224), np.float32)})
        save_external(model, folder / FILE, location)
        os.mkfifo(folder / "pipe")
        (folder / "folder").mkdir()
        (folder / "link").symlink_to("/etc/hosts")
        return args
    return write


def _special(make_special: Callable, args: list[str]) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        make_special(folder / FILE)
        Image.new("RGB", (64, 64)).save(folder / "photo.png")
        return args
    return write


CORPUS = (graphs, places)
