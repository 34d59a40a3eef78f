"""3D positions of visual tokens: Video-3D LLM's (arXiv 2412.00493) `avg-discrete-sin3d`, the mean
world point of a token's pixels in steps of 0.1 m as sines and cosines; and pose-free ones."""
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scenes.geometry import transform, unproject

LOW, HIGH = (-15.0, -15.0, -5.0), (15.0, 15.0, 5.0)  # m
STEP = 0.1                                           # m
BASE = 1e4


def world_points(depth: np.ndarray, intrinsics: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """World point of every pixel, [T,H,W,3] float32 metres; NaN where depth is 0.

    depth [T,H,W] m, intrinsics [3,3] px (centres at +0.5), poses [T,4,4] camera to world.
    """
    t, h, w = depth.shape
    rows, columns = np.mgrid[:h, :w].reshape(2, -1) + 0.5  # [H*W] each
    camera = unproject(columns, rows, depth.reshape(t, -1), intrinsics)
    world = transform(camera, poses).transpose(0, 2, 1).reshape(t, h, w, 3)
    return np.where(depth[..., None] > 0, world, np.nan).astype(np.float32)


def mean_token_points(points: np.ndarray, grid: int) -> np.ndarray:
    """Mean of each token's known points [T,H,W,3] -> [T,grid,grid,3] float32.

    A token without any gets its frame's mean, such a frame the origin. Cells end at whole pixels.
    """
    _, h, w, _ = points.shape
    valid = ~np.isnan(points[..., :1])
    sums = np.concatenate([np.where(valid, points, 0), valid], -1)  # [T,H,W,4]
    rows, columns = (np.linspace(0, n, grid + 1).round().astype(int)[:-1] for n in (h, w))
    sums = np.add.reduceat(np.add.reduceat(sums, rows, 1, dtype=np.float64), columns, 2)
    total = sums.sum((1, 2), keepdims=True)
    sums = np.where(sums[..., 3:] > 0, sums, total)                 # [T,g,g,4]
    return (sums[..., :3] / np.maximum(sums[..., 3:], 1)).astype(np.float32)


def sine_position(points: Tensor, width: int) -> Tensor:
    """points [...,3] m -> [...,width] float32: sine code of each axis's 0.1 m step."""
    axes = zip(points.float().unbind(-1), LOW, HIGH, strict=True)
    clipped = torch.stack([x.clamp(low, high) for x, low, high in axes], -1)
    return _sines((clipped / STEP).round(), width)


def video_position(frames: int, grid: int, width: int,
                   device: torch.device | None = None) -> Tensor:
    """Pose-free code [frames,grid,grid,width]: sines of (frame, row, column) of a 14 x 14 grid."""
    at = torch.arange(grid, device=device) * 14 / grid
    frame = torch.arange(frames, device=device).float()
    cells = torch.stack(torch.meshgrid(frame, at, at, indexing="ij"), -1)
    return _sines(cells, width)


def _sines(steps: Tensor, width: int) -> Tensor:
    third = width // 3 // 2 * 2
    rate = BASE ** (-torch.arange(0, third, 2, device=steps.device) / third)  # [third/2]
    angles = steps[..., None] * rate  # [...,3,third/2]
    code = torch.stack([angles.sin(), angles.cos()], -1).flatten(-3)  # [...,3*third]
    return F.pad(code, (0, width - code.shape[-1]))
