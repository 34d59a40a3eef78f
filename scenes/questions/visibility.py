"""Which objects a clip shows clearly enough for questions."""
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from scenes.boxes import boxes_of, corners, gap, in_polygon
from scenes.clip import Clip, SceneObject
from scenes.geometry import project, transform
from scenes.questions.nouns import noun_of

CLEAR_SHARE = 0.004   # of a frame's pixels: one 14 x 14 patch of 224 x 224
TRACE_SHARE = 0.0004  # of a frame's pixels: less goes unnoticed
_SHELL = ("wall", "floor", "ceiling")
Mentions = tuple[tuple[str, int, int], ...]  # Question.mentions


@dataclass(frozen=True, eq=False)
class VisibleObject:
    """An object that some frame shows clearly."""
    index: int               # in SceneView.objects, and so among the candidate boxes
    scene_object: SceneObject
    noun: str
    box: np.ndarray          # [7]
    share: np.ndarray        # [T] of each frame's pixels
    fully_framed: bool       # some frame contains its whole box
    distances: dict[tuple[int, int], float] = field(repr=False)  # cache of the view

    @property
    def bottom(self) -> float:
        return float(self.box[2] - self.box[5] / 2)

    @property
    def top(self) -> float:
        return float(self.box[2] + self.box[5] / 2)

    @property
    def position(self) -> np.ndarray:
        """Its middle on the floor plan [2]."""
        return self.box[:2].astype(float)

    @property
    def approachable(self) -> bool:
        """Whether a person can stand by it: it reaches the floor, or nearly, and is no rug."""
        return self.bottom < 0.3 and self.noun != "rug"

    def distance(self, other: "VisibleObject") -> float:
        """Metres between the closest points of the two boxes."""
        pair = (min(self.index, other.index), max(self.index, other.index))
        if pair not in self.distances:
            self.distances[pair] = gap(self.box, other.box)
        return self.distances[pair]

    def is_on(self, other: "VisibleObject") -> bool:
        """Whether its middle is over the other's footprint and its underside within its height."""
        level = other.bottom + 0.02 < self.bottom <= other.top + 0.03
        return level and self is not other and bool(in_polygon(self.position, corners(other.box)))


class SceneView:
    """The objects a clip shows clearly, by noun; ValueError if it lacks what questions need."""

    def __init__(self, clip: Clip):
        needed = ("instances", "poses", "intrinsics", "room_size")
        missing = [name for name in needed if getattr(clip, name) is None]
        if missing or clip.instances is None or not clip.objects:
            raise ValueError(
                f"questions: clip {clip.id} lacks {', '.join(missing) or 'objects'}; questions are "
                "made from rendered rooms of the plain style (vega3d scenes render), not from bare "
                "videos")
        pixels = clip.instances.reshape(len(clip.instances), -1)                             # [T,P]
        furniture = [o for o in clip.objects if o.category not in _SHELL]
        shares = [(pixels == o.id).mean(1) for o in furniture]                          # [T] each
        nouns = [noun_of(o.name, o.center[2] - o.size[2] / 2) for o in furniture]
        boxes = boxes_of(furniture)
        clear = [i for i, share in enumerate(shares) if share.max() >= CLEAR_SHARE]
        distances: dict[tuple[int, int], float] = {}
        self.clip = clip
        self.objects = [VisibleObject(k, furniture[i], nouns[i], boxes[i], shares[i],
                                      _fully_framed(clip, boxes[i]), distances)
                        for k, i in enumerate(clear)]
        self.boxes = boxes[clear]
        self.ambiguous_nouns = {nouns[i] for i, share in enumerate(shares)
                                if TRACE_SHARE <= share.max() < CLEAR_SHARE}
        self.all_boxes = boxes  # also those that are not clear

    @cached_property
    def by_noun(self) -> dict[str, list[VisibleObject]]:
        """Every noun with all its instances, without nouns that also have unclear instances."""
        out: dict[str, list[VisibleObject]] = {}
        for item in self.objects:
            if item.noun not in self.ambiguous_nouns:
                out.setdefault(item.noun, []).append(item)
        return out

    @cached_property
    def unique(self) -> list[VisibleObject]:
        """The only instances of their noun: what "the table" can mean."""
        return [group[0] for group in self.by_noun.values() if len(group) == 1]

    def mentions(self, *objects: VisibleObject) -> Mentions:
        """Each object in the frame that shows them all best; if none shows all clearly, each in
        the frame that shows it best."""
        shares = np.min([item.share for item in objects], 0)                                 # [T]
        frames = [int(shares.argmax())] * len(objects)
        if shares.max() < CLEAR_SHARE:
            frames = [int(item.share.argmax()) for item in objects]
        return tuple((item.noun, item.scene_object.id, frame)
                     for item, frame in zip(objects, frames, strict=True))


def _fully_framed(clip: Clip, box: np.ndarray) -> bool:
    assert clip.poses is not None and clip.intrinsics is not None
    heights = np.repeat([box[2] - box[5] / 2, box[2] + box[5] / 2], 4)
    points = np.c_[np.tile(corners(box), (2, 1)), heights].T  # [3,8]
    h, w = clip.frames.shape[2:]
    pixels, depth = project(transform(points, np.linalg.inv(clip.poses)), clip.intrinsics)
    u, v = pixels[:, 0], pixels[:, 1]                         # [T,8]
    inside = (depth > 0.05) & (u >= 0) & (u <= w) & (v >= 0) & (v <= h)
    return bool(inside.all(1).any())
