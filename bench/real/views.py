"""Matches between two views, and how steady depth is from one frame to the next, by true poses."""
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from distill.correspondence import matching_cells
from scenes.clip import Clip
from scenes.geometry import cell_pixels, reproject

CELLS = 14           # of the grid that matches are counted on
BASELINE_SHARE = 0.15  # of a stated baseline, more or less
STEADY_M = 0.2       # largest step of the camera that flicker is measured over
MIN_VISIBLE = 0.2    # share of cells that a pair of views must have in common
MOST = 150           # pairs of views of one clip
_FINE = 28

Pair = tuple[int, int]


def pairs_at(clip: Clip, baseline: float) -> list[Pair]:
    """Pairs of frames `baseline` m apart, of each first frame the nearest in time; at most MOST."""
    if clip.poses is None:
        return []
    places, found = clip.poses[:, :3, 3], []
    for i in range(len(places) - 1):
        apart = np.linalg.norm(places[i + 1:] - places[i], axis=1)
        fits = np.flatnonzero(np.abs(apart - baseline) <= BASELINE_SHARE * baseline)
        if len(fits) and _overlap(clip, i, i + 1 + fits[0]):
            found.append((i, i + 1 + int(fits[0])))
    chosen = np.unique(np.linspace(0, len(found) - 1, min(MOST, len(found))).astype(int))
    return [found[k] for k in chosen]


def match_scores(maps: np.ndarray, clip: Clip, pairs: Sequence[Pair]) -> np.ndarray:
    """[cells,2], of every visible cell of all pairs: 1 if matched exactly; if within one cell.
    maps: [T,C,g,g] with g a multiple of CELLS; finer ones are averaged. A match is the largest
    cosine."""
    coarse = F.adaptive_avg_pool2d(torch.from_numpy(np.asarray(maps, np.float32)), CELLS)
    unit = F.normalize(coarse.flatten(2), dim=1)                            # [T,C,196]
    rows = []
    for i, j in pairs:
        targets = matching_cells(clip, i, j, CELLS)                         # [196,2]
        visible = np.flatnonzero(~np.isnan(targets).any(1))
        true = np.clip(np.round(targets[visible]), 0, CELLS - 1)
        best = (unit[i].T @ unit[j]).argmax(1).numpy()[visible]
        off = np.abs(np.stack([best % CELLS, best // CELLS], 1) - true).max(1)
        rows.append(np.stack([off == 0, off <= 1], 1))
    return np.concatenate(rows).astype(float) if rows else np.empty((0, 2))


def steady_pairs(clip: Clip) -> list[Pair]:
    """Neighbouring frames whose camera moved little."""
    if clip.poses is None:
        return []
    steps = np.linalg.norm(np.diff(clip.poses[:, :3, 3], axis=0), axis=1)
    return [(int(i), int(i) + 1) for i in np.flatnonzero(steps <= STEADY_M)]


def flicker(depth: np.ndarray, clip: Clip, pairs: Sequence[Pair]) -> list[float]:
    """Mean |change of log depth| of static points, one value a pair; what the camera's own motion
    changes is taken out by the true depth and poses. depth: predictions [T,1,h,w] m."""
    if not pairs:
        return []
    assert clip.depth is not None and clip.intrinsics is not None and clip.poses is not None
    values = torch.from_numpy(np.log(np.maximum(depth, 1e-3)).astype(np.float64))
    rows, columns = cell_pixels(clip.depth.shape[1], clip.depth.shape[2], _FINE)
    middles = np.stack([np.tile(np.arange(_FINE), _FINE), np.repeat(np.arange(_FINE), _FINE)], 1)
    found = []
    for i, j in pairs:
        targets = matching_cells(clip, i, j, _FINE)                         # [784,2]
        visible = ~np.isnan(targets).any(1)
        if visible.sum() < 20:
            continue
        column, row = columns[visible], rows[visible]
        true = clip.depth[i, row, column].astype(float)
        _, moved = reproject(column + 0.5, row + 0.5, true, clip.intrinsics, clip.poses[i],
                             clip.poses[j])
        now, then = _at(values[j], targets[visible]), _at(values[i], middles[visible])
        found.append(float(np.abs(now - then - np.log(moved / true)).mean()))
    return found


def _at(values: torch.Tensor, cells: np.ndarray) -> np.ndarray:
    """values [1,h,w] at (column, row) of a _FINE x _FINE grid, [N]."""
    grid = torch.from_numpy((cells + 0.5) / _FINE * 2 - 1)[None, None].double()
    found = F.grid_sample(values[None], grid, padding_mode="border", align_corners=False)
    return found[0, 0, 0].numpy()


def _overlap(clip: Clip, i: int, j: int) -> bool:
    visible = ~np.isnan(matching_cells(clip, i, j, CELLS)).any(1)
    return bool(visible.mean() >= MIN_VISIBLE)
