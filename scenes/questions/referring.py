"""Descriptions of things and questions from a place in the room, after ScanRefer, Multi3DRefer,
Scan2Cap and SQA3D.

The candidates of a clip are the boxes of everything it shows clearly, in an order that says
nothing.
"""
from collections.abc import Callable, Sequence

import numpy as np

from scenes.questions.nouns import with_article
from scenes.questions.question import COORD, Question
from scenes.questions.relations import (
    Relation,
    fitting,
    plausible,
    plural,
    ranking_relations,
    spatial_relations,
)
from scenes.questions.visibility import SceneView, VisibleObject

Rng = np.random.Generator
PER_CLIP = 8          # descriptions of a task in one clip, at most
_MULTI_KINDS = (("zt_w_d", "zt_wo_d"), ("st_w_d", "st_wo_d"), ("mt",))
# what may be asked about where it is not, with a usual longest side in metres
EVERYDAY = {
    "chair": 1.0, "plant": 0.5, "lamp": 0.5, "table": 1.4, "cabinet": 0.8, "sofa": 2.0, "bed": 2.0,
    "rug": 1.5, "picture": 0.6, "desk": 1.4, "bookshelf": 1.8, "stool": 0.8, "armchair": 1.0,
    "trash bin": 0.5, "tv": 0.9, "radiator": 0.9, "speaker": 0.4, "wardrobe": 2.0,
    "nightstand": 0.5, "refrigerator": 1.8, "window": 1.4
}


def ground(view: SceneView, rng: Rng) -> list[Question]:
    """One target each. kind: "unique" if the clip shows nothing else of its noun, else
    "multiple"."""
    out: list[Question] = []
    for group in view.by_noun.values():
        for target in group:
            for told in _told(view, target, group, rng)[:2]:
                kind = "unique" if len(group) == 1 else "multiple"
                out.append(
                    _question(view, "ground", _description(target.noun, told, rng), [target], kind))
    return _mixed(out, rng)


def multi_ground(view: SceneView, rng: Rng) -> list[Question]:
    """None, one or several targets, by the same sentences: only the clip tells how many.

    kind, as in Multi3DRefer: zt | st, _w_d | _wo_d with or without distractors of the noun; mt.
    """
    out: dict[str, list[Question]] = {}
    absent = {
        n: size
        for n, size in EVERYDAY.items() if n not in view.by_noun and n not in view.ambiguous_nouns
    }
    sizes = {
        n: float(np.median([t.box[3:6].max() for t in group]))
        for n, group in view.by_noun.items()
    }
    for noun, size in (sizes | absent).items():
        group = view.by_noun.get(noun, [])
        found: list[tuple[Relation | None, list[VisibleObject]]] = [(None, group)]
        for relation in spatial_relations(view, noun):
            held = fitting(relation, group)
            if held is not None and plausible(size, relation):
                found.append((relation, held))
        for told, held in found:
            kind = _multi_kind(held, group)
            out.setdefault(kind, []).append(
                _question(view, "multi_ground", _every(noun, told, rng), held, kind))
    return _in_turn(
        [_in_turn([out.get(kind, []) for kind in kinds], rng) for kinds in _MULTI_KINDS])[:PER_CLIP]


def caption(view: SceneView, rng: Rng) -> list[Question]:
    """Describe the thing in the target box; `answers` are several true descriptions, the first is
    `answer`."""
    out: list[Question] = []
    for group in view.by_noun.values():
        for target in group:
            said = tuple(
                _description(target.noun, told, rng) for told in _told(view, target, group, rng))
            if said:
                kind = "unique" if len(group) == 1 else "multiple"
                out.append(_question(view, "caption", COORD, [target], kind, said))
    return _mixed(out, rng)


def situated(view: SceneView, rng: Rng) -> list[Question]:
    """A place to stand and a way to look, then a question; kind is SQA3D's: what, is, how, can,
    which, others."""
    made: dict[str, list[Question]] = {}
    stands = [(a, b) for a in view.unique for b in view.unique
              if a is not b and np.hypot(*(a.position - b.position)) > 0.8 and a.approachable]
    for i in rng.permutation(len(stands))[:12]:
        at, facing = stands[i]
        start = f"I am standing by the {at.noun} and facing the {facing.noun}."
        for kind, text, answer in _asked(view, at, facing, rng):
            question = Question(view.clip.id, "situated", f"{start} {text}", answer, None, (),
                                view.boxes, (), kind, (answer, ))
            made.setdefault(f"{kind}/{answer if kind in ('is', 'can', 'which') else ''}",
                            []).append(question)
    return _in_turn(list(made.values()), rng)[:PER_CLIP]


def _asked(view: SceneView, at: VisibleObject, facing: VisibleObject, rng: Rng) -> list[tuple[str, str, str]]:
    """Kind, question and answer of what can be asked standing there."""
    where = {t.index: _side(at, facing, t) for t in view.objects if t not in (at, facing)}
    out = []
    for side in ("left", "right", "behind me"):
        held = [t for t in view.objects if where.get(t.index) == side]
        blurred = {t.noun for t in view.objects if where.get(t.index) is None} | view.ambiguous_nouns
        named = "behind me" if side == "behind me" else f"to my {side}"
        large = [t for t in held if t.box[3:6].max() > 0.4]
        unclear = any(
            where.get(t.index, "") is None and t.box[3:6].max() > 0.4 for t in view.objects)
        if len({t.noun for t in large}) == 1 and not unclear:
            out.append(("what", f"What large object is {named}?", large[0].noun))
        for noun in view.by_noun:
            if noun in blurred - {at.noun, facing.noun} or noun in (at.noun, facing.noun):
                continue
            count = sum(t.noun == noun for t in held)
            out.append(("is", f"Is there {with_article(noun)} {named}?", "yes" if count else "no"))
            if len(view.by_noun[noun]) > 1:
                out.append(("how", f"How many {plural(noun)} are {named}?", str(count)))
    for other in (t for t in view.unique if t not in (at, facing)):
        direction = where[other.index]
        if direction is not None:
            word = "back" if direction == "behind me" else direction
            out.append((
                "which",
                f"Which direction should I turn to face the {other.noun}: left, right or back?",
                word) if word != "ahead" else ("can",
                                               f"Can I see the {other.noun} without turning?",
                                               "yes"))
            if word == "back":
                out.append(("can", f"Can I see the {other.noun} without turning?", "no"))
        near, far = at.distance(other), at.distance(facing)
        if abs(near - far) > 0.3:
            first, second = (other, facing) if rng.random() < 0.5 else (facing, other)
            out.append(("others", f"Am I closer to the {first.noun} or the {second.noun}?",
                        (other if near < far else facing).noun))
    return out


def _side(at: VisibleObject, facing: VisibleObject, other: VisibleObject) -> str | None:
    """ahead, left, right or behind me; None near a border or where it is too near to say."""
    (ax, ay), (bx, by) = facing.position - at.position, other.position - at.position
    if np.hypot(bx, by) < 0.5:
        return None
    angle = float(np.degrees(np.arctan2(ax * by - ay * bx, ax * bx + ay * by)))
    return ("ahead" if abs(angle) < 25 else "behind me" if abs(angle) > 150
            else None if not 35 <= abs(angle) <= 125 else "left" if angle > 0 else "right")


def _told(view: SceneView, target: VisibleObject, group: Sequence[VisibleObject], rng: Rng) -> list[list[Relation]]:
    """Up to four ways to describe the target, each clearly true of it and of no other in its group.

    Each has one relation that singles it out, or any for the only one of its noun, and half have a
    second place.
    """
    around = [r for r in spatial_relations(view, target.noun) if r.fits(target)]
    leading = around if len(group) == 1 else [
        r for r in (*around, *ranking_relations(view, group))
        if r.fits(target) and len(fitting(r, group) or group) == 1
    ]
    by_kind: dict[str, list[Relation]] = {}
    for relation in (leading[i] for i in rng.permutation(len(leading))):
        by_kind.setdefault(relation.kind, []).append(relation)
    piles = [by_kind[kind] for kind in rng.permutation(sorted(by_kind))]
    # every kind in turn
    first = [pile[depth] for depth in range(4) for pile in piles if depth < len(pile)][:4]
    second = [r for i in rng.permutation(len(around)) if (r := around[i]).kind != "side"]
    return [[f, *[r for r in second if r.kind != f.kind][:int(rng.integers(2))]] for f in first]


def _description(noun: str, relations: Sequence[Relation], rng: Rng) -> str:
    """One or two sentences in the manner of ScanRefer."""
    first = relations[0]
    if first.of:
        opening = f"This is the {first.of}."
    elif first.kind in ("closest", "farthest"):
        opening = f"The {noun} that is {first.phrase}."
    else:
        opening = [
            f"This is {with_article(noun)}. It is {first.phrase}.",
            f"The {noun} is {first.phrase}.", f"There is {with_article(noun)} {first.phrase}."
        ][int(rng.integers(3))]
    return " ".join([opening, *(f"It is {r.phrase}." for r in relations[1:])])


def _every(noun: str, relation: Relation | None, rng: Rng) -> str:
    ending = relation.phrase if relation else "in the room"
    return f"{rng.choice(['Every', 'Any', 'Each'])} {noun} {ending}."


def _multi_kind(held: Sequence[VisibleObject], group: Sequence[VisibleObject]) -> str:
    if len(held) > 1:
        return "mt"
    return f"{'st' if held else 'zt'}_{'w' if len(group) > len(held) else 'wo'}_d"


def _question(view: SceneView, task: str, text: str, targets: Sequence[VisibleObject], kind: str,
              answers: tuple[str, ...] = ()) -> Question:
    return Question(view.clip.id, task, text, answers[0] if answers else None, None, (), view.boxes,
                    tuple(sorted(t.index for t in targets)), kind, answers)


def _mixed(made: list[Question], rng: Rng) -> list[Question]:
    """Unique and multiple in turn, PER_CLIP at most."""
    return _in_turn([[q for q in made if q.kind == kind] for kind in ("unique", "multiple")],
                    rng)[:PER_CLIP]


def _in_turn(piles: Sequence[list[Question]], rng: Rng | None = None) -> list[Question]:
    """One of each pile in turn, so that none prevails; no text twice. With an rng all is shuffled
    first."""
    if rng is not None:
        piles = [[piles[k][i] for i in rng.permutation(len(piles[k]))]
                 for k in rng.permutation(len(piles))]
    out: dict[str, Question] = {}
    for depth in range(max(map(len, piles), default=0)):
        for pile in piles:
            if depth < len(pile):
                question = pile[depth]
                out.setdefault(
                    f"{question.text} {question.targets if question.task == 'caption' else ''}",
                    question)
    return list(out.values())


MAKERS: dict[str, Callable[[SceneView, Rng], list[Question]]] = {
    "ground": ground, "multi_ground": multi_ground, "caption": caption, "situated": situated}
