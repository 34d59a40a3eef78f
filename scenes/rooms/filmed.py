"""What a filmed home has beyond a box with furniture: alcoves, clutter, mirrors, glass, motion.

Each function adds to an arrangement. Metres.
"""
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from scenes.furniture.pack import FurnitureModel
from scenes.rooms import primitives
from scenes.rooms.placement import FACING, WALLS, Arrangement, Piece, support_surface

SMALL = ("decor/top", "plant/top", "electronics/top", "tableware/top", "appliance/top")
_BIG = ("chair/chair", "chair/office", "chair/stool", "decor/floor", "plant/floor")
_SHAPES = ("box", "L", "bay", "cut corner", "chimney breast", "attic")


def inner_walls(a: Arrangement, texture: int, metres: float) -> None:
    """Solids that make the floor an L, a bay or a room with a cut corner, or a slope or beam."""
    shape = str(a.rng.choice(_SHAPES, p=[0.25, 0.25, 0.15, 0.15, 0.1, 0.1]))
    wall = WALLS[a.rng.integers(4)]
    if shape == "attic":
        a.fixed(_slope(a, wall, texture, metres), inside=False)
    if shape == "cut corner":
        a.fixed(_cut_corner(a, texture, metres), inside=False)
    for width, depth, along in _blocks(a, shape, wall):
        block = primitives.solid("wall", "inner wall", (width, depth, a.size[2]), texture, metres)
        a.fixed(a.at_wall(a.new(block), wall, along, 0.0))
    if a.rng.random() < 0.3:
        drop = float(a.rng.uniform(0.12, 0.35))
        size = (a.wall_length(wall) - 0.02, float(a.rng.uniform(0.2, 0.6)), drop)
        beam = replace(primitives.solid("ceiling", "beam", size, texture, metres),
                       bottom=a.size[2] - drop)
        a.fixed(a.at_wall(beam, wall, 0.5, 0.0))


def _blocks(a: Arrangement, shape: str, wall: str) -> Iterator[tuple[float, float, float]]:
    """Width along the wall, depth, and place along it in [0,1] of the shape's blocks."""
    length = a.wall_length(wall)
    across = a.size[0] + a.size[1] - length
    depth = float(a.rng.uniform(0.3, 0.9))
    if shape == "L":
        yield length * float(a.rng.uniform(0.25, 0.5)), across * float(a.rng.uniform(0.25, 0.5)), \
            float(a.rng.integers(2))
    elif shape == "bay":
        for along in (0.0, 1.0):
            yield float(a.rng.uniform(0.4, max(0.5, length / 2 - 0.8))), depth, along
    elif shape == "chimney breast":
        yield float(a.rng.uniform(0.5, 1.4)), depth / 2, float(a.rng.uniform(0.1, 0.9))


def _cut_corner(a: Arrangement, texture: int, metres: float) -> Piece:
    """A wall across a corner of the room."""
    legs, corner = a.rng.uniform(0.5, 1.6, 2), a.rng.integers(2, size=2)
    inwards = 1.0 - 2.0 * corner                                             # [2]
    normal = inwards * legs[::-1] / np.hypot(*legs)
    thick = 0.2
    middle = corner * a.size[:2] + inwards * legs / 2 - normal * thick / 2
    size = (float(np.hypot(*legs)), thick, a.size[2])
    block = primitives.solid("wall", "inner wall", size, texture, metres)
    return replace(a.new(block), center=(float(middle[0]), float(middle[1])),
                   heading=float(np.arctan2(normal[0], -normal[1])))


def _slope(a: Arrangement, wall: str, texture: int, metres: float) -> Piece:
    """A slanted ceiling from partway up a wall."""
    low, run, thick = float(a.rng.uniform(1.2, 1.9)), float(a.rng.uniform(0.8, 1.6)), 0.2
    rise = a.size[2] - low
    size = (a.wall_length(wall), float(np.hypot(run, rise)), thick)
    tilt = -float(np.arctan2(rise, run))
    # its lower face touches the wall at `low` and the ceiling `run` away from it
    depth = run / 2 + np.sin(tilt) * thick / 2
    height = low + rise / 2 + np.cos(tilt) * thick / 2
    slope = primitives.solid("ceiling", "slope", size, texture, metres)
    slope = a.at_wall(replace(slope, bottom=float(height) - thick / 2), wall, 0.5)
    axis = 1 if wall in ("south", "north") else 0
    place = list(slope.center)
    place[axis] = float(depth) if wall in ("south", "west") else a.size[axis] - float(depth)
    return replace(slope, center=(place[0], place[1]), heading=FACING[wall], tilt=tilt)


def clutter(a: Arrangement, textures: primitives.Textures) -> None:
    """After the furniture: small things, posters, a mirror, glass, floating and moving ones."""
    rng = a.rng
    if rng.random() < 0.3:
        a.on_wall(primitives.mirror(rng), float(rng.uniform(0.1, 1.1)))
    if rng.random() < 0.25:
        a.anywhere(primitives.glass_screen(rng), margin=0.3)
    if rng.random() < 0.25:
        a.anywhere(primitives.glass_table(rng), margin=0.4)
    for _ in range(int(rng.choice(4, p=[0.5, 0.2, 0.2, 0.1]))):
        _first_free(a, _moving(a))
    for carrier in [p for p in a.pieces if p.size[2] < 1.5 and support_surface(p)[1].any()]:
        for _ in range(int(rng.integers(0, 6)) if carrier.category != "rug" else 0):
            a.on_top(carrier, _small(a))
    for _ in range(int(rng.integers(0, 8))):
        a.anywhere(_small(a), margin=0.15)
    for _ in range(int(rng.integers(0, 5))):
        a.on_wall(primitives.poster(rng, textures), float(rng.uniform(0.8, 1.6)))
    for _ in range(int(rng.integers(3, 12)) if rng.random() < 0.4 else 0):
        _first_free(a, _floating(a))


def _small(a: Arrangement) -> FurnitureModel | None:
    return a.pick(str(a.rng.choice(SMALL)), max_size=(0.6, 0.5, 0.7))


def _floating(a: Arrangement) -> Piece | None:
    """Anything in the air, turned anyhow, as in data sets for stereo (arXiv 2504.16930)."""
    model = _small(a) if a.rng.random() < 0.6 else a.pick(str(a.rng.choice(_BIG)))
    if model is None:
        return None
    return replace(a.new(model), tilt=float(a.rng.uniform(-np.pi, np.pi)), resting_on=0,
                   bottom=float(a.rng.uniform(0.2, a.size[2] - 0.5)))


def _moving(a: Arrangement) -> Piece | None:
    """A person who walks, furniture that is pushed, or a small thing that flies."""
    rng, heading = a.rng, float(a.rng.uniform(-np.pi, np.pi))
    way = float(rng.uniform(0.2, 1.2))
    travel, spin = (way * np.sin(heading), -way * np.cos(heading)), float(rng.uniform(-1.2, 1.2))
    person = a.pick("decor/person") if rng.random() < 0.5 else None
    if person:
        return replace(a.new(person), heading=heading, travel=(*travel, 0.0))
    flies = rng.random() < 0.4
    model = _small(a) if flies else a.pick(str(rng.choice(_BIG)))
    if model is None:
        return None
    bottom, climb = (rng.uniform(0.6, 1.4), rng.uniform(-0.4, 0.4)) if flies else (0.0, 0.0)
    return replace(a.new(model), bottom=float(bottom), travel=(*travel, float(climb)), spin=spin,
                   heading=float(rng.uniform(-np.pi, np.pi)))


def _first_free(a: Arrangement, piece: Piece | None) -> None:
    """Where it fits, with all its way."""
    if piece is None:
        return
    for _ in range(12):
        x, y = (float(a.rng.uniform(0.2, s - 0.2)) for s in a.size[:2])
        if a.fixed(replace(piece, center=(x, y))):
            return
