"""Upright boxes [K,7]: centre xyz, size xyz, heading about +Z; m and rad. [K,6]: heading 0."""
from collections.abc import Sequence

import numpy as np

from scenes.clip import SceneObject


def boxes_of(objects: Sequence[SceneObject]) -> np.ndarray:
    return np.array([[*o.center, *o.size, o.heading] for o in objects], np.float32).reshape(-1, 7)


def upright(boxes: np.ndarray) -> np.ndarray:
    """Lowest and highest corner [K,2,3] of the axis-aligned box around each of [K,6] or [K,7]."""
    boxes = np.asarray(boxes, float)
    center, half = boxes[:, :3], boxes[:, 3:6] / 2
    if boxes.shape[1] == 7:
        c, s = np.abs(np.cos(boxes[:, 6])), np.abs(np.sin(boxes[:, 6]))
        w, d = half[:, 0], half[:, 1]
        half = np.stack([w * c + d * s, w * s + d * c, half[:, 2]], 1)
    return np.stack([center - half, center + half], 1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Axis-aligned intersection over union [A,B] in [0,1]; 0 for a box without volume."""
    a, b = upright(a)[:, None], upright(b)[None]  # [A,1,2,3], [1,B,2,3]
    overlap = np.minimum(a[:, :, 1], b[:, :, 1]) - np.maximum(a[:, :, 0], b[:, :, 0])
    shared = np.clip(overlap, 0, None).prod(-1)
    volume_a, volume_b = (np.clip(x[:, :, 1] - x[:, :, 0], 0, None).prod(-1) for x in (a, b))
    union = volume_a + volume_b - shared                                                     # [A,B]
    valid = (volume_a > 0) & (volume_b > 0)
    return np.where(valid, shared / np.where(union > 0, union, 1), 0.0)


def corners(box: np.ndarray) -> np.ndarray:
    """The footprint [4,2] of one box [7], counter-clockwise."""
    x, y, _, w, d, _, heading = (float(v) for v in box)
    c, s = np.cos(heading), np.sin(heading)
    local = np.array([[-w, -d], [w, -d], [w, d], [-w, d]]) / 2
    return local @ np.array([[c, s], [-s, c]]) + [x, y]


def in_polygon(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Whether points [...,2] lie inside a convex polygon [N,2], counter-clockwise: [...] bool."""
    edges = np.roll(polygon, -1, 0) - polygon
    to = points[..., None, :] - polygon
    return (edges[:, 0] * to[..., 1] - edges[:, 1] * to[..., 0] >= 0).all(-1)


def turn(at: np.ndarray, facing: np.ndarray, other: np.ndarray) -> float:
    """Degrees in (-180, 180], left is positive, from facing one point [2] to facing another."""
    (ax, ay), (bx, by) = facing - at, other - at
    return float(np.degrees(np.arctan2(ax * by - ay * bx, ax * bx + ay * by)))


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """Distance in metres between the closest points of two boxes [7]; 0 where they touch."""
    low, high = max(a[2] - a[5] / 2, b[2] - b[5] / 2), min(a[2] + a[5] / 2, b[2] + b[5] / 2)
    return float(np.hypot(_polygon_gap(corners(a), corners(b)), max(low - high, 0.0)))


def _polygon_gap(p: np.ndarray, q: np.ndarray) -> float:
    edges = np.concatenate([np.roll(x, -1, 0) - x for x in (p, q)])
    normals = np.stack([edges[:, 1], -edges[:, 0]], 1)
    on_p, on_q = p @ normals.T, q @ normals.T                                                # [N,E]
    if not ((on_p.max(0) < on_q.min(0)) | (on_q.max(0) < on_p.min(0))).any():
        return 0.0  # no separating axis
    return min(_to_edges(p, q), _to_edges(q, p))


def _to_edges(points: np.ndarray, polygon: np.ndarray) -> float:
    a, along = polygon, np.roll(polygon, -1, 0) - polygon                                    # [M,2]
    share = ((points[:, None] - a) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-12)  # [N,M]
    nearest = a + np.clip(share, 0, 1)[..., None] * along
    return float(np.linalg.norm(points[:, None] - nearest, axis=-1).min())
