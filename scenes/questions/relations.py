"""What can be said about where a thing is: relations that hold for some things of a noun and
clearly not for the rest.

`fits` is True, False, or None where it is too close to call. A relation is only said of a group of
things where none of them is too close to call, so exactly the things meant are meant.
"""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from scenes.questions.visibility import SceneView, VisibleObject

CARRIERS = ("table", "desk", "nightstand", "coffee table", "side table", "cabinet", "tv stand",
            "bookshelf", "rug", "wall shelf", "wardrobe", "locker", "sink", "washbasin", "oven",
            "washing machine", "bed", "sofa", "bench", "piano")


@dataclass(frozen=True, eq=False)
class Relation:
    """`phrase` follows the noun: "the chair" + "next to the table", or "that is closest to the
    table"."""
    kind: str
    phrase: str
    fits: Callable[[VisibleObject], bool | None]
    # what replaces the noun where the relation ranks: "the taller of the two bookshelves"
    of: str = ""


def spatial_relations(view: SceneView, noun: str) -> Iterator[Relation]:
    """Relations to other things, each of which none, one or several things of a noun may have."""
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
                for side, sign in (("left", 1), ("right", -1)):
                    yield Relation(
                        "side",
                        f"on the {side} when standing by the {a.noun} and facing the {b.noun}",
                        partial(_on_side, a=a, b=b, sign=sign))


def ranking_relations(view: SceneView, group: Sequence[VisibleObject]) -> Iterator[Relation]:
    """Relations that single out one of a group of two or more: closest, farthest, largest, tallest,
    highest."""
    noun = group[0].noun
    among = f"of the two {plural(noun)}" if len(group) == 2 else f"of the {plural(noun)}"
    for anchor in (t for t in view.unique if t.noun != noun):
        spread = {t.index: t.distance(anchor) for t in group}
        yield _extreme("closest", f"closest to the {anchor.noun}", spread, -1, 0.3)
        yield _extreme("farthest", f"farthest from the {anchor.noun}", spread, 1, 0.3)
    sizes = {t.index: float(np.log(np.prod(t.box[3:6]))) for t in group}
    heights = {t.index: float(t.box[5]) for t in group}
    widths = {t.index: float(t.box[3:5].max()) for t in group}
    levels = {t.index: float(t.bottom) for t in group}
    two = len(group) == 2
    for word, values, sign, margin in (("larger" if two else "largest", sizes, 1,
                                        0.5), ("smaller" if two else "smallest", sizes, -1, 0.5),
                                       ("taller" if two else "tallest", heights, 1,
                                        0.15), ("wider" if two else "widest", widths, 1, 0.15),
                                       ("higher" if two else "highest", levels, 1,
                                        0.15), ("lower" if two else "lowest", levels, -1, 0.15)):
        yield _extreme("rank", "", values, sign, margin, f"{word} {among}")


def fitting(relation: Relation, group: Sequence[VisibleObject]) -> list[VisibleObject] | None:
    """Those of the group that the relation fits; None if it is too close to call for one of
    them."""
    answers = [relation.fits(t) for t in group]
    return None if None in answers else [t for t, a in zip(group, answers, strict=True) if a]


def plausible(noun_size: float, relation: Relation) -> bool:
    """Whether a thing with that longest side in metres could be where the relation says, for all
    one knows."""
    return relation.kind != "on" or noun_size < 0.8


def plural(noun: str) -> str:
    if noun.endswith(("shelf", "knife")):
        return f"{noun[:-2] if noun.endswith('fe') else noun[:-1]}ves"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


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
    distance = t.distance(a)
    level = abs(t.bottom - a.bottom) < 0.8
    return True if distance < 0.35 and level else False if distance > 0.8 else None


def _far_from(t: VisibleObject, a: VisibleObject) -> bool | None:
    distance = t.distance(a)
    return True if distance > 2.25 else False if distance < 1.75 else None


def _between(t: VisibleObject, a: VisibleObject, b: VisibleObject) -> bool | None:
    """By its middle on the floor plan: near the middle part of the line."""
    way = b.position - a.position
    length = float(np.hypot(*way))
    along = float((t.position - a.position) @ way) / length**2
    aside = abs(float(way[0] * (t.position - a.position)[1] - way[1] * (t.position - a.position)[0])) / length
    if 0.25 < along < 0.75 and aside < 0.3:
        return True
    return False if not 0.05 < along < 0.95 or aside > 0.8 else None


def _on_side(t: VisibleObject, a: VisibleObject, b: VisibleObject, sign: int) -> bool | None:
    """Left (sign 1) or right (-1) of the line of sight, from 20 to 130 degrees off it."""
    (ax, ay), (bx, by) = b.position - a.position, t.position - a.position
    angle = sign * float(np.degrees(np.arctan2(ax * by - ay * bx, ax * bx + ay * by)))
    if np.hypot(bx, by) < 0.5:
        return None
    return True if 20 <= angle <= 130 else False if -160 <= angle <= -10 else None
