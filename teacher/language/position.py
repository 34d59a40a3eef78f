"""Where each visual token is: in the room, from depth and pose; or, on a phone without either, in
the video.

Source: Video-3D LLM (arXiv 2412.00493), its `avg-discrete-sin3d`: the mean world point of a token's
pixels, clipped to the scene's bounds, in steps of 0.1 m, as sines and cosines of a third of the
channels an axis.
"""
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scenes.geometry import transform, unproject

PositionMode = Literal["depth_pose", "pose_free"]
LOW, HIGH = (-15.0, -15.0, -5.0), (15.0, 15.0, 5.0)  # m
STEP = 0.1                                           # m
BASE = 1e4


def world_points(depth: np.ndarray, intrinsics: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Every pixel's point in the world, [T,H,W,3] float32 metres; NaN where depth is 0.

    depth [T,H,W] m along the optical axis, intrinsics [3,3] px (centres at +0.5), poses [T,4,4]
    camera to world.
    """
    t, h, w = depth.shape
    rows, columns = np.mgrid[:h, :w].reshape(2, -1) + 0.5  # [H*W] each
    camera = unproject(columns, rows, depth.reshape(t, -1), intrinsics)
    world = transform(camera, poses).transpose(0, 2, 1).reshape(t, h, w, 3)
    return np.where(depth[..., None] > 0, world, np.nan).astype(np.float32)


def token_points(points: np.ndarray, grid: int) -> np.ndarray:
    """The mean of each token's known points, [T,grid,grid,3] float32; a token that knows none gets
    its frame's mean.

    points [T,H,W,3] as from `world_points`; H and W need not divide by the grid: cells follow the
    nearest pixel.
    """
    _, h, w, _ = points.shape
    known = ~np.isnan(points[..., :1])
    both = np.concatenate([np.where(known, points, 0), known], -1)  # [T,H,W,4]
    rows, columns = (np.linspace(0, n, grid + 1).round().astype(int)[:-1] for n in (h, w))
    cells = np.add.reduceat(np.add.reduceat(both, rows, 1, dtype=np.float64), columns,
                            2)  # [T,g,g,4]
    total = cells.sum((1, 2), keepdims=True)
    cells = np.where(cells[..., 3:] > 0, cells, total)
    return (cells[..., :3] / np.maximum(cells[..., 3:], 1)).astype(np.float32)


def sine_position(points: Tensor, width: int) -> Tensor:
    """points [...,3] metres -> [...,width] float32: the 0.1 m step each is in, a third of the
    channels an axis."""
    axes = points.float().unbind(-1)
    held = torch.stack([x.clamp(low, high) for x, low, high in zip(axes, LOW, HIGH, strict=True)],
                       -1)
    return _sines((held / STEP).round(), width)


def video_position(frames: int, grid: int, width: int,
                   device: torch.device | None = None) -> Tensor:
    """The pose-free code [frames,grid,grid,width]: the same sines of (frame, row, column) of a 14 x
    14 grid."""
    at = torch.arange(grid, device=device) * 14 / grid
    first = torch.arange(frames, device=device).float()
    cells = torch.stack(torch.meshgrid(first, at, at, indexing="ij"), -1)
    return _sines(cells, width)


def _sines(steps: Tensor, width: int) -> Tensor:
    third = width // 3 // 2 * 2
    rate = BASE ** (-torch.arange(0, third, 2, device=steps.device) / third)  # [third/2]
    angles = steps[..., None] * rate  # [...,3,third/2]
    code = torch.stack([angles.sin(), angles.cos()], -1).flatten(-3)  # [...,3*third]
    return F.pad(code, (0, width - code.shape[-1]))
