"""A furnished room, determined by (split, seed, pack): shell, lights, textures and furniture.

Metres, Z up; the room is [0,width] x [0,depth] x [0,height]. Ids: 1 floor, 2 ceiling, 3-6 the
walls, then the rest.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from scenes.clip import SPLITS, SceneObject, Split, Surface
from scenes.furniture.pack import Pack
from scenes.rooms import filmed, primitives, recipes
from scenes.rooms.placement import MIRROR, WALLS, Arrangement, Piece
from scenes.rooms.primitives import Colour
from scenes.rooms.textures import FLOOR_KINDS, METRES, MORE_KINDS, WALL_KINDS, make_texture

Style = Literal["plain", "filmed"]
FLOOR, CEILING = 1, 2
WALL_IDS = {wall: 3 + i for i, wall in enumerate(WALLS)}
KINDS: dict[str, Callable[[Arrangement, list[np.ndarray]], None]] = {
    "living": recipes.living, "bedroom": recipes.bedroom, "kitchen": recipes.kitchen,
    "office": recipes.office, "bath": recipes.bath, "dining": recipes.dining}
_SIZES = {"living": (3.8, 6.2), "bedroom": (3.2, 4.8), "kitchen": (2.9, 4.6),
          "office": (3.2, 5.2), "bath": (2.3, 3.5), "dining": (3.4, 5.4)}


@dataclass(frozen=True)
class Light:
    """A point light. Colour is linear RGB times strength; 1 makes a white wall at 1 m mid-grey."""
    position: tuple[float, float, float]
    colour: Colour
    direction: tuple[float, float, float] = (0.0, 0.0, -1.0)  # axis of its shadow map


@dataclass(frozen=True)
class ShellMaterial:
    """Texture of one side of the shell."""
    texture: int      # index into Room.textures
    metres: float     # of one repeat
    gloss: float      # specular weight in [0,1]


@dataclass(frozen=True)
class Room:
    """Everything in one room."""
    kind: str
    split: Split
    seed: int
    size: tuple[float, float, float]
    pieces: tuple[Piece, ...]               # doors and windows among them
    shell: dict[int, ShellMaterial]               # floor, ceiling and walls by id
    textures: tuple[np.ndarray, ...]        # [128,128,3] uint8 each
    lights: tuple[Light, ...]               # the first casts shadows
    ambient: tuple[Colour, Colour]          # linear light from above, from below
    glow: float = 2.5                       # brightness of windows and lamps, whatever the exposure

    @property
    def objects(self) -> list[SceneObject]:
        """Every instance id that a picture can hold, with its oriented box."""
        w, d, h = self.size
        t = 0.1
        shell = [(FLOOR, "floor", "floor", (w / 2, d / 2, -t / 2), (w, d, t)),
                 (CEILING, "ceiling", "ceiling", (w / 2, d / 2, h + t / 2), (w, d, t))]
        walls = {"south": ((w / 2, -t / 2, h / 2), (w, t, h)),
                 "north": ((w / 2, d + t / 2, h / 2), (w, t, h)),
                 "west": ((-t / 2, d / 2, h / 2), (t, d, h)),
                 "east": ((w + t / 2, d / 2, h / 2), (t, d, h))}
        shell += [(WALL_IDS[wall], "wall", f"{wall} wall", *walls[wall]) for wall in WALLS]
        return [SceneObject(*facts) for facts in shell] + [_object(p) for p in self.pieces]


def _object(piece: Piece) -> SceneObject:
    """Its oriented box; that of a tilted piece is upright, that of a moving one holds its way."""
    box = (*piece.center, piece.bottom + piece.size[2] / 2), piece.size, piece.heading
    if piece.tilt or piece.moves:
        (x, y, z), (w, d, h) = piece.box.mean(0).tolist(), np.ptp(piece.box, 0).tolist()
        box = (x, y, z), (w, d, h), 0.0
    mirrors = any(part.texture == MIRROR for part in piece.parts)
    surface: Surface = "moving" if piece.moves else "mirror" if mirrors else "fixed"
    return SceneObject(piece.id, piece.category, piece.name, *box, surface)


def furnish(split: Split, seed: int, pack: Pack, kind: str | None = None,
            style: Style = "plain") -> Room:
    """The room of this seed; splits have different seeds and different furniture."""
    as_filmed = style == "filmed"
    rng = np.random.default_rng([SPLITS.index(split), seed, *([1] if as_filmed else [])])
    kind = kind or str(rng.choice(list(KINDS)))
    sides = _SIZES[kind]
    size = (rng.uniform(*sides), rng.uniform(*sides), rng.uniform(2.4, 2.9))
    if as_filmed:
        size = (size[0] * rng.uniform(1, 1.4), size[1] * rng.uniform(1, 1.4), rng.uniform(2.2, 3.2))
    arrangement = Arrangement(size, rng, pack, split, FLOOR, next_id=3 + len(WALLS))
    textures: list[np.ndarray] = []
    shell = _shell(kind, rng, textures, style)
    if as_filmed:
        material = shell[WALL_IDS["south"]]
        filmed.inner_walls(arrangement, material.texture, material.metres)
    _doors_and_windows(arrangement, textures)
    KINDS[kind](arrangement, textures)
    if as_filmed:
        filmed.clutter(arrangement, textures)
    lights, ambient = _lights(arrangement, style)
    pieces = [replace(p, center=(float(p.center[0]), float(p.center[1])), bottom=float(p.bottom))
              for p in arrangement.pieces]
    glow = 2.5 * float(rng.uniform(0.5, 6)) if as_filmed else 2.5  # bright ones are blown out
    return Room(kind, split, seed, size, tuple(pieces), shell, tuple(textures), lights, ambient,
                glow)


def _shell(kind: str, rng: np.random.Generator, textures: list[np.ndarray],
           style: Style) -> dict[int, ShellMaterial]:
    wall_kind, floor_kind = "wall_tiles", "tiles"
    if kind != "bath":
        wall_kind = str(rng.choice(WALL_KINDS, p=[0.55, 0.22, 0.13, 0.1]))
    if kind not in ("bath", "kitchen") or rng.random() >= 0.7:
        floor_kind = str(rng.choice(FLOOR_KINDS, p=[0.45, 0.2, 0.15, 0.2]))
    if style == "filmed":
        wall_kind, floor_kind = (str(rng.choice(MORE_KINDS)) if rng.random() < 0.3 else name
                                 for name in (wall_kind, floor_kind))

    def add(name: str, gloss: float) -> ShellMaterial:
        textures.append(make_texture(name, rng))
        return ShellMaterial(len(textures) - 1, METRES[name] * float(rng.uniform(0.8, 1.3)), gloss)

    gloss = 0.0 if floor_kind == "carpet" else float(rng.uniform(0.05, 0.35))
    shell = {FLOOR: add(floor_kind, gloss)}
    textures.append((make_texture("plaster", rng) // 4 + 190).astype(np.uint8))
    shell[CEILING] = ShellMaterial(len(textures) - 1, METRES["plaster"], 0.0)
    shell |= dict.fromkeys(WALL_IDS.values(), add(wall_kind, 0.1))
    if rng.random() < 0.35:  # one wall differs
        shell[WALL_IDS[WALLS[rng.integers(4)]]] = add(str(rng.choice(WALL_KINDS)), 0.05)
    return shell


def _doors_and_windows(a: Arrangement, textures: list[np.ndarray]) -> None:
    walls = [WALLS[i] for i in a.rng.permutation(4)]
    door = a.on_wall(primitives.door(a.rng, textures), 0.0, walls[0],
                     float(a.rng.choice([0.05, 0.95, a.rng.random()])))
    if door:
        a.clearances.append(_before(door, 0.9))
    for wall in walls[1:2 + int(a.rng.integers(0, 2))]:
        window = primitives.window(a.rng, textures, a.wall_length(wall) - 0.8)
        low = min(float(a.rng.uniform(0.8, 1.05)), a.size[2] - window.size[2] - 0.1)
        if placed := a.on_wall(window, low, wall, float(a.rng.uniform(0.3, 0.7))):
            a.clearances.append(_before(placed, 0.25))


def _before(piece: Piece, depth: float) -> np.ndarray:
    """The box [2,3] in front of a door or window, from its underside up."""
    front = np.array([np.sin(piece.heading), -np.cos(piece.heading), 0]) * depth
    low, high = piece.box
    return np.stack([np.minimum(low, low + front), np.maximum(high, high + front)])


def _lights(a: Arrangement, style: Style) -> tuple[tuple[Light, ...], tuple[Colour, Colour]]:
    """The four strongest of lamps and windows, strongest first, and the ambient light.

    Without any there is a weak lamp under the ceiling.
    """
    rng, (w, d, h) = a.rng, a.size
    day = float(rng.choice([0.0, 1.0], p=[0.3, 0.7])) * float(rng.uniform(0.4, 1.0))
    lamp_on = day < 0.55 or rng.random() < 0.5
    lights: list[Light] = []
    for lamp in (p for p in a.pieces if p.category == "lamp"):
        hangs = lamp.bottom > 1.6
        z = lamp.bottom + lamp.size[2] / 2 - (0.15 if hangs else -0.1)
        strength = (rng.uniform(1.6, 3.0) if lamp_on else 0.15) if hangs else rng.uniform(0.2, 0.7)
        colour = _warm(rng, 2600, 5000, float(strength) * (w * d / 16) ** 0.5)
        lights.append(Light((*lamp.center, min(float(z), h - 0.12)), colour))
    for window in (p for p in a.pieces if p.category == "window"):
        front = (float(np.sin(window.heading)), -float(np.cos(window.heading)))
        x, y = window.center[0] + 0.1 * front[0], window.center[1] + 0.1 * front[1]
        strength = float(day * rng.uniform(1.5, 3.5) * window.size[0])
        z = window.bottom + window.size[2] * 0.6
        lights.append(Light((x, y, z), _warm(rng, 5200, 9000, strength), (*front, -0.75)))
    lights.sort(key=lambda light: -sum(light.colour))
    level = float(rng.uniform(0.16, 0.34)) + 0.1 * day
    if style == "filmed":  # from one bright lamp in the dark to even light
        level *= float(rng.uniform(0.25, 1.2))
        lights = [replace(light, colour=tuple(c * strength for c in light.colour))
                  for light, strength in zip(lights, np.exp(rng.normal(0, 0.7, len(lights))),
                                             strict=True)]
        lights.sort(key=lambda light: -sum(light.colour))
    above = _warm(rng, 4500, 7500, level)
    below = _warm(rng, 3000, 5000, level * float(rng.uniform(0.4, 0.7)))
    if not lights:
        lights = [Light((w / 2, d / 2, h - 0.12), _warm(rng, 2600, 5000, 0.15))]
    return tuple(lights[:4]), (above, below)


def _warm(rng: np.random.Generator, low: float, high: float, strength: float) -> Colour:
    """Linear RGB times strength of a black body of `low` to `high` K (Tanner Helland's fit)."""
    t = rng.uniform(low, high) / 100
    red = 1.0 if t <= 66 else 1.292936 * (t - 60) ** -0.1332047
    green = 0.390082 * np.log(t) - 0.631841 if t <= 66 else 1.129891 * (t - 60) ** -0.0755148
    blue = 1.0 if t >= 66 else 0.543207 * np.log(t - 10) - 1.196254
    linear = np.clip([red, green, blue], 0, 1) ** 1.6
    r, g, b = linear / linear.mean() * strength
    return float(r), float(g), float(b)
