"""Video-3D LLM's (arXiv 2412.00493) ground head `infonce`, and the tokens of boxes and masks."""
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teacher.towers.base import GRID

TEMPERATURE = 0.07
PLACE = 6  # figures of `place_and_area`


class GroundHead(nn.Module):
    """query [...,W], objects [...,K,W] -> cosines / 0.07, [...,K+1]; last: "none of them"."""

    def __init__(self, width: int):
        super().__init__()
        self.query_proj, self.object_proj = _mlp(width), _mlp(width)
        self.none = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, query: Tensor, objects: Tensor) -> Tensor:
        none = self.none.expand(*objects.shape[:-2], 1, -1).to(objects.dtype)
        keys = self.object_proj(torch.cat([objects, none], -2))  # [...,K+1,W]
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
    """The share of each token's pixels in each box, [K,T*grid*grid] float32.

    points [T,H,W,3] world metres (NaN = unknown), boxes [K,6] or [K,7] (centre, size, heading),
    grown by `margin` m. Raises ValueError for a box without volume.
    """
    boxes = np.asarray(boxes, np.float32)
    if (flat := np.flatnonzero((boxes[:, 3:6] <= 0).any(1))).size:
        raise ValueError(f"boxes: number {flat[0]} has no volume (width, depth, height "
                         f"{boxes[flat[0], 3:6].tolist()} m)")
    inside = [token_shares(_inside(points, box, margin), grid) for box in boxes]
    return np.reshape(inside, (len(boxes), len(points) * grid * grid)).astype(np.float32)


def token_shares(pixels: np.ndarray, grid: int) -> np.ndarray:
    """The share of each token's pixels that are True: [T,H,W] bool -> [T,grid,grid] float32."""
    rows, columns = (np.linspace(0, n, grid + 1).round().astype(int) for n in pixels.shape[1:])
    sums = np.add.reduceat(pixels, rows[:-1], 1, dtype=np.float32)
    sums = np.add.reduceat(sums, columns[:-1], 2)
    return sums / np.outer(np.diff(rows), np.diff(columns)).astype(np.float32)


def region_weights(inside: Tensor) -> Tensor:
    """Shares [C,R,T*196] -> weights that sum to 1, or are 0: tokens at least half inside share the
    weight (Video-3D LLM's rule); without any, each counts by its share."""
    inside = inside.float()
    half = inside >= 0.5
    weight = torch.where(half.any(-1, keepdim=True), half.float(), inside)
    return weight / weight.sum(-1, keepdim=True).clamp_min(1e-6)


def place_and_area(inside: Tensor, frames: int) -> Tensor:
    """Of each region [C,R,T*196]: mean row, column and frame, the deviations of row and column,
    and the log of its area; [C,R,PLACE], zeros for an empty one. Places are from -1 to 1."""
    shares = inside.float().unflatten(-1, (frames, GRID, GRID))   # [C,R,T,14,14]
    total = shares.sum((2, 3, 4)).clamp_min(1e-6)                 # [C,R]
    at = (torch.arange(GRID, device=inside.device) + 0.5) * 2 / GRID - 1
    when = (torch.arange(frames, device=inside.device) + 0.5) * 2 / frames - 1
    rows, columns = shares.sum((2, 4)), shares.sum((2, 3))        # [C,R,14]
    frame = (shares.sum((3, 4)) * when).sum(-1) / total
    shown = (shares.sum((3, 4)) > 0).sum(-1).clamp_min(1)
    out = [frame, (total / shown / GRID**2).log()]
    for axis in (rows, columns):
        mean = (axis * at).sum(-1) / total
        spread = (axis * (at - mean[..., None]).square()).sum(-1) / total
        out += [mean, spread.sqrt()]
    return torch.stack(out, -1) * (inside.sum(-1, keepdim=True) > 0)


def _inside(points: np.ndarray, box: np.ndarray, margin: float) -> np.ndarray:
    local = points - box[:3]  # [T,H,W,3]
    if len(box) == 7 and box[6]:
        c, s = np.cos(box[6]), np.sin(box[6])
        local = local @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)
    return (np.abs(local) <= box[3:6] / 2 + margin).all(-1)  # False for NaN


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.LayerNorm(width),
                         nn.Linear(width, width))
