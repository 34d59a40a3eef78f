"""Layer by layer: where along the graph a candidate's tensors leave the reference's."""
from dataclasses import dataclass

import numpy as np
import onnx

from export.graph.index import copy_model
from export.graph.session import cpu_session
from export.parity import relative_error
from records.runtime import ort


@dataclass(frozen=True)
class LayerParity:
    tensor: str
    cosine: float
    relative_error: float


def layerwise(reference: onnx.ModelProto, candidate: onnx.ModelProto,
              frame: np.ndarray) -> list[LayerParity]:
    """The tensors that both graphs name, for frames [B,3,H,W] in [0,1]. ValueError if none."""
    names = set(_outputs(candidate))
    shared = [name for name in _outputs(reference) if name in names]
    if not shared:
        raise ValueError(
            "layerwise: the two models share no tensor name; export both from one FP32 ONNX")
    values = (_values(model, shared, frame) for model in (reference, candidate))
    return [LayerParity(name, _cosine(a, b), relative_error(a, b))
            for name, a, b in zip(shared, *values, strict=True) if a.shape == b.shape]


def furthest(rows: list[LayerParity], most: int = 10) -> list[LayerParity]:
    """The tensors furthest from the reference, by cosine."""
    return sorted(rows, key=lambda row: row.cosine)[:most]


def _outputs(model: onnx.ModelProto) -> list[str]:
    return [output for node in model.graph.node for output in node.output]


def _values(model: onnx.ModelProto, names: list[str], frame: np.ndarray) -> list[np.ndarray]:
    probed = copy_model(model)
    outputs = {value.name for value in probed.graph.output}
    probed.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    # unoptimised: fusing would hide the tensors
    session = cpu_session(probed.SerializeToString(), ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    values = session.run(names, {session.get_inputs()[0].name: frame})
    return [value.astype(np.float64) for value in values]


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
