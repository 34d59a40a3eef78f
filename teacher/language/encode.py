"""Questions as tensors: the candidate boxes of a clip, token ids, and padded batches."""
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from scenes.boxes import boxes_of, iou
from scenes.clip import Clip
from scenes.geometry import transform
from scenes.questions.balance import balanced
from scenes.questions.question import POINTER, Question, questions
from scenes.questions.visibility import SceneView
from teacher.language.grounding import box_tokens, token_shares
from teacher.language.model import GROUND, IGNORED, SPECIALS, QuestionBatch
from teacher.language.position import mean_token_points, world_points
from teacher.towers.base import GRID

GROUNDED = ("ground", "multi_ground")
# tasks of which another draw gives other questions
DRAWN_TASKS = ("vsi:object_abs_distance", "ground")
_STRIDE = 2  # px between the pixels that `box_tokens` counts


@dataclass
class RoomQuestions:
    """The questions about a clip, with the geometry they need but without its frames."""
    id: str
    points: np.ndarray           # [T,14,14,3] float32 m, world
    camera: np.ndarray           # [T,14,14,3] float32 m, each frame's camera
    focal: float                 # log(focal length / width); 0 where unknown
    boxes: np.ndarray            # [R,7] float32, the distinct candidates; zeros for a mask
    inside: np.ndarray           # [R,T*196] float16, share of each token in the box or mask
    questions: list[Question]
    candidates: list[list[int]]  # of each question's boxes, rows of `boxes`
    mentions: list[list[int]]    # of each question's mentions, rows of `inside`

    def subset(self, indices: Sequence[int]) -> "RoomQuestions":
        parts = (self.questions, self.candidates, self.mentions)
        chosen: list[Any] = [[part[i] for i in indices] for part in parts]
        return replace(self, questions=chosen[0], candidates=chosen[1], mentions=chosen[2])


def read_room(clip: Clip, tasks: Sequence[str], seed: int, draws: int = 1) -> RoomQuestions:
    """Questions of every task about one clip, not yet balanced (`balance_rooms`).

    draws: of the tasks in DRAWN_TASKS, without repeats. Raises ValueError without depth or camera.
    """
    if clip.depth is None or clip.intrinsics is None or clip.poses is None:
        raise ValueError(f"clip {clip.id}: questions need depth, intrinsics and poses; render it "
                         "with: vega3d scenes render")
    view = SceneView(clip)
    found = []
    for task in tasks:
        found += _draw(view, task, seed, draws if task in DRAWN_TASKS else 1)
    return _with_masks(view, found)


def imported_room(clip: Clip, questions: list[Question]) -> RoomQuestions:
    """The clip with its stored questions (scenes.questions.stored).

    Without depth or camera its points are NaN; raises ValueError if its questions have boxes.
    """
    if clip.depth is not None and clip.poses is not None:
        return _with_boxes(clip, questions)
    if any(len(question.boxes) for question in questions):
        raise ValueError(f"clip {clip.id}: questions with boxes need depth, intrinsics and poses")
    points = np.full((len(clip.frames), GRID, GRID, 3), np.nan, np.float32)
    inside = np.zeros((0, points[..., 0].size), np.float16)
    none: list[list[int]] = [[] for _ in questions]
    return RoomQuestions(clip.id, points, points, 0.0, boxes_of([]), inside, questions, none, none)


def balance_rooms(rooms: Sequence[RoomQuestions], seed: int) -> list[RoomQuestions]:
    """The rooms with the questions that scenes.questions.balance retains, if any."""
    every = [question for room in rooms for question in room.questions]
    retained = {id(question) for question in balanced(every, seed)}
    out = []
    for room in rooms:
        indices = [i for i, question in enumerate(room.questions) if id(question) in retained]
        if indices:
            out.append(room.subset(indices))
    return out


@dataclass(frozen=True)
class EncodedQuestion:
    prompt: list[int]        # token ids after the visual tokens, before the answer
    answer: list[int]        # token ids with the end token; empty for a box
    number: float            # log of the number in metres; NaN: none
    coords: list[int]        # regions of the <coord>s in the prompt, in order
    candidates: list[int]    # indices of boxes; empty unless it is a grounding question
    targets: tuple[int, ...]
    options: list[int]       # position of each option's last token; empty without the choice head
    right: int               # of `options`


class PromptEncoder:
    """Questions to token ids and back, in the tokenizer's chat template if it has one.

    pointers: with a <coord> after each mention. number_head: a numeric answer has no tokens.
    choice_head: a multiple choice's answer has none either; its options' ends are given.
    <ground> and <coord> have the ids after the language model's vocabulary.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, pointers: bool = True,
                 number_head: bool = True, choice_head: bool = False):
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: has no end-of-text token, so no answer would end; set "
                             "eos_token in its tokenizer_config.json")
        if len(tokenizer) > vocab_size:
            raise ValueError(f"tokenizer: has {len(tokenizer)} tokens, the language model "
                             f"{vocab_size}; they do not belong together")
        self.tokenizer, self.vocab_size, self.end = tokenizer, vocab_size, tokenizer.eos_token_id
        self.pointers, self.number_head = pointers, number_head
        self.choice_head = choice_head
        self._cache: dict[str, list[int]] = {}  # ids of pieces of text
        before, self._after = _chat_template(tokenizer)
        self.prefix: list[int] = self.encode(before)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in _split_specials(text):
            if piece in SPECIALS:
                ids.append(self.vocab_size + SPECIALS.index(piece))
                continue
            if piece not in self._cache:
                self._cache[piece] = self.tokenizer(piece, add_special_tokens=False).input_ids
            ids += self._cache[piece]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the end token."""
        ids = list(ids)
        return self.tokenizer.decode(ids[:ids.index(self.end)] if self.end in ids else ids).strip()

    def fill_cache(self, questions: Iterable[Question]) -> None:
        """Tokenises all texts in one call, about ten times faster than one by one."""
        pieces: set[str] = set()
        for question in questions:
            for text in (*self._prompt_parts(question), question.answer or ""):
                pieces.update(_split_specials(text))
        if new := sorted(pieces - self._cache.keys() - {*SPECIALS}):
            ids = self.tokenizer(new, add_special_tokens=False).input_ids
            self._cache |= zip(new, ids, strict=True)

    def encode_room(self, room: RoomQuestions) -> list[EncodedQuestion]:
        rows = zip(room.questions, room.candidates, room.mentions, strict=True)
        return [self._encode_question(*row) for row in rows]

    def _encode_question(self, question: Question, boxes: list[int],
                         mentions: list[int]) -> EncodedQuestion:
        prompt: list[int] = []
        ends: list[int] = []
        for part in self._prompt_parts(question):
            prompt += self.encode(part)
            ends.append(len(prompt) - 1)
        offered: list[int] = []
        if question.task in GROUNDED:
            prompt += self.encode(GROUND)
            offered = boxes[:len(question.offered)]
        number = np.nan if question.number is None else log_number(question)
        options = ends[:-1]
        has_tokens = question.answer is not None and not self._by_head(question)
        answer = [*self.encode(question.answer or ""), self.end] if has_tokens else []
        coords = mentions if self.pointers else []
        if not question.mentions and POINTER in question.prompt and question.targets:
            coords = [boxes[question.targets[0]]]
        return EncodedQuestion(prompt, answer, number, coords, offered,
                               right_candidates(question) if offered else (), options,
                               question.right_option if options else 0)

    def _by_head(self, question: Question) -> bool:
        if question.options:
            return self.choice_head
        return self.number_head and question.number is not None

    def _prompt_parts(self, question: Question) -> list[str]:
        """The prompt, without the line on the answer's form if a head answers; with the choice head
        cut after each option."""
        rest = "\n" + (question.pointed_prompt if self.pointers else question.prompt)
        if self._by_head(question):
            rest = rest.removesuffix(f"\n{question.ending}")
        rest += self._after
        parts = []
        for option in question.options if self.choice_head else ():
            before, found, rest = rest.partition(f"\n{option}")
            parts.append(before + found)
        return [*parts, rest]


def log_number(question: Question) -> float:
    """Log of the answer in metres, what the numeric head predicts."""
    assert question.number is not None
    return float(np.log(max(question.number * question.unit, 1e-3)))


def right_candidates(question: Question) -> tuple[int, ...]:
    """The targets among the offered boxes; of proposals, those nearest to a target, IoU >= 0.5."""
    if question.proposals is None or not question.targets or not question.proposals:
        return question.targets
    overlaps = iou(question.offered, question.boxes[list(question.targets)])  # [K,targets]
    best = overlaps.argmax(0)
    right = {int(k) for k, overlap in zip(best, overlaps.max(0), strict=True) if overlap >= 0.5}
    return tuple(sorted(right))


@dataclass(frozen=True)
class PaddingSpec:
    """Largest sizes in a set of questions: the shape that a batch is padded to."""
    text: int        # tokens of prompt and answer
    answer: int      # tokens
    candidates: int  # boxes
    coords: int      # pointers
    options: int     # of a multiple choice

    @classmethod
    def of(cls, questions: Iterable[EncodedQuestion]) -> "PaddingSpec":
        sizes = [(len(q.prompt + q.answer), len(q.answer), len(q.candidates), len(q.coords),
                  len(q.options)) for q in questions]
        return cls(*map(max, zip(*sizes, strict=True)))


def collate(groups: Sequence[Sequence[EncodedQuestion]], pad: int, max_new_tokens: int = 0,
            padding: PaddingSpec | None = None) -> QuestionBatch:
    """Equally many questions about each clip as tensors on the CPU; L is a multiple of 8.

    max_new_tokens: 0 includes the answers (training); else only the prompts, each with at least so
    many free positions. padding: the shape in training; None: as small as possible.
    """
    c, q = len(groups), len(groups[0])
    padding = padding or PaddingSpec.of(one for group in groups for one in group)
    longest = padding.text
    if max_new_tokens:
        longest = max(len(one.prompt) for group in groups for one in group) + max_new_tokens
    k, a = padding.candidates, padding.answer
    ids = np.full((c, q, -(-longest // 8) * 8), pad)
    length, answer_start = np.zeros((c, q), int), np.zeros((c, q), int)
    labels, coords = np.full((c, q, a), IGNORED), np.full((c, q, padding.coords), -1)
    candidates, targets = np.full((c, q, k), -1), np.zeros((c, q, k), bool)
    number = np.full((c, q), np.nan, np.float32)
    options, right = np.full((c, q, padding.options), -1), np.zeros((c, q), int)
    for i, j in np.ndindex(c, q):
        one = groups[i][j]
        text = one.prompt + ([] if max_new_tokens else one.answer)
        ids[i, j, :len(text)], length[i, j], number[i, j] = text, len(text), one.number
        answer_start[i, j], coords[i, j, :len(one.coords)] = len(one.prompt) - 1, one.coords
        if not max_new_tokens:
            labels[i, j, :len(one.answer)] = one.answer
        candidates[i, j, :len(one.candidates)] = one.candidates
        targets[i, j, list(one.targets)] = True
        options[i, j, :len(one.options)], right[i, j] = one.options, one.right
    arrays = (ids, length, answer_start, labels, number, coords, candidates, targets, options,
              right)
    return QuestionBatch(*map(torch.from_numpy, arrays))


def _with_boxes(clip: Clip, found: list[Question]) -> RoomQuestions:
    assert clip.depth is not None and clip.intrinsics is not None and clip.poses is not None
    points = world_points(clip.depth, clip.intrinsics, clip.poses)  # [T,H,W,3]
    index: dict[bytes, int] = {}  # of a distinct box, by its bytes
    unique: list[np.ndarray] = []
    candidates = []
    for question in found:
        padding = ((0, 0), (0, 7 - question.boxes.shape[1]))  # no heading: 0
        boxes = np.pad(question.boxes, padding).astype(np.float32)
        for box in boxes:
            if box.tobytes() not in index:
                index[box.tobytes()] = len(unique)
                unique.append(box)
        candidates.append([index[box.tobytes()] for box in boxes])
    boxes = np.stack(unique) if unique else boxes_of([])
    inside = box_tokens(points[:, ::_STRIDE, ::_STRIDE], boxes, GRID).astype(np.float16)
    return RoomQuestions(clip.id, *_geometry(clip), boxes, inside, found, candidates,
                         [[] for _ in found])


def _with_masks(view: SceneView, found: list[Question]) -> RoomQuestions:
    """Candidates are jittered proposals, then the true boxes; tokens are those of 2-D masks."""
    clip = view.clip
    assert clip.instances is not None
    rng = np.random.default_rng([*clip.id.encode()])
    masks = [clip.instances == item.scene_object.id for item in view.objects]
    proposals = [_jittered_box(box, rng) for box in view.boxes]
    inside = [token_shares(_jittered_mask(mask, rng), GRID) for mask in masks]
    inside += [token_shares(mask, GRID) for mask in masks]
    boxes, count = [*proposals, *view.boxes], len(masks)
    rows: dict[tuple[int, int], int] = {}  # (object, frame) of a mention -> row
    for number, frame in (mention[1:] for question in found for mention in question.mentions):
        if (number, frame) not in rows:
            rows[number, frame] = len(boxes)
            boxes.append(np.zeros(7, np.float32))
            inside.append(np.zeros((len(clip.frames), GRID, GRID), np.float32))
            inside[-1][frame] = token_shares(clip.instances[frame][None] == number, GRID)[0]
    questions = []
    for question in found:
        if len(question.boxes):
            question = replace(question, boxes=np.stack(boxes[:2 * count]), proposals=count,
                               targets=tuple(count + target for target in question.targets))
        questions.append(question)
    return RoomQuestions(
        clip.id, *_geometry(clip), np.stack(boxes).astype(np.float32),
        np.stack(inside).reshape(len(inside), -1).astype(np.float16), questions,
        [list(range(len(q.boxes))) for q in questions],
        [[rows[mention[1:]] for mention in q.mentions] for q in questions])


def _geometry(clip: Clip) -> tuple[np.ndarray, np.ndarray, float]:
    """RoomQuestions.points, camera and focal."""
    assert clip.depth is not None and clip.intrinsics is not None and clip.poses is not None
    points = mean_token_points(world_points(clip.depth, clip.intrinsics, clip.poses), GRID)
    columns = points.reshape(len(points), -1, 3).transpose(0, 2, 1)           # [T,3,196]
    camera = transform(columns, np.linalg.inv(clip.poses)).transpose(0, 2, 1)
    focal = float(np.log(clip.intrinsics[0, 0] / clip.frames.shape[3]))
    return points, camera.reshape(points.shape).astype(np.float32), focal


def _jittered_box(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A proposal of an object [7], IoU 0.5 to 1."""
    move, stretch = rng.uniform(-0.3, 0.3, (2, 3))
    while True:
        moved = box.copy()
        moved[:3] += move * box[3:6]
        moved[3:6] *= np.exp(stretch)
        if iou(moved[None], box[None])[0, 0] >= 0.5:
            return moved
        move, stretch = move / 2, stretch / 2


def _jittered_mask(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each frame's mask [T,H,W] moved by a share of its size, IoU 0.5 to 1."""
    out = np.zeros_like(mask)
    for t in np.flatnonzero(mask.any((1, 2))):
        rows, columns = np.nonzero(mask[t])
        shift = rng.uniform(-0.3, 0.3, 2) * [np.ptp(rows) + 1, np.ptp(columns) + 1]
        while True:
            inside = np.zeros_like(mask[t])
            y, x = rows + round(shift[0]), columns + round(shift[1])
            kept = (y >= 0) & (y < mask.shape[1]) & (x >= 0) & (x < mask.shape[2])
            inside[y[kept], x[kept]] = True
            if (inside & mask[t]).sum() >= 0.5 * (inside | mask[t]).sum():
                break
            shift = shift / 2
        out[t] = inside
    return out


def _draw(view: SceneView, task: str, seed: int, draws: int) -> list[Question]:
    found = questions(view, task, seed)
    for draw in range(1, draws):
        texts = {question.text for question in found}
        found += [question for question in questions(view, task, seed + draw)
                  if question.text not in texts]
    return found


def _split_specials(text: str) -> list[str]:
    return [piece for piece in re.split(f"({'|'.join(SPECIALS)})", text) if piece]


def _chat_template(tokenizer: Any) -> tuple[str, str]:
    """The text before the visual tokens, and between question and answer."""
    if not tokenizer.chat_template:
        return "", "\n"
    mark = "<image>"
    text = tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False,
                                         add_generation_prompt=True)
    before, _, after = text.partition(mark)
    return before, after
