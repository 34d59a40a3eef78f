"""Pieces built from blocks: doors, windows, pictures, rugs, shelves, tables, ceiling lights.

Each function returns an unplaced Piece, its back at +Y; `textures` grows by what it uses. Metres.
"""
import numpy as np

from scenes.rooms.placement import GLASS, MIRROR, Part, Piece
from scenes.rooms.textures import make_texture

Rng = np.random.Generator
Textures = list[np.ndarray]
Colour = tuple[float, float, float]


def door(rng: Rng, textures: Textures) -> Piece:
    w, h, t = float(rng.uniform(0.75, 0.95)), float(rng.uniform(2.0, 2.15)), 0.05
    colour, frame = _tint(rng, 0.35, 0.95), _tint(rng, 0.6, 0.95)
    texture = _add(textures, "wood", rng) if rng.random() < 0.5 else -1
    if texture >= 0:
        colour = (1.0, 1.0, 1.0)
    left, right, _, top = _frame(w, h, t, 0.06, frame)
    parts = [Part((0, 0.01, h / 2), (w - 0.12, t - 0.02, h - 0.06), colour, texture, 0.8),
             left, right, top,
             Part((w / 2 - 0.14, -t / 2 + 0.005, 1.0), (0.1, 0.02, 0.025), (0.55, 0.5, 0.42))]
    dark = (colour[0] * 0.85, colour[1] * 0.85, colour[2] * 0.85)
    for z, tall in ((0.55, 0.7), (1.45, 0.8)) if rng.random() < 0.7 else ():
        parts.append(Part((0, -0.004, z), (w * 0.55, t - 0.025, tall), dark, texture, 0.8))
    return _piece("door", "door", (w, t, h), parts)


def window(rng: Rng, textures: Textures, max_width: float) -> Piece:
    w, h, t = float(rng.uniform(0.8, min(2.0, max_width))), float(rng.uniform(1.0, 1.5)), 0.06
    frame, view = _tint(rng, 0.55, 0.97), _add(textures, "view", rng)
    glow = float(rng.uniform(0.5, 1.0))
    parts = [Part((0, 0.02, h / 2), (w - 0.1, 0.02, h - 0.1), (1, 1, 1), view, 0.0, glow),
             *_frame(w, h, t, 0.06, frame)]
    bars = max(1, round(w / 0.6))
    for i in range(1, bars):
        x = w * (i / bars - 0.5)
        parts.append(Part((x, 0.005, h / 2), (0.035, 0.03, h - 0.12), frame))
    if rng.random() < 0.4:
        parts.append(Part((0, 0.007, h * 0.62), (w - 0.12, 0.026, 0.03), frame))
    return _piece("window", "window", (w, t, h), parts)


def picture(rng: Rng, textures: Textures) -> Piece:
    w, h, t = float(rng.uniform(0.25, 0.9)), float(rng.uniform(0.25, 0.7)), 0.03
    frame, b = _tint(rng, 0.1, 0.9), 0.025
    texture = _add(textures, "picture", rng)
    canvas = Part((0, 0.005, h / 2), (w - 2 * b, t - 0.01, h - 2 * b), (1, 1, 1), texture)
    return _piece("decor", "picture", (w, t, h), [canvas, *_frame(w, h, t, b, frame)])


def poster(rng: Rng, textures: Textures) -> Piece:
    w, h, t = float(rng.uniform(0.3, 1.2)), float(rng.uniform(0.3, 1.3)), 0.008
    sheet = Part((0, 0, h / 2), (w, t, h), (1, 1, 1), _add(textures, "poster", rng))
    return _piece("decor", "poster", (w, t, h), [sheet])


def mirror(rng: Rng) -> Piece:
    w, h, t = float(rng.uniform(0.4, 1.2)), float(rng.uniform(0.5, 1.6)), 0.03
    b, colour = float(rng.uniform(0.005, 0.05)), _tint(rng, 0.1, 0.9)
    surface = Part((0, 0.005, h / 2), (w - 2 * b, t - 0.01, h - 2 * b), (0.93, 0.95, 0.94), MIRROR)
    return _piece("decor", "mirror", (w, t, h), [surface, *_frame(w, h, t, b, colour)])


def glass_screen(rng: Rng) -> Piece:
    w, h, t = float(rng.uniform(0.7, 1.6)), float(rng.uniform(1.2, 2.1)), 0.04
    pane = Part((0, 0, h / 2), (w - 0.06, 0.01, h - 0.06), _tint(rng, 0.8, 0.95), GLASS)
    frame = _frame(w, h, t, 0.03, _tint(rng, 0.1, 0.9))
    return _piece("decor", "glass screen", (w, t, h), [pane, *frame])


def glass_table(rng: Rng) -> Piece:
    w, d, h = (float(x) for x in rng.uniform([0.6, 0.5, 0.4], [1.2, 0.8, 0.8]))
    colour = _tint(rng, 0.1, 0.9)
    legs = [Part((x * (w - 0.04) / 2, y * (d - 0.04) / 2, h / 2), (0.04, 0.04, h), colour)
            for x in (-1, 1) for y in (-1, 1)]
    rails = [Part((0, y * (d - 0.03) / 2, h - 0.03), (w - 0.08, 0.03, 0.03), colour)
             for y in (-1, 1)]
    top = Part((0, 0, h - 0.006), (w - 0.08, d - 0.08, 0.012), _tint(rng, 0.8, 0.95), GLASS)
    return _piece("table", "glass table", (w, d, h), [*legs, *rails, top])


def solid(category: str, name: str, size: tuple[float, float, float], texture: int,
          metres: float) -> Piece:
    """A block of masonry."""
    part = Part((0, 0, size[2] / 2), size, (1, 1, 1), texture, metres)
    return _piece(category, name, size, [part])


def rug(rng: Rng, textures: Textures, width: float, depth: float) -> Piece:
    part = Part((0, 0, 0.005), (width, depth, 0.01), (1, 1, 1), _add(textures, "rug", rng))
    return _piece("rug", "rug", (width, depth, 0.01), [part])


def shelf(rng: Rng, textures: Textures) -> Piece:
    w, d = float(rng.uniform(0.5, 1.1)), float(rng.uniform(0.18, 0.26))
    return _piece("storage", "wall shelf", (w, d, 0.03),
                  [Part((0, 0, 0.015), (w, d, 0.03), *_board(rng, textures))])


def coffee_table(rng: Rng, textures: Textures) -> Piece:
    width, depth, height = rng.uniform(0.7, 1.2), rng.uniform(0.45, 0.65), rng.uniform(0.36, 0.48)
    return _plain_table("coffee table", float(width), float(depth), float(height), rng, textures)


def side_table(rng: Rng, textures: Textures) -> Piece:
    side = float(rng.uniform(0.36, 0.5))
    return _plain_table("side table", side, side, float(rng.uniform(0.42, 0.6)), rng, textures)


def ceiling_light(rng: Rng) -> Piece:
    w, h = float(rng.uniform(0.2, 0.45)), float(rng.uniform(0.05, 0.1))
    parts = [Part((0, 0, h * 0.35), (w, w, h * 0.7), (1.0, 0.97, 0.9), glow=1.0),
             Part((0, 0, h * 0.85), (w * 0.9, w * 0.9, h * 0.3), (0.7, 0.7, 0.7))]
    return _piece("lamp", "ceiling light", (w, w, h), parts)


def _frame(w: float, h: float, t: float, b: float, colour: Colour) -> list[Part]:
    """Left, right, bottom and top bar, `b` wide, of a frame of that width, height and thickness."""
    return [Part((-w / 2 + b / 2, 0, h / 2), (b, t, h), colour),
            Part((w / 2 - b / 2, 0, h / 2), (b, t, h), colour),
            Part((0, 0, b / 2), (w - 2 * b, t, b), colour),
            Part((0, 0, h - b / 2), (w - 2 * b, t, b), colour)]


def _plain_table(name: str, w: float, d: float, h: float, rng: Rng, textures: Textures) -> Piece:
    board = _board(rng, textures)
    leg, top = float(rng.uniform(0.03, 0.06)), 0.035
    parts = [Part((0, 0, h - top / 2), (w, d, top), *board)]
    for sx, sy in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        center = (sx * (w - leg) / 2, sy * (d - leg) / 2, (h - top) / 2)
        parts.append(Part(center, (leg, leg, h - top), *board))
    if rng.random() < 0.5:
        parts.append(Part((0, 0, h * 0.35), (w - 2 * leg, d - 2 * leg, 0.02), *board))
    return _piece("table", name, (w, d, h), parts)


def _board(rng: Rng, textures: Textures) -> tuple[Colour, int, float]:
    if rng.random() < 0.6:
        return (1.0, 1.0, 1.0), _add(textures, "wood", rng), 0.8
    return _tint(rng, 0.15, 0.95), -1, 0.0


def _piece(category: str, name: str, size: tuple[float, float, float], parts: list[Part]) -> Piece:
    return Piece(0, category, name, (0.0, 0.0), 0.0, size, 0.0, parts=tuple(parts))


def _add(textures: Textures, kind: str, rng: Rng) -> int:
    textures.append(make_texture(kind, rng))
    return len(textures) - 1


def _tint(rng: Rng, low: float, high: float) -> Colour:
    r, g, b = (rng.uniform(low, high) * (1 + 0.12 * rng.uniform(-1, 1, 3))).clip(0, 1)
    return float(r), float(g), float(b)
