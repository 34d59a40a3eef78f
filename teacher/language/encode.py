"""From a clip's questions to tensors: what is written before, between and after the visual tokens,
and which boxes."""
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
from teacher.language.position import token_points, world_points
from teacher.towers.base import GRID

GROUNDED = ("ground", "multi_ground")
OFTEN = ("vsi:object_abs_distance", "ground")  # tasks of which a second draw asks something else
_STRIDE = 2  # px between the pixels that say which token is in which box


@dataclass
class RoomQuestions:
    """What a clip's questions need of it, without its frames."""
    id: str
    points: np.ndarray        # [T,14,14,3] float32 m
    boxes: np.ndarray         # [M,7] float32, every candidate once
    inside: np.ndarray        # [M,T*196] float16
    questions: list[Question]
    candidates: list[list[int]]  # of each question, into boxes


def read_room(clip: Clip, tasks: Sequence[str], seed: int, draws: int = 1) -> RoomQuestions:
    """Asks every task of one clip; `evened` takes the rooms of a split. draws: how often the tasks
    OFTEN are asked, of other things each time. Raises ValueError if the clip has no depth or
    camera."""
    if clip.depth is None or clip.intrinsics is None or clip.poses is None:
        raise ValueError(
            f"clip {clip.id}: questions need depth, intrinsics and poses; render it with: "
            "vega3d scenes render")
    view = SceneView(clip)
    return _room(clip, [q for task in tasks
                        for q in _drawn(view, task, seed, draws if task in OFTEN else 1)])


def imported_room(clip: Clip, asked: list[Question]) -> RoomQuestions:
    """The clip with questions that were stored with it (scenes.questions.stored).

    A clip without depth or camera has NaN points; raises ValueError if its questions have boxes.
    """
    if clip.depth is not None and clip.poses is not None:
        return _room(clip, asked)
    if any(len(question.boxes) for question in asked):
        raise ValueError(f"clip {clip.id}: questions with boxes need depth, intrinsics and poses")
    points = np.full((len(clip.frames), GRID, GRID, 3), np.nan, np.float32)
    inside = np.zeros((0, points[..., 0].size), np.float16)
    return RoomQuestions(clip.id, points, boxes_of([]), inside, asked, [[] for _ in asked])


def _room(clip: Clip, asked: list[Question]) -> RoomQuestions:
    assert clip.depth is not None and clip.intrinsics is not None and clip.poses is not None
    points = world_points(clip.depth, clip.intrinsics, clip.poses)  # [T,H,W,3]
    rows: dict[bytes, int] = {}
    unique: list[np.ndarray] = []
    candidates = []
    for question in asked:
        mine = []
        for box in _with_heading(question.boxes):
            if box.tobytes() not in rows:
                rows[box.tobytes()] = len(unique)
                unique.append(box)
            mine.append(rows[box.tobytes()])
        candidates.append(mine)
    boxes = np.stack(unique) if unique else boxes_of([])
    inside = box_tokens(points[:, ::_STRIDE, ::_STRIDE], boxes, GRID).astype(np.float16)
    return RoomQuestions(clip.id, token_points(points, GRID), boxes, inside, asked, candidates)


def _drawn(view: SceneView, task: str, seed: int, draws: int) -> list[Question]:
    """The first draw's questions, and of the others those that no earlier one has."""
    asked = questions(view, task, seed)
    for draw in range(1, draws):
        known = {question.text for question in asked}
        asked += [
            question for question in questions(view, task, seed + draw)
            if question.text not in known
        ]
    return asked


def balance_rooms(rooms: Sequence[RoomQuestions], seed: int) -> list[RoomQuestions]:
    """The rooms of one split with only those questions that scenes.balance keeps; rooms left with
    none stay out."""
    kept = {id(question) for question in balanced([q for room in rooms for q in room.questions], seed)}
    out = []
    for room in rooms:
        mine = [i for i, question in enumerate(room.questions) if id(question) in kept]
        if mine:
            out.append(replace(room, questions=[room.questions[i] for i in mine],
                               candidates=[room.candidates[i] for i in mine]))
    return out


class PromptEncoder:
    """Writes questions as token ids, with the tokenizer's chat template if it has one.

    <ground> and <coord> need not be in the tokenizer: they get the ids after the language model's
    last word.
    Raises ValueError for a tokenizer without an end-of-text token.
    """

    def __init__(self, tokenizer: Any, words: int):
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "tokenizer: has no end-of-text token (eos_token), so no answer would end; set one "
                "in its tokenizer_config.json")
        if len(tokenizer) > words:
            raise ValueError(
                f"tokenizer: knows {len(tokenizer)} words, the language model {words}; they do not "
                "belong together")
        self.tokenizer, self.words, self.end = tokenizer, words, tokenizer.eos_token_id
        self._known: dict[str, list[int]] = {}  # ids of the pieces seen so far
        before, self._after = _template(tokenizer)
        self.prefix: list[int] = self.encode(before)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in _pieces(text):
            if piece in SPECIALS:
                ids.append(self.words + SPECIALS.index(piece))
            else:
                if piece not in self._known:
                    self._known[piece] = self.tokenizer(piece, add_special_tokens=False).input_ids
                ids += self._known[piece]
        return ids

    def read_ahead(self, questions: Iterable[Question]) -> None:
        """Tokenises all pieces of these questions at once, which is some ten times quicker than one
        by one."""
        texts = {text for q in questions for text in (self._before_answer(q), q.answer) if text}
        pieces = {piece for text in texts for piece in _pieces(text)} - {*SPECIALS}
        if new := sorted(pieces - self._known.keys()):
            self._known |= zip(new,
                               self.tokenizer(new, add_special_tokens=False).input_ids, strict=True)

    def _before_answer(self, question: Question) -> str:
        return "\n" + question.prompt + self._after

    def prompt(self, question: Question) -> list[int]:
        """Token ids after the visual tokens, up to where the answer begins; <ground> ends a
        grounding question."""
        ids = self.encode(self._before_answer(question))
        return [*ids, *self.encode(GROUND)] if question.task in GROUNDED else ids

    def answer(self, question: Question) -> list[int]:
        """Token ids of the answer and the end; empty where the answer is a box."""
        return [*self.encode(question.answer), self.end] if question.answer is not None else []

    def read(self, ids: Sequence[int]) -> str:
        """The text of answer ids, up to the end token."""
        ids = list(ids)
        return self.tokenizer.decode(ids[:ids.index(self.end)] if self.end in ids else ids).strip()


@dataclass(frozen=True)
class EncodedQuestion:
    """One question, tokenised."""
    prompt: list[int]
    answer: list[int]
    coord: int               # box of <coord>, -1 = none
    candidates: list[int]    # empty unless it is to be grounded
    targets: tuple[int, ...]


def encode_room(writer: PromptEncoder, room: RoomQuestions) -> list[EncodedQuestion]:
    """Every question of a room."""
    out = []
    for question, boxes in zip(room.questions, room.candidates, strict=True):
        ground = question.task in GROUNDED
        prompt = writer.prompt(question)
        spot = COORD in question.prompt and bool(question.targets)
        offered = boxes[:len(question.offered)] if ground else []
        out.append(
            EncodedQuestion(prompt, writer.answer(question), boxes[question.targets[0]] if spot else -1,
                    offered, tuple(t for t in question.targets if t < len(offered))))
    return out


@dataclass(frozen=True)
class PaddingSpec:
    """The most that a question of some set holds: what a batch must have room for."""
    text: int        # tokens, the answer's among them
    answer: int      # tokens
    candidates: int  # boxes


def padding_spec(questions: Iterable[EncodedQuestion]) -> PaddingSpec:
    """Of at least one question."""
    text, answer, boxes = zip(
        *((len(w.prompt) + len(w.answer), len(w.answer), len(w.candidates)) for w in questions),
        strict=True)
    return PaddingSpec(max(text), max(answer), max(boxes))


def collate(groups: Sequence[Sequence[EncodedQuestion]], pad: int, room_for: int = 0,
         most: PaddingSpec | None = None) -> QuestionBatch:
    """Groups of equally many questions, one a clip, as tensors on the CPU; L is a multiple of 8.

    room_for: 0 writes the answers, as in training; n leaves them out and n free places behind each
    prompt. most: what the shapes have room for (in training), so that batches are alike; None: as
    these questions need.
    """
    texts = [[w.prompt + ([] if room_for else w.answer) for w in group] for group in groups]
    c, q = len(groups), len(groups[0])
    most = most or padding_spec(w for group in groups for w in group)
    l = most.text if not room_for else room_for + max(len(t) for group in texts for t in group)
    l, k = -(-l // 8) * 8, most.candidates
    ids = np.full((c, q, l), pad)
    wanted, length, start = np.full((c, q, most.answer), IGNORED), np.zeros((c, q), int), np.zeros(
        (c, q), int)
    coord, candidates, targets = np.full((c, q), -1), np.full((c, q, k), -1), np.zeros((c, q, k),
                                                                                       bool)
    for i, group in enumerate(groups):
        for j, one in enumerate(group):
            text = texts[i][j]
            ids[i, j, :len(text)], length[i, j], coord[i, j] = text, len(text), one.coord
            start[i, j] = len(one.prompt) - 1
            if not room_for:
                wanted[i, j, :len(one.answer)] = one.answer
            candidates[i, j, :len(one.candidates)] = one.candidates
            targets[i, j, list(one.targets)] = True
    return QuestionBatch(*(torch.from_numpy(x)
                   for x in (ids, length, start, wanted, coord, candidates, targets)))


def _pieces(text: str) -> list[str]:
    """The text, cut before and behind each of SPECIALS."""
    return [piece for piece in re.split(f"({'|'.join(SPECIALS)})", text) if piece]


def _with_heading(boxes: np.ndarray) -> np.ndarray:
    return np.pad(boxes, ((0, 0), (0, 7 - boxes.shape[1]))).astype(np.float32)


def _template(tokenizer: Any) -> tuple[str, str]:
    """What stands before the visual tokens, and between question and answer."""
    if not tokenizer.chat_template:
        return "", "\n"
    mark = "<image>"
    text = tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False,
                                         add_generation_prompt=True)
    before, _, after = text.partition(mark)
    return before, after
