"""Multi-view correspondence of features: the paper's score (arXiv 2603.19235, eq. 3) and controls.

True depth and pose assign tokens to 0.1 m voxels; those of one view in one voxel are averaged to a
unit prototype. The score is the mean cosine of a voxel's prototypes over all pairs of views. It has
no negatives and no centring, so a few large channels make any two tokens similar: hence the others.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scenes.clip import Clip
from scenes.geometry import cell_pixels, transform, unproject
from teacher.towers.base import GRID

VOXEL_M = 0.1
NEAR_M = 0.2  # a retrieved token is right if its point is this close to the query's


def centre_points(clip: Clip, keys: Sequence[int]) -> Tensor:
    """World points of the 14x14 token centres of frames `keys`, [K,196,3] float64 metres.

    NaN where depth is unknown, and on moving things and mirrors. Raises ValueError if the clip
    lacks depth or cameras.
    """
    static_depth = clip.static_depth
    if static_depth is None or clip.intrinsics is None or clip.poses is None:
        raise ValueError(f"clip {clip.id}: has no depth, intrinsics and poses; correspondence "
                         "needs all three")
    h, w = static_depth.shape[1:]
    rows, columns = cell_pixels(h, w, GRID)
    depth = static_depth[np.asarray(keys)][:, rows, columns].astype(float)  # [K,196]
    depth[depth <= 0] = np.nan
    points = unproject(columns + 0.5, rows + 0.5, depth, clip.intrinsics)  # [K,3,196], camera
    return torch.from_numpy(transform(points, clip.poses[np.asarray(keys)])).transpose(1, 2)


@dataclass
class Prototypes:
    """One clip's unit vectors [P,D], each of one voxel in one view."""
    unit: Tensor
    voxel: Tensor  # [P] int
    view: Tensor   # [P] int


def prototypes(features: Tensor, points: Tensor, voxel_m: float = VOXEL_M) -> Prototypes:
    """features [K,196,D], points [K,196,3] m (NaN: ignored) -> one a visible (view, voxel)."""
    valid = ~points.isnan().any(-1)                                                     # [K,196]
    view = torch.arange(len(points), device=points.device)[:, None].expand_as(valid)[valid]
    cells = torch.cat([torch.floor(points[valid] / voxel_m).long(), view[:, None]], 1)  # [M,4]
    unique, owner = cells.unique(dim=0, return_inverse=True)
    device = features.device
    total = torch.zeros(len(unique), features.shape[-1], device=device).index_add_(
        0, owner.to(device), features[valid.to(device)].float())
    voxel = unique[:, :3].unique(dim=0, return_inverse=True)[1]
    return Prototypes(F.normalize(total, dim=1), voxel.to(device), unique[:, 3].to(device))


def correspondence_sums(features: Tensor, points: Tensor) -> dict[str, np.ndarray]:
    """The terms of the scores by clip, [N]: sums and counts of cosines, AUCs and retrievals.

    features [N,K,D,14,14] of N clips and K views, with points [N,K,196,3] m.
    """
    flat = features.float().flatten(3).transpose(2, 3)  # [N,K,196,D]
    mean, std = flat.mean((0, 1, 2)), flat.std((0, 1, 2)).clamp_min(1e-4)
    rows = []
    for x, p in zip(flat, points, strict=True):
        standard = (x - mean) / std
        right, queries = _retrieved(F.normalize(standard, dim=-1), p.to(x))
        row: dict[str, float] = {"corr_right": right, "corr_asked": queries}
        for name, tokens in (("corr", x), ("corr_std", standard)):
            row |= {f"{name}_{k}": v for k, v in _pairs(prototypes(tokens, p)).items()}
        rows.append(row)
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def correspondence_scores(total: Mapping[str, Any]) -> dict[str, Any]:
    """The scores from terms summed over clips (numbers or resampled arrays).

    NaN if no voxel is visible twice. corr_x100: as published. corr_random_x100: of different voxels
    in different views. corr_std_x100: as published, of channels standardised over all tokens.
    corr_auc, corr_std_auc: probability that a same-voxel pair is more similar than another, mean of
    clips. corr_pck: share of mutual nearest neighbours (standardised) within 0.2 m, of those whose
    point is visible in the other view.
    """
    def share(part: str, count_name: str) -> Any:
        count = np.asarray(total[f"corr_{count_name}"], float)
        nan = np.full_like(count, np.nan)
        return np.divide(total[f"corr_{part}"], count, out=nan, where=count > 0)[()]

    return {"corr_x100": 100 * share("same", "same_pairs"),
            "corr_random_x100": 100 * share("other", "other_pairs"),
            "corr_std_x100": 100 * share("std_same", "std_same_pairs"),
            "corr_auc": share("auc", "auc_clips"),
            "corr_std_auc": share("std_auc", "std_auc_clips"), "corr_pck": share("right", "asked")}


def noise_snr(draws: Tensor) -> dict[str, float]:
    """Variance between tokens over variance between noise seeds; draws [S,M,D], S >= 2 seeds.

    snr: of variances summed over channels; snr_median: median of the channels' ratios.
    """
    if len(draws) < 2:
        raise ValueError(f"noise_snr: got {len(draws)} seeds, expected at least 2")
    x = draws.double()
    noise = x.var(0).mean(0)                                                            # [D]
    # the mean of S seeds has 1/S of the noise's variance
    signal = (x.mean(0).var(0) - noise / len(x)).clamp_min(0)
    return {"snr": (signal.sum() / noise.sum()).item(),
            "snr_median": (signal / noise).median().item()}


def _pairs(p: Prototypes) -> dict[str, float]:
    """Of cosines in different views: sums and counts of the same voxel and of others, AUC."""
    cosine = p.unit @ p.unit.T                                                          # [P,P]
    other_view = p.view[:, None] < p.view[None]
    same_voxel = p.voxel[:, None] == p.voxel[None]
    same = cosine[other_view & same_voxel].double()
    other = cosine[other_view & ~same_voxel].double()
    found = {"same": same.sum().item(), "same_pairs": len(same), "other": other.sum().item(),
             "other_pairs": len(other), "auc": 0.0, "auc_clips": 0}
    if len(same) and len(other):
        ordered = other.sort().values
        below = torch.searchsorted(ordered, same) + torch.searchsorted(ordered, same, right=True)
        # ties count half
        found |= {"auc": (below.double().mean() / (2 * len(other))).item(), "auc_clips": 1}
    return found


def _retrieved(unit: Tensor, points: Tensor) -> tuple[int, int]:
    """unit [K,196,D], points [K,196,3] -> (right, all) mutual nearest neighbours of all pairs."""
    right = total = 0
    for a, b in combinations(range(len(unit)), 2):
        valid_a, valid_b = (~points[i].isnan().any(-1) for i in (a, b))
        if not valid_a.any() or not valid_b.any():
            continue
        cosine = unit[a][valid_a] @ unit[b][valid_b].T
        near = torch.cdist(points[a][valid_a], points[b][valid_b]) < NEAR_M
        forth, back = cosine.argmax(1), cosine.argmax(0)
        rows = torch.arange(len(forth), device=unit.device)
        mutual = (back[forth] == rows) & near.any(1)
        total += int(mutual.sum())
        right += int((near[rows, forth] & mutual).sum())
    return right, total
