"""What the student is trained to match: every token's feature, and how a frame's tokens relate; and
what its heads are: depth, normals and correspondences.

Features are [B,D,H,W]: one D-vector a grid cell, standardised per channel (unitless). Losses of
labels are means over a batch of each example's mean over what is known: by masks, so that a step
on a GPU never waits for a count, and so that processes may share a batch.
"""
from math import log

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


def depth_losses(depth: Tensor, confidence: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Of the log-depth error, where the truth is known; float32 scalars >= 0.

    relative: its deviation in a frame, scale-invariant (SILog, arXiv 1406.2283); scale: the size of
    its mean; gradient: its change between pixels 1, 2, 4 and 8 apart (arXiv 1907.01341);
    confidence: cross-entropy of the confidence and whether depth is within 25 %. depth and truth
    [B,h,w] in metres of one camera, truth 0: unknown; confidence [B,h,w].
    """
    valid = (truth > 0).float()
    error = (depth.float().log() - truth.float().clamp_min(1e-3).log()) * valid
    count = valid.sum((1, 2)).clamp_min(1)
    scale = error.sum((1, 2)) / count                                        # [B]
    centred = (error - scale[:, None, None]) * valid
    deviation = (centred.square().sum((1, 2)) / count + 1e-6).sqrt()
    hit, p = (error.detach().abs() < log(1.25)).float(), confidence.float().clamp(1e-6, 1 - 1e-6)
    entropy = -(hit * p.log() + (1 - hit) * (1 - p).log())
    return {"relative": deviation.mean(), "scale": scale.abs().mean(),
            "gradient": _gradient_loss(error, valid), "confidence": _mean(entropy, valid)}


def normal_loss(normals: Tensor, truth: Tensor) -> Tensor:
    """Mean cosine distance, in [0,2]; [B,3,h,w] of any length, truth 0: unknown."""
    truth = truth.float()
    distance = 1 - F.cosine_similarity(normals.float(), truth, dim=1)
    return _mean(distance, (truth != 0).any(1).float())


def match_loss(queries: Tensor, keys: Tensor, targets: Tensor, temperature: float = 0.07) -> Tensor:
    """InfoNCE (arXiv 1807.03748) over all cells of the second view, for each query of the first.

    queries: unit descriptors [P,C,M]; keys: unit descriptors [P,C,g,g]; targets [P,M,2]: (column,
    row) of the matching point in cells of the second view, NaN: not visible. A target is shared
    bilinearly among the four cells around it. Returns a float32 scalar; 0 if nothing is visible.
    """
    grid = keys.shape[-1]
    visible = ~targets.isnan().any(-1)                                              # [P,M]
    logits = queries.transpose(1, 2).float() @ keys.flatten(2).float() / temperature
    logits = logits.log_softmax(-1)                                                 # [P,M,g*g]
    target = targets.nan_to_num().clamp(0, grid - 1)
    low = target.floor().clamp(max=grid - 2)
    fraction = target - low                                                         # [P,M,2]
    likelihood = torch.zeros_like(fraction[..., 0])
    for dx in (0, 1):
        for dy in (0, 1):
            across = fraction[..., 0] if dx else 1 - fraction[..., 0]
            down = fraction[..., 1] if dy else 1 - fraction[..., 1]
            cell = ((low[..., 1] + dy) * grid + low[..., 0] + dx).long()
            likelihood = likelihood + across * down * logits.gather(2, cell[..., None])[..., 0]
    return _mean(-likelihood, visible.float())


def _gradient_loss(error: Tensor, valid: Tensor) -> Tensor:
    losses = []
    for apart in (1, 2, 4, 8):
        e, v = (x[:, ::apart, ::apart] for x in (error, valid))
        across, down = (e[:, :, 1:] - e[:, :, :-1]).abs(), (e[:, 1:] - e[:, :-1]).abs()
        losses.append(_mean(across, v[:, :, 1:] * v[:, :, :-1]) + _mean(down, v[:, 1:] * v[:, :-1]))
    return torch.stack(losses).mean()


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Over the batch, of each example's weighted mean; an example without weight counts as 0."""
    total, weight = (x.flatten(1).sum(1) for x in (values * weights, weights))
    return (total / weight.clamp_min(1)).mean()
