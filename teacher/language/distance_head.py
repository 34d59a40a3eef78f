"""Distances between what visual tokens show, told from their hidden states: geometry as a task of
its own in training.

A room's questions say little about its shape: one number for a whole clip. The depth and poses that
training clips have say how far apart any two tokens' points are. At test time nobody needs them,
nor this head. Not in the paper.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAIRS = 64      # a clip and step
NEAR = 0.1      # m: distances count by their logarithm from here on


class DistanceHead(nn.Module):
    """hidden states of two tokens, each [...,W] -> log(distance in metres + 0.1), [...]; the order
    does not matter."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU(),
                                 nn.Linear(width, 1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.net(torch.cat([a + b, (a - b).abs()], -1)).squeeze(-1)


def metric_loss(head: DistanceHead, states: Tensor, points: Tensor) -> Tensor:
    """Smooth L1 of PAIRS log distances a clip, drawn anew each time; float32 scalar.

    states [C,N,W] of visual tokens, points [C,N,3] m, where each token's middle is.
    """
    c, n, _ = states.shape
    pick = torch.randint(n, (2, c, PAIRS), device=states.device)
    (a, b), (p, q) = ([x.gather(1, i[..., None].expand(-1, -1, x.shape[2])) for i in pick]
                      for x in (states, points))
    told = head(a, b).float()
    return F.smooth_l1_loss(told, ((p - q).float().norm(dim=-1) + NEAR).log())
