"""Object descriptions and situated questions, after ScanRefer, Multi3DRefer, Scan2Cap and SQA3D.

The candidates of a clip are the boxes of everything it shows clearly, in no meaningful order.
"""
from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np

from scenes.boxes import turn
from scenes.questions import relations as rel
from scenes.questions.nouns import plural, with_article
from scenes.questions.question import COORD, Question
from scenes.questions.visibility import SceneView, VisibleObject

Rng = np.random.Generator
PER_CLIP = 8          # descriptions of a task in one clip, at most
_MULTI_KINDS = (("zt_w_d", "zt_wo_d"), ("st_w_d", "st_wo_d"), ("mt",))
# nouns for questions about absent objects, with a usual longest side in metres
EVERYDAY = {
    "chair": 1.0, "plant": 0.5, "lamp": 0.5, "table": 1.4, "cabinet": 0.8, "sofa": 2.0, "bed": 2.0,
    "rug": 1.5, "picture": 0.6, "desk": 1.4, "bookshelf": 1.8, "stool": 0.8, "armchair": 1.0,
    "trash bin": 0.5, "tv": 0.9, "radiator": 0.9, "speaker": 0.4, "wardrobe": 2.0,
    "nightstand": 0.5, "refrigerator": 1.8, "window": 1.4}


def ground(view: SceneView, rng: Rng) -> list[Question]:
    """One target each. kind: "unique" if no other visible object has its noun, else "multiple"."""
    out: list[Question] = []
    for group in view.by_noun.values():
        kind = "unique" if len(group) == 1 else "multiple"
        for target in group:
            for relations in _descriptions(view, target, group, rng)[:2]:
                text = _sentence(target.noun, relations, rng)
                out.append(_question(view, "ground", text, [target], kind))
    return _mixed(out, rng)


def multi_ground(view: SceneView, rng: Rng) -> list[Question]:
    """No, one or several targets; the sentence does not tell how many.

    kind, as in Multi3DRefer: zt | st, _w_d | _wo_d with or without distractors of the noun; mt.
    """
    out: dict[str, list[Question]] = {}
    absent = [noun for noun in EVERYDAY
              if noun not in view.by_noun and noun not in view.ambiguous_nouns]
    for noun in (*view.by_noun, *absent):
        group = view.by_noun.get(noun, [])
        size = float(np.median([t.box[3:6].max() for t in group])) if group else EVERYDAY[noun]
        found = [("in the room", group)]
        for relation in rel.spatial_relations(view, noun):
            targets = rel.fitting(relation, group)
            if targets is not None and rel.plausible(size, relation):
                found.append((relation.phrase, targets))
        for phrase, targets in found:
            kind = _multi_kind(targets, group)
            text = f"{rng.choice(['Every', 'Any', 'Each'])} {noun} {phrase}."
            out.setdefault(kind, []).append(_question(view, "multi_ground", text, targets, kind))
    piles = []
    for kinds in _MULTI_KINDS:
        piles.append(_in_turn([out.get(kind, []) for kind in kinds], rng))
    return _in_turn(piles)[:PER_CLIP]


def caption(view: SceneView, rng: Rng) -> list[Question]:
    """Describe the object in the target box; `answers` are several true descriptions."""
    out: list[Question] = []
    for group in view.by_noun.values():
        kind = "unique" if len(group) == 1 else "multiple"
        for target in group:
            captions = tuple(_sentence(target.noun, relations, rng)
                             for relations in _descriptions(view, target, group, rng))
            if captions:
                out.append(_question(view, "caption", COORD, [target], kind, captions))
    return _mixed(out, rng)


def situated(view: SceneView, rng: Rng) -> list[Question]:
    """A place and a line of sight, then a question of one of SQA3D's kinds (`Question.kind`)."""
    piles: dict[str, list[Question]] = {}
    situations = [(a, b) for a in view.unique for b in view.unique if a is not b
                  and np.hypot(*(a.position - b.position)) > 0.8 and a.approachable]
    for i in rng.permutation(len(situations))[:12]:
        at, facing = situations[i]
        start = f"I am standing by the {at.noun} and facing the {facing.noun}."
        for kind, text, answer in _situated_questions(view, at, facing, rng):
            question = Question(view.clip.id, "situated", f"{start} {text}", answer, None, (),
                                view.boxes, (), kind, (answer,))
            pile = f"{kind}/{answer if kind in ('is', 'can', 'which') else ''}"
            piles.setdefault(pile, []).append(question)
    return _in_turn(list(piles.values()), rng)[:PER_CLIP]


Situated = tuple[str, str, str]  # kind, question, answer


def _situated_questions(view: SceneView, at: VisibleObject, facing: VisibleObject,
                        rng: Rng) -> list[Situated]:
    sides = {t.index: _side(at, facing, t) for t in view.objects if t not in (at, facing)}
    out: list[Situated] = []
    for side in ("left", "right", "behind me"):
        out += _side_questions(view, at, facing, sides, side)
    for other in (t for t in view.unique if t not in (at, facing)):
        out += _facing_questions(other.noun, sides[other.index])
        near, far = at.distance(other), at.distance(facing)
        if abs(near - far) > 0.3:
            first, second = (other, facing) if rng.random() < 0.5 else (facing, other)
            out.append(("others", f"Am I closer to the {first.noun} or the {second.noun}?",
                        (other if near < far else facing).noun))
    return out


def _side_questions(view: SceneView, at: VisibleObject, facing: VisibleObject,
                    sides: dict[int, str | None], side: str) -> list[Situated]:
    out: list[Situated] = []
    there = [t for t in view.objects if sides.get(t.index) == side]
    unclear = [t for t in view.objects if sides.get(t.index) is None]
    ambiguous = {t.noun for t in unclear} | view.ambiguous_nouns
    phrase = "behind me" if side == "behind me" else f"to my {side}"
    large = [t for t in there if t.box[3:6].max() > 0.4]
    unclear_large = any(t.index in sides and t.box[3:6].max() > 0.4 for t in unclear)
    if len({t.noun for t in large}) == 1 and not unclear_large:
        out.append(("what", f"What large object is {phrase}?", large[0].noun))
    ends = (at.noun, facing.noun)
    for noun in view.by_noun:
        if noun in ambiguous or noun in ends:
            continue
        count = sum(t.noun == noun for t in there)
        out.append(("is", f"Is there {with_article(noun)} {phrase}?", "yes" if count else "no"))
        if len(view.by_noun[noun]) > 1:
            out.append(("how", f"How many {plural(noun)} are {phrase}?", str(count)))
    return out


def _facing_questions(noun: str, side: str | None) -> list[Situated]:
    visible = f"Can I see the {noun} without turning?"
    which = f"Which direction should I turn to face the {noun}: left, right or back?"
    if side is None:
        return []
    if side == "ahead":
        return [("can", visible, "yes")]
    if side == "behind me":
        return [("which", which, "back"), ("can", visible, "no")]
    return [("which", which, side)]


def _side(at: VisibleObject, facing: VisibleObject, other: VisibleObject) -> str | None:
    """ahead, left, right or behind me; None near a border or too near to tell."""
    if np.hypot(*(other.position - at.position)) < 0.5:
        return None
    angle = turn(at.position, facing.position, other.position)
    if abs(angle) < 25:
        return "ahead"
    if abs(angle) > 150:
        return "behind me"
    return None if not 35 <= abs(angle) <= 125 else "left" if angle > 0 else "right"


def _descriptions(view: SceneView, target: VisibleObject, group: Sequence[VisibleObject],
                  rng: Rng) -> list[list[rel.Relation]]:
    """Up to four ways to describe the target, each clearly true of it and of no other of its noun.

    The first relation singles it out, or is any for the only one of its noun; half have a second.
    """
    around = [r for r in rel.spatial_relations(view, target.noun) if r.fits(target)]
    leading = around
    if len(group) > 1:
        leading = [r for r in (*around, *rel.ranking_relations(view, group))
                   if r.fits(target) and len(rel.fitting(r, group) or group) == 1]
    by_kind: dict[str, list[rel.Relation]] = {}
    for relation in (leading[i] for i in rng.permutation(len(leading))):
        by_kind.setdefault(relation.kind, []).append(relation)
    piles = [by_kind[kind] for kind in rng.permutation(sorted(by_kind))]
    first = _alternating(piles)[:4]
    second = [r for i in rng.permutation(len(around)) if (r := around[i]).kind != "side"]
    out = []
    for f in first:
        others = [r for r in second if r.kind != f.kind]
        out.append([f, *others[:int(rng.integers(2))]])
    return out


def _sentence(noun: str, relations: Sequence[rel.Relation], rng: Rng) -> str:
    first, one = relations[0], with_article(noun)
    if first.of:
        opening = f"This is the {first.of}."
    elif first.kind in ("closest", "farthest"):
        opening = f"The {noun} that is {first.phrase}."
    else:
        openings = (f"This is {one}. It is {first.phrase}.", f"The {noun} is {first.phrase}.",
                    f"There is {one} {first.phrase}.")
        opening = openings[rng.integers(3)]
    return " ".join([opening, *(f"It is {r.phrase}." for r in relations[1:])])


def _multi_kind(targets: Sequence[VisibleObject], group: Sequence[VisibleObject]) -> str:
    if len(targets) > 1:
        return "mt"
    return f"{'st' if targets else 'zt'}_{'w' if len(group) > len(targets) else 'wo'}_d"


def _question(view: SceneView, task: str, text: str, targets: Sequence[VisibleObject], kind: str,
              answers: tuple[str, ...] = ()) -> Question:
    return Question(view.clip.id, task, text, answers[0] if answers else None, None, (), view.boxes,
                    tuple(sorted(t.index for t in targets)), kind, answers)


def _mixed(found: list[Question], rng: Rng) -> list[Question]:
    """Unique and multiple in turn, PER_CLIP at most."""
    unique = [q for q in found if q.kind == "unique"]
    multiple = [q for q in found if q.kind == "multiple"]
    return _in_turn([unique, multiple], rng)[:PER_CLIP]


def _in_turn(piles: Sequence[list[Question]], rng: Rng | None = None) -> list[Question]:
    """One of each pile in turn, and no text twice. With an rng, piles are shuffled first."""
    if rng is not None:
        piles = [piles[k] for k in rng.permutation(len(piles))]
        for k, pile in enumerate(piles):
            piles[k] = [pile[i] for i in rng.permutation(len(pile))]
    out: dict[str, Question] = {}
    for question in _alternating(piles):
        targets = question.targets if question.task == "caption" else ""
        out.setdefault(f"{question.text} {targets}", question)
    return list(out.values())


def _alternating(piles: Sequence[list]) -> list:
    """The first of each pile, then the second of each ..."""
    return [item for found in zip_longest(*piles) for item in found if item is not None]


MAKERS: dict[str, Callable[[SceneView, Rng], list[Question]]] = {
    "ground": ground, "multi_ground": multi_ground, "caption": caption, "situated": situated}
