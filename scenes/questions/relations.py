"""Spatial relations that hold for some objects of a noun and clearly not for the others.

`fits` is None where it is too close to call. A relation serves a group only if it is so for none,
so the description fits exactly its targets.
"""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from scenes.boxes import turn
from scenes.questions.nouns import plural
from scenes.questions.visibility import SceneView, VisibleObject

CARRIERS = ("table", "desk", "nightstand", "coffee table", "side table", "cabinet", "tv stand",
            "bookshelf", "rug", "wall shelf", "wardrobe", "locker", "sink", "washbasin", "oven",
            "washing machine", "bed", "sofa", "bench", "piano")


@dataclass(frozen=True, eq=False)
class Relation:
    """`phrase` follows the noun: "next to the table", or "that is closest to the table"."""
    kind: str
    phrase: str
    fits: Callable[[VisibleObject], bool | None]
    of: str = ""  # replaces the noun of a ranking: "the taller of the two bookshelves"


def spatial_relations(view: SceneView, noun: str) -> Iterator[Relation]:
    """Relations to other objects, each of which any number of a noun's objects may have."""
    anchors = [t for t in view.unique if t.noun != noun]
    for a in anchors:
        if a.noun in CARRIERS:
            yield Relation("on", f"on the {a.noun}", partial(_on, a=a))
        yield Relation("next", f"next to the {a.noun}", partial(_next_to, a=a))
        yield Relation("far", f"more than two meters away from the {a.noun}",
                       partial(_far_from, a=a))
    for i, a in enumerate(anchors):
        for b in anchors[:i]:
            if 0.8 < np.hypot(*(a.position - b.position)) < 4:
                yield Relation("between", f"between the {a.noun} and the {b.noun}",
                               partial(_between, a=a, b=b))
    for a in (t for t in anchors if t.approachable):
        for b in anchors:
            if a is not b and np.hypot(*(a.position - b.position)) > 0.8:
                standing = f"when standing by the {a.noun} and facing the {b.noun}"
                for side, sign in (("left", 1), ("right", -1)):
                    yield Relation("side", f"on the {side} {standing}",
                                   partial(_on_side, a=a, b=b, sign=sign))


def ranking_relations(view: SceneView, group: Sequence[VisibleObject]) -> Iterator[Relation]:
    """Relations that single out one of two or more: closest, largest, tallest, highest ..."""
    noun, two = group[0].noun, len(group) == 2
    for anchor in (t for t in view.unique if t.noun != noun):
        distances = {t.index: t.distance(anchor) for t in group}
        yield _extreme("closest", f"closest to the {anchor.noun}", distances, -1, 0.3)
        yield _extreme("farthest", f"farthest from the {anchor.noun}", distances, 1, 0.3)
    sizes = {t.index: float(np.log(np.prod(t.box[3:6]))) for t in group}
    heights = {t.index: float(t.box[5]) for t in group}
    widths = {t.index: float(t.box[3:5].max()) for t in group}
    levels = {t.index: float(t.bottom) for t in group}
    among = f"of the {'two ' if two else ''}{plural(noun)}"
    rankings = (("larger", "largest", sizes, 1, 0.5), ("smaller", "smallest", sizes, -1, 0.5),
                ("taller", "tallest", heights, 1, 0.15), ("wider", "widest", widths, 1, 0.15),
                ("higher", "highest", levels, 1, 0.15), ("lower", "lowest", levels, -1, 0.15))
    for of_two, of_many, values, sign, margin in rankings:
        yield _extreme("rank", "", values, sign, margin, f"{of_two if two else of_many} {among}")


def fitting(relation: Relation, group: Sequence[VisibleObject]) -> list[VisibleObject] | None:
    """Those of the group that the relation fits; None if one is too close to call."""
    answers = [relation.fits(t) for t in group]
    return None if None in answers else [t for t, a in zip(group, answers, strict=True) if a]


def plausible(noun_size: float, relation: Relation) -> bool:
    """Whether an object with that longest side in metres could have the relation."""
    return relation.kind != "on" or noun_size < 0.8


def _extreme(kind: str, phrase: str, values: dict[int, float], sign: int, margin: float,
             of: str = "") -> Relation:
    ordered = sorted(values, key=lambda i: -sign * values[i])
    clear = len(ordered) > 1 and abs(values[ordered[0]] - values[ordered[1]]) >= margin
    return Relation(kind, phrase, lambda t: t.index == ordered[0] if clear else None, of)


def _on(t: VisibleObject, a: VisibleObject) -> bool:
    return t.is_on(a)


def _next_to(t: VisibleObject, a: VisibleObject) -> bool | None:
    if t.is_on(a) or a.is_on(t):
        return None
    near = t.distance(a) < 0.35 and abs(t.bottom - a.bottom) < 0.8
    return True if near else False if t.distance(a) > 0.8 else None


def _far_from(t: VisibleObject, a: VisibleObject) -> bool | None:
    distance = t.distance(a)
    return True if distance > 2.25 else False if distance < 1.75 else None


def _between(t: VisibleObject, a: VisibleObject, b: VisibleObject) -> bool | None:
    """By its middle on the floor plan: near the middle part of the line."""
    way, to = b.position - a.position, t.position - a.position
    length = float(np.hypot(*way))
    along = float(to @ way) / length**2
    aside = abs(float(way[0] * to[1] - way[1] * to[0])) / length
    if 0.25 < along < 0.75 and aside < 0.3:
        return True
    return False if not 0.05 < along < 0.95 or aside > 0.8 else None


def _on_side(t: VisibleObject, a: VisibleObject, b: VisibleObject, sign: int) -> bool | None:
    """Left (sign 1) or right (-1) of the line of sight, from 20 to 130 degrees off it."""
    if np.hypot(*(t.position - a.position)) < 0.5:
        return None
    angle = sign * turn(a.position, b.position, t.position)
    return True if 20 <= angle <= 130 else False if -160 <= angle <= -10 else None
