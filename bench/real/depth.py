"""Depth and normals of one frame against a depth camera's. Predictions of any grid are read at
POINTS x POINTS places of the frame: a finer grid is scored at the same pixels."""
import numpy as np
import torch
import torch.nn.functional as F

from scenes.clip import Clip
from scenes.geometry import cell_pixels, unproject

POINTS = 112
NORMAL_CELLS = 56
MAX_M = 20.0
_STEP = 0.1  # of log depth within a surface
_REACH = 2   # cells to each side that a true normal is taken from


def resampled(values: np.ndarray, points: int = POINTS) -> np.ndarray:
    """[C,h,w] -> [C,points,points] float64, bilinear."""
    grid = torch.from_numpy(np.ascontiguousarray(values, np.float64))[None]
    return F.interpolate(grid, (points, points), mode="bilinear", align_corners=False)[0].numpy()


def true_depth(clip: Clip, frame: int, points: int = POINTS) -> np.ndarray:
    """[points,points] m, 0 = unknown: of the pixel in the middle of each cell."""
    assert clip.depth is not None
    depth = clip.depth[frame]
    rows, columns = cell_pixels(depth.shape[0], depth.shape[1], points)
    found = depth[rows, columns].reshape(points, points).astype(float)
    return np.where(found < MAX_M, found, 0)


def depth_scores(depth: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """delta1_X, abs_rel_X, rmse_X_m for X in metric: as predicted; median: times median(truth) /
    median(prediction); affine: the best a / z + b in the least squares of 1 / z. corr: Pearson's,
    of log depth; NaN for a constant. Arrays in m; truth 0: unknown."""
    valid = truth > 0
    z, true = np.maximum(depth[valid], 1e-3), truth[valid]
    basis = np.stack([1 / z, np.ones_like(z)], 1)
    fit = np.linalg.lstsq(basis, 1 / true, rcond=None)[0]
    aligned = {"metric": z, "median": z * np.median(true) / np.median(z),
               "affine": 1 / np.clip(basis @ fit, 1 / MAX_M, 10)}
    scores: dict[str, float] = {}
    for name, found in aligned.items():
        ratio = found / true
        scores |= {f"delta1_{name}": float((np.maximum(ratio, 1 / ratio) < 1.25).mean()),
                   f"abs_rel_{name}": float(np.abs(ratio - 1).mean()),
                   f"rmse_{name}_m": float(np.sqrt(np.square(found - true).mean()))}
    with np.errstate(invalid="ignore", divide="ignore"):
        varies = np.ptp(z) > 1e-6 * z.mean()
        scores["corr"] = float(np.corrcoef(np.log(z), np.log(true))[0, 1]) if varies else np.nan
    return scores


def true_normals(clip: Clip, frame: int, intrinsics: np.ndarray) -> np.ndarray:
    """[3,56,56] unit normals towards the camera, from points two cells to each side; 0 where depth
    is unknown or has an edge."""
    assert clip.depth is not None
    n = NORMAL_CELLS
    h, w = clip.depth.shape[1:]
    blocks = clip.depth[frame][:h // n * n, :w // n * n].reshape(n, h // n, n, w // n)
    count = (blocks > 0).sum((1, 3))
    depth = blocks.sum((1, 3)) / np.maximum(count, 1) * (count > blocks.shape[1] ** 2 / 2)
    at = (np.arange(n) + 0.5) * w / n
    rows, columns = np.meshgrid(at, at, indexing="ij")
    points = unproject(columns.ravel(), rows.ravel(), depth.ravel(), intrinsics).reshape(3, n, n)
    log = np.log(np.where(depth > 0, depth, np.nan))
    r, inner = _REACH, slice(_REACH, n - _REACH)
    ends = [(0, -r), (0, r), (-r, 0), (r, 0)]
    left, right, up, down = (np.roll(points, (-y, -x), (1, 2)) for y, x in ends)
    smooth = np.stack([np.abs(np.roll(log, (-y, -x), (0, 1)) - log) < _STEP for y, x in ends])
    normal = np.cross(down - up, right - left, axis=0)
    length = np.linalg.norm(normal, axis=0)
    inside = np.zeros((n, n), bool)
    inside[inner, inner] = True
    valid = smooth.all(0) & inside & (length > 0)
    normal = np.where(valid, normal / np.maximum(length, 1e-12), 0)
    return normal * np.where((normal * points).sum(0) > 0, -1.0, 1.0)


def normal_error(normals: np.ndarray, truth: np.ndarray) -> float:
    """Mean degrees where truth is known; NaN without. Both [3,56,56], truth of unit length or 0."""
    valid = (truth != 0).any(0)
    if not valid.any():
        return np.nan
    cosine = (normals * truth).sum(0) / np.maximum(np.linalg.norm(normals, axis=0), 1e-6)
    return float(np.degrees(np.arccos(np.clip(cosine[valid], -1, 1))).mean())
