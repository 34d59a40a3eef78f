"""Probes of a tower's features for depth, normals, 3D position and matches.

Ridge regression and a 256-unit MLP, trained on `val` rooms and scored on `test` rooms; the
generator was trained on neither.
"""
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teacher.probing.correspondence import correspondence_scores, correspondence_sums
from teacher.probing.probe_set import Inputs, ProbeSet
from teacher.towers.base import GRID

# penalties times the mean eigenvalue; chosen on the last tenth of the training tokens
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


def probe(train: ProbeSet, test: ProbeSet, x_train: Tensor, x_test: Tensor,
          semantic: tuple[Tensor, Tensor], seed: int = 0) -> dict[str, float | None]:
    """All scores on `test` of features x [N,K,D,14,14]; None where undefined.

    depth_r2 by ridge (fused: beside `semantic` of both sets) and MLP, xyz_r2 by ridge, delta1 and
    normal cosine of the MLP, share of exact matches and of matches within one token, and those of
    `correspondence_scores`.
    """
    terms = sums(train, test, x_train, x_test, semantic, seed)
    found = scores({k: v.sum() for k, v in terms.items()})
    rounded = {k: None if np.isnan(v) else float(v) for k, v in found.items()}
    return rounded | match_scores(test, x_test)


def sums(train: ProbeSet, test: ProbeSet, x_train: Tensor, x_test: Tensor,
         semantic: tuple[Tensor, Tensor], seed: int = 0,
         with_mlp: bool = True) -> dict[str, np.ndarray]:
    """The scores' terms by clip of `test`, [N] each, to resample clips; with_mlp: the MLP's too."""
    fused = Inputs(train, {"semantic": semantic[0], "x": x_train})
    a, y, _ = fused.all()
    b, truth, _ = Inputs(test, {"semantic": semantic[1], "x": x_test}, fused.scale).all()
    fused_error = (ridge(a, y[:, :1], b)[:, 0] - truth[:, 0]).square()
    inputs = Inputs(train, {"x": x_train})
    a, y, _ = inputs.all()
    b, truth, clip = Inputs(test, {"x": x_test}, inputs.scale).all()
    linear = ridge(a, y[:, [0, 4, 5, 6]], b)  # log depth and position
    depth, position = truth[:, 0], truth[:, 4:]
    each = {
        "tokens": torch.ones_like(depth), "depth": depth, "depth_square": depth.square(),
        "ridge_error": (linear[:, 0] - depth).square(), "fused_error": fused_error,
        "xyz_error": (linear[:, 1:] - position).square().sum(1),
        "xyz_square": position.square().sum(1),
        "x": position[:, 0], "y": position[:, 1], "z": position[:, 2],
    }
    if with_mlp:
        predicted = mlp(a, y[:, :4], b, seed)  # log depth and normal
        error = predicted[:, 0] - depth
        each |= {"mlp_error": error.square(), "near": (error.abs() < np.log(1.25)).float(),
                 "normal_cos": F.cosine_similarity(predicted[:, 1:], truth[:, 1:4])}
    return ({name: test.sums(clip, value) for name, value in each.items()}
            | correspondence_sums(x_test, test.points))


def scores(total: Mapping[str, Any]) -> dict[str, Any]:
    """The scores from terms summed over clips: numbers, or arrays of resampled sums."""
    n = total["tokens"]
    variance = total["depth_square"] - total["depth"] ** 2 / n
    variance_xyz = total["xyz_square"] - (total["x"] ** 2 + total["y"] ** 2 + total["z"] ** 2) / n
    out = {"depth_r2_ridge": 1 - total["ridge_error"] / variance,
           "xyz_r2_ridge": 1 - total["xyz_error"] / variance_xyz,
           "depth_r2_fused": 1 - total["fused_error"] / variance}
    if "mlp_error" in total:
        out |= {"depth_r2_mlp": 1 - total["mlp_error"] / variance, "delta1": total["near"] / n,
                "normal_cos": total["normal_cos"] / n}
    return out | correspondence_scores(total)


def ridge(x: Tensor, y: Tensor, x_test: Tensor) -> Tensor:
    """Ridge regression of y [N,K] on standardised x [N,D] with the best of RIDGES, at x_test."""
    cut = len(x) * 9 // 10  # clips are in order, so the rest are the last rooms

    def predicted(rows: int, penalty: float, at: Tensor) -> Tensor:
        a, shift = x[:rows], y[:rows].mean(0)
        cross = (a.T @ (y[:rows] - shift)).double()
        return at @ solve((a.T @ a).double(), cross, penalty) + shift

    def error(penalty: float) -> float:
        return (predicted(cut, penalty, x[cut:]) - y[cut:]).square().mean().item()

    return predicted(len(x), min(RIDGES, key=error), x_test)


def solve(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
    """Ridge weights [D,K] float32 of X'X [D,D] and X'Y [D,K] in float64; penalty: times the mean
    eigenvalue."""
    shrunk = gram + penalty * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    return torch.linalg.solve(shrunk, cross).float()


def mlp(x: Tensor, y: Tensor, x_test: Tensor, seed: int, steps: int = 300, batch: int = 8192,
        stop: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """A 256-unit MLP from standardised x [N,D] to log depth and normal y [N,4], at x_test.
    stop: x and y by whose log depth the best of every twentieth step is chosen; None: the last."""
    torch.manual_seed(seed)
    shift, scale = y.mean(0), torch.tensor([y[:, 0].std().item(), 1, 1, 1], device=x.device)
    net = nn.Sequential(nn.Linear(x.shape[1], 256), nn.GELU(), nn.Linear(256, 4)).to(x.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    draw, batch = torch.Generator(device=x.device).manual_seed(seed), min(batch, len(x))
    least, best = float("inf"), x_test.new_zeros(0)
    for step in range(1, steps + 1):
        rows = torch.randint(len(x), (batch,), device=x.device, generator=draw)
        loss = F.smooth_l1_loss(net(x[rows]), (y[rows] - shift) / scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step == steps or (stop and step % 20 == 0):
            with torch.inference_mode():
                error = 0.0
                if stop:
                    found = (net(stop[0]) * scale + shift)[:, 0]
                    error = (found - stop[1][:, 0]).square().mean().item()
                if error < least:
                    least, best = error, net(x_test) * scale + shift
    return best


def match_scores(data: ProbeSet, x: Tensor) -> dict[str, float]:
    """Shares of `true_matches` found exactly and within one token by features [N,K,D,14,14]."""
    flat = x.float().flatten(3).transpose(2, 3)                                       # [N,K,196,D]
    flat = (flat - flat.mean((0, 1, 2))) / flat.std((0, 1, 2)).clamp_min(1e-4)
    off = match_distances(flat, data)[1]
    return {"match_exact": (off == 0).float().mean().item(),
            "match_1": (off <= 1).float().mean().item()}


def match_distances(tokens: Tensor, data: ProbeSet) -> tuple[Tensor, Tensor]:
    """Of each true match [M]: its clip, and how many tokens off the most similar one is of the last
    frame to the first's; tokens [N,K,196,D]."""
    unit, truth = F.normalize(tokens, dim=-1), data.matches.to(tokens.device)
    nearest = (unit[:, 0] @ unit[:, -1].transpose(1, 2)).argmax(-1)                   # [N,196]
    off = torch.maximum((nearest // GRID - truth // GRID).abs(),
                        (nearest % GRID - truth % GRID).abs())
    return (truth >= 0).nonzero()[:, 0], off[truth >= 0]
