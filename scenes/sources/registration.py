"""Depth in the colour camera's pixels; whether a recording's depth is where and what it says."""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from scenes.clip import Clip
from scenes.geometry import cell_pixels, reproject

_CELLS = 112     # edges are compared on a grid of this width
_REACH = 24      # cells of offsets that are tried
_NEAR = 2        # cells: 4 px of 224, a quarter of a token
_ZOOMS = 1.04 ** np.arange(-11, 12)
_MOST = 100      # frames
_EDGE = 0.1      # step of log depth from one cell to the next
_FEWEST_CELLS, _FEWEST_FRAMES = 20, 20
_PEAK, _RATIO = 6.0, 0.9
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


@dataclass(frozen=True)
class Registration:
    """note: one line for the user, "" if depth is registered to colour; wrong: it is not, or is of
    other frames (False, with a note, where that cannot be told)."""
    note: str
    wrong: bool


def check_registration(clips: Sequence[Clip]) -> Registration:
    """Whether depth lies in the pixels of its own colour frame, by all clips together.

    Edges of both are correlated on a grid of 112x112 cells (2 px of a frame of 224), at offsets to
    24 cells each way and 23 zooms of depth, 0.65 to 1.54. At most 100 frames are used, evenly
    spaced, and of them those with 20 cells of depth edges; 1.5 s a 100 frames on one core.
    Peak: the largest correlation over the standard deviation of all. Ratio: the largest one within
    2 cells and 4 % of zoom, over the largest.

    Thresholds, from pieces of 20 to 80 frames with 20 that differ: depth of other frames (in
    reverse, or 30 late) peaks at 5.7 or less, its own at 11 or more in rendered rooms and in an
    office with exact registration, hence 6. The ratio is 1.00 there, and 0.83 or less with a shift
    of 8 px or a zoom of 1.1, hence 0.9. Of two recordings with approximate camera matrices, 4 px
    off, 5 of 46 pieces are called wrong; in full, neither is. With fewer frames true and false
    pairs overlap.
    """
    frames, depth = _evenly_spaced(clips)
    edges = _depth_edges(depth)
    usable = edges.sum((1, 2)) >= _FEWEST_CELLS
    count = _distinct(edges[usable])
    if count < _FEWEST_FRAMES:
        return Registration(
            "cannot tell whether depth is registered to colour: that takes more than "
            f"{_FEWEST_FRAMES} frames that differ and show things before others, found "
            f"{int(count)}", False)
    score = _correlations(_colour_edges(frames[usable]), edges[usable])
    px = frames.shape[3] / _CELLS
    if score.max() <= _PEAK * score.std():  # both 0 of blank frames
        return Registration(
            "depth and colour are not of the same view: their edges agree at no offset up to "
            f"{px * _REACH:.0f} px and no zoom up to {_ZOOMS[-1]:.2f}; pair depth and colour of "
            "one moment, and register depth to colour", True)
    one, middle = len(_ZOOMS) // 2, slice(_REACH - _NEAR, _REACH + _NEAR + 1)
    near = score[one - 1:one + 2, middle, middle].max()
    if near >= _RATIO * score.max():
        return Registration("", False)
    zoom, down, across = np.unravel_index(score.argmax(), score.shape)
    return Registration(
        f"depth is not registered to colour: its edges lie {px * (across - _REACH):+.0f} px across "
        f"and {px * (down - _REACH):+.0f} px down of the colour's, its field of view is "
        f"{_ZOOMS[zoom]:.2f} times as wide; give the depth camera's matrix as K_depth.txt, or "
        "register depth to colour", True)


def _evenly_spaced(clips: Sequence[Clip]) -> tuple[np.ndarray, np.ndarray]:
    """At most _MOST frames [T,3,H,W] uint8 of all clips, and depth [T,H,W] m."""
    every = [(clip, t) for clip in clips for t in range(len(clip.frames))]
    every = every[::-(-len(every) // _MOST)]
    depth = [clip.depth[t] for clip, t in every if clip.depth is not None]
    return np.stack([clip.frames[t] for clip, t in every]), np.stack(depth)


def _pooled(x: np.ndarray, by: np.ufunc) -> np.ndarray:
    """[T,H,W] float32 -> [T,112,112]: `by` reduces the pixels of each cell."""
    for axis in (1, 2):
        x = by.reduceat(x, np.arange(_CELLS) * x.shape[axis] // _CELLS, axis)
    return x


def _colour_edges(frames: np.ndarray) -> np.ndarray:
    """[T,112,112] of frames [T,3,H,W]: the root of the gradient, so that a strong edge does not
    outweigh all others."""
    grey = frames.mean(1, dtype=np.float32)
    grey = _pooled(grey, np.add) / _pooled(np.ones_like(grey[:1]), np.add)
    slope = [ndimage.gaussian_filter(grey, (0, 1, 1), order) for order in ((0, 0, 1), (0, 1, 0))]
    return _standardised(np.sqrt(np.hypot(*slope)))


def _depth_edges(depth: np.ndarray) -> np.ndarray:
    """[T,112,112], 1 where log depth steps by more than _EDGE to the next cell. depth [T,H,W] m,
    0 = unknown; a cell has its nearest pixel's, holes of up to 6 cells what surrounds them."""
    inverse = np.divide(1, depth, out=np.zeros(depth.shape, np.float32), where=depth > 0)
    closed = ndimage.grey_closing(_pooled(inverse, np.maximum), size=(1, 7, 7))
    log = np.log(np.where(closed > 0, closed, np.nan))
    edges = np.zeros(log.shape, np.float32)
    edges[:, :, 1:] = np.abs(np.diff(log, axis=2)) > _EDGE
    edges[:, 1:] = np.maximum(edges[:, 1:], np.abs(np.diff(log, axis=1)) > _EDGE)
    return edges


def _standardised(edges: np.ndarray) -> np.ndarray:
    """Less the local mean; each frame of norm 1."""
    edges = edges - ndimage.gaussian_filter(edges, (0, 6, 6))
    return edges / np.sqrt((edges ** 2).sum((1, 2), keepdims=True)).clip(1e-6)


def _distinct(edges: np.ndarray) -> float:
    """How many of T frames differ: T if no two share edges of depth, 1 if all do.
    T^2 over the sum of the squared correlations of all pairs."""
    rows = _standardised(edges).reshape(-1, _CELLS ** 2)
    return len(rows) ** 2 / max(float(((rows @ rows.T) ** 2).sum()), 1e-6)


def _correlations(colour: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """[zooms,49,49] (down, across) of the edges [T,112,112] of depth and colour, summed over T."""
    shape = 2 * (_CELLS + _REACH + 8,)
    spectrum = fft.rfft2(colour, shape).conj()
    found = []
    for zoom in _ZOOMS:
        at = np.floor((np.arange(_CELLS) + 0.5 - _CELLS / 2) / zoom + _CELLS / 2).astype(int)
        inside = (at >= 0) & (at < _CELLS)
        at = at.clip(0, _CELLS - 1)
        zoomed = depth[:, at[:, None], at] * (inside[:, None] & inside)
        every = fft.irfft2((spectrum * fft.rfft2(_standardised(zoomed), shape)).sum(0), shape)
        found.append(np.roll(every, (_REACH, _REACH), (0, 1))[:2 * _REACH + 1, :2 * _REACH + 1])
    return np.stack(found)
