"""Pinhole geometry: from pixels and depth to points, between cameras, and back to pixels.

Cameras have OpenCV axes (x right, y down, z ahead). Points are columns [...,3,N] in metres; poses
[...,4,4] map camera to world; intrinsics [3,3] and pixels [...,2,N] are in pixels, with pixel
centres at +0.5 and (column, row) order. Depth is measured along the optical axis.
"""
import numpy as np


def cell_pixels(height: int, width: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column [cells*cells] int of the pixel in the middle of each cell of a square grid."""
    middles = [((np.arange(cells) + 0.5) * n / cells).astype(int) for n in (height, width)]
    rows, columns = np.meshgrid(*middles, indexing="ij")
    return rows.ravel(), columns.ravel()


def unproject(columns: np.ndarray, rows: np.ndarray, depth: np.ndarray,
              intrinsics: np.ndarray) -> np.ndarray:
    """Camera points [...,3,N] of pixel coordinates [N] at depth [...,N]."""
    rays = np.linalg.inv(intrinsics) @ np.stack([columns, rows, np.ones_like(rows)])  # [3,N]
    return rays * depth[..., None, :]


def transform(points: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Points [...,3,N] moved by rigid transforms [...,4,4]; camera to world if these are poses."""
    return poses[..., :3, :3] @ points + poses[..., :3, 3:]


def project(points: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [...,2,N], meaningless at depth <= 0, and depth [...,N] of camera points [...,3,N]."""
    depth = points[..., 2, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (intrinsics @ points)[..., :2, :] / depth[..., None, :], depth


def reproject(columns: np.ndarray, rows: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray,
              pose_a: np.ndarray, pose_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [2,N] and depth [N] in camera b of camera a's pixel coordinates [N] at depth [N]."""
    a_to_b = np.linalg.inv(pose_b) @ pose_a
    points = unproject(columns, rows, depth, intrinsics)
    return project(transform(points, a_to_b), intrinsics)
