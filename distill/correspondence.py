"""Ground-truth cell correspondences between two views of a clip, and matching scores.

A view is a grid of g x g cells. A position is (column, row) in cells; 0 is the middle of the first.
"""
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scenes.clip import Clip
from scenes.geometry import cell_pixels, reproject

OCCLUSION = 0.05  # share of the depth: a point further behind the other view's surface is hidden


def has_correspondences(clip: Clip) -> bool:
    """Whether the clip has at least two frames, depth and cameras."""
    cameras = (clip.depth, clip.intrinsics, clip.poses)
    return len(clip.frames) > 1 and all(value is not None for value in cameras)


def matching_cells(clip: Clip, a: int, b: int, cells: int) -> np.ndarray:
    """Positions in frame b of the middles of frame a's cells, [cells*cells,2] float32.

    NaN where frame b does not show the point, or it moves or mirrors. Raises ValueError without
    depth or cameras.
    """
    static_depth = clip.static_depth
    if static_depth is None or clip.intrinsics is None or clip.poses is None:
        raise ValueError(f"clip {clip.id}: matches need depth, intrinsics and poses")
    h, w = static_depth.shape[1:]
    rows, columns = cell_pixels(h, w, cells)
    depth = static_depth[a, rows, columns].astype(float)                                  # [N] m
    pixels, distance = reproject(columns + 0.5, rows + 0.5, depth, clip.intrinsics, clip.poses[a],
                                 clip.poses[b])                                    # [2,N], [N]
    inside = (distance > 1e-3) & (depth > 0) & (pixels >= 0).all(0)
    inside &= (pixels[0] < w) & (pixels[1] < h)
    column, row = np.where(inside, pixels, 0).astype(int)
    surface = static_depth[b, row, column]
    visible = inside & (surface > 0) & (np.abs(distance - surface) < OCCLUSION * surface)
    in_cells = pixels * np.array([[cells / w], [cells / h]]) - 0.5
    return np.where(visible, in_cells, np.nan).T.astype(np.float32)


def batched_matching_cells(depth: Tensor, other: Tensor, intrinsics: Tensor, poses: Tensor,
                           other_poses: Tensor, cells: int) -> Tensor:
    """`matching_cells` of B pairs of frames at once, on any device: [B,cells*cells,2] float32.

    depth, other [B,H,W] m; intrinsics [B,3,3]; poses, other_poses [B,4,4], camera to world.
    """
    h, w = depth.shape[1:]
    rows, columns = (torch.from_numpy(i).to(depth.device) for i in cell_pixels(h, w, cells))
    intrinsics, poses, other_poses = (x.double() for x in (intrinsics, poses, other_poses))
    pixel = torch.stack([columns + 0.5, rows + 0.5, torch.ones_like(rows)]).double()     # [3,N]
    near = depth[:, rows, columns].double()                                              # [B,N]
    points = torch.linalg.inv(intrinsics) @ pixel * near[:, None]                        # [B,3,N]
    a_to_b = torch.linalg.inv(other_poses) @ poses
    points = intrinsics @ (a_to_b[:, :3, :3] @ points + a_to_b[:, :3, 3:])
    distance = points[:, 2]
    pixels = points[:, :2] / distance[:, None].clamp_min(1e-3)                           # [B,2,N]
    size = torch.tensor([w, h], device=depth.device).view(1, 2, 1)
    inside = (distance > 1e-3) & (near > 0) & ((pixels >= 0) & (pixels < size)).all(1)
    place = torch.where(inside[:, None], pixels, 0).long()
    frame = torch.arange(len(depth), device=depth.device)[:, None]
    surface = other[frame, place[:, 1], place[:, 0]].double()
    visible = inside & (surface > 0) & ((distance - surface).abs() < OCCLUSION * surface)
    in_cells = pixels * cells / size - 0.5
    return torch.where(visible[:, None], in_cells, torch.nan).transpose(1, 2).float()


class MatchScores:
    """Share of cells matched to at most one cell of a `cells` x `cells` grid from the truth."""

    def __init__(self, cells: int = 14):
        self.cells = cells
        self.count, self.correct, self.chance = 0, dict[str, float](), 0.0

    def add(self, maps: Mapping[str, tuple[Tensor, Tensor]], targets: np.ndarray) -> None:
        """A pair of views. maps: [C,g,g] of each view; targets: `matching_cells`, [g*g,2]."""
        visible = ~np.isnan(targets).any(1)
        if not visible.any():
            return
        grid = int(len(targets)**0.5)
        row, column = np.divmod(np.arange(grid * grid), grid)
        positions = np.stack([column, row], 1)                                           # [N,2]
        offset = np.abs(positions[None] - targets[visible][:, None])                     # [V,N,2]
        close = (offset * (self.cells / grid) <= 1).all(-1)                              # [V,N]
        self.count += int(visible.sum())
        self.chance += float(close.mean(1).sum())
        matches = {name: _nearest(a, b)[visible] for name, (a, b) in maps.items()}
        matches["same_place"] = np.flatnonzero(visible)
        for name, match in matches.items():
            hits = float(close[np.arange(len(match)), match].sum())
            self.correct[name] = self.correct.get(name, 0.0) + hits

    def result(self) -> dict[str, float]:
        """match_NAME for each map, match_same_place (nothing moved) and match_chance; 0 to 1."""
        count = max(self.count, 1)
        scores = {f"match_{name}": correct / count for name, correct in self.correct.items()}
        return {**scores, "match_chance": self.chance / count}


def rgb_patches(frames: np.ndarray, cells: int) -> Tensor:
    """A control for the descriptors: each cell's surrounding pixels, less their mean colour.

    frames uint8 [T,3,H,W] -> [T,3*8*8,cells,cells]. A window is 8 x 8 samples, 2 px apart.
    """
    x = F.avg_pool2d(torch.from_numpy(frames).float() / 255, 2)
    side = x.shape[-1] // cells
    windows = F.unfold(x, 8, padding=(8 - side) // 2, stride=side)                       # [T,192,N]
    windows = windows - windows.unflatten(1, (3, -1)).mean(2).repeat_interleave(64, 1)
    return windows.unflatten(2, (cells, cells))


def _nearest(a: Tensor, b: Tensor) -> np.ndarray:
    """The cell of b [C,g,g] with the largest cosine to each cell of a: [g*g]."""
    first, second = (F.normalize(x.flatten(1).float(), dim=0) for x in (a, b))
    return (first.T @ second).argmax(1).cpu().numpy()
