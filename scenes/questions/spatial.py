"""Questions that place in the picture does not answer, distance from the camera and depth order;
and one that it does: which of two objects of a noun is closer to a third.

Objects of the former are those that one frame shows well. Their distance is the median over their
visible pixels in that frame, from the camera's centre.
"""
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np

from scenes.geometry import unproject
from scenes.questions.question import Question
from scenes.questions.visibility import CLEAR_SHARE, SceneView, VisibleObject
from scenes.questions.vsi import MARGIN_M, Rng, choice, numeric

PER_CLIP = 8             # questions of a type about one clip, at most
GAP_M = (0.3, 0.8)       # difference of the two distances of a depth order
_WELL_SHOWN = 2 * CLEAR_SHARE
_LOWER = 1 / 14          # of the frame's height, for one of two objects to be clearly lower
_LARGER = 1.5            # ratio of areas in the frame, for one of two to be clearly larger


def camera_distance(view: SceneView, rng: Rng) -> list[Question]:
    """Metres to 0.01 m; none without depth."""
    if view.clip.depth is None:
        return []
    shown = [(item, frame) for item in view.unique
             for frame in np.flatnonzero(item.share >= _WELL_SHOWN).tolist()]
    out = []
    for item, frame in (shown[i] for i in rng.permutation(len(shown))[:PER_CLIP]):
        text = (f"In frame {frame + 1}, what is the distance from the camera to the middle of the "
                f"visible part of the {item.noun} (in meters)?")
        mention = (item.noun, item.scene_object.id, frame)
        out.append(numeric(view.clip, "camera_distance", text, _Seen(view, item, frame).distance,
                           2, (mention,)))
    return out


def depth_order(view: SceneView, rng: Rng) -> list[Question]:
    """Which of two is closer, by GAP_M. kind: "counter" if the lower one is the farther one or the
    larger one in the frame is, "prior" if neither is and one is the closer one, else "neutral"."""
    found: dict[str, list[Question]] = {"counter": [], "prior": [], "neutral": []}
    for frame in range(len(view.clip.frames) if view.clip.depth is not None else 0):
        shown = [item for item in view.unique if item.share[frame] >= _WELL_SHOWN]
        seen = {item.index: _Seen(view, item, frame) for item in shown}
        for pair in combinations(shown, 2):
            near, far = sorted(pair, key=lambda item: seen[item.index].distance)
            a, b = seen[near.index], seen[far.index]
            if GAP_M[0] <= b.distance - a.distance <= GAP_M[1]:
                question = _order(view, near, far, frame, rng)
                kind = _kind(a, b)
                found[kind].append(replace(question, kind=kind))
    piles = [[pile[i] for i in rng.permutation(len(pile))] for pile in found.values()]
    evenly = [pile[k] for k in range(PER_CLIP) for pile in piles if k < len(pile)]
    return evenly[:PER_CLIP]


def same_noun_closest(view: SceneView, rng: Rng) -> list[Question]:
    """Which of two objects of a noun, told apart by pointers alone, is closer to a third, by
    MARGIN_M. A pair comes twice, with thirds that each of the two is closer to."""
    pairs = [pair for group in view.by_noun.values() for pair in combinations(group, 2)]
    out: list[Question] = []
    for near, far in (pairs[i] for i in rng.permutation(len(pairs))):
        found = []
        for pair in ((near, far), (far, near)):
            anchors = [item for item in view.unique
                       if pair[1].distance(item) - pair[0].distance(item) >= MARGIN_M]
            if anchors:
                found.append(_closest(view, *pair, anchors[rng.integers(len(anchors))], rng))
        if len(found) == 2:
            out += found
    return out[:PER_CLIP]


class _Seen:
    """An object in one frame: median distance m, row and area of its mask as shares."""

    def __init__(self, view: SceneView, item: VisibleObject, frame: int):
        clip = view.clip
        assert clip.instances is not None and clip.depth is not None
        assert clip.intrinsics is not None
        rows, columns = np.nonzero(clip.instances[frame] == item.scene_object.id)
        points = unproject(columns + 0.5, rows + 0.5, clip.depth[frame, rows, columns],
                           clip.intrinsics)                                                 # [3,N]
        self.distance = float(np.median(np.linalg.norm(points, axis=0)))
        self.row = float(rows.mean()) / len(clip.instances[frame])
        self.area = float(item.share[frame])


def _closest(view: SceneView, near: VisibleObject, far: VisibleObject, anchor: VisibleObject,
             rng: Rng) -> Question:
    text = ("Measuring from the closest point of each object, which of these objects ({}) is the "
            f"closest to the {anchor.noun}?")
    question = choice(view.clip, "same_noun_closest", text, [near.noun, far.noun], rng)
    listed = (near, far) if question.answer == "A" else (far, near)
    return replace(question, mentions=view.mentions(*listed, anchor))


def _order(view: SceneView, near: VisibleObject, far: VisibleObject, frame: int,
           rng: Rng) -> Question:
    text = f"In frame {frame + 1}, which of these objects ({{}}) is closer to the camera?"
    question = choice(view.clip, "depth_order", text, [near.noun, far.noun], rng)
    listed = (near, far) if question.answer == "A" else (far, near)
    return replace(question, mentions=tuple((item.noun, item.scene_object.id, frame)
                                            for item in listed))


def _kind(near: _Seen, far: _Seen) -> str:
    lower = np.sign(near.row - far.row) * (abs(near.row - far.row) >= _LOWER)
    larger = np.sign(near.area - far.area) * (
        max(near.area, far.area) >= _LARGER * min(near.area, far.area))
    return "counter" if min(lower, larger) < 0 else "prior" if max(lower, larger) > 0 else "neutral"


MAKERS: dict[str, Callable[[SceneView, Rng], list[Question]]] = {
    "camera_distance": camera_distance, "depth_order": depth_order,
    "same_noun_closest": same_noun_closest}
