"""The dense teacher: fused tokens -> depth, surface normal and class of every fourth pixel.

It reads the same fused tokens as the language model, where only geometry is needed.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenes.dense import NO_CLASS
from teacher.fusion import TokenGate
from teacher.towers.base import GRID

UP = 4  # targets to a token's side


@dataclass(frozen=True)
class DenseShape:
    semantic_dim: int
    generative_dim: int      # 0: semantic only
    classes: int
    width: int = 128


@dataclass
class DenseOutput:
    log_depth: Tensor  # [B,56,56], ln metres
    normals: Tensor    # [B,3,56,56], not yet unit length
    logits: Tensor     # [B,classes,56,56]
    gate: Tensor       # [B,1,14,14], semantic share


class DenseTeacher(nn.Module):
    """semantic [B,Ds,14,14], generative [B,Dg,14,14] or None -> DenseOutput.

    Inputs are not standardised; the model does it by the training set's statistics (buffers).
    """
    semantic_mean: Tensor
    semantic_std: Tensor
    generative_mean: Tensor
    generative_std: Tensor

    def __init__(self, shape: DenseShape):
        super().__init__()
        self.shape = shape
        generative_dim = max(shape.generative_dim, 1)
        for name, dim in (("semantic", shape.semantic_dim), ("generative", generative_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(1, dim, 1, 1))
            self.register_buffer(f"{name}_std", torch.ones(1, dim, 1, 1))
        self.fusion = TokenGate(shape.semantic_dim, generative_dim, shape.width)
        # A position embedding in every variant, so that a generative stream gains nothing by
        # encoding position. Without it fixed noise was as much better than semantic-only as the
        # generator (bench/results/rooms_accuracy).
        self.position = nn.Parameter(torch.zeros(1, shape.width, GRID, GRID))
        outputs = 1 + 3 + shape.classes
        self.mix = nn.Conv2d(shape.width, shape.width, 3, padding=1)
        self.head = nn.Conv2d(shape.width, outputs * UP * UP, 1)

    def forward(self, semantic: Tensor, generative: Tensor | None) -> DenseOutput:
        semantic = (semantic - self.semantic_mean) / self.semantic_std
        if self.shape.generative_dim == 0:
            generative = None
        elif generative is None:
            raise ValueError("dense teacher: was trained with a generative stream, got none")
        else:
            generative = (generative - self.generative_mean) / self.generative_std
        fused, gate = self.fusion(semantic, generative)                                # [B,W,14,14]
        fused = fused + self.position
        out = F.pixel_shuffle(self.head(F.gelu(fused + self.mix(fused))), UP)  # [B,4+classes,56,56]
        return DenseOutput(out[:, 0], out[:, 1:4], out[:, 4:], gate)


def dense_loss(out: DenseOutput, depth: Tensor, normals: Tensor, classes: Tensor) -> Tensor:
    """Sum of log-depth L1, normal cosine distance and cross-entropy; targets as in
    scenes.dense.DenseTargets.

    depth [B,56,56] metres, normals [B,3,56,56] int8, classes [B,56,56] uint8. Returns a float32
    scalar.
    """
    known, facing = depth > 0, (normals != 0).any(1)
    distance = (out.log_depth - depth.clamp_min(1e-3).log()).abs()[known].mean()
    cosine = F.cosine_similarity(out.normals.float(), normals.float(), dim=1)
    entropy = F.cross_entropy(out.logits.float(), classes.long(), ignore_index=NO_CLASS)
    return distance + (1 - cosine)[facing].mean() + 0.25 * entropy
