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
_CLIPS = 64   # at once


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
    """Of N clips in K views: a unit vector for each voxel that a view sees."""
    unit: Tensor   # [N,K,196,D], in the first places of each view; 0 in the others
    voxel: Tensor  # [N,K,196] int, a number for each voxel of a clip; -1: no prototype


def prototypes(features: Tensor, points: Tensor, voxel_m: float = VOXEL_M) -> Prototypes:
    """features [N,K,196,D], points [N,K,196,3] m (NaN: ignored), on one device."""
    valid = ~points.isnan().any(-1)                                             # [N,K,196]
    clip, view, _ = valid.nonzero(as_tuple=True)                                # [M]
    cells = torch.cat([clip[:, None], torch.floor(points[valid] / voxel_m).long()], 1)
    voxel = _numbers(cells)
    seen, owner = torch.unique(_numbers(torch.stack([clip, view, voxel], 1)), return_inverse=True)
    first = torch.zeros_like(seen).scatter_(0, owner, torch.arange(len(owner), device=seen.device))
    where = (clip * valid.shape[1] + view)[first]  # of each prototype, in order of clip and view
    place = torch.arange(len(where), device=where.device) - torch.searchsorted(where, where)
    slot = where * valid.shape[2] + place
    total = features.new_zeros(valid.numel(), features.shape[-1], dtype=torch.float32)
    total.index_add_(0, slot[owner], features[valid].float())
    numbers = torch.full((valid.numel(),), -1, device=voxel.device)
    numbers[slot] = voxel[first]
    return Prototypes(F.normalize(total, dim=1).view(*features.shape), numbers.view(valid.shape))


def _numbers(rows: Tensor) -> Tensor:
    """One number [M] for each of rows [M,C] int: equal for equal rows, in their order."""
    number = rows.new_zeros(len(rows))
    for column in rows.T:
        levels, level = torch.unique(column, return_inverse=True)
        number = torch.unique(number * len(levels) + level, return_inverse=True)[1]
    return number


def correspondence_sums(features: Tensor, points: Tensor) -> dict[str, np.ndarray]:
    """The terms of the scores by clip, [N]: sums and counts of cosines, AUCs and retrievals.

    features [N,K,D,14,14] of N clips and K views, with points [N,K,196,3] m.
    """
    flat = features.float().flatten(3).transpose(2, 3)  # [N,K,196,D]
    mean, std = flat.mean((0, 1, 2)), flat.std((0, 1, 2)).clamp_min(1e-4)
    parts = []
    for x, p in zip(flat.split(_CLIPS), points.to(flat.device).split(_CLIPS), strict=True):
        standard = (x - mean) / std
        part = _retrieved(F.normalize(standard, dim=-1), p.to(x))
        for name, tokens in (("corr", x), ("corr_std", standard)):
            part |= {f"{name}_{k}": v for k, v in _pairs(prototypes(tokens, p)).items()}
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]).double().cpu().numpy()
            for name in parts[0]}


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


def _pairs(p: Prototypes) -> dict[str, Tensor]:
    """By clip [N], of cosines in different views: sums and counts of the same voxel and of others,
    AUC."""
    a, b = torch.combinations(torch.arange(p.voxel.shape[1])).T  # none of one view
    cosine = (p.unit[:, a] @ p.unit[:, b].transpose(2, 3)).flatten(1)           # [N,pairs]
    one, two = p.voxel[:, a, :, None], p.voxel[:, b, None]
    same = ((one == two) & (one >= 0)).flatten(1)
    other = ((one != two) & (one >= 0) & (two >= 0)).flatten(1)
    found: dict[str, Tensor] = {}
    for name, mask in (("same", same), ("other", other)):
        found |= {name: cosine.double().masked_fill(~mask, 0).sum(1), f"{name}_pairs": mask.sum(1)}
    ordered = cosine.masked_fill(~other, torch.inf).sort(1).values
    # those of the same voxel come first; the others of the columns, below all, count nothing
    most = int(found["same_pairs"].max())
    queries = cosine.masked_fill(~same, -torch.inf).topk(most, 1).values
    below = (torch.searchsorted(ordered, queries)
             + torch.searchsorted(ordered, queries, right=True))
    pairs = found["same_pairs"] * found["other_pairs"]
    auc = below.sum(1).double() / (2 * pairs.clamp_min(1))  # ties count half
    return found | {"auc": auc, "auc_clips": pairs > 0}


def _retrieved(unit: Tensor, points: Tensor) -> dict[str, Tensor]:
    """unit [N,K,196,D], points [N,K,196,3] -> by clip [N], right and all mutual nearest neighbours
    of all pairs of views."""
    valid = ~points.isnan().any(-1)                                             # [N,K,196]
    right = total = torch.zeros(len(unit), dtype=torch.long, device=unit.device)
    for a, b in combinations(range(unit.shape[1]), 2):
        both = valid[:, a, :, None] & valid[:, b, None]                         # [N,196,196]
        cosine = (unit[:, a] @ unit[:, b].transpose(1, 2)).masked_fill(~both, -torch.inf)
        near = (torch.cdist(points[:, a], points[:, b]) < NEAR_M) & both
        forth, back = cosine.argmax(2), cosine.argmax(1)                        # [N,196]
        mutual = back.gather(1, forth) == torch.arange(forth.shape[1], device=unit.device)
        mutual &= near.any(2)
        total = total + mutual.sum(1)
        right = right + (near.gather(2, forth[..., None])[..., 0] & mutual).sum(1)
    return {"corr_right": right, "corr_asked": total}
