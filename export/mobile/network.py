"""The student, with its heads if it has any, rewritten for phones; the gate of their files."""
from copy import deepcopy
from dataclasses import asdict
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from export.artefact import Facts
from export.graph.export_onnx import quiet
from export.pipeline import ArtefactSpec, Exporter
from export.presets import Outputs, camera_facts, gate_heads, output_facts
from records.files import sha256
from student.heads import FILE, Heads, StudentWithHeads, load_heads
from student.vit import HEAD_WIDTH, Attention, Student


class SplitAttention(nn.Module):
    """`Attention` with a linear layer each for q, k and v, and the scale in q's weights: no tensor
    has more than four axes, and none is split."""

    def __init__(self, joint: Attention):
        super().__init__()
        self.heads, width = joint.heads, joint.proj.in_features
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = joint.proj
        parts = zip(joint.qkv.weight.chunk(3), joint.qkv.bias.chunk(3), strict=True)
        for layer, scale, (weight, bias) in zip((self.q, self.k, self.v), (HEAD_WIDTH**-0.5, 1, 1),
                                                parts, strict=True):
            layer.weight.data, layer.bias.data = weight * scale, bias * scale

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (layer(x).reshape(b, n, self.heads, HEAD_WIDTH).transpose(1, 2)
                   for layer in (self.q, self.k, self.v))                # [B,h,N,64]
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v                    # [B,h,N,64]
        return self.proj(y.transpose(1, 2).reshape(b, n, c))             # [B,N,C]


class ScaledLayerNorm(nn.Module):
    """LayerNorm for runtimes without one. Deviations are divided by 8 before they are squared:
    half precision ends at 65504."""

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps / 64

    def forward(self, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) * 0.125
        return x / ((x * x).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias


def optional_package(module: str, extra: str) -> Any:
    """Imported without its warnings. Raises ValueError, naming our extra, if it is missing."""
    try:
        with quiet(module.partition(".")[0]):
            return import_module(module)
    except ImportError as error:
        raise ValueError(f"export {extra}: {error.name or error} is not installed; run: "
                         f"pip install 'vega3d-edge[{extra}]'") from error


class PhoneStudent:
    """What a phone's file of a run holds: frames [1,3,H,W] in [0,1] -> `outputs`, by name."""

    def __init__(self, exporter: Exporter):
        self.exporter, folder = exporter, exporter.run.folder / "student"
        has_heads = (folder / FILE).is_file()
        self.heads = load_heads(folder, exporter.run.student_sha256) if has_heads else None
        self.outputs = ("features", *(self.heads.shape.outputs if self.heads else ()))
        px = exporter.run.student.config.image_size
        self.shape = (3, px, px)
        self.digest = sha256(folder / FILE) if has_heads else ""

    def network(self, has_layer_norm: bool) -> nn.Module:
        return phone_network(self.exporter.run.student, self.heads, has_layer_norm)

    def facts(self, spec: ArtefactSpec, candidate: Outputs | None, cache_key: str,
              channels_last: bool = False) -> Facts:
        """Of the file's sidecar. candidate: gated; None for a file that cannot run here.

        Raises GateError if an output differs from torch's.
        """
        exporter, path, parity, found = self.exporter, self.exporter.run.out / spec.file, None, None
        if candidate is not None:
            exporter.log(f"gate: {spec.file}")
            parity = exporter.gate(lambda frames: candidate(frames)[0], spec.precision, str(path))
            if self.heads:
                found = gate_heads(exporter.run, self.heads, candidate, spec.precision, str(path))
        facts = exporter.facts(spec, parity, cache_key)
        outputs = output_facts(self.heads) if self.heads else {}
        if channels_last:
            for value in (facts["input"], facts["output"]):
                batch, channels, *sides = value["shape"]
                value |= {"shape": [batch, *sides, channels], "layout": "NHWC"}
            for value in outputs.values():
                value["shape"] = [*value["shape"][1:], value["shape"][0]]
        camera = camera_facts(self.heads) if self.heads else {}
        return facts | {"outputs": outputs, "drift": found and asdict(found)} | camera


@torch.no_grad()
def phone_network(student: Student, heads: Heads | None, has_layer_norm: bool) -> nn.Module:
    """frames [1,3,H,W] in [0,1] -> features, and the outputs of the heads."""
    student = deepcopy(student)
    for block in student.blocks:
        block.attn = SplitAttention(block.attn)  # type: ignore[arg-type]
    if not has_layer_norm:
        for owner in (student, *student.blocks):
            for name, layer in owner.named_children():
                if isinstance(layer, nn.LayerNorm):
                    setattr(owner, name, ScaledLayerNorm(layer))
    return (StudentWithHeads(student, heads) if heads else student).eval()
