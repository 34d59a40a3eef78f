"""Grounding: Video-3D LLM's (arXiv 2412.00493) ground head `infonce`, and a box's tokens."""
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 0.07


class GroundHead(nn.Module):
    """query [...,W], objects [...,K,W] -> cosines / 0.07, [...,K+1]; last: "none of them"."""

    def __init__(self, width: int):
        super().__init__()
        self.query_proj, self.object_proj = _mlp(width), _mlp(width)
        self.none = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, query: Tensor, objects: Tensor) -> Tensor:
        none = self.none.expand(*objects.shape[:-2], 1, -1).to(objects.dtype)
        keys = torch.cat([self.object_proj(objects), none], -2)  # [...,K+1,W]
        keys = F.normalize(keys.float(), dim=-1)
        query = F.normalize(self.query_proj(query).float(), dim=-1)  # [...,W]
        # no matmul: autocast would round cosines to bfloat16
        return (keys * query.unsqueeze(-2)).sum(-1) / TEMPERATURE


def ground_loss(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """InfoNCE, -log of the targets' summed probability, mean over questions; float32 scalar.

    logits [...,K+1]; targets [...,K] bool, all False: "none" is right; valid [...,K]: not padding.
    """
    logits = mask_padding(logits, valid)
    right = torch.cat([targets, ~targets.any(-1, keepdim=True)], -1)
    return (logits.logsumexp(-1) - logits.masked_fill(~right, -torch.inf).logsumexp(-1)).mean()


def mask_padding(logits: Tensor, valid: Tensor) -> Tensor:
    """Logits [...,K+1] with padding candidates at -inf."""
    return logits.float().masked_fill(~F.pad(valid, (0, 1), value=True), -torch.inf)


def box_tokens(points: np.ndarray, boxes: np.ndarray, grid: int,
               margin: float = 0.05) -> np.ndarray:
    """Weights of the tokens in each box, [K,T*grid*grid] float32: rows sum to 1, or are 0.

    points [T,H,W,3] world metres (NaN = unknown), boxes [K,6] or [K,7] (centre, size, heading),
    grown by `margin` m. Tokens at least half inside share the weight (Video-3D LLM's rule); without
    any, each token counts by its share inside. Raises ValueError for a box without volume.
    """
    boxes = np.asarray(boxes, np.float32)
    if (flat := np.flatnonzero((boxes[:, 3:6] <= 0).any(1))).size:
        raise ValueError(f"boxes: number {flat[0]} has no volume (width, depth, height "
                         f"{boxes[flat[0], 3:6].tolist()} m)")
    t, h, w, _ = points.shape
    share = np.zeros((len(boxes), t, grid, grid), np.float32)
    rows, columns = (np.linspace(0, n, grid + 1).round().astype(int)[:-1] for n in (h, w))
    area = (h / grid) * (w / grid)
    for i, box in enumerate(boxes):
        pixels = np.add.reduceat(_inside(points, box, margin), rows, 1, dtype=np.float32)
        share[i] = np.add.reduceat(pixels, columns, 2) / area
    half = share >= 0.5
    weight = np.where(half.any((1, 2, 3), keepdims=True), half.astype(np.float32), share)
    total = np.maximum(weight.sum((1, 2, 3), keepdims=True), 1e-6)
    return (weight / total).reshape(len(boxes), t * grid * grid)


def _inside(points: np.ndarray, box: np.ndarray, margin: float) -> np.ndarray:
    local = points - box[:3]  # [T,H,W,3]
    if len(box) == 7 and box[6]:
        c, s = np.cos(box[6]), np.sin(box[6])
        local = local @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)
    return (np.abs(local) <= box[3:6] / 2 + margin).all(-1)  # False for NaN


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.LayerNorm(width),
                         nn.Linear(width, width))
