"""INT8 by the recipe that keeps a ViT's accuracy: only the block Linears, symmetric, ranges from
the run's own frames.

Measured best of eleven NNCF settings on a trained ViT (reference/toolchain.md 4a): TRANSFORMER +
PERFORMANCE gives int8 activations with zero point 0; SmoothQuant (shipped ViT-Ti: error .030
without, .021 at .5, .017 at .75, flat beyond) and min-max ranges halve the error; leaving the
attention products in half costs nothing and keeps TensorRT's fused attention. Residual Add,
LayerNorm, Softmax and GELU are never touched: Q/DQ on the residual stream is what takes a ViT from
85 % to chance.
"""
import contextlib
import io
import logging
import os
from collections import Counter
from dataclasses import asdict, dataclass

import onnx

from export.artefact import Facts
from export.graph.index import GraphIndex, rename
from export.quant.smoothquant import fold_smoothing
from export.source import Frames, evenly_spaced, to_input
from records.files import digest

# switches its telemetry off; read when nncf is imported, below and late (10 s)
os.environ.setdefault("NNCF_CI", "1")


@dataclass(frozen=True)
class Recipe:
    """What is quantised and how. Defaults are the measured best; `float_layers` go back to half by
    name."""
    # SmoothQuant: how much of the range moves into the weights; -1 = off
    smooth_alpha: float = 0.75
    patch_conv: bool = False           # < 1 % of the work, and it sees raw pixels
    head: bool = False  # the last Linear: small, and its error is nobody's to correct
    frames: int = 300                  # calibration frames used, at most
    float_layers: tuple[str, ...] = () # names of nodes, e.g. blocks.0.fc2/MatMul

    def facts(self) -> Facts:
        return {
            **asdict(self), "tool": "nncf", "preset": "performance", "model_type": "transformer",
            "ranges": "min-max", "weights": "int8 per output channel, symmetric",
            "activations": "int8 per tensor, symmetric, zero point 0"
        }


def quantize(model: onnx.ModelProto, calibration: Frames,
             recipe: Recipe = Recipe()) -> onnx.ModelProto:
    """FP32 ONNX -> the same with Q/DQ around the chosen layers (signed int8, FP32 elsewhere).

    Raises ValueError if a name in `recipe.float_layers` is no layer of the model.
    """
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    model = unshared(model)
    left_out = ignored(model, recipe)
    name = model.graph.input[0].name
    dataset = nncf.Dataset(evenly_spaced(calibration.frames, recipe.frames),
                           lambda frame: {name: to_input(frame[None])})
    alphas = AdvancedSmoothQuantParameters(matmul=recipe.smooth_alpha, convolution=-1)
    ranges = RangeEstimatorParametersSet.MINMAX
    with _quiet(nncf):
        quantized = nncf.quantize(
            model, dataset, subset_size=recipe.frames, model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.PERFORMANCE,
            ignored_scope=nncf.IgnoredScope(names=left_out),
            advanced_parameters=AdvancedQuantizationParameters(
                smooth_quant_alphas=alphas, activations_range_estimator_params=ranges))
    fold_smoothing(quantized)
    name_for_layers(quantized)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def layers(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that could be quantised: Conv, Gemm and MatMul with a weight, in graph
    order."""
    index = GraphIndex(model)
    return [
        node.name for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and any(map(index.is_weight, node.input))
    ]


def calibration_facts(calibration: Frames, recipe: Recipe) -> Facts:
    """Which frames set the ranges: a digest of each, and one of all (two runs with the same digest
    calibrate alike)."""
    used = evenly_spaced(calibration.frames, recipe.frames)
    each = [digest(frame.tobytes().hex()) for frame in used]
    return {
        "frames": len(used), "source_sha256": calibration.digest, "digest": digest(each),
        "frame_digests": each, "preprocessing": "uint8 RGB / 255"
    }


def unshared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy where no two nodes share an initialiser: bias correction edits them in place,
    LayerNorm's included."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    seen: Counter[str] = Counter()
    for node in copy.graph.node:
        for i, name in enumerate(node.input):
            if name not in tensors or tensors[
                    name].data_type != onnx.TensorProto.FLOAT or not tensors[name].dims:
                continue
            seen[name] += 1
            if seen[name] > 1:
                twin = copy.graph.initializer.add()
                twin.CopyFrom(tensors[name])
                twin.name = node.input[i] = f"{name}.{seen[name]}"
    return copy


def ignored(model: onnx.ModelProto, recipe: Recipe) -> list[str]:
    """Names of the nodes that stay as they are. Raises ValueError for a `float_layers` that names
    no layer."""
    candidates = layers(model)
    unknown = set(recipe.float_layers) - set(candidates)
    if unknown:
        raise ValueError(
            f"quantize: got no layer called {', '.join(sorted(unknown))}; expected some of: "
            f"{', '.join(candidates)}")
    chosen = set(recipe.float_layers)
    chosen |= {
        node.name
        for node in model.graph.node if node.op_type == "Conv" and not recipe.patch_conv
    }
    if not recipe.head:
        chosen.add(candidates[-1])
    return [node.name for node in GraphIndex(model).attention_products()] + sorted(chosen)


def name_for_layers(model: onnx.ModelProto) -> None:
    """Q/DQ nodes take the name of the layer they serve, and axes count from the front (older
    parsers insist)."""
    index = GraphIndex(model)
    names: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        layer = index.readers[node.output[0]][0].name
        side = "weight" if index.is_weight(node.output[0]) else "input"
        stem = f"{layer}.{side}"
        names |= {
            node.input[0]: f"{stem}_q", node.input[1]: f"{stem}_scale",
            node.input[2]: f"{stem}_zero", node.output[0]: f"{stem}_dq"
        }
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


@contextlib.contextmanager
def _quiet(nncf):
    """NNCF draws its own progress bars and logs every pass; ours says what matters."""
    level = logging.getLogger("nncf").level
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        finally:
            logging.getLogger("nncf").setLevel(level)
