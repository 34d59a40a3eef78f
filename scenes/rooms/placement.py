"""Places pieces in a room: every one is supported, and no two boxes overlap.

World: metres, Z up, the room is [0,width] x [0,depth] x [0,height]. A piece's heading turns its
front from -Y, counter-clockwise, in radians. A piece on another stands on its real surface.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from scenes.clip import Split
from scenes.furniture.pack import TOP_CELLS, FurnitureModel, Pack

# each wall, and the heading of a piece with its back there
FACING = {"south": np.pi, "east": -np.pi / 2, "north": 0.0, "west": np.pi / 2}
WALLS = tuple(FACING)
GAP = 0.01  # m between the boxes of neighbours
GLASS, MIRROR = -2, -3  # Part.texture of a clear pane, of a mirror's surface


@dataclass(frozen=True)
class Part:
    """A coloured block of a built (not modelled) piece, in the piece's axes."""
    center: tuple[float, float, float]
    size: tuple[float, float, float]
    colour: tuple[float, float, float]  # sRGB in [0,1]; multiplies the texture
    texture: int = -1                   # index into Room.textures, -1 = none; GLASS or MIRROR
    metres: float = 0.0                 # of one repeat of the texture; 0 = once over the block
    glow: float = 0.0                   # emitted light, 1 = white


@dataclass(frozen=True)
class Piece:
    """One piece of furniture, door, window or decoration."""
    id: int
    category: str
    name: str
    center: tuple[float, float]         # of its box, m
    bottom: float                       # height of its underside, m
    size: tuple[float, float, float]    # width, depth, height in its own axes
    heading: float
    resting_on: int = 0                 # id of its support; 0 = hangs on a wall or the ceiling
    model: FurnitureModel | None = None
    parts: tuple[Part, ...] = ()
    tilt: float = 0.0                   # about its own x axis through its middle, before heading
    travel: tuple[float, float, float] = (0.0, 0.0, 0.0)  # m that it moves during a clip
    spin: float = 0.0                   # rad that it turns about the vertical during a clip

    @property
    def moves(self) -> bool:
        return self.spin != 0 or any(self.travel)

    @cached_property
    def box(self) -> np.ndarray:
        """[2,3]: lowest and highest corner of the upright box around the piece and its way."""
        if not (self.tilt or self.moves):
            half = _half_extent(self.size, self.heading)
            return np.array([[*(self.center - half), self.bottom],
                             [*(self.center + half), self.bottom + self.size[2]]])
        half = np.abs(self.rotation) @ self.size / 2
        if self.spin:
            half[:2] = np.hypot(half[0], half[1])
        ends = np.stack([self.middle, self.middle + self.travel])
        return np.stack([ends.min(0) - half, ends.max(0) + half])

    @property
    def middle(self) -> np.ndarray:
        """[3] of its box before it moves."""
        return np.array([*self.center, self.bottom + self.size[2] / 2])

    @property
    def rotation(self) -> np.ndarray:
        """[3,3], from its axes to the room's before it moves."""
        c, s = np.cos([self.heading, self.tilt]), np.sin([self.heading, self.tilt])
        return (np.array([[c[0], -s[0], 0], [s[0], c[0], 0], [0, 0, 1]])
                @ np.array([[1, 0, 0], [0, c[1], -s[1]], [0, s[1], c[1]]]))

    def motion(self, moment: float) -> np.ndarray:
        """[4,4]: the room's points of the piece at rest to those at a moment in [0,1] of a clip."""
        c, s = np.cos(self.spin * moment), np.sin(self.spin * moment)
        out = np.eye(4)
        out[:2, :2] = [[c, -s], [s, c]]
        out[:3, 3] = self.middle - out[:3, :3] @ self.middle + np.array(self.travel) * moment
        return out


Placeable = FurnitureModel | Piece


@dataclass
class Arrangement:
    """The pieces so far; methods that add one return it, or None if it fits nowhere."""
    size: tuple[float, float, float]
    rng: np.random.Generator
    pack: Pack
    split: Split
    floor_id: int
    next_id: int
    pieces: list[Piece] = field(default_factory=list)
    clearances: list[np.ndarray] = field(default_factory=list)  # boxes [2,3] without furniture
    _queues: dict[str, list[FurnitureModel]] = field(default_factory=dict)

    def pick(self, *roles: str, max_size: Sequence[float] = (9, 9, 9)) -> FurnitureModel | None:
        """A model of one of the roles ("class/role"); all are used before one repeats."""
        key = " ".join(roles)
        for _ in range(2):
            queue = self._queues.setdefault(key, [])
            for i, model in enumerate(queue):
                if all(s <= m for s, m in zip(model.size, max_size, strict=True)):
                    return queue.pop(i)
            models = [m for m in self.pack.by_split[self.split]
                      if f"{m.category}/{m.role}" in roles]
            queue[:] = [models[i] for i in self.rng.permutation(len(models))]
        return None

    def against_wall(self, model: Placeable | None, wall: str | None = None,
                     along: float | None = None, tries: int = 12) -> Piece | None:
        """With its back to a wall, on the floor or hanging. along: its fraction in [0,1]."""
        if model is None:
            return None
        if isinstance(model, FurnitureModel) and model.elevation > 0.05:
            return self.on_wall(model, model.elevation, wall, along, tries)
        return self._along_wall(self.new(model), wall, along, tries, 0.01, self._place)

    def wall_length(self, wall: str) -> float:
        return self.size[0] if wall in ("south", "north") else self.size[1]

    def at_wall(self, piece: Piece, wall: str, along: float, distance: float = 0.01) -> Piece:
        """The same piece moved to touch a wall, not yet placed."""
        (width, depth, _), (w, d, _) = self.size, piece.size
        u = w / 2 + 0.01 + along * max(self.wall_length(wall) - w - 0.02, 0)
        center = {"south": (u, d / 2 + distance), "north": (u, depth - d / 2 - distance),
                  "west": (d / 2 + distance, u), "east": (width - d / 2 - distance, u)}[wall]
        return replace(piece, center=center, heading=FACING[wall])

    def in_front(self, anchor: Piece, model: Placeable | None, gap: float, aside: float = 0.0,
                 turned: float = np.pi) -> Piece | None:
        """`gap` metres before the anchor's front, `aside` metres to its right, turned to it."""
        if model is None:
            return None
        piece = self.new(model)
        reach = anchor.size[1] / 2 + gap + piece.size[1] / 2
        return self._place(replace(piece, center=offset(anchor, aside, -reach),
                                   heading=anchor.heading + turned))

    def beside(self, anchor: Piece, model: Placeable | None, right: bool,
               gap: float = 0.05) -> Piece | None:
        """At the anchor's side, backs in one line."""
        if model is None:
            return None
        piece = self.new(model)
        across = (anchor.size[0] / 2 + gap + piece.size[0] / 2) * (1 if right else -1)
        back = (anchor.size[1] - piece.size[1]) / 2
        return self._place(replace(piece, center=offset(anchor, across, back),
                                   heading=anchor.heading))

    def anywhere(self, model: Placeable | None, margin: float = 0.5,
                 tries: int = 12) -> Piece | None:
        """On the floor, at least `margin` from the walls if the room allows it."""
        if model is None:
            return None
        for _ in range(tries):
            x, y = (self.rng.uniform(min(margin, s / 3), max(s - margin, 2 * s / 3))
                    for s in self.size[:2])
            turn = float(self.rng.integers(4)) * np.pi / 2
            if found := self._place(replace(self.new(model), center=(x, y), heading=turn)):
                return found
        return None

    def around(self, table: Piece, roles: Sequence[str], most: int = 6) -> list[Piece]:
        """Chairs at the sides of a table, facing it, their boxes outside the table's."""
        model = self.pick(*roles)
        if model is None:
            return []
        w, d = table.size[:2]
        seats: list[tuple[float, int]] = []  # along a side, its number
        for side, length in enumerate((w, d, w, d)):
            n = max(1, int(length // 0.72)) if length > 0.55 else 0
            seats += [((k + 0.5 - n / 2) * length / n, side) for k in range(n)]
        out: list[Piece] = []
        for i in self.rng.permutation(len(seats)):
            along, side = seats[i]
            turn = side * np.pi / 2 + self.rng.normal(0, 0.08)
            chair = replace(self.new(model), heading=table.heading + turn + np.pi)
            reach = (d if side % 2 == 0 else w) / 2 + 0.02 + float(max(chair.box[1, :2]))
            reach = reach + abs(self.rng.normal(0, 0.04))
            dx, dy = ((along, -reach), (reach, along), (along, reach), (-reach, along))[side]
            if len(out) < most and (placed := self._place(
                    replace(chair, center=offset(table, dx, dy)))):
                out.append(placed)
        return out

    def on_top(self, carrier: Piece | None, model: FurnitureModel | None, tries: int = 10,
               straight: bool = False) -> Piece | None:
        """Somewhere on the carrier's surface, the whole footprint supported."""
        if model is None or carrier is None:
            return None
        level, cells = support_surface(carrier)
        if level is None or not cells.any():
            return None
        open_cells = np.argwhere(cells)
        for _ in range(tries):
            turn = 0.0
            if not straight:
                turn = float(self.rng.integers(4)) * np.pi / 2 + self.rng.normal(0, 0.2)
            cell = open_cells[self.rng.integers(len(open_cells))]
            x, y = (cell + self.rng.random(2)) / TOP_CELLS - 0.5
            center = offset(carrier, x * carrier.size[0], y * carrier.size[1])
            piece = replace(self.new(model), center=center, bottom=level,
                            heading=carrier.heading + turn, resting_on=carrier.id)
            if _supported(piece, carrier, cells) and (placed := self.fixed(piece)):
                return placed
        return None

    def on_wall(self, model: Placeable | None, bottom: float, wall: str | None = None,
                along: float | None = None, tries: int = 10) -> Piece | None:
        """Hanging on a wall, its underside at `bottom`."""
        if model is None:
            return None
        piece = replace(self.new(model), bottom=bottom, resting_on=0)
        return self._along_wall(piece, wall, along, tries, 0.003, self.fixed)

    def at_ceiling(self, model: Placeable | None, center: tuple[float, float]) -> Piece | None:
        """Hanging from the ceiling, if its underside is above 1.9 m."""
        if model is None:
            return None
        bottom = self.size[2] - model.size[2]
        piece = replace(self.new(model), center=center, bottom=bottom, resting_on=0)
        return self.fixed(piece) if bottom > 1.9 else None

    def fixed(self, piece: Piece, inside: bool = True) -> Piece | None:
        """Exactly where it is; inside=False: even where it leaves the room or meets another."""
        return self._add(piece) if not inside or self._free(piece) else None

    def new(self, model: FurnitureModel | Piece) -> Piece:
        if isinstance(model, Piece):
            return replace(model, resting_on=self.floor_id)
        return Piece(id=0, category=model.category, name=model.name, center=(0.0, 0.0), bottom=0.0,
                     size=model.size, heading=0.0, resting_on=self.floor_id, model=model)

    def _along_wall(self, piece: Piece, wall: str | None, along: float | None, tries: int,
                    distance: float, place: Callable[[Piece], Piece | None]) -> Piece | None:
        for _ in range(tries if along is None else 1):
            side = wall or WALLS[self.rng.integers(4)]
            fraction = self.rng.random() if along is None else along
            if placed := place(self.at_wall(piece, side, fraction, distance)):
                return placed
        return None

    def _place(self, piece: Piece) -> Piece | None:
        """Onto the floor, or onto the rug that lies under all of it."""
        box = piece.box
        for rug in (p for p in self.pieces if p.category == "rug"):
            low, high = rug.box
            if (box[0, :2] < high[:2]).all() and (box[1, :2] > low[:2]).all():
                outside = (box[0, :2] < low[:2]) | (box[1, :2] > high[:2])
                if piece.category == "rug" or outside.any():
                    return None
                piece = replace(piece, bottom=float(high[2]), resting_on=rug.id)
        blocked = piece.category != "rug" and any(overlap(piece.box, k) for k in self.clearances)
        return None if blocked else self.fixed(piece)

    def _free(self, piece: Piece) -> bool:
        box = piece.box
        if (box[0] < -1e-9).any() or (box[1] > np.array(self.size) + 1e-9).any():
            return False
        return not any(overlap(box, other.box, GAP) for other in self.pieces
                       if other.id != piece.resting_on)

    def _add(self, piece: Piece) -> Piece:
        piece = replace(piece, id=self.next_id)
        self.next_id += 1
        self.pieces.append(piece)
        return piece


def overlap(a: np.ndarray, b: np.ndarray, gap: float = 0.0) -> bool:
    """Whether two boxes [2,3] come nearer than `gap` sideways while sharing some height."""
    margin = np.array([gap, gap, 0])
    return bool((a[0] < b[1] + margin - 1e-9).all() and (a[1] > b[0] - margin + 1e-9).all())


def offset(anchor: Piece, right: float, back: float) -> tuple[float, float]:
    """A point of the anchor's axes (x to the right, y to the back) in the room's."""
    c, s = np.cos(anchor.heading), np.sin(anchor.heading)
    x, y = anchor.center
    return float(x + c * right - s * back), float(y + s * right + c * back)


def support_surface(carrier: Piece) -> tuple[float | None, np.ndarray]:
    """Height of the surface that carries other pieces, and its cells [16,16] of the footprint."""
    if carrier.model is None:  # the top of built pieces
        return carrier.bottom + carrier.size[2], np.ones((TOP_CELLS, TOP_CELLS), bool)
    support = carrier.model.support
    return (None if support is None else carrier.bottom + support), carrier.model.top


def _half_extent(size: Sequence[float], heading: float) -> np.ndarray:
    """Half the width and depth [2] of the upright box around a turned one."""
    c, s = abs(np.cos(heading)), abs(np.sin(heading))
    return np.array([size[0] * c + size[1] * s, size[0] * s + size[1] * c]) / 2


def _supported(piece: Piece, carrier: Piece, cells: np.ndarray) -> bool:
    """Whether the piece's upright footprint in the carrier's axes lies on open cells only."""
    half = _half_extent(piece.size, piece.heading - carrier.heading)
    c, s = np.cos(-carrier.heading), np.sin(-carrier.heading)
    dx, dy = piece.center[0] - carrier.center[0], piece.center[1] - carrier.center[1]
    middle = np.array([c * dx - s * dy, s * dx + c * dy])
    low = (middle - half) / carrier.size[:2] + 0.5
    high = (middle + half) / carrier.size[:2] + 0.5
    if (low < 0).any() or (high > 1).any():
        return False
    i, j = (low * TOP_CELLS).astype(int), np.ceil(high * TOP_CELLS).astype(int)
    return bool(cells[i[0]:j[0], i[1]:j[1]].all())
