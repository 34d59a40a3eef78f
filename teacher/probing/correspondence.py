"""Do features of one place agree between views? The paper's score (arXiv 2603.19235, eq. 3), and
what it lacks.

Tokens are put in 0.1 m voxels by true depth and pose; those of one view in one voxel are averaged
to a unit prototype; the score is the mean cosine of prototypes of a voxel between views, over all
(voxel, view pair). It has no negatives and no centring: a few huge channels make any two tokens
alike. Hence the random-pair cosine, the same score of standardised channels, same-voxel against
other-voxel AUC, and retrieval by mutual nearest neighbours beside it.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scenes.clip import Clip
from scenes.geometry import cell_pixels, transform, unproject
from teacher.towers.base import GRID

VOXEL_M = 0.1
NEAR_M = 0.2  # a retrieved token is right when its point is this close to the asked one


def token_points(clip: Clip, keys: Sequence[int]) -> Tensor:
    """World points of the 14x14 token centres of frames `keys`: [K,196,3] float64 metres, NaN where
    depth is unknown.

    Raises ValueError if the clip lacks depth or cameras.
    """
    if clip.depth is None or clip.intrinsics is None or clip.poses is None:
        raise ValueError(
            f"clip {clip.id}: has no depth, intrinsics and poses; correspondence needs all three")
    h, w = clip.depth.shape[1:]
    rows, columns = cell_pixels(h, w, GRID)
    depth = clip.depth[np.asarray(keys)][:, rows, columns].astype(float)  # [K,196]
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
    """features [K,196,D], points [K,196,3] m (NaN: left out) -> a prototype for every (view, voxel)
    that is seen."""
    known = ~points.isnan().any(-1)                                                     # [K,196]
    view = torch.arange(len(points), device=points.device)[:, None].expand_as(known)[known]
    cells = torch.cat([torch.floor(points[known] / voxel_m).long(), view[:, None]], 1)  # [M,4]
    unique, owner = cells.unique(dim=0, return_inverse=True)
    owner = owner.to(features.device)
    total = torch.zeros(len(unique), features.shape[-1], device=features.device).index_add_(
        0, owner, features[known.to(features.device)].float())
    voxel = unique[:, :3].unique(dim=0, return_inverse=True)[1]
    return Prototypes(F.normalize(total, dim=1), voxel.to(features.device),
                      unique[:, 3].to(features.device))


def correspondence(features: Tensor, points: Tensor) -> dict[str, float]:
    """features [N,K,D,14,14] of N clips' K views, points [N,K,196,3] m -> the scores; NaN where no
    voxel is seen twice.

    corr_x100: as published. corr_random_x100: of different voxels in different views.
    corr_std_x100: as published, of channels standardised over all tokens. corr_auc, corr_std_auc:
    chance that a same-voxel pair is more alike than another (mean of clips). corr_pck: share of
    mutual nearest neighbours (standardised) that lie within 0.2 m, of those whose point the other
    view sees.
    """
    return correspondence_scores(
        {k: v.sum()
         for k, v in correspondence_sums(features, points).items()})


def correspondence_sums(features: Tensor, points: Tensor) -> dict[str, np.ndarray]:
    """What the scores are ratios of, clip by clip [N]: sums and counts of cosines, of AUCs and of
    retrievals."""
    flat = features.float().flatten(3).transpose(2, 3)  # [N,K,196,D]
    mean, std = flat.mean((0, 1, 2)), flat.std((0, 1, 2)).clamp_min(1e-4)
    rows = []
    for x, p in zip(flat, points, strict=True):
        standard = (x - mean) / std
        right, asked = _retrieved(F.normalize(standard, dim=-1), p.to(x))
        rows.append({f"corr_{k}": v for k, v in _pairs(prototypes(x, p)).items()}
                    | {f"corr_std_{k}": v for k, v in _pairs(prototypes(standard, p)).items()}
                    | {"corr_right": right, "corr_asked": asked})
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def correspondence_scores(total: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of summed clips: numbers, or arrays of resampled sums. NaN where nothing was
    counted."""
    def share(part: str, whole: str) -> Any:
        count = np.asarray(total[f"corr_{whole}"], float)
        return np.divide(total[f"corr_{part}"], count, out=np.full_like(count, np.nan), where=count
                         > 0)[()]

    return {
        "corr_x100": 100 * share("same", "same_pairs"),
        "corr_random_x100": 100 * share("other", "other_pairs"),
        "corr_std_x100": 100 * share("std_same", "std_same_pairs"),
        "corr_auc": share("auc", "auc_clips"), "corr_std_auc": share("std_auc", "std_auc_clips"),
        "corr_pck": share("right", "asked")
    }


def noise_snr(draws: Tensor) -> dict[str, float]:
    """draws [S,M,D]: S >= 2 noise seeds of M tokens -> variance between tokens over variance
    between seeds.

    snr: summed over channels (the large ones decide); snr_median: of the channels' own ratios.
    """
    if len(draws) < 2:
        raise ValueError(f"noise_snr: got {len(draws)} seeds, expected at least 2")
    x = draws.double()
    noise = x.var(0).mean(0)                                                            # [D]
    # the mean of S seeds still holds a share of noise
    signal = (x.mean(0).var(0) - noise / len(x)).clamp_min(0)
    return {
        "snr": (signal.sum() / noise.sum()).item(), "snr_median": (signal / noise).median().item()
    }


def _pairs(p: Prototypes) -> dict[str, float]:
    """Cosines of one clip's prototype pairs from different views, of one voxel and of two: sums,
    counts and AUC."""
    cosine = p.unit @ p.unit.T                                                          # [P,P]
    apart = p.view[:, None] < p.view[None]
    alike = p.voxel[:, None] == p.voxel[None]
    same, other = cosine[apart & alike].double(), cosine[apart & ~alike].double()
    found = {
        "same": same.sum().item(), "same_pairs": len(same), "other": other.sum().item(),
        "other_pairs": len(other), "auc": 0.0, "auc_clips": 0
    }
    if len(same) and len(other):
        ordered = other.sort().values
        below = torch.searchsorted(ordered, same) + torch.searchsorted(ordered, same, right=True)
        # ties count half
        found |= {"auc": (below.double().mean() / (2 * len(other))).item(), "auc_clips": 1}
    return found


def _retrieved(unit: Tensor, points: Tensor) -> tuple[int, int]:
    """unit [K,196,D], points [K,196,3] -> (right, asked) over the mutual nearest neighbours of
    every pair of views."""
    right = asked = 0
    for a in range(len(unit)):
        for b in range(a + 1, len(unit)):
            ka, kb = (~points[i].isnan().any(-1) for i in (a, b))
            if not ka.any() or not kb.any():
                continue
            cosine = unit[a][ka] @ unit[b][kb].T
            near = torch.cdist(points[a][ka], points[b][kb]) < NEAR_M
            there, back = cosine.argmax(1), cosine.argmax(0)
            rows = torch.arange(len(there), device=unit.device)
            mutual = (back[there] == rows) & near.any(1)
            asked += int(mutual.sum())
            right += int((near[rows, there] & mutual).sum())
    return right, asked
