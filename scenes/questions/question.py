"""Questions about a clip: the text, the task, and everything their score needs.

Tasks: "vsi:<type>" for the types of VSI-Bench (scenes.questions.vsi); "ground", "multi_ground",
"caption" and "situated" (scenes.questions.referring) after ScanRefer, Multi3DRefer, Scan2Cap and
SQA3D; "qa" after ScanQA, of imported questions only.
"""
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
TASKS = (*(f"vsi:{t}" for t in VSI_TYPES), "ground", "multi_ground", "caption", "situated")
IMPORTED_TASKS = (*TASKS, "qa")
NO_BOXES = np.zeros((0, 7), np.float32)
COORD = "Given an object located at <coord> , describe the object in detail."  # of every caption
_IDENTIFY = "Identify the object according to the following description.\n{}"
PROMPTS = {
    "ground": _IDENTIFY,
    "multi_ground":
        _IDENTIFY + "\nThere may be no corresponding object, or there may be one or more objects.",
    "caption": "{}", "qa": "{} Answer the question simply.",
    "situated": "{} Answer the question using a single word or phrase."}
_CHOICE_ENDING = "Answer with the option's letter from the given choices directly."
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
        if not self.task.startswith("vsi:"):
            return PROMPTS[self.task].format(self.text)
        lines = ["These are frames of a video.", self.text]
        if self.options:
            lines += ["Options:", *self.options]
        return "\n".join([*lines, _CHOICE_ENDING if self.options else _NUMBER_ENDING])


def questions(clip: Clip | SceneView, task: str, seed: int = 0) -> list[Question]:
    """Every question of this task that the clip supports, in an order and wording fixed by `seed`.

    A SceneView of the clip can be reused for several tasks. Raises ValueError for a task that is
    not in TASKS, or a clip without instances, objects and cameras.
    """
    from scenes.questions import referring, vsi

    makers: dict[str, Callable] = {**vsi.MAKERS, **referring.MAKERS}
    if task not in makers:
        raise ValueError(f"questions: no task {task!r}; there are {', '.join(TASKS)}")
    view = clip if isinstance(clip, SceneView) else SceneView(clip)
    rng = np.random.default_rng([seed, TASKS.index(task), *view.clip.id.encode()])
    out: list[Question] = makers[task](view, rng)
    return [out[i] for i in rng.permutation(len(out))]
