"""INT8 by the recipe that keeps a ViT's accuracy: only the blocks' Linears, symmetric, min-max.

The best of eleven NNCF settings on a trained ViT. TRANSFORMER + PERFORMANCE gives int8 activations
with zero point 0. SmoothQuant (shipped ViT-Ti: error .030 without, .021 at .5, .017 at .75, no
better beyond) and min-max ranges halve the error. Attention products in half precision cost nothing
and keep TensorRT's fused attention. Residual Add, LayerNorm, Softmax and GELU are never quantised:
Q/DQ on the residual stream takes a ViT from 85 % to chance.
"""
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from export.artefact import Facts
from export.graph.export_onnx import Batch, quiet
from export.graph.index import GraphIndex, copy_constant, copy_model, rename
from export.quant.smoothquant import fold_smoothing
from export.source import Frames, evenly_spaced, to_input
from records.files import digest
from records.runtime import import_untracked


@dataclass(frozen=True)
class Recipe:
    """What is quantised and how. The defaults are the measured best."""
    smooth_alpha: float = 0.75         # SmoothQuant: share of the range moved to weights; -1 = off
    patch_conv: bool = False           # < 1 % of the work, and it sees raw pixels
    head: bool = False                 # the last Linear: small, and nothing after it absorbs errors
    frames: int = 300                  # calibration frames used, at most
    float_layers: tuple[str, ...] = () # not quantised: node names, e.g. blocks.0.fc2/MatMul

    def facts(self) -> Facts:
        return {**asdict(self), "tool": "nncf", "preset": "performance",
                "model_type": "transformer", "ranges": "min-max",
                "weights": "int8 per output channel, symmetric",
                "activations": "int8 per tensor, symmetric, zero point 0"}


def quantize(model: onnx.ModelProto, calibration: Frames,
             recipe: Recipe = Recipe()) -> onnx.ModelProto:
    """FP32 ONNX -> the same with signed int8 Q/DQ. ValueError for an unknown float layer."""
    nncf = import_untracked("nncf")
    model = unshared(model)
    ignored = nncf.IgnoredScope(names=float_nodes(model, recipe))
    name = model.graph.input[0].name
    batches = calibration_batches(calibration, recipe.frames, fixed_batch(model))
    dataset = nncf.Dataset(batches, lambda frames: {name: to_input(frames)})
    with quiet("nncf"):
        quantized = nncf.quantize(model, dataset, subset_size=len(batches), ignored_scope=ignored,
                                  **nncf_parameters(recipe))
    fold_smoothing(quantized)
    name_for_layers(quantized)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def nncf_parameters(recipe: Recipe, bias_correction: bool = True) -> dict[str, Any]:
    """Keyword arguments of nncf.quantize, for any of its backends."""
    nncf = import_untracked("nncf")
    from nncf.quantization import advanced_parameters as advanced
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    alphas = advanced.AdvancedSmoothQuantParameters(matmul=recipe.smooth_alpha, convolution=-1)
    return {"model_type": nncf.ModelType.TRANSFORMER,
            "preset": nncf.QuantizationPreset.PERFORMANCE,
            "advanced_parameters": advanced.AdvancedQuantizationParameters(
                smooth_quant_alphas=alphas, disable_bias_correction=not bias_correction,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX)}


def calibration_batches(calibration: Frames, most: int, batch: Batch = 1) -> np.ndarray:
    """uint8 [n,B,3,H,W]: at most `most` frames in batches of B (dynamic: 1), the last filled up."""
    frames, batch = evenly_spaced(calibration.frames, most), 1 if batch == "dynamic" else batch
    missing = -len(frames) % batch
    filled = np.concatenate([frames, frames[-1:].repeat(missing, 0)])
    return filled.reshape(-1, batch, *frames.shape[1:])


def fixed_batch(model: onnx.ModelProto) -> int:
    """Frames a call; 1 where that is open."""
    return model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1


def quantizable_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the Conv, Gemm and MatMul nodes with a weight, in graph order."""
    index = GraphIndex(model)
    return [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")
            and any(map(index.is_weight, node.input))]


def float_nodes(model: onnx.ModelProto, recipe: Recipe) -> list[str]:
    """Names of the nodes that `recipe` does not quantise. ValueError for an unknown float layer."""
    candidates, nodes = quantizable_layers(model), model.graph.node
    if unknown := set(recipe.float_layers) - set(candidates):
        raise ValueError(
            f"quantize: got no layer called {', '.join(sorted(unknown))}; expected some of: "
            f"{', '.join(candidates)}")
    names = set(recipe.float_layers)
    if not recipe.patch_conv:
        names |= {node.name for node in nodes if node.op_type == "Conv"}
    if not recipe.head:
        names.add(candidates[-1])
    products = [node.name for node in nodes if node.op_type == "MatMul"]  # q k^T and softmax v
    return [name for name in products if name not in candidates] + sorted(names)


def calibration_facts(calibration: Frames, recipe: Recipe) -> Facts:
    """The frames that set the ranges: a digest of each, and one of all."""
    frames = evenly_spaced(calibration.frames, recipe.frames)
    digests = [digest(frame.tobytes().hex()) for frame in frames]
    return {"frames": len(frames), "source_sha256": calibration.digest, "digest": digest(digests),
            "frame_digests": digests, "preprocessing": "uint8 RGB / 255"}


def unshared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy where no two nodes share a float tensor: NNCF's bias correction edits in place."""
    copy = copy_model(model)
    shareable = {tensor.name: tensor for tensor in copy.graph.initializer
                 if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims}
    uses: Counter[str] = Counter()
    for node in copy.graph.node:
        for i, name in enumerate(node.input):
            if name in shareable:
                uses[name] += 1
                if uses[name] > 1:
                    node.input[i] = f"{name}.{uses[name]}"
                    copy_constant(copy, shareable[name], node.input[i])
    return copy


def name_for_layers(model: onnx.ModelProto) -> None:
    """Names Q/DQ nodes after their layer; counts axes from the front, for older parsers."""
    index = GraphIndex(model)
    names: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        layer = index.readers[node.output[0]][0].name
        side = "weight" if index.is_weight(node.output[0]) else "input"
        stem = f"{layer}.{side}"
        names |= {node.input[0]: f"{stem}_q", node.input[1]: f"{stem}_scale",
                  node.input[2]: f"{stem}_zero", node.output[0]: f"{stem}_dq"}
        quantizer = index.source(node.input[0])
        node.name = f"{stem}/DequantizeLinear"
        if quantizer is not None:
            quantizer.name = f"{stem}/QuantizeLinear"
        rank = len(index.constants[node.input[0]].dims) if side == "weight" else 0
        for entry in node.attribute:
            if entry.name == "axis" and entry.i < 0:
                entry.i += rank
    rename(model.graph, names)
    del model.graph.value_info[:]  # stale after SmoothQuant and the new names
