"""What the student is trained to match: every token's feature, and how a frame's tokens relate.

Features are [B,D,H,W]: one D-vector a grid cell, standardised per channel (unitless).
"""
import torch
import torch.nn.functional as F
from torch import Tensor


def token_loss(student: Tensor, teacher: Tensor, l1_weight: float = 0.5) -> Tensor:
    """Direction and size of each token: cosine distance + l1_weight * smooth L1.

    student, teacher: [B,D,H,W], equal shapes. Returns a float32 scalar >= 0; 0 when equal.
    Raises ValueError if the shapes differ. Source: UNIC (arXiv 2408.05088).
    """
    if student.shape != teacher.shape:
        raise ValueError(f"token_loss: got student {list(student.shape)}, expected the teacher's "
                         f"{list(teacher.shape)}; set the student's out_dim and grid to match")
    student, teacher = student.float(), teacher.detach().float()         # [B,D,H,W]
    direction = 1 - F.cosine_similarity(student, teacher, dim=1)         # [B,H,W]
    size = F.smooth_l1_loss(student, teacher, reduction="none").mean(1)  # [B,H,W]
    return (direction + l1_weight * size).mean()


def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Which tokens of a frame look alike: MSE between their cosine-similarity matrices.

    student [B,Ds,H,W], teacher [B,Dt,H,W]: widths may differ. Returns a float32 scalar in [0,4].
    Raises ValueError if B or the grid differs. Source: Gram anchoring, DINOv3 (arXiv 2508.10104).
    """
    (b, _, *grid), (b_t, _, *grid_t) = student.shape, teacher.shape
    if (b, grid) != (b_t, grid_t):
        raise ValueError(f"relation_loss: got student B={b} grid={grid}, expected B={b_t} "
                         f"grid={grid_t}; pool both to one grid first")
    return F.mse_loss(_similarity(student), _similarity(teacher.detach()))


def _similarity(features: Tensor) -> Tensor:
    # autocast would round the product to bfloat16, where 0.999 and 1 are the same similarity
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(features.float().flatten(2), dim=1)  # [B,D,N], N = H*W
        return unit.transpose(1, 2) @ unit                      # [B,N,N] in [-1,1]
