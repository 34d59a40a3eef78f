"""Which of the candidate boxes is meant: the hidden state of <ground> against each box's visual
tokens.

Source: Video-3D LLM (arXiv 2412.00493), ground head `infonce`.
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 0.07


class GroundHead(nn.Module):
    """asked [...,W] (LanguageTeacher.query), things [...,K,W] (pooled tokens + position of the box)
    -> logits.

    Logits [...,K+1] are cosines / 0.07; the last is the learned "none of them".
    """

    def __init__(self, width: int):
        super().__init__()
        self.ask, self.thing = _mlp(width), _mlp(width)
        self.none = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, asked: Tensor, things: Tensor) -> Tensor:
        none = self.none.expand(*things.shape[:-2], 1, -1)
        # [...,K+1,W]
        keys = F.normalize(
            torch.cat([self.thing(things), none.to(things.dtype)], -2).float(), dim=-1)
        query = F.normalize(self.ask(asked).float(), dim=-1)  # [...,W]
        # no matmul: autocast would round cosines to bfloat16
        return (keys * query.unsqueeze(-2)).sum(-1) / TEMPERATURE


def ground_loss(logits: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """InfoNCE with several positives: -log of the probability they share, mean over questions;
    float32 scalar.

    logits [...,K+1]; targets [...,K] bool, none set: the zero target is right; real [...,K] bool:
    no padding.
    """
    logits = masked(logits, real)
    right = torch.cat([targets, ~targets.any(-1, keepdim=True)], -1)
    return (logits.logsumexp(-1) - logits.masked_fill(~right, -torch.inf).logsumexp(-1)).mean()


def masked(logits: Tensor, real: Tensor) -> Tensor:
    """Logits [...,K+1] with padding candidates at -inf."""
    return logits.float().masked_fill(~F.pad(real, (0, 1), value=True), -torch.inf)


def box_tokens(points: np.ndarray, boxes: np.ndarray, grid: int,
               margin: float = 0.05) -> np.ndarray:
    """How much of each token lies in each box, [K,T*grid*grid] float32: rows sum to 1, or are 0 if
    nothing does.

    points [T,H,W,3] world metres (NaN = unknown), boxes [K,6] or [K,7] (centre, size, heading);
    `margin` m is added on every side, as surfaces lie on the box itself. Tokens at least half
    inside stand for the object, if there are any (Video-3D LLM's rule); a small object is the
    tokens it touches, by their share. Raises ValueError for a box without volume.
    """
    boxes = np.asarray(boxes, np.float32)
    if (flat := np.flatnonzero((boxes[:, 3:6] <= 0).any(1))).size:
        raise ValueError(
            f"boxes: number {flat[0]} has no volume (size {boxes[flat[0], 3:6].tolist()} m); sizes "
            "are width, depth, height > 0")
    t, h, w, _ = points.shape
    out = np.zeros((len(boxes), t, grid, grid), np.float32)
    rows, columns = (np.linspace(0, n, grid + 1).round().astype(int)[:-1] for n in (h, w))
    area = (h / grid) * (w / grid)
    for i, box in enumerate(boxes):
        inside = _inside(points, box, margin)
        out[i] = np.add.reduceat(np.add.reduceat(inside, rows, 1, dtype=np.float32), columns,
                                 2) / area
    half = out >= 0.5
    most = np.where(half.any((1, 2, 3), keepdims=True), half.astype(np.float32), out)
    return (most / np.maximum(most.sum(
        (1, 2, 3), keepdims=True), 1e-6)).reshape(len(boxes), t * grid * grid)


def _inside(points: np.ndarray, box: np.ndarray, margin: float) -> np.ndarray:
    local = points - box[:3]  # [T,H,W,3]
    if len(box) == 7 and box[6]:
        c, s = np.cos(box[6]), np.sin(box[6])
        local = local @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)
    return (np.abs(local) <= box[3:6] / 2 + margin).all(-1)  # NaN is nowhere


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.LayerNorm(width),
                         nn.Linear(width, width))
