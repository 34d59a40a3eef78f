"""Ground-truth cell correspondences between two views of a clip, and matching scores.

A view is a grid of g x g cells. A position is (column, row) in cells; 0 is the middle of the first.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scenes.clip import Clip

OCCLUSION = 0.05  # share of the depth: a point further behind the other view's surface is hidden


def matching_cells(clip: Clip, a: int, b: int, cells: int) -> np.ndarray:
    """Positions in frame b of the middles of frame a's cells, [cells*cells,2] float32.

    NaN where frame b does not show the point, or it moves or mirrors. Raises ValueError without
    depth or cameras.
    """
    if clip.static_depth is None or clip.intrinsics is None or clip.poses is None:
        raise ValueError(f"clip {clip.id}: matches need depth, intrinsics and poses")
    depth, poses = torch.from_numpy(clip.static_depth), torch.from_numpy(clip.poses).double()
    intrinsics = torch.from_numpy(clip.intrinsics)[None]
    return batched_matching_cells(depth[[a]], depth[[b]], intrinsics, intrinsics,
                                  torch.linalg.inv(poses[[b]]) @ poses[[a]], cells)[0].numpy()


def batched_matching_cells(depth: Tensor, other: Tensor, intrinsics: Tensor,
                           other_intrinsics: Tensor, a_to_b: Tensor, cells: int) -> Tensor:
    """`matching_cells` of B pairs of frames at once, on any device: [B,cells*cells,2] float32.

    depth, other [B,S,S] m; intrinsics [B,3,3] of each; a_to_b [B,4,4], camera to camera. Nothing is
    copied to or read from the device.
    """
    side = depth.shape[-1]
    middles = ((torch.arange(cells, device=depth.device) + 0.5) * side / cells).long()
    rows, columns = (x.flatten() for x in torch.meshgrid(middles, middles, indexing="ij"))
    intrinsics, other_intrinsics, a_to_b = (
        x.double() for x in (intrinsics, other_intrinsics, a_to_b))
    pixel = torch.stack([columns + 0.5, rows + 0.5, torch.ones_like(rows)]).double()     # [3,N]
    near = depth[:, rows, columns].double()                                              # [B,N]
    points = torch.linalg.inv_ex(intrinsics).inverse @ pixel * near[:, None]             # [B,3,N]
    points = other_intrinsics @ (a_to_b[:, :3, :3] @ points + a_to_b[:, :3, 3:])
    distance = points[:, 2]
    pixels = points[:, :2] / distance[:, None].clamp_min(1e-3)                           # [B,2,N]
    inside = (distance > 1e-3) & (near > 0) & ((pixels >= 0) & (pixels < side)).all(1)
    place = torch.where(inside[:, None], pixels, 0).long()
    frame = torch.arange(len(depth), device=depth.device)[:, None]
    surface = other[frame, place[:, 1], place[:, 0]].double()
    visible = inside & (surface > 0) & ((distance - surface).abs() < OCCLUSION * surface)
    in_cells = pixels * cells / side - 0.5
    return torch.where(visible[:, None], in_cells, torch.nan).transpose(1, 2).float()


def best_matches(a: Tensor, b: Tensor) -> Tensor:
    """The cell of b that is most like each cell of a, by cosine.

    a, b: maps [B,C,g,g] of pairs of views. Returns [B,g*g], row by row.
    """
    first, second = (F.normalize(x.flatten(2).float(), dim=1) for x in (a, b))
    return (first.transpose(1, 2) @ second).argmax(2)


def right_matches(best: Tensor, targets: Tensor, cells: int = 14) -> Tensor:
    """Whether the match of each visible cell is at most one cell of a `cells` x `cells` grid from
    the truth, [V] bool.

    best: `best_matches`, [B,g*g]; targets: `batched_matching_cells`, [B,g*g,2].
    """
    grid = math.isqrt(best.shape[-1])
    place = torch.stack([best % grid, best // grid], -1)                                 # [B,N,2]
    close = ((place - targets).abs() * (cells / grid) <= 1).all(-1)
    return close[~targets.isnan().any(-1)]


def chance_of_match(targets: Tensor, cells: int = 14) -> Tensor:
    """The share of all cells that would be right for each visible cell of `targets`, [V]."""
    visible = targets[~targets.isnan().any(-1)]                                          # [V,2]
    grid = math.isqrt(targets.shape[-2])
    order = torch.arange(grid, device=targets.device)
    close = (order - visible[..., None]).abs() * (cells / grid) <= 1                     # [V,2,g]
    return close.float().mean(-1).prod(-1)


def rgb_patches(frames: Tensor, cells: int) -> Tensor:
    """A control for the descriptors: each cell's surrounding pixels, less their mean colour.

    frames [T,3,H,W] in [0,1] -> [T,3*8*8,cells,cells]. A window is 8 x 8 samples, 2 px apart.
    """
    x = F.avg_pool2d(frames, 2)
    side = x.shape[-1] // cells
    windows = F.unfold(x, 8, padding=(8 - side) // 2, stride=side)                       # [T,192,N]
    windows = windows - windows.unflatten(1, (3, -1)).mean(2).repeat_interleave(64, 1)
    return windows.unflatten(2, (cells, cells))
