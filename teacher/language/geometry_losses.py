"""Training losses that make tokens carry geometry: DepthRayHead on the fused tokens, LayerLosses on
a layer of the language model, after GASP (arXiv 2605.30231). Inference does without them."""
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAME_POINT = 0.25   # m between the points of two tokens that correspond
TEMPERATURE = 0.07
EDGE = 1.3          # ratio of neighbouring depths
RIDGE = 1e-5        # times the mean square of an input


def depth_and_rays(camera: Tensor) -> Tensor:
    """Camera points [...,3] m -> log depth, x / depth and y / depth."""
    depth = camera[..., 2:].clamp_min(0.05)
    return torch.cat([depth.log(), camera[..., :2] / depth], -1).float()


def depth_edges(camera: Tensor) -> Tensor:
    """Camera points [...,14,14,3] m -> bool [...,14,14]: tokens beside one EDGE times as far."""
    depth = F.pad(camera[..., 2].clamp_min(0.05).log().flatten(0, -3), (1, 1, 1, 1), "replicate")
    near = -F.max_pool2d(-depth, 3, 1)
    edge = F.max_pool2d(depth, 3, 1) - near > math.log(EDGE)
    return edge.view(camera.shape[:-1])


def ridge_r2(train: Iterable[tuple[Tensor, Tensor]],
             test: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """R2 on the test batches of each target, by ridge regression from batches of inputs [N,W] to
    targets [N,K]."""
    def sums(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Products of inputs with a constant 1, with the targets, and of the targets."""
        total: list[Tensor] = []
        for x, y in batches:
            x, y = F.pad(x.double(), (0, 1), value=1.0), y.double()
            parts = [x.T @ x, x.T @ y, y.square().sum(0)]
            total = parts if not total else [a + b for a, b in zip(total, parts, strict=True)]
        return total[0], total[1], total[2]

    xx, xy, _ = sums(train)
    penalty = RIDGE * torch.eye(len(xx), dtype=xx.dtype, device=xx.device) * xx.diag().mean()
    weights = torch.linalg.solve(xx + penalty, xy)                                  # [W+1,K]
    xx, xy, yy = sums(test)
    error = yy - 2 * (weights * xy).sum(0) + (weights * (xx @ weights)).sum(0)
    variance = yy - xy[-1].square() / xx[-1, -1]
    return (1 - error / variance).tolist()


class DepthRayHead(nn.Module):
    """Fused tokens [C,T,W,h,14] -> `depth_and_rays` [C,T,14,14,3] of the first 14 rows."""

    def __init__(self, width: int):
        super().__init__()
        self.head = nn.Linear(width, 3)

    def forward(self, fused: Tensor) -> Tensor:
        return self.head(fused[..., :14, :].permute(0, 1, 3, 4, 2))

    def loss(self, fused: Tensor, camera: Tensor) -> Tensor:
        """Smooth L1; camera [C,T,14,14,3] m."""
        return F.smooth_l1_loss(self(fused).float(), depth_and_rays(camera), beta=0.1)


class LayerLosses(nn.Module):
    """Log depth of each token, and the token of the last frame that shows a first frame's point."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.depth, self.descriptor = nn.Linear(width, 1), nn.Linear(width, 64)

    def forward(self, states: Tensor, points: Tensor, camera: Tensor) -> Tensor:
        """states [C,T,g,g,W]; points (world) and camera (each frame's) [C,T,g,g,3] m; a scalar."""
        states = self.norm(states.float())
        log_depth = depth_and_rays(camera)[..., 0]
        loss = F.smooth_l1_loss(self.depth(states).squeeze(-1), log_depth, beta=0.1)
        if states.shape[1] == 1:
            return loss
        descriptors = F.normalize(self.descriptor(states), dim=-1)
        first, last = (descriptors[:, t].flatten(1, 2) for t in (0, -1))           # [C,N,64]
        distance = torch.cdist(points[:, 0].flatten(1, 2).float(),
                               points[:, -1].flatten(1, 2).float())                # [C,N,N]
        nearest, target = distance.min(-1)
        target = target.masked_fill(nearest > SAME_POINT, -100)  # ignored
        logits = first @ last.mT / TEMPERATURE
        total = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
        return loss + total / (target >= 0).sum().clamp_min(1)
