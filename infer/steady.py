"""Depth that is steady over a video: that of the last frames, moved along with the camera.

A filter beside the stateless model. The camera's motion is fitted to the matches of descriptors
between two frames, with the last depth for their distance; recorded poses may take its place.
"""
from __future__ import annotations

import numpy as np

from infer.geometry import mutual_matches

MEMORY = 3.0       # frames that the past counts for, at most
AGREES = 0.5       # largest |change of ln depth| of one surface; beyond it a pixel starts anew
MIN_INLIERS = 0.3  # share of the matches that fit one motion; below, as after a cut, all start anew
SURE = 0.03        # of the focal length, by which a match may miss: about a cell of descriptors
STEPS = 6          # of the fit, each stricter about outliers than the last
SHORT = 0.05       # pull towards no translation: matches hardly tell a short one from a turn
NEAR_M, MAX_CELLS = 0.05, 64**2  # of vectors that are matched


class Steady:
    """Call it with the outputs of each frame in turn; returns them with steady depth.

    focal: px of the model's square input, whose side is px; centre: its optical axis (x, y), px.
    """

    def __init__(self, focal: float, px: int, centre: np.ndarray | None = None):
        self.focal = focal / px
        self.centre = np.full(2, 0.5) if centre is None else centre / px
        self._vectors: np.ndarray | None = None
        self._pose: np.ndarray | None = None

    def __call__(self, outputs: dict[str, np.ndarray],
                 pose: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """outputs: of one frame: depth [1,h,w] m and, unless poses (camera to world [4,4]) are
        given, descriptors or features [C,g,g]; with confidence [1,h,w] frames count by it."""
        log = np.log(np.maximum(outputs["depth"][0].astype(float), NEAR_M))     # [h,w]
        certain = outputs.get("confidence", outputs["depth"])[0]
        known = "confidence" in outputs and certain.shape == log.shape
        weight = np.maximum(certain, 0.05) if known else np.ones_like(log)
        vectors = outputs.get("descriptors", outputs.get("features"))
        motion = self._motion(vectors, pose)
        if motion is not None:
            moved, past = self._moved(log, motion)
            log = (past * moved + weight * log) / (past + weight)
            weight = np.minimum(past + weight, MEMORY)
        self._log, self._weight, self._vectors, self._pose = log, weight, vectors, pose
        return {**outputs, "depth": np.exp(log)[None].astype(np.float32)}

    def _motion(self, vectors: np.ndarray | None, pose: np.ndarray | None) -> np.ndarray | None:
        """[4,4] from the last camera to this one; None: of another place, or not known."""
        if pose is not None and self._pose is not None:
            return np.linalg.inv(pose) @ self._pose
        if vectors is None or self._vectors is None or vectors.ndim != 3 or (
                vectors[0].size > MAX_CELLS):
            return None
        matches = mutual_matches(self._vectors, vectors, refined=True)
        inside = abs(matches[:, 2:4] - 0.5).max(1) < 0.5 - 1 / vectors.shape[-1]
        x, y, u, v, _ = matches[inside].T  # at the edge are those of points beyond it, too
        if len(x) < 12:
            return None
        points = self._rays(x, y) * np.exp(_sampled(self._log, x, y))           # [3,M]
        motion, inliers = fitted_motion(points, self._rays(u, v)[:2])
        return motion if inliers >= MIN_INLIERS else None

    def _moved(self, log: np.ndarray, motion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The last ln depth as this frame, whose own is `log`, sees it, and its weight; [h,w]."""
        h, w = log.shape
        y, x = ((np.mgrid[:h, :w] + 0.5) / np.reshape([h, w], (2, 1, 1))).reshape(2, -1)
        before = _transformed(np.linalg.inv(motion), self._rays(x, y) * np.exp(log.ravel()))
        u, v = self.focal * before[:2] / np.maximum(before[2], NEAR_M) + self.centre[:, None]
        last = self._rays(u, v) * np.exp(_sampled(self._log, u, v))
        moved = np.log(np.maximum(_transformed(motion, last)[2], NEAR_M))
        agrees = (abs(moved - log.ravel()) < AGREES) & (before[2] > NEAR_M)
        agrees &= (abs(u - 0.5) < 0.5) & (abs(v - 0.5) < 0.5)
        return moved.reshape(h, w), (agrees * _sampled(self._weight, u, v)).reshape(h, w)

    def _rays(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """[3,N] of places (shares of the frame's side), 1 m ahead."""
        return np.stack([*((np.stack([x, y], 1) - self.centre) / self.focal).T, np.ones_like(x)])


def fitted_motion(points: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, float]:
    """The motion [4,4] after which `points` [3,M] m project to `seen` [2,M] (x/z, y/z), and the
    share that then do: Gauss-Newton with Geman-McClure weights, from no motion."""
    motion, near = np.eye(4), np.median(points[2])
    for step in range(STEPS):
        x, y, z = _transformed(motion, points)
        z = np.maximum(z, NEAR_M)
        x, y, none = x / z, y / z, np.zeros_like(x)
        left = seen - np.stack([x, y])
        fits = (1 + (left**2).sum(0) / max(SURE, 0.3 * 0.6**step)**2)**-2.0     # [M]
        slopes = np.block([[1 / z, none], [none, 1 / z], [-x / z, -y / z],
                           [-x * y, -1 - y * y], [1 + x * x, x * y], [-y, x]])  # [6,2M]
        weighted = slopes * np.tile(fits, 2)
        pull = SHORT * fits.sum() / near**2 * np.array([1, 1, 1, 0, 0, 0])
        push = weighted @ left.ravel() - pull * np.append(motion[:3, 3], [0, 0, 0])
        *shift, a, b, c = np.linalg.solve(weighted @ slopes.T + np.diag(pull + 1e-9), push)
        left_axes, _, right_axes = np.linalg.svd([[1, -c, b], [c, 1, -a], [-b, a, 1]])
        turn = left_axes @ right_axes  # the nearest rotation
        motion[:3] = turn @ motion[:3]
        motion[:3, 3] += shift
    return motion, float((fits > 0.25).mean())


def _transformed(motion: np.ndarray, points: np.ndarray) -> np.ndarray:
    return motion[:3, :3] @ points + motion[:3, 3:]


def _sampled(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """values [h,w] at places [N] (shares of the frame's side), bilinear."""
    h, w = values.shape
    column, row = np.clip(x * w - 0.5, 0, w - 1), np.clip(y * h - 0.5, 0, h - 1)
    left, top = np.minimum(column.astype(int), w - 2), np.minimum(row.astype(int), h - 2)
    right, below = column - left, row - top
    upper = values[top, left] * (1 - right) + values[top, left + 1] * right
    lower = values[top + 1, left] * (1 - right) + values[top + 1, left + 1] * right
    return upper * (1 - below) + lower * below
