"""VSI-Bench's question types (arXiv 2412.14171) in its words, from exact scene geometry.

Questions are about clearly shown objects only, and no answer is a near tie. Letters are uniform,
and an answer is drawn before the objects that have it, so guesses by frequency do not pay.
"""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise, permutations

import numpy as np

from scenes.boxes import corners, in_polygon, turn
from scenes.clip import Clip
from scenes.questions.question import NO_BOXES, Question
from scenes.questions.visibility import CLEAR_SHARE, TRACE_SHARE, Mentions, SceneView, VisibleObject

Rng = np.random.Generator
PER_CLIP = 4             # questions of a type about one clip, at most
LETTERS = "ABCD"
MARGIN_M = 0.3          # least difference of two distances, or of one from zero
_SIZE = ("What is the length of the longest dimension (length, width, or height) of the {}, "
         "measured in centimeters?")
_ROOM_SIZE = ("What is the size of this room (in square meters)? \nIf multiple rooms are shown, "
              "estimate the size of the combined space.")
_ORDER = ("What will be the first-time appearance order of the following categories in the video: "
          "{}?")


def counting(view: SceneView, rng: Rng) -> list[Question]:
    """Answers are whole numbers of what the clip shows."""
    groups = view.by_noun
    nouns = _some(rng, sorted(groups, key=lambda noun: -len(groups[noun]) - rng.random()), first=2)
    return [numeric(view.clip, "vsi:object_counting", f"How many {noun}(s) are in this room?",
                    len(groups[noun]), 0) for noun in nouns]


def absolute_distance(view: SceneView, rng: Rng) -> list[Question]:
    """Metres between the closest points of two boxes, to 0.1 m, drawn uniformly on a log scale."""
    pairs = {(a, b): d for i, a in enumerate(view.unique) for b in view.unique[:i]
             if (d := a.distance(b)) >= MARGIN_M}
    out = []
    for _ in range(min(PER_CLIP, len(pairs))):
        wanted = np.exp(rng.uniform(np.log(MARGIN_M), np.log(5.0)))
        a, b = pair = min(pairs, key=lambda p: abs(np.log(pairs[p] / wanted)))
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
        text = ("Measuring from the closest point of each object, what is the distance between the "
                f"{a.noun} and the {b.noun} (in meters)?")
        out.append(numeric(view.clip, "vsi:object_abs_distance", text, pairs.pop(pair), 1,
                           view.mentions(a, b)))
    return out


def object_size(view: SceneView, rng: Rng) -> list[Question]:
    """Centimetres of the longest side of an object that one frame contains completely."""
    framed = [t for t in view.unique if t.fully_framed]
    return [numeric(view.clip, "vsi:object_size_estimation", _SIZE.format(t.noun),
                    100 * max(t.scene_object.size), 0, view.mentions(t))
            for t in _some(rng, framed)]


def room_size(view: SceneView, rng: Rng) -> list[Question]:
    """Square metres of floor."""
    assert view.clip.room_size is not None
    width, depth, _ = view.clip.room_size
    return [numeric(view.clip, "vsi:room_size_estimation", _ROOM_SIZE, width * depth, 1)]


def relative_distance(view: SceneView, rng: Rng) -> list[Question]:
    """Four objects to choose from; the closest is so by at least 0.3 m. They are offered for two or
    more targets with different closest ones: one close to most others is wrong as often."""
    objects = view.unique
    gaps = np.array([[a.distance(b) for b in objects] for a in objects])                     # [N,N]
    best: dict[int, int] = {}  # target -> closest
    for _ in range(40 if len(objects) >= 6 else 0):
        offered = rng.permutation(len(objects))[:4]
        found: dict[int, list[int]] = {}
        for target in set(range(len(objects))) - set(offered.tolist()):
            order = offered[np.argsort(gaps[target, offered])]
            near, next_ = gaps[target, order[:2]]
            if near >= 0.05 and next_ - near >= MARGIN_M:
                found.setdefault(int(order[0]), []).append(target)
        if len(found) > len(best):
            best = {int(rng.choice(targets)): closest for closest, targets in found.items()}
            options = [int(i) for i in offered]
    if len(best) < 2:
        return []
    out = []
    for target, closest in best.items():
        offered_objects = [objects[closest], *(objects[i] for i in options if i != closest)]
        text = ("Measuring from the closest point of each object, which of these objects ({}) is "
                f"the closest to the {objects[target].noun}?")
        question = choice(view.clip, "vsi:object_rel_distance", text,
                          [item.noun for item in offered_objects], rng)
        by_noun = {item.noun: item for item in offered_objects}
        listed = [by_noun[option[3:]] for option in question.options]
        out.append(replace(question, mentions=view.mentions(*listed, objects[target])))
    return out


def direction(level: str, view: SceneView, rng: Rng) -> list[Question]:
    """Standing by one object and facing another, where is a third? No angle is near a border."""
    sectors = _SECTORS[level]
    triples: dict[str, list[tuple[VisibleObject, ...]]] = {name: [] for name in sectors}
    for at, facing, other in permutations(view.unique, 3):
        if at.approachable and _apart(at, facing, other):
            name = _sector(turn(at.position, facing.position, other.position), sectors)
            if name:
                triples[name].append((at, facing, other))
    out = []
    for name in _some(rng, sectors):
        if triples[name]:
            objects = triples[name][rng.integers(len(triples[name]))]
            nouns = [t.noun for t in objects]
            text = "If I am standing by the {0} and facing the {1}, is the {2} " + _ENDINGS[level]
            choices = [name, *(other for other in sectors if other != name)]
            out.append(choice(view.clip, f"vsi:object_rel_direction_{level}", text.format(*nouns),
                              choices, rng, view.mentions(*objects)))
    return out


_ENDINGS = {
    "easy": "to the left or the right of the {1}?",
    "medium": "to my left, right, or back?\nAn object is to my back if I would have to turn at "
              "least 135 degrees in order to face it.",
    "hard": "to my front-left, front-right, back-left, or back-right?\nThe directions refer to the "
            "quadrants of a Cartesian plane (if I am standing at the origin and facing along the "
            "positive y-axis)."}
# degrees to the left of where one faces, with a margin to every border
_SECTORS = {"easy": {"left": (20, 120), "right": (240, 340)},
            "medium": {"left": (30, 120), "right": (240, 330), "back": (150, 210)},
            "hard": {"front-left": (15, 75), "front-right": (285, 345), "back-left": (105, 165),
                     "back-right": (195, 255)}}
_TURNS = {"Turn Left": (50, 130), "Turn Right": (230, 310), "Turn Back": (150, 210)}


def route(view: SceneView, rng: Rng) -> list[Question]:
    """One or two turns to fill in between objects on the floor, over free ground."""
    floor = [t for t in view.unique if t.approachable]
    walks = {(a, b) for a, b in permutations(floor, 2) if _apart(a, b) and _walkable(view, a, b)}
    plans: dict[tuple[str, ...], list[tuple[VisibleObject, ...]]] = {}
    for start, by, end in permutations(floor, 3):
        if (start, by) not in walks or (by, end) not in walks:
            continue
        ahead = 2 * by.position - start.position
        last = _sector(turn(by.position, ahead, end.position), _TURNS)
        if not last:
            continue
        plans.setdefault((last,), []).append((start, by, by, end))
        for facing in view.unique:
            if facing not in (start, by, end) and _apart(start, facing):
                first = _sector(turn(start.position, facing.position, by.position), _TURNS)
                if first:
                    plans.setdefault((first, last), []).append((start, facing, by, end))
    out = []
    for answer in _some(rng, sorted(plans)):
        text = _route_text(answer, *plans[answer][rng.integers(len(plans[answer]))])
        choices = [", ".join(answer), *_wrong_turns(answer, rng)]
        out.append(choice(view.clip, "vsi:route_planning", text, choices, rng))
    return out


def appearance_order(view: SceneView, rng: Rng) -> list[Question]:
    """Four categories, each shown clearly before there is a trace of the next."""
    appearing = sorted((*_first_frames(group), noun) for noun, group in view.by_noun.items())
    chains = [c for c in combinations(appearing, 4) if all(a[1] < b[0] for a, b in pairwise(c))]
    out = []
    for i in rng.permutation(len(chains))[:PER_CLIP]:
        order = [noun for _, _, noun in chains[i]]
        others = [p for p in permutations(order) if list(p) != order]
        wrong = [", ".join(others[k]) for k in rng.permutation(len(others))[:3]]
        text = _ORDER.format(", ".join(order[k] for k in rng.permutation(4)))
        choices = [", ".join(order), *wrong]
        out.append(choice(view.clip, "vsi:obj_appearance_order", text, choices, rng))
    return out


def _sector(angle: float, sectors: dict[str, tuple[int, int]]) -> str | None:
    return next((name for name, (low, high) in sectors.items() if low <= angle % 360 <= high), None)


def _apart(*objects: VisibleObject) -> bool:
    """Whether their middles are at least 0.6 m from each other, so that directions are clear."""
    points = [t.position for t in objects]
    return all(np.hypot(*(p - q)) >= 0.6 for i, p in enumerate(points) for q in points[:i])


def _walkable(view: SceneView, a: VisibleObject, b: VisibleObject) -> bool:
    way = b.position - a.position
    steps = max(int(np.hypot(*way) / 0.1), 2)
    line = a.position + way * np.linspace(0, 1, steps)[:, None]                              # [S,2]
    for box in view.all_boxes:
        is_end = any(np.array_equal(box, t.box) for t in (a, b))
        low, high = box[2] - box[5] / 2, box[2] + box[5] / 2
        if not is_end and low < 0.3 and high > 0.05 and in_polygon(line, corners(box)).any():
            return False
    return True


def _route_text(turns: Sequence[str], start: VisibleObject, facing: VisibleObject,
                by: VisibleObject, end: VisibleObject) -> str:
    blank = "[please fill in]"
    steps = [f"Go forward until the {by.noun}.", blank, f"Go forward until the {end.noun}."]
    steps = [blank] * (len(turns) - 1) + steps
    listed = " ".join(f"{i}. {step}" for i, step in enumerate(steps, 1))
    return (f"You are a robot beginning at the {start.noun} and facing the {facing.noun}. You want "
            f"to navigate to the {end.noun}. You will perform the following actions (Note: for "
            "each [please fill in], choose either 'turn back,' 'turn left,' or 'turn right.'): "
            f"{listed} You have reached the final destination.")


def _wrong_turns(answer: Sequence[str], rng: Rng) -> list[str]:
    if len(answer) == 1:
        return [t for t in _TURNS if t != answer[0]]
    others = [f"{a}, {b}" for a in _TURNS for b in _TURNS if (a, b) != tuple(answer)]
    return [others[i] for i in rng.permutation(len(others))[:3]]


def _first_frames(group: Sequence[VisibleObject]) -> tuple[int, int]:
    """The first frame with a trace of one of them, and the first that shows one clearly."""
    shares = np.stack([t.share for t in group]).max(0)                                       # [T]
    return int((shares >= TRACE_SHARE).argmax()), int((shares >= CLEAR_SHARE).argmax())


def _some(rng: Rng, items: Iterable, first: int = 0) -> list:
    """At most PER_CLIP of the items: the `first` ones, then a random choice."""
    items = list(items)
    rest = [items[first:][i] for i in rng.permutation(max(len(items) - first, 0))]
    return (items[:first] + rest)[:PER_CLIP]


def numeric(clip: Clip, task: str, text: str, value: float, digits: int,
            mentions: Mentions = ()) -> Question:
    number = round(float(value), digits)
    return Question(clip.id, task, text, f"{number:.{digits}f}", number, (), NO_BOXES, (),
                    mentions=mentions)


def choice(clip: Clip, task: str, text: str, choices: Sequence[str], rng: Rng,
           mentions: Mentions = ()) -> Question:
    """The first choice is right; "{}" in the text becomes the choices in their random order."""
    order = rng.permutation(len(choices))
    shuffled = [choices[i] for i in order]
    options = tuple(f"{letter}. {name}" for letter, name in zip(LETTERS, shuffled, strict=False))
    answer = LETTERS[int(np.flatnonzero(order == 0)[0])]
    return Question(clip.id, task, text.replace("{}", ", ".join(shuffled)), answer, None, options,
                    NO_BOXES, (), mentions=mentions)


MAKERS: dict[str, Callable[[SceneView, Rng], list[Question]]] = {
    "vsi:object_counting": counting, "vsi:object_abs_distance": absolute_distance,
    "vsi:object_size_estimation": object_size, "vsi:room_size_estimation": room_size,
    "vsi:object_rel_distance": relative_distance, "vsi:route_planning": route,
    "vsi:obj_appearance_order": appearance_order,
    **{f"vsi:object_rel_direction_{level}": partial(direction, level) for level in _SECTORS}}
