"""The furniture of each kind of room. A recipe fills an arrangement; `textures` may grow."""
from collections.abc import Iterable

import numpy as np

from scenes.furniture.pack import FurnitureModel
from scenes.rooms import primitives
from scenes.rooms.placement import WALLS, Arrangement, Piece
from scenes.rooms.primitives import Textures

SMALL = ("decor/top", "plant/top", "electronics/top")
OPPOSITE = {"south": "north", "north": "south", "east": "west", "west": "east"}


def living(a: Arrangement, textures: Textures) -> None:
    wall = _longest_free_wall(a)
    sofa = _first(a.against_wall(a.pick("sofa/sofa", max_size=(a.size[0] - 0.4, 2.2, 3)), wall, u)
                  for u in (0.5, 0.35, 0.65, 0.1, 0.9)) or a.against_wall(a.pick("sofa/sofa"))
    if sofa:
        _sofa_corner(a, sofa, textures)
    _television(a, OPPOSITE[wall])
    for _ in range(int(a.rng.integers(1, 3))):
        _decorate(a, a.against_wall(a.pick("storage/tall", "storage/low")), *SMALL, most=3)
    if a.size[0] * a.size[1] > 17:
        _dining_set(a, most=4)
    if a.rng.random() < 0.3:
        a.against_wall(a.pick("chair/armchair"))
    _finish(a, textures, pictures=3)


def bedroom(a: Arrangement, textures: Textures) -> None:
    wall = _longest_free_wall(a)
    bed = _first(a.against_wall(a.pick("bed/bed"), w, u) for w in (wall, OPPOSITE[wall], *WALLS)
                 for u in (0.5, 0.35, 0.65, 0.2, 0.8))
    if bed:
        for right in (True, False):
            table = a.beside(bed, a.pick("table/bedside") if a.rng.random() < 0.6 else None, right)
            table = table or a.beside(bed, primitives.side_table(a.rng, textures), right)
            if a.rng.random() < 0.8:
                a.on_top(table, a.pick("lamp/top"))
            _decorate(a, table, *SMALL, most=1)
        a.in_front(bed, _rug(a, textures, (0.9, 1.8), (0.6, 1.0)), 0.15)
    _decorate(a, a.against_wall(a.pick("storage/tall")), "decor/top", most=1)
    _decorate(a, a.against_wall(a.pick("storage/low", "table/desk")), *SMALL, most=4)
    if a.rng.random() < 0.5:
        _work_place(a, a.against_wall(a.pick("table/desk")))
    a.against_wall(a.pick("chair/armchair", "chair/chair", "bed/crib"))
    _finish(a, textures, pictures=2)


def kitchen(a: Arrangement, textures: Textures) -> None:
    wall = _longest_free_wall(a)
    length = a.wall_length(wall)
    units = ["storage/counter", "storage/sink", "appliance/oven", "storage/counter",
             "appliance/fridge", "storage/counter", "appliance/washer"]
    units = [units[i] for i in a.rng.permutation(len(units))] + 4 * ["storage/counter"]
    at, line = 0.02 + float(a.rng.uniform(0, 0.3)), []
    for role in units:
        model = a.pick(role, max_size=(1.1, 0.97, 2.3))
        if model is None or at + model.size[0] > length - 0.02:
            continue
        along = (at - 0.01) / max(length - model.size[0] - 0.02, 1e-3)
        placed = a.against_wall(model, wall, min(max(along, 0), 1))
        at += model.size[0] + 0.012 if placed else 0.25
        line += [placed] if placed else []
    for unit in (u for u in line if u.size[2] < 1.3):
        center = unit.center[0] if wall in ("south", "north") else unit.center[1]
        role = "appliance/hood" if "oven" in unit.name or "stove" in unit.name else "storage/upper"
        upper = a.pick(role, max_size=(unit.size[0] + 0.02, 0.5, 1.0))
        if upper and a.rng.random() < 0.85:
            width = upper.size[0]
            along = (center - width / 2 - 0.01) / max(length - width - 0.02, 1e-3)
            a.on_wall(upper, max(1.4, upper.elevation), wall, min(max(along, 0), 1))
        _decorate(a, unit, "tableware/top", "appliance/top", "plant/top", most=3)
    _dining_set(a, most=4)
    a.against_wall(a.pick("storage/tall", "storage/low"))
    _finish(a, textures, pictures=1)


def office(a: Arrangement, textures: Textures) -> None:
    for _ in range(1 + int(a.rng.integers(0, 3))):
        model = a.pick("table/desk", "table/dining", max_size=(2.6, 1.3, 1.9))
        _work_place(a, a.against_wall(model))
    for _ in range(int(a.rng.integers(2, 4))):
        _decorate(a, a.against_wall(a.pick("storage/tall", "storage/low")), *SMALL, most=2)
    a.against_wall(a.pick("chair/armchair", "sofa/sofa"))
    _finish(a, textures, pictures=2)


def bath(a: Arrangement, textures: Textures) -> None:
    a.against_wall(a.pick("sanitary/bath"))
    for role in ("sanitary/basin", "sanitary/toilet", "sanitary/toilet", "sanitary/basin"):
        _decorate(a, a.against_wall(a.pick(role)), "decor/top", most=2)
    if a.rng.random() < 0.6:
        _decorate(a, a.against_wall(a.pick("appliance/washer")), "decor/top", "plant/top", most=2)
    _decorate(a, a.against_wall(a.pick("storage/low", "storage/tall", max_size=(1.2, 0.5, 2.2))),
              "decor/top", "plant/top", most=3)
    a.against_wall(a.pick("chair/stool"))
    a.anywhere(_rug(a, textures, (0.6, 0.8), (0.4, 0.6)), margin=0.3)
    _finish(a, textures, pictures=1)


def dining(a: Arrangement, textures: Textures) -> None:
    _dining_set(a, most=6, centred=True)
    for _ in range(int(a.rng.integers(2, 4))):
        _decorate(a, a.against_wall(a.pick("storage/low", "storage/tall", "storage/counter")),
                  *SMALL, "tableware/top", most=3)
    a.against_wall(a.pick("chair/armchair", "sofa/sofa", max_size=(2.2, 1.0, 3)))
    _finish(a, textures, pictures=3)


def _sofa_corner(a: Arrangement, sofa: Piece, textures: Textures) -> None:
    gap = float(a.rng.uniform(0.15, 0.3))
    if a.rng.random() < 0.75:
        a.in_front(sofa, _rug(a, textures, (1.6, 2.2), (1.2, 1.6)), gap)
    model = a.pick("table/coffee")
    table = a.in_front(sofa, model, gap + 0.3) if model and a.rng.random() < 0.7 else None
    table = table or a.in_front(sofa, primitives.coffee_table(a.rng, textures), gap + 0.3)
    _decorate(a, table, *SMALL, "tableware/top", most=4)
    for aside in (1.7, -1.7):
        if a.rng.random() < 0.7:
            a.in_front(sofa, a.pick("chair/armchair"), gap + 0.2, aside,
                       turned=float(np.sign(aside)) * -np.pi / 2)
    for right in (True, False):
        table = None
        if a.rng.random() < 0.6:
            table = a.beside(sofa, primitives.side_table(a.rng, textures), right)
        a.on_top(table, a.pick("lamp/top", *SMALL))


def _television(a: Arrangement, wall: str) -> None:
    stand = _first(a.against_wall(a.pick("storage/low"), *at) for at in ((wall, 0.5), ()))
    if stand and stand.size[2] < 1.1:
        a.on_top(stand, a.pick("electronics/tv"), straight=True, tries=20)
    _decorate(a, stand, *SMALL, most=3)


def _dining_set(a: Arrangement, most: int, centred: bool = False) -> None:
    table = None
    for margin in ((1.3, 1.1, 0.9) if centred else (1.1, 0.9, 0.8)):
        table = table or a.anywhere(
            a.pick("table/dining") or a.pick("table/desk", max_size=(1.8, 1.2, 0.9)), margin)
    if table is None:
        return
    a.around(table, ("chair/bar",) if table.size[2] > 0.88 else ("chair/chair",), most)
    _decorate(a, table, "tableware/top", "tableware/top", "plant/top", most=6)


def _work_place(a: Arrangement, desk: Piece | None) -> None:
    if desk is None:
        return
    chair = a.pick("chair/office") or a.pick("chair/chair")
    a.in_front(desk, chair, 0.03, float(a.rng.normal(0, 0.1)),
               turned=np.pi + float(a.rng.normal(0, 0.15)))
    a.on_top(desk, a.pick("electronics/computer"), straight=True)
    a.on_top(desk, a.pick("lamp/top"))
    _decorate(a, desk, *SMALL, most=4)


def _decorate(a: Arrangement, carrier: Piece | None, *roles: str, most: int) -> None:
    if carrier is None or carrier.size[2] > 2.0:
        return
    for _ in range(int(a.rng.integers(max(1, most // 2), most + 1))):
        a.on_top(carrier, a.pick(str(a.rng.choice(roles)), max_size=(0.6, 0.5, 0.7)))


def _finish(a: Arrangement, textures: Textures, pictures: int) -> None:
    rng, (w, d, _) = a.rng, a.size
    middle = (w / 2 + float(rng.normal(0, 0.15)), d / 2 + float(rng.normal(0, 0.15)))
    model = a.pick("lamp/ceiling", max_size=(1.4, 1.4, 0.8)) if rng.random() < 0.6 else None
    if not (a.at_ceiling(model, middle) or a.at_ceiling(primitives.ceiling_light(rng), middle)):
        a.at_ceiling(primitives.ceiling_light(rng), (w / 3, d / 3))
    if rng.random() < 0.6:
        a.against_wall(a.pick("appliance/radiator"))
    a.against_wall(a.pick("lamp/floor", "plant/floor"))
    for _ in range(int(rng.integers(1, 4))):
        a.against_wall(a.pick("plant/floor", "decor/floor", "decor/floor",
                              max_size=(1.3, 1.2, 2.0)))
    for _ in range(int(rng.integers(0, 3))):
        shelf = a.on_wall(primitives.shelf(rng, textures), float(rng.uniform(1.2, 1.6)))
        _decorate(a, shelf, "decor/top", "plant/top", "decor/top", most=3)
    for _ in range(int(rng.integers(1, 3))):
        model = a.pick("lamp/wall", "decor/wall", "electronics/wall", "appliance/wall")
        a.on_wall(model, (model.elevation or 1.2) if model else 0)
    for _ in range(int(rng.integers(1, pictures + 1))):
        a.on_wall(primitives.picture(rng, textures), float(rng.uniform(1.2, 1.55)))


def _longest_free_wall(a: Arrangement) -> str:
    """The wall with most free length, windows counting half."""
    def length(wall: str) -> float:
        axis, at = {"south": (1, 0), "north": (1, a.size[1]), "west": (0, 0),
                    "east": (0, a.size[0])}[wall]
        taken = sum(p.size[0] * (1.0 if p.category == "door" else 0.5) for p in a.pieces
                    if abs(p.box[:, axis] - at).min() < 0.05)
        return a.wall_length(wall) - taken + float(a.rng.uniform(0, 0.6))
    return max(WALLS, key=length)


def _rug(a: Arrangement, textures: Textures, widths: tuple[float, float],
         depths: tuple[float, float]) -> Piece | FurnitureModel:
    width, depth = a.rng.uniform(*widths), a.rng.uniform(*depths)
    size = (width + 0.2, depth + 0.2, 0.03)
    model = a.pick("rug/rug", max_size=size) if a.rng.random() < 0.5 else None
    return model or primitives.rug(a.rng, textures, width, depth)


def _first(placed: Iterable[Piece | None]) -> Piece | None:
    return next((p for p in placed if p), None)
