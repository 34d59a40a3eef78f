"""Short quantisation-aware distillation: the INT8 student is trained to match its FP32 self.

A fake-quantisation operator of our own with an ONNX translation, because NNCF's modules do not
export by dynamo, and with SmoothQuant lose three quarters of their activation quantisers. The
target is the FP32 student on random views of the run's frames.
"""
import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import cast

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnxscript import opset20 as op
from torch import Tensor, nn

from export.graph.export_onnx import Batch, export_onnx
from export.graph.index import GraphIndex, channel_axis, redirect, remove_attribute
from export.quant.int8 import Recipe, name_for_layers
from export.source import Frames, evenly_spaced
from records.events import emit
from student.vit import Block, Student

BATCH = 8
RATE = 1e-5        # of AdamW: weights move by a rounding step or two
SCALE_RATE = 1e-3  # relative to each activation scale
PEAK_FRAMES = 64   # that set the starting ranges
QMAX = 127


@torch.library.custom_op("vega3d::qdq", mutates_args=())
def qdq(x: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
    """x in int8 steps of `scale`: one, or one per index along `axis`. zero: for the ONNX form."""
    step = _along(scale, x, axis)
    return (x / step).round().clamp(-QMAX, QMAX) * step


@qdq.register_fake
def _(x, scale, zero, axis):
    return torch.empty_like(x)


def _save(ctx, inputs, output):
    x, scale, _, ctx.axis = inputs
    ctx.save_for_backward(x, scale)


def _straight_through(ctx, grad):
    """Passes the gradient inside the range; the scale's gradient is LSQ's (arXiv 1902.08153)."""
    x, scale = ctx.saved_tensors
    ratio = x / _along(scale, x, ctx.axis)
    inside = ratio.abs() <= QMAX
    of_scale = grad * torch.where(inside, ratio.round() - ratio, ratio.sign() * QMAX)
    summed = of_scale.sum() if scale.ndim == 0 else of_scale.sum(
        [d for d in range(x.ndim) if d != ctx.axis])
    return grad * inside, summed / (x.numel() * QMAX) ** 0.5, None, None


qdq.register_autograd(_straight_through, setup_context=_save)


def _qdq_onnx(x, scale, zero, axis: int = 0):
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero, axis=axis), scale, zero, axis=axis)


class QuantLinear(nn.Module):
    """A Linear with int8 weight [O,I] and input [...,I]. factor [I]: SmoothQuant's unfolded Mul."""
    weight_scale: Tensor
    factor: Tensor | None

    def __init__(self, linear: nn.Linear, peak: float, factor: Tensor | None = None):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = nn.Parameter(torch.tensor(max(peak, 1e-6) / QMAX))
        self.register_buffer("factor", factor)
        self.register_buffer("weight_scale", torch.ones(len(linear.weight)))
        self.register_buffer("zero", torch.zeros((), dtype=torch.int8))
        self.register_buffer("weight_zero", torch.zeros(len(linear.weight), dtype=torch.int8))
        self.freeze()

    def freeze(self) -> None:
        self.weight_scale = (self.weight.detach().abs().amax(1) / QMAX).clamp_min(1e-9)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.freeze()
        if self.factor is not None:
            x = x * self.factor
        weight = qdq(self.weight, self.weight_scale, self.weight_zero, 0)
        return F.linear(qdq(x, self.scale, self.zero, 0), weight, self.bias)


def distil_int8(student: Student, calibration: Frames, layers: Sequence[str], recipe: Recipe,
                steps: int, batch: Batch = 1,
                log: Callable[[str], None] = lambda _: None) -> onnx.ModelProto:
    """The signed INT8 ONNX after `steps` >= 1. layers: ONNX names such as blocks.0.fc1/MatMul."""
    if steps < 1:
        raise ValueError(f"--qat: got {steps}, expected >= 1 steps")
    with torch.enable_grad():
        frames = torch.from_numpy(calibration.frames)
        quantised = prepare(student, frames, layers, recipe)
        train(quantised, student, frames, steps, log)
    return to_onnx(quantised, batch)


def prepare(student: Student, frames: Tensor, layers: Sequence[str], recipe: Recipe) -> Student:
    """A smoothed copy with QuantLinear `layers`, ranges set on `frames` (uint8 [N,3,H,W])."""
    quantised = copy.deepcopy(student).eval().float().requires_grad_(True)
    names = {name.removesuffix("/MatMul") for name in layers}
    linears = {name: cast(nn.Linear, module) for name, module in quantised.named_modules()
               if name in names}
    peak_frames = torch.from_numpy(evenly_spaced(frames.numpy(), PEAK_FRAMES)).float() / 255
    peaks = _channel_peaks(quantised, linears, peak_frames)
    factors: dict[str, Tensor] = {}
    for name, linear in linears.items():
        _, i, kind = [*name.split(".", 2), "", ""][:3]
        if recipe.smooth_alpha >= 0 and kind:
            block = cast(Block, quantised.blocks[int(i)])
            s = _smooth(block, kind, linear, peaks[name], recipe.smooth_alpha)
            peaks[name] = peaks[name] / s
            if kind == "fc2":
                factors[name] = 1 / s
    for name, linear in linears.items():
        parent, _, attribute = name.rpartition(".")
        setattr(quantised.get_submodule(parent), attribute,
                QuantLinear(linear, float(peaks[name].max()), factors.get(name)))
    return quantised


def train(quantised: Student, student: Student, frames: Tensor, steps: int,
          log: Callable[[str], None]) -> None:
    """Trains weights and scales, in place, to match the FP32 student on views of `frames`."""
    linears = [module for module in quantised.modules() if isinstance(module, QuantLinear)]
    scales = [linear.scale for linear in linears]
    start = [scale.item() for scale in scales]
    optimiser = _optimiser(quantised, scales, start)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: 1 - i / steps)
    quantised.train()
    begin = time.monotonic()
    for i, view in enumerate(_views(frames, steps)):
        with torch.no_grad():
            target = student(view)
        output = quantised(view)
        loss = F.mse_loss(output, target) + (1 - F.cosine_similarity(output, target, dim=1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for scale, value in zip(scales, start, strict=True):
                scale.clamp_(0.25 * value, 2 * value)
        rate = (i + 1) / max(time.monotonic() - begin, 1e-9)
        left = round((steps - i - 1) / rate)
        emit("progress", stage="qat", step=i + 1, steps=steps, rate=round(rate, 3), eta_s=left)
        if i in (0, steps - 1) or (i + 1) % 20 == 0:
            log(f"qat step {i + 1} of {steps}: loss {loss.item():.6f}, {left} s left")
    quantised.eval()
    for linear in linears:
        linear.freeze()


def to_onnx(quantised: Student, batch: Batch = 1) -> onnx.ModelProto:
    """ONNX as `quantize` makes it: int8 weights behind DQ, one Q/DQ on each layer's input."""
    for parameter in quantised.parameters():
        parameter.requires_grad_(False)
    model = export_onnx(quantised, batch, {torch.ops.vega3d.qdq.default: _qdq_onnx})
    _store_int8_weights(model)
    name_for_layers(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _optimiser(quantised: Student, scales: list[nn.Parameter],
               start: list[float]) -> torch.optim.Optimizer:
    """One rate for weights, and for each scale one relative to its starting value."""
    ids = set(map(id, scales))
    groups = [{"params": [p for p in quantised.parameters() if id(p) not in ids], "lr": RATE}]
    groups += [{"params": [scale], "lr": SCALE_RATE * value}
               for scale, value in zip(scales, start, strict=True)]
    return torch.optim.AdamW(groups, weight_decay=0)


@torch.no_grad()
def _smooth(block: Block, kind: str, linear: nn.Linear, peak: Tensor, alpha: float) -> Tensor:
    """s = input peak^alpha / weight peak^(1-alpha) [I], into the weight; 1/s into norms or v. After
    GELU the layer has to multiply its input by it."""
    weight_peak = linear.weight.abs().amax(0).clamp_min(1e-5)                            # [I]
    s = (peak.clamp_min(1e-5) ** alpha / weight_peak ** (1 - alpha)).clamp(1e-3, 1e3)
    linear.weight *= s
    if kind == "attn.proj":
        block.attn.qkv.weight[-len(s):] /= s[:, None]  # the rows that make v
        block.attn.qkv.bias[-len(s):] /= s
    elif kind != "fc2":
        norm = block.norm1 if kind == "attn.qkv" else block.norm2
        norm.weight.div_(s)
        norm.bias.div_(s)
    return s


@torch.no_grad()
def _channel_peaks(student: Student, linears: Mapping[str, nn.Linear],
                   frames: Tensor) -> dict[str, Tensor]:
    """Largest magnitude of each input channel [I]; leaves hooks on layers that are replaced."""
    peaks: dict[str, Tensor] = {}

    def record(name, module, inputs):
        peak = inputs[0].abs().flatten(0, -2).amax(0)
        peaks[name] = torch.maximum(peaks.get(name, peak), peak)

    for name, linear in linears.items():
        linear.register_forward_pre_hook(partial(record, name))
    for chunk in frames.split(BATCH):
        student(chunk)
    return peaks


def _views(frames: Tensor, steps: int) -> Iterator[Tensor]:
    """Batches of random frames in [0,1]: half of them mirrored, up to 20 % brighter or darker."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(steps):
        view = frames[torch.randint(len(frames), (BATCH,), generator=rng)].float() / 255
        if torch.rand((), generator=rng) < 0.5:
            view = view.flip(3)
        yield (view * (0.8 + 0.4 * torch.rand(BATCH, 1, 1, 1, generator=rng))).clamp(0, 1)


def _store_int8_weights(model: onnx.ModelProto) -> None:
    """constant -> Q -> DQ -> Transpose becomes an int8 constant [I,O] -> DQ, in place; exact."""
    graph, index = model.graph, GraphIndex(model)
    for quantizer in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        remove_attribute(quantizer, "saturate")  # of float8 only, and unknown to opset 17
        weight, scale = (index.value(name) for name in quantizer.input[:2])
        if weight is None or scale is None:
            continue
        (dequantizer,) = index.readers[quantizer.output[0]]
        (transpose,) = index.readers[dequantizer.output[0]]
        assert transpose.op_type == "Transpose" and channel_axis(quantizer) == 0
        stored = np.rint(weight / scale[:, None]).clip(-QMAX, QMAX).astype(np.int8).T  # [I,O]
        index.set_value(quantizer.input[0], np.ascontiguousarray(stored))
        dequantizer.input[0] = quantizer.input[0]
        for entry in dequantizer.attribute:
            if entry.name == "axis":
                entry.i = 1
        redirect(index.readers[transpose.output[0]], transpose.output[0], dequantizer.output[0])
        graph.node.remove(quantizer)
        graph.node.remove(transpose)


def _along(scale: Tensor, x: Tensor, axis: int) -> Tensor:
    shape = [-1 if d == axis else 1 for d in range(x.ndim)]
    return scale.reshape(shape) if scale.ndim else scale
