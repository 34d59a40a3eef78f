"""A folder of recorded RGB-D frames along one camera path.

images/ (or rgb/, color/, colour/) and depth/ hold one picture a frame under equal names; depth is
16 bit, in millimetres, seen by the colour camera. K.txt (or intrinsics.txt) holds the colour
camera's 3x3 matrix, in pixels; poses.txt, if any, a camera-to-world 4x4 matrix a line.
"""
import re
from pathlib import Path

import numpy as np
from PIL import Image

from records.images import read_image, read_rgb
from scenes.clip import Clip

COLOUR = ("images", "rgb", "color", "colour")
INTRINSICS = ("K.txt", "intrinsics.txt")
REACH = 16       # px of offsets that are tried
TOLERANCE = 4    # px: a quarter of a token
_EDGE = 0.1      # step of log depth from one pixel to the next
_INVALID = 65535


def read_rgbd(root: Path, size: int = 224) -> Clip:
    """All frames in order of their numbers, the middle square at `size` px.

    Raises ValueError naming what lacks or cannot be read.
    """
    colour = next((root / name for name in COLOUR if (root / name).is_dir()), None)
    if colour is None or not (root / "depth").is_dir():
        raise ValueError(f"{root}: not a folder of RGB-D frames; expected images/, depth/ and "
                         "K.txt in it")
    paths = sorted((root / "depth").glob("*.png"), key=_number)
    by_name = {path.stem: path for path in colour.iterdir() if path.is_file()}
    if lacking := [path.name for path in paths if path.stem not in by_name]:
        raise ValueError(f"{root}: {lacking[0]} of depth/ has no picture of its name in "
                         f"{colour.name}/")
    if not paths:
        raise ValueError(f"{root}: depth/ holds no .png files")
    pictures = [read_rgb(by_name[path.stem]) for path in paths]
    depths = [_depth(path) for path in paths]
    width, height = pictures[0].size
    for path, picture, depth in zip(paths, pictures, depths, strict=True):
        if picture.size != (width, height) or depth.shape != (height, width):
            raise ValueError(f"{path}: is {depth.shape[1]}x{depth.shape[0]}, its picture "
                             f"{picture.size[0]}x{picture.size[1]}, expected {width}x{height}; "
                             "register depth to the colour camera first")
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box, at = (left, top, left + side, top + side), ((np.arange(size) + 0.5) * side / size)
    rows, columns = top + at.astype(int), left + at.astype(int)
    camera = _camera(root)
    camera[:2, 2] -= left, top
    return Clip(root.name,
                np.stack([np.asarray(p.resize((size, size), Image.Resampling.BILINEAR, box))
                          for p in pictures]).transpose(0, 3, 1, 2),
                depth=np.stack([d[np.ix_(rows, columns)] for d in depths]),
                intrinsics=np.diag([size / side, size / side, 1.0]) @ camera,
                poses=_poses(root / "poses.txt", len(paths)))


def check_registration(clip: Clip, root: Path) -> float:
    """Largest offset in px between depth's and colour's edges, of the frame and its quarters.

    Raises ValueError if it is above TOLERANCE: a probe would measure the offset.
    """
    offsets = edge_offsets(clip)
    worst = max(offsets, key=lambda offset: np.hypot(*offset))
    distance = float(np.hypot(*worst))
    if distance > TOLERANCE:
        raise ValueError(
            f"{root}: depth is not registered to colour: its edges are {worst[0]:+d} px across and "
            f"{worst[1]:+d} px down of the colour's (of {clip.frames.shape[3]} px); register it "
            "first, with both cameras' intrinsics and the pose between them")
    return distance


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


def _number(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.stem)
    return (int(digits[-1]) if digits else 0), path.stem


def _depth(path: Path) -> np.ndarray:
    """[H,W] float32 metres, 0 = unknown."""
    raw = np.asarray(read_image(path))
    if raw.ndim != 2 or raw.dtype == np.uint8:
        raise ValueError(f"{path}: not a depth picture; expected 16 bit, in millimetres")
    raw = np.where(raw >= _INVALID, 0, raw)
    return (raw / 1000).astype(np.float32)


def _camera(root: Path) -> np.ndarray:
    """[3,3] float64, of the uncropped pictures."""
    path = next((root / name for name in INTRINSICS if (root / name).is_file()), root / "K.txt")
    values = _numbers(path)
    if values.shape not in ((3, 3), (4, 4)) or min(values[0, 0], values[1, 1]) <= 0:
        raise ValueError(f"{path}: not a camera matrix; expected three lines of three numbers")
    return values[:3, :3].copy()


def _poses(path: Path, frames: int) -> np.ndarray | None:
    """[T,4,4]; None without the file."""
    if not path.is_file():
        return None
    values = _numbers(path)
    if values.shape != (frames, 16):
        raise ValueError(f"{path}: holds {values.shape[0]} x {values.shape[1]} numbers, expected a "
                         f"4x4 matrix (16) on a line for each of the {frames} frames")
    return values.reshape(-1, 4, 4)


def _numbers(path: Path) -> np.ndarray:
    try:
        values = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a table of numbers ({error})") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: holds NaN or infinity")
    return values
