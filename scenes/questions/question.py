"""Questions about a clip: the text, the task, and everything their score needs.

Tasks: "vsi:<type>" for the types of VSI-Bench; "ground", "multi_ground", "caption" and "situated"
after ScanRefer, Multi3DRefer, Scan2Cap and SQA3D; "camera_distance" and "depth_order"; "qa" after
ScanQA, imported only; "same_noun_closest", in none of the defaults.
"""
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scenes.clip import Clip
from scenes.questions.visibility import SceneView

VSI_TYPES: tuple[str, ...] = (
    "object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation",
    "object_rel_distance", "object_rel_direction_easy", "object_rel_direction_medium",
    "object_rel_direction_hard", "route_planning", "obj_appearance_order")
NUMERIC: tuple[str, ...] = tuple(f"vsi:{t}" for t in VSI_TYPES[:4])
TASKS = (*(f"vsi:{t}" for t in VSI_TYPES), "ground", "multi_ground", "caption", "situated",
         "camera_distance", "depth_order")
IMPORTED_TASKS = (*TASKS, "qa")
# no evidence of geometry: once the objects are pointed at, place in the picture alone answers them
# (relative distances: no training of bench/results/sensitivity.json learned them)
POINTER_CHECKS = (*(f"vsi:{t}" for t in VSI_TYPES if t.startswith("object_rel_d")),
                  "same_noun_closest")
NO_BOXES = np.zeros((0, 7), np.float32)
POINTER = "<coord>"  # stands for a region of a frame, or a box
COORD = f"Given an object located at {POINTER} , describe the object in detail."  # every caption
_IDENTIFY = "Identify the object according to the following description.\n{}"
PROMPTS = {
    "ground": _IDENTIFY,
    "multi_ground":
        _IDENTIFY + "\nThere may be no corresponding object, or there may be one or more objects.",
    "caption": "{}", "qa": "{} Answer the question simply.",
    "situated": "{} Answer the question using a single word or phrase."}
CHOICE_ENDING = "Answer with the option's letter from the given choices directly."
_NUMBER_ENDING = "Please answer the question using a single word or phrase."


@dataclass(frozen=True, eq=False)
class Question:
    """One question. Boxes are in the clip's world frame, in metres."""
    clip_id: str
    task: str                         # one of IMPORTED_TASKS
    text: str                         # the bare question, description or situation and question
    answer: str | None                # as a perfect model writes it: "B", "4"; None = boxes
    number: float | None              # the answer of a numeric type
    options: tuple[str, ...]          # "A. left", ...; empty unless multiple choice
    boxes: np.ndarray                 # [K,6|7] float32 candidates: centre, size (, heading rad)
    targets: tuple[int, ...]          # rows of `boxes`; empty = none of them
    kind: str = ""  # subtype: unique | multiple; zt_w_d ... mt; what, is, how, can, which, others
    answers: tuple[str, ...] = ()     # every answer or caption that counts as right
    proposals: int | None = None      # only the first so many boxes may be chosen; None = all
    # (noun, SceneObject.id, frame) of objects in the order of the text
    mentions: tuple[tuple[str, int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] not in (6, 7):
            raise ValueError(f"question about {self.clip_id}: boxes are {list(self.boxes.shape)}, "
                             "expected [K,6] or [K,7]")
        if self.targets and not 0 <= min(self.targets) <= max(self.targets) < len(self.boxes):
            raise ValueError(f"question about {self.clip_id}: targets {self.targets} among "
                             f"{len(self.boxes)} boxes")

    @property
    def offered(self) -> np.ndarray:
        """The boxes [K,6|7] a model may choose from."""
        return self.boxes[:self.proposals]

    @property
    def prompt(self) -> str:
        """What the language model reads after the visual tokens, worded as VEGA-3D's benchmarks."""
        if self.task in PROMPTS:
            return PROMPTS[self.task].format(self.text)
        lines = ["These are frames of a video.", self.text]
        if self.options:
            lines += ["Options:", *self.options]
        return "\n".join([*lines, self.ending])

    @property
    def ending(self) -> str:
        """The last line of `prompt`, on the form of the answer; empty where PROMPTS has it."""
        if self.task in PROMPTS:
            return ""
        return CHOICE_ENDING if self.options else _NUMBER_ENDING

    @property
    def pointed_prompt(self) -> str:
        """`prompt` with a POINTER after each mention."""
        done, rest = "", self.prompt
        for noun, _, _ in self.mentions:
            found = re.search(rf"\b{re.escape(noun)}\b", rest)
            if found is None:
                raise ValueError(f"question about {self.clip_id}: does not mention the {noun} in "
                                 f"its place: {self.text}")
            done += f"{rest[:found.end()]} {POINTER}"
            rest = rest[found.end():]
        return done + rest

    @property
    def right_option(self) -> int:
        """The index of a multiple choice's right option. Raises ValueError if none is."""
        letters = [option[0] for option in self.options]
        if self.answer not in letters:
            raise ValueError(f"question about {self.clip_id}: the answer {self.answer!r} is none "
                             f"of the options {', '.join(letters)}")
        return letters.index(self.answer)

    @property
    def unit(self) -> float:
        """Of `number`, in metres (or square metres, or objects)."""
        return 0.01 if self.task == "vsi:object_size_estimation" else 1.0


def questions(clip: Clip | SceneView, task: str, seed: int = 0) -> list[Question]:
    """Every question of this task that the clip supports; `seed` fixes their order and wording."""
    from scenes.questions import referring, spatial, vsi

    makers: dict[str, Callable] = {**vsi.MAKERS, **referring.MAKERS, **spatial.MAKERS}
    if task not in makers:
        raise ValueError(f"questions: no task {task!r}; there are {', '.join(TASKS)}")
    view = clip if isinstance(clip, SceneView) else SceneView(clip)
    number = (*TASKS, *POINTER_CHECKS).index(task)
    rng = np.random.default_rng([seed, number, *view.clip.id.encode()])
    out: list[Question] = makers[task](view, rng)
    return [out[i] for i in rng.permutation(len(out))]
