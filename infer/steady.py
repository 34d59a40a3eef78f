"""Depth that is steady over a video: the last frames' depth, moved along with the camera.

A filter beside the stateless model. The camera's motion is fitted to the matches of descriptors
between two frames, with the last depth for their distance; recorded poses may take its place.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from infer.geometry import mutual_matches

MEMORY = 3.0       # frames that the past counts for, at most
AGREES = 0.5       # largest |change of log depth| of one surface; beyond it a pixel starts anew
MIN_INLIERS = 0.3  # share of the matches that fit one motion; below, as after a cut, all start anew
SURE = 0.03        # of the focal length, by which a match may miss: about a cell of descriptors
STEPS = 6          # of the fit, each stricter about outliers than the last
SHORT = 0.02       # pull towards no translation: matches hardly tell a short one from a turn
MOST_CELLS = 32    # of a side, of the vectors that are matched
NEAR_M = 0.05


class Steady:
    """Call it with the outputs of each frame in turn; returns them with steady depth.

    focal: px of the model's square input, whose side is px; centre (x, y): of the optical axis in
    these px, by default the middle.
    """

    def __init__(self, focal: float, px: int, centre: tuple[float, float] | None = None):
        self.focal = focal / px
        self.centre = np.array(centre or (px / 2, px / 2)) / px
        self._past: _Past | None = None

    def __call__(self, outputs: dict[str, np.ndarray],
                 pose: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """outputs: of one frame, by name: depth [1,h,w] m and, unless poses are given, descriptors
        or features [C,g,g]; the confidence [1,h,w] if there is one. pose: camera to world [4,4].
        """
        log = np.log(np.maximum(outputs["depth"][0].astype(float), NEAR_M))     # [h,w]
        certain = np.maximum(outputs.get("confidence", np.ones((1, 1, 1)))[0], 0.05)
        vectors = _coarse(outputs.get("descriptors", outputs.get("features")))
        motion = self._motion(vectors, pose) if self._past else None
        weight = np.broadcast_to(certain, log.shape).astype(float)
        if motion is not None:
            moved, past = self._moved(log, motion)
            log = (past * moved + weight * log) / (past + weight)
            weight = np.minimum(past + weight, MEMORY)
        self._past = _Past(log, weight, vectors, pose)
        return {**outputs, "depth": np.exp(log)[None].astype(np.float32)}

    def _motion(self, vectors: np.ndarray | None, pose: np.ndarray | None) -> np.ndarray | None:
        """[4,4] from the last camera to this one; None: of another place, or not known."""
        past = self._past
        assert past is not None
        if pose is not None and past.pose is not None:
            return np.linalg.inv(pose) @ past.pose
        if vectors is None or past.vectors is None:
            return None
        matches = mutual_matches(past.vectors, vectors, refined=True)
        inside = abs(matches[:, 2:4] - 0.5).max(1) < 0.5 - 1 / vectors.shape[-1]
        x, y, u, v, _ = matches[inside].T  # at the edge are those of points beyond it, too
        if len(x) < 12:
            return None
        points = self._rays(x, y) * np.exp(_sampled(past.log, x, y))            # [3,M]
        motion, inliers = fitted_motion(points, self._rays(u, v)[:2])
        return motion if inliers >= MIN_INLIERS else None

    def _moved(self, log: np.ndarray, motion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The last log depth as this frame, whose own is `log`, sees it, and its weight; [h,w]."""
        assert self._past is not None
        h, w = log.shape
        y, x = ((np.mgrid[:h, :w] + 0.5) / np.reshape([h, w], (2, 1, 1))).reshape(2, -1)
        before = _transformed(np.linalg.inv(motion), self._rays(x, y) * np.exp(log.ravel()))
        u, v = self.focal * before[:2] / np.maximum(before[2], NEAR_M) + self.centre[:, None]
        last = self._rays(u, v) * np.exp(_sampled(self._past.log, u, v))
        moved = np.log(np.maximum(_transformed(motion, last)[2], NEAR_M))
        seen = (before[2] > NEAR_M) & (abs(u - 0.5) < 0.5) & (abs(v - 0.5) < 0.5)
        agrees = seen & (abs(moved - log.ravel()) < AGREES)
        weight = agrees * _sampled(self._past.weight, u, v)
        return moved.reshape(h, w), weight.reshape(h, w)

    def _rays(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """[3,N] of places (fractions of the frame), 1 m ahead."""
        (cx, cy), focal = self.centre, self.focal
        return np.stack([(x - cx) / focal, (y - cy) / focal, np.ones_like(x)])


class _Past(NamedTuple):
    """log [h,w] of depth; weight [h,w], in frames."""
    log: np.ndarray
    weight: np.ndarray
    vectors: np.ndarray | None
    pose: np.ndarray | None


def fitted_motion(points: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, float]:
    """The motion [4,4] after which `points` [3,M] m project to `seen` [2,M] (x/z, y/z), and the
    share that then do.

    Gauss-Newton with Geman-McClure weights, from no motion; among motions that fit alike, one of a
    short translation.
    """
    motion = np.eye(4)
    near = np.median(points[2])
    for step in range(STEPS):
        x, y, z = _transformed(motion, points)
        z = np.maximum(z, NEAR_M)
        x, y = x / z, y / z
        left = seen - np.stack([x, y])
        scale = max(SURE, 0.3 * 0.6**step)
        weight = (1 + (left**2).sum(0) / scale**2)**-2.0                        # [M]
        none = np.zeros_like(x)
        slopes = np.array([[1 / z, none, -x / z, -x * y, 1 + x * x, -y],
                           [none, 1 / z, -y / z, -1 - y * y, x * y, x]])        # [2,6,M]
        rows, values = np.concatenate(slopes, 1), left.ravel()                  # [6,2M], [2M]
        weighted = rows * np.tile(weight, 2)
        hessian = weighted @ rows.T + np.diag(np.full(6, 1e-9))
        pull = np.diag([SHORT * weight.sum() / near**2] * 3 + [0.0] * 3)
        change = np.linalg.solve(
            hessian + pull, weighted @ values - pull[:, :3] @ motion[:3, 3])
        motion = _rigid(change) @ motion
    return motion, float((weight > 0.25).mean())


def _coarse(vectors: np.ndarray | None) -> np.ndarray | None:
    """Every n-th cell of [C,h,w]; None: not a map."""
    if vectors is None or vectors.ndim != 3:
        return None
    step = -(-max(vectors.shape[1:]) // MOST_CELLS)
    return vectors[:, ::step, ::step]


def _rigid(twist: np.ndarray) -> np.ndarray:
    """[4,4] of a translation and a rotation vector, [6]."""
    angle = max(float(np.linalg.norm(twist[3:])), 1e-12)
    a, b, c = twist[3:] / angle
    cross = np.array([[0, -c, b], [c, 0, -a], [-b, a, 0]])
    motion = np.eye(4)
    motion[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    motion[:3, 3] = twist[:3]
    return motion


def _transformed(motion: np.ndarray, points: np.ndarray) -> np.ndarray:
    return motion[:3, :3] @ points + motion[:3, 3:]


def _sampled(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """values [h,w] at places [N] (fractions of the frame), bilinear."""
    h, w = values.shape
    column, row = np.clip(x * w - 0.5, 0, w - 1), np.clip(y * h - 0.5, 0, h - 1)
    left, top = (np.minimum(at.astype(int), n - 2) for at, n in ((column, w), (row, h)))
    right, below = column - left, row - top
    upper = values[top, left] * (1 - right) + values[top, left + 1] * right
    lower = values[top + 1, left] * (1 - right) + values[top + 1, left + 1] * right
    return upper * (1 - below) + lower * below
