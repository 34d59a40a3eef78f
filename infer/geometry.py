"""Depth as 16-bit pictures and point clouds, and matches between two views."""
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from infer.pictures import GAP, PICTURE_PX, resized

COLOURS = ("red", "green", "blue")
LINES = 64  # matches that are drawn, at random: the typical ones, not the best


def depth_mm(depth: np.ndarray) -> np.ndarray:
    """Metres [h,w] -> uint16 millimetres; 0: beyond 65.5 m."""
    millimetres = np.round(np.clip(depth, 0, 100) * 1000)
    return np.where(millimetres < 65536, millimetres, 0).astype(np.uint16)


def write_ply(path: Path, frame: np.ndarray, depth: np.ndarray, focal: float) -> None:
    """A binary PLY of coloured points in camera axes (x right, y down, z ahead), metres.

    frame: uint8 [3,px,px], whose middle is on the optical axis; depth [h,w]; focal: in its px.
    """
    px, (h, w) = frame.shape[2], depth.shape
    rows, columns = np.mgrid[:h, :w]
    x, y = ((columns + 0.5) * px / w, (rows + 0.5) * px / h)      # [h,w] px of the frame
    points = np.empty(h * w, [*((axis, "<f4") for axis in "xyz"),
                              *((colour, "u1") for colour in COLOURS)])
    points["x"] = ((x - px / 2) / focal * depth).ravel()
    points["y"] = ((y - px / 2) / focal * depth).ravel()
    points["z"] = depth.ravel()
    for i, colour in enumerate(COLOURS):
        points[colour] = frame[i, y.astype(int), x.astype(int)].ravel()
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}",
            *(f"property float {axis}" for axis in "xyz"),
            *(f"property uchar {colour}" for colour in COLOURS), "end_header", ""]
    path.write_bytes("\n".join(head).encode() + points.tobytes())


def mutual_matches(first: np.ndarray, second: np.ndarray, refined: bool = False) -> np.ndarray:
    """Cells of two views that are each other's best match: float32 [M,5].

    first, second: [C,h,w] vectors. A row: x, y in the first view and in the second, as fractions of
    the picture, and the cosine. refined: in the second view up to half a cell off its middle, at
    the top of a parabola through the cosines of the neighbouring cells.
    """
    _, h, w = first.shape
    a, b = (_unit_rows(view) for view in (first, second))          # [h*w,C]
    cosine = a @ b.T
    forward, back = cosine.argmax(1), cosine.argmax(0)
    cells = np.flatnonzero(back[forward] == np.arange(len(a)))     # [M]
    ends = [((cell % w + 0.5) / w, (cell // w + 0.5) / h) for cell in (cells, forward[cells])]
    if refined:
        x, y = _tops(cosine[cells].reshape(-1, h, w), forward[cells])
        ends[1] = ends[1][0] + x / w, ends[1][1] + y / h
    return np.stack([*ends[0], *ends[1], cosine[cells, forward[cells]]], 1).astype(np.float32)


def match_picture(first: np.ndarray, second: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Two frames uint8 [3,px,px] side by side, lines between their matches: uint8 [h,w,3]."""
    views = [resized(frame.transpose(1, 2, 0)) for frame in (first, second)]
    gap = np.full((PICTURE_PX, GAP, 3), 255, np.uint8)
    canvas = Image.fromarray(np.concatenate([views[0], gap, views[1]], 1))
    pen, shift = ImageDraw.Draw(canvas), PICTURE_PX + GAP
    order = np.random.default_rng(0).permutation(len(pairs))[:LINES]
    for x, y, u, v, _ in pairs[order]:
        colour = f"hsl({int(300 * x)},90%,{int(40 + 30 * y)}%)"  # by place: a wrong line stands out
        start, end = (x * PICTURE_PX, y * PICTURE_PX), (u * PICTURE_PX + shift, v * PICTURE_PX)
        pen.line((start, end), colour, 1)
        for at in (start, end):
            pen.ellipse((at[0] - 3, at[1] - 3, at[0] + 3, at[1] + 3), outline=colour, width=2)
    return np.asarray(canvas)


def _tops(cosine: np.ndarray, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows [M], up to 0.5, from the cells best [M] to the tops of cosine [M,h,w]."""
    padded = np.pad(cosine, ((0, 0), (1, 1), (1, 1)), "reflect")
    rows, (row, column) = np.arange(len(best)), np.divmod(best, cosine.shape[2])
    row, column = row + 1, column + 1
    middle = padded[rows, row, column]
    found = []
    for down, across in ((0, 1), (1, 0)):
        before = padded[rows, row - down, column - across]
        after = padded[rows, row + down, column + across]
        found.append((after - before) / np.maximum(2 * (2 * middle - before - after), 1e-6))
    return np.clip(found[0], -0.5, 0.5), np.clip(found[1], -0.5, 0.5)


def _unit_rows(view: np.ndarray) -> np.ndarray:
    rows = view.reshape(len(view), -1).T.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
