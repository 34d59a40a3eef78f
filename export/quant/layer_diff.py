"""Layer by layer: where along the graph a candidate leaves the reference, when the gate says only
that it did."""
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort

from export.parity import relative_error


@dataclass(frozen=True)
class LayerParity:
    """One tensor that both models name: how well the candidate's agrees with the reference's."""
    tensor: str
    cosine: float
    relative_error: float


def layerwise(reference: onnx.ModelProto, candidate: onnx.ModelProto,
              frame: np.ndarray) -> list[LayerParity]:
    """Compares every tensor that both graphs compute under one name, in the reference's order.

    frame: [B,3,H,W] float32 in [0,1]. Raises ValueError if the two share no tensor name.
    """
    made = {output for node in candidate.graph.node for output in node.output}
    shared = [output for node in reference.graph.node for output in node.output if output in made]
    if not shared:
        raise ValueError(
            "layerwise: the two models share no tensor name; export both from one FP32 ONNX")
    pairs = zip(shared, _values(reference, shared, frame), _values(candidate, shared, frame),
                strict=True)
    return [
        LayerParity(name, _cosine(a, b), relative_error(a, b)) for name, a, b in pairs
        if a.shape == b.shape
    ]


def worst(rows: list[LayerParity], most: int = 10) -> list[LayerParity]:
    """The tensors furthest from the reference, by cosine."""
    return sorted(rows, key=lambda row: row.cosine)[:most]


def _values(model: onnx.ModelProto, names: list[str], frame: np.ndarray) -> list[np.ndarray]:
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    known = {value.name for value in opened.graph.output}
    opened.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = ort.SessionOptions()
    # fusing would hide the tensors
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(opened.SerializeToString(), options,
                                   providers=["CPUExecutionProvider"])
    return [
        value.astype(np.float64)
        for value in session.run(names, {session.get_inputs()[0].name: frame})
    ]


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
