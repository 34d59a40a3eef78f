"""Small ONNX graphs written by hand: an INT8 Linear in many forms, and a model that infer takes."""
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

WIDTHS = 16, 12  # of a Linear: in, out
FRAMES = {"name": "frames", "layout": "NCHW", "colour": "RGB", "range": [0, 1],
          "normalisation": "inside the graph"}


def value(name: str, shape: Sequence, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes: Sequence[NodeProto], constants: dict[str, np.ndarray] | None = None,
             inputs: Sequence = (), outputs: Sequence = (), opset: int = 17,
             **fields) -> ModelProto:
    """inputs, outputs: x [1,4,16] and y [1,4,12] if not given."""
    graph = helper.make_graph(
        nodes, "g", inputs or [value("x", [1, 4, WIDTHS[0]])],
        outputs or [value("y", [1, 4, WIDTHS[1]])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()])
    domains = [helper.make_opsetid(name, 1) for name in fields.pop("domains", ())]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *domains],
                             ir_version=8 if opset < 21 else 10, **fields)


def quantised_linear(weight_nodes: Sequence[NodeProto] = (), weight: str = "Wd", *,
                     axis: int = 1, last: Sequence[NodeProto] = (), op: str = "MatMul",
                     without: Sequence[str] = (), **changes: np.ndarray) -> ModelProto:
    """x -> Q -> DQ -> MatMul with W int8 [16,12] -> DQ (per output) -> `weight_nodes` -> y.

    changes: constants added or replaced; without: constants left out, for nodes to write.
    """
    rng = np.random.default_rng(0)
    constants = {"xs": np.float32(0.02), "xz": np.int8(0),
                 "W": rng.integers(-127, 128, WIDTHS).astype(np.int8),
                 "ws": np.full(WIDTHS[axis if axis >= 0 else 1], 0.01, np.float32), **changes}
    zero = constants.setdefault("wz", np.zeros(np.shape(constants["ws"]), np.int8))
    assert zero is not None
    make = helper.make_node
    nodes = [make("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "q"),
             make("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], "dq"),
             *(weight_nodes or [weight_dq(axis=axis)]),
             *(last or [make(op, ["xd", weight], ["y"], "linear")])]
    kept = {k: v for k, v in constants.items() if k not in without}
    return model_of(_sorted(nodes, kept), kept)


def weight_dq(source: str = "W", axis: int = 1, scale: str = "ws", zero: str = "wz") -> NodeProto:
    names = [source, scale, zero] if zero else [source, scale]
    return helper.make_node("DequantizeLinear", names, ["Wd"], "wdq", axis=axis)


def infer_model(nodes: Sequence[NodeProto], constants: dict[str, np.ndarray] | None = None,
                frames: Sequence = (1, 3, 224, 224), outputs: Sequence | None = None,
                metadata: dict[str, str] | None = None, **fields) -> ModelProto:
    """A graph whose metadata is that of an exported file."""
    given = [value("features", ["n", "d", "h", "w"])] if outputs is None else outputs
    model = model_of(nodes, constants, [value("frames", frames)], [value("unused", [])], **fields)
    del model.graph.output[:]
    model.graph.output.extend(given)
    helper.set_model_props(model, {"input": json.dumps(FRAMES), **(metadata or {})})
    return model


def save_external(model: ModelProto, path: Path, location: str = "", **entries: object) -> Path:
    """Saves with every constant in a data file; entries: of the first tensor, replaced."""
    onnx.save(model, path, save_as_external_data=True, location=path.name + ".data",
              size_threshold=0)
    saved = onnx.load(path, load_external_data=False)
    first = saved.graph.initializer[0]
    for entry in first.external_data:
        if location and entry.key == "location":
            entry.value = location
        if entry.key in entries:
            entry.value = str(entries[entry.key])
    onnx.save(saved, path)
    return path


def _sorted(nodes: Sequence[NodeProto], constants: dict) -> list[NodeProto]:
    """Nodes in an order in which each reads what is there."""
    known, left, done = {"x", "", *constants}, list(nodes), []
    while left:
        ready = next((node for node in left if known.issuperset(node.input)), left[0])
        left.remove(ready)
        done.append(ready)
        known.update(ready.output)
    return done
