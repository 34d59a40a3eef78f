"""Questions as tensors: the candidate boxes of a clip, token ids, and padded batches."""
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from scenes.boxes import boxes_of
from scenes.clip import Clip
from scenes.questions.balance import balanced
from scenes.questions.question import Question, questions
from scenes.questions.visibility import SceneView
from teacher.language.grounding import box_tokens
from teacher.language.model import COORD, GROUND, IGNORED, SPECIALS, QuestionBatch
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
    points: np.ndarray           # [T,14,14,3] float32 m
    boxes: np.ndarray            # [M,7] float32, the distinct candidates
    inside: np.ndarray           # [M,T*196] float16, `box_tokens`
    questions: list[Question]
    candidates: list[list[int]]  # of each question, indices into boxes

    def subset(self, indices: Sequence[int]) -> "RoomQuestions":
        return replace(self, questions=[self.questions[i] for i in indices],
                       candidates=[self.candidates[i] for i in indices])


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
    return _with_boxes(clip, found)


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
    return RoomQuestions(clip.id, points, boxes_of([]), inside, questions, [[] for _ in questions])


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
    coord: int               # index of the box of <coord>; -1: none
    candidates: list[int]    # indices of boxes; empty unless it is a grounding question
    targets: tuple[int, ...]


class PromptEncoder:
    """Questions to token ids and back, in the tokenizer's chat template if it has one.

    <ground> and <coord> have the ids after the language model's vocabulary. Raises ValueError for a
    tokenizer without an end-of-text token, or larger than the vocabulary.
    """

    def __init__(self, tokenizer: Any, vocab_size: int):
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: has no end-of-text token, so no answer would end; set "
                             "eos_token in its tokenizer_config.json")
        if len(tokenizer) > vocab_size:
            raise ValueError(f"tokenizer: has {len(tokenizer)} tokens, the language model "
                             f"{vocab_size}; they do not belong together")
        self.tokenizer, self.vocab_size, self.end = tokenizer, vocab_size, tokenizer.eos_token_id
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
            for text in filter(None, (self._prompt_text(question), question.answer)):
                pieces.update(_split_specials(text))
        if new := sorted(pieces - self._cache.keys() - {*SPECIALS}):
            ids = self.tokenizer(new, add_special_tokens=False).input_ids
            self._cache |= zip(new, ids, strict=True)

    def encode_room(self, room: RoomQuestions) -> list[EncodedQuestion]:
        return [self._encode_question(question, boxes)
                for question, boxes in zip(room.questions, room.candidates, strict=True)]

    def _encode_question(self, question: Question, boxes: list[int]) -> EncodedQuestion:
        prompt = self.encode(self._prompt_text(question))
        offered: list[int] = []
        if question.task in GROUNDED:
            prompt += self.encode(GROUND)
            offered = boxes[:len(question.offered)]
        answer = [*self.encode(question.answer), self.end] if question.answer is not None else []
        has_coord = COORD in question.prompt and bool(question.targets)
        return EncodedQuestion(prompt, answer, boxes[question.targets[0]] if has_coord else -1,
                               offered, tuple(t for t in question.targets if t < len(offered)))

    def _prompt_text(self, question: Question) -> str:
        return "\n" + question.prompt + self._after


@dataclass(frozen=True)
class PaddingSpec:
    """Largest sizes in a set of questions: the shape that a batch is padded to."""
    text: int        # tokens of prompt and answer
    answer: int      # tokens
    candidates: int  # boxes

    @classmethod
    def of(cls, questions: Iterable[EncodedQuestion]) -> "PaddingSpec":
        sizes = [(len(q.prompt + q.answer), len(q.answer), len(q.candidates)) for q in questions]
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
    labels, coord = np.full((c, q, a), IGNORED), np.full((c, q), -1)
    candidates, targets = np.full((c, q, k), -1), np.zeros((c, q, k), bool)
    for i, j in np.ndindex(c, q):
        one = groups[i][j]
        text = one.prompt + ([] if max_new_tokens else one.answer)
        ids[i, j, :len(text)], length[i, j], coord[i, j] = text, len(text), one.coord
        answer_start[i, j] = len(one.prompt) - 1
        if not max_new_tokens:
            labels[i, j, :len(one.answer)] = one.answer
        candidates[i, j, :len(one.candidates)] = one.candidates
        targets[i, j, list(one.targets)] = True
    arrays = (ids, length, answer_start, labels, coord, candidates, targets)
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
    return RoomQuestions(clip.id, mean_token_points(points, GRID), boxes, inside, found, candidates)


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
