"""Questions about a clip: what is asked, of which task, and everything its score needs.

Tasks: "vsi:<type>" for the types of VSI-Bench (scenes.spatial), "ground", "multi_ground", "caption"
and "situated" (scenes.referring), after ScanRefer, Multi3DRefer, Scan2Cap and SQA3D; "qa" after
ScanQA exists for ScanNet only.
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scenes.clip import Clip
from scenes.questions.visibility import SceneView

VSI_TYPES: tuple[str, ...] = ("object_counting", "object_abs_distance", "object_size_estimation",
                              "room_size_estimation", "object_rel_distance",
                              "object_rel_direction_easy", "object_rel_direction_medium",
                              "object_rel_direction_hard", "route_planning", "obj_appearance_order")
NUMERIC: tuple[str, ...] = tuple(f"vsi:{t}" for t in VSI_TYPES[:4])
TASKS: tuple[str, ...] = (*(f"vsi:{t}"
                            for t in VSI_TYPES), "ground", "multi_ground", "caption", "situated")
IMPORTED_TASKS = (*TASKS, "qa")  # of imported questions; "qa" is ScanQA's
NO_BOXES = np.zeros((0, 7), np.float32)
_FRAMES = "These are frames of a video.\n"
_ENDINGS = {"letter": "Answer with the option's letter from the given choices directly.",
            "number": "Please answer the question using a single word or phrase."}


@dataclass(frozen=True, eq=False)
class Question:
    """One question. Boxes are in the clip's world frame, metres; the answer is what a perfect model
    writes."""
    clip_id: str
    task: str                         # one of TASKS, or "qa"
    text: str                         # the bare question, description or situation and question
    answer: str | None                # "B", "4", "white"; None where the answer is a box
    number: float | None              # the answer of a numeric type
    options: tuple[str, ...]          # "A. left", ...; empty unless multiple choice
    boxes: np.ndarray  # [K,6] or [K,7] float32: centre, size (, heading rad) of the candidates
    targets: tuple[int, ...]          # which candidates are meant; empty = none of them
    kind: str = ""  # subtype: unique | multiple; zt_w_d ... mt; what, is, how, can, which, others
    answers: tuple[str, ...] = ()     # every answer or caption that counts as right
    # only the first so many boxes may be chosen (detected ones); None = all of them
    proposals: int | None = None

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] not in (6, 7):
            raise ValueError(
                f"question about {self.clip_id}: boxes are {list(self.boxes.shape)}, expected "
                "[K,6] or [K,7]")
        if self.targets and not 0 <= min(self.targets) <= max(self.targets) < len(self.boxes):
            raise ValueError(
                f"question about {self.clip_id}: targets {self.targets} among {len(self.boxes)} "
                "boxes"
            )

    @property
    def offered(self) -> np.ndarray:
        """The boxes [K,6|7] a model may choose from."""
        return self.boxes[:self.proposals]

    @property
    def prompt(self) -> str:
        """What the language model reads after the visual tokens, in the words of VEGA-3D's
        benchmark code."""
        if self.task.startswith("vsi:"):
            choices = "".join(f"\n{option}" for option in self.options)
            ending = _ENDINGS["letter" if self.options else "number"]
            return f"{_FRAMES}{self.text}{chr(10) + 'Options:' + choices if choices else ''}\n{ending}"
        return PROMPTS[self.task].format(self.text)


PROMPTS = {
    "ground": "Identify the object according to the following description.\n{}", "multi_ground":
        "Identify the object according to the following description.\n{}\nThere may be no "
        "corresponding object, or there may be one or more objects.", "caption": "{}",
    "qa": "{} Answer the question simply.",
    "situated": "{} Answer the question using a single word or phrase."
}
# the text of every caption question
COORD = "Given an object located at <coord> , describe the object in detail."


def questions(clip: Clip | SceneView, task: str, seed: int = 0) -> list[Question]:
    """Every question of this task that the clip supports, in random order; the same seed gives the
    same ones.

    A SceneView of the clip serves many tasks and is made once. The clip needs instances, objects and
    poses (and depth), as rendered rooms have. Raises ValueError for a task that is not in TASKS, or
    a clip that lacks something. A clip that shows too little for the task gives an empty list.
    """
    from scenes.questions import referring, vsi

    makers: dict[str, Callable] = {**vsi.MAKERS, **referring.MAKERS}
    if task not in makers:
        raise ValueError(f"questions: no task {task!r}; there are {', '.join(TASKS)}")
    view = clip if isinstance(clip, SceneView) else SceneView(clip)
    rng = np.random.default_rng([seed, TASKS.index(task), *view.clip.id.encode()])
    made: list[Question] = makers[task](view, rng)
    return [made[i] for i in rng.permutation(len(made))]
