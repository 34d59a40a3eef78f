"""Depth in the colour camera's pixels; whether a recording's depth is where and what it says."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scenes.clip import Clip
from scenes.geometry import cell_pixels, reproject

REACH = 16       # px of offsets that are tried
TOLERANCE = 4    # px: a quarter of a token
_EDGE = 0.1      # step of log depth from one pixel to the next
UNITS = (1000.0, 5000.0, 4000.0, 10000.0)  # values a metre that depth pictures are stored in
_INDOORS_M = 0.6, 8.0  # of the median depth
_AGREE, _BETTER = 0.03, 0.15


def moved_to_colour(depth: np.ndarray, camera: np.ndarray, colour: np.ndarray,
                    size: int) -> np.ndarray:
    """[size,size] float32 metres where each pixel's ray of the colour camera meets the depth
    picture; 0 = unknown. depth [h,w] m of `camera`; colour: matrix of the target. The cameras are
    taken to be in one place, turned alike."""
    at = np.arange(size) + 0.5
    u = np.floor((at - colour[0, 2]) / colour[0, 0] * camera[0, 0] + camera[0, 2]).astype(int)
    v = np.floor((at - colour[1, 2]) / colour[1, 1] * camera[1, 1] + camera[1, 2]).astype(int)
    h, w = depth.shape
    inside = ((v >= 0) & (v < h))[:, None] & ((u >= 0) & (u < w))[None]
    found = depth[np.ix_(v.clip(0, h - 1), u.clip(0, w - 1))]
    return np.where(inside, found, 0).astype(np.float32)


def likelier_unit(clip: Clip, per_metre: float) -> tuple[float, str] | None:
    """The values a metre that depth is stored in, if it is not the one it was read with, and why.

    By the depth of points that two views show, where the camera moved; where that does not tell, by
    the median depth.
    """
    assert clip.depth is not None
    poses = clip.poses
    pairs = [] if poses is None else _moved(poses)
    used = _agreement(clip, 1.0, poses, pairs)
    others = [unit for unit in UNITS if unit != per_metre]
    share = {unit: _agreement(clip, per_metre / unit, poses, pairs) or 0.0 for unit in others}
    best = max(others, key=share.__getitem__)
    if share[best] >= (used or 0.0) + _BETTER:
        return best, (f"two views agree on the depth of {100 * share[best]:.0f} % of their points "
                      f"with it, of {100 * (used or 0.0):.0f} % with {per_metre:g}")
    if used is not None and used >= share[best] + _BETTER:
        return None
    if not (clip.depth > 0).any():
        return None
    median = float(np.median(clip.depth[clip.depth > 0]))
    low, high = _INDOORS_M
    fits = [unit for unit in (*UNITS, 1.0) if low <= median * per_metre / unit <= high]
    if low <= median <= high or not fits:
        return None
    return fits[0], f"the median depth is {median:.2g} m with {per_metre:g}"


def inverted_poses(clip: Clip, per_metre: float) -> str:
    """Why the poses are probably world to camera; "" if they are not, or if that cannot be told.
    Whichever of UNITS depth is stored in: per_metre is the one that it was read with."""
    if clip.poses is None:
        return ""
    inverse = np.linalg.inv(clip.poses)
    pairs = _moved(clip.poses) + _moved(inverse)
    given, other = (max(_agreement(clip, per_metre / unit, poses, pairs) or 0.0
                        for unit in (per_metre, *UNITS)) for poses in (clip.poses, inverse))
    if other < max(0.5, given + _BETTER):
        return ""
    return (f"two views agree on the depth of {100 * other:.0f} % of their points with the inverse "
            f"poses, of {100 * given:.0f} % with these")


def _moved(poses: np.ndarray, count: int = 12) -> list[tuple[int, int]]:
    """At most `count` pairs of frames that are near in time, with the camera in two places."""
    places, found = poses[:, :3, 3], []
    for i in np.linspace(0, len(places) - 1, count).astype(int):
        moved = np.linalg.norm(places - places[i], axis=1)
        near = np.flatnonzero((moved > 0.15) & (moved < 0.8))
        found += [(i, j) for j in near[np.abs(near - i).argsort()][:1]]
    return found


def _agreement(clip: Clip, scale: float, poses: np.ndarray | None,
               pairs: Sequence[tuple[int, int]]) -> float | None:
    """Share of points whose depth, times `scale`, both views of pairs agree on; None: too few."""
    if poses is None or clip.intrinsics is None or clip.depth is None:
        return None
    found: list[np.ndarray] = []
    for i, j in pairs:
        rows, columns = cell_pixels(clip.depth.shape[1], clip.depth.shape[2], 28)
        pixels, z = reproject(columns + 0.5, rows + 0.5, scale * clip.depth[i, rows, columns],
                              clip.intrinsics, poses[i], poses[j])
        size = clip.depth.shape[2]
        inside = (z > 0.05) & (clip.depth[i, rows, columns] > 0) & (
            (pixels >= 0) & (pixels < size)).all(0)
        column, row = pixels[:, inside].astype(int)
        other = scale * clip.depth[j, row, column]
        found.append((np.abs(z[inside] / np.maximum(other, 1e-6) - 1) < _AGREE)[other > 0])
    every = np.concatenate(found) if found else np.empty(0)
    return float(every.mean()) if len(every) >= 100 else None


def check_registration(clip: Clip, root: Path) -> float:
    """Largest offset in px between depth's and colour's edges. ValueError if above TOLERANCE."""
    distance, note = off_colour([clip])
    if note:
        raise ValueError(f"{root}: {note}")
    return distance


def off_colour(clips: Sequence[Clip]) -> tuple[float, str]:
    """Px by which depth lies off colour, in the median of clips; above TOLERANCE a note, or ""."""
    offsets = [max(edge_offsets(clip), key=lambda at: np.hypot(*at)) for clip in clips]
    shift = np.median(np.array(offsets), 0).astype(int)
    distance = float(np.hypot(*shift))
    return distance, "" if distance <= TOLERANCE else (
        f"depth is not registered to colour: its edges lie {shift[0]:+d} px across and "
        f"{shift[1]:+d} px down of the colour's; scores measure that too (give the depth camera's "
        "matrix as K_depth.txt)")


def edge_offsets(clip: Clip, most: int = 100) -> list[tuple[int, int]]:
    """(across, down) px by which depth lies off colour: of all of it, then of its four quarters.

    From the cross-correlation of both edge maps, summed over at most `most` frames; a quarter
    without enough edges of depth counts as (0, 0).
    """
    assert clip.depth is not None
    step = -(-len(clip.frames) // most)
    grey = clip.frames[::step].mean(1)                               # [T,H,W]
    colour = np.hypot(*np.gradient(grey, axis=(1, 2)))
    colour = np.minimum(colour, np.quantile(colour, 0.98, axis=(1, 2), keepdims=True))
    depth = _depth_edges(clip.depth[::step])
    h, w = grey.shape[1] // 2, grey.shape[2] // 2
    return [_offset(colour[:, *half], depth[:, *half])
            for half in [np.s_[:, :], np.s_[:h, :], np.s_[h:, :], np.s_[:, :w], np.s_[:, w:]]]


def _offset(colour: np.ndarray, depth: np.ndarray) -> tuple[int, int]:
    """The shift of the best correlation; none if the centre is as good within the noise."""
    if depth.sum() < 20 * len(depth):
        return 0, 0
    shape = [2 * n for n in colour.shape[1:]]
    everywhere = np.fft.rfft2(np.ones_like(depth[:1]), shape)
    a, b = (np.fft.rfft2(x, shape) for x in (colour, depth))

    def correlate(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        full = np.fft.irfft2((x.conj() * y).sum(0), shape)
        return np.roll(full, (REACH, REACH), (0, 1))[:2 * REACH + 1, :2 * REACH + 1]
    # mean colour edge under the edges of depth, less that of the overlap
    hits, count = correlate(a, b), correlate(everywhere, b)
    background = correlate(a, everywhere) / correlate(everywhere, everywhere) / len(depth)
    score = hits / count.clip(1) - background
    down, across = np.unravel_index(score.argmax(), score.shape)
    near = score[REACH - 1:REACH + 2, REACH - 1:REACH + 2].max()
    if near > 0.9 * score.max():
        return 0, 0
    return int(across) - REACH, int(down) - REACH


def _depth_edges(depth: np.ndarray) -> np.ndarray:
    """1 where log depth [T,H,W] steps by more than _EDGE to the next pixel, both known."""
    log = np.log(np.where(depth > 0, depth, np.nan))
    edges = np.zeros(depth.shape, np.float32)
    edges[:, :, 1:] = np.abs(np.diff(log, axis=2)) > _EDGE
    edges[:, 1:] = np.maximum(edges[:, 1:], np.abs(np.diff(log, axis=1)) > _EDGE)
    return edges
