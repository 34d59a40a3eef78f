"""Questions and visual features of many clips on the device; batches are drawn by (seed, step)."""
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from records.files import atomic_write, parse_json, reading, to_json
from records.progress import track
from scenes.clip import Source
from scenes.questions.question import Question
from scenes.questions.stored import load_questions, tuples_of
from teacher.data.feature_store import FeatureStore
from teacher.language.encode import (
    PaddingSpec,
    PromptEncoder,
    RoomQuestions,
    balance_rooms,
    collate,
    imported_room,
    read_room,
)
from teacher.language.model import QuestionBatch, VisualInputs

NUMBER, CHOICE = "vsi_number", "vsi_choice"
# A batch has questions of one family, as in the paper; the values are sampling weights. Numbers and
# multiple choice are families of their own, because options make prompts long.
FAMILIES = {NUMBER: 2, CHOICE: 2, "ground": 2, "multi_ground": 2, "caption": 1,
            "situated": 1, "qa": 1}
READERS = 8  # threads
ALONE_CLIPS = 200  # from which on processes ask, a clip in 50 ms; they take seconds to start
_ARRAYS = ("points", "camera", "boxes", "inside")  # of RoomQuestions


def family(question: Question) -> str:
    if question.number is not None:
        return NUMBER
    return CHOICE if question.options else question.task


@dataclass(frozen=True)
class Batch:
    visual: VisualInputs
    questions: QuestionBatch
    rows: list[tuple[int, int]]  # (room, question) of each question, clip by clip


class QuestionDataset:
    """Questions about N rooms with their features [N,T,D,14,14]; generative may be None."""

    def __init__(self, rooms: Sequence[RoomQuestions], semantic: Tensor, generative: Tensor | None,
                 encoder: PromptEncoder, device: torch.device):
        if not any(room.questions for room in rooms):
            raise ValueError("dataset: no questions about these clips; render more rooms")
        _check_shapes(rooms, {"semantic": semantic, "generative": generative})
        self.rooms, self.encoder, self.device = list(rooms), encoder, device
        encoder.fill_cache(question for room in rooms for question in room.questions)
        self.encoded = [encoder.encode_room(room) for room in rooms]
        most = max(len(room.boxes) for room in rooms)
        self.visual = VisualInputs(semantic.to(device),
                                   None if generative is None else generative.to(device),
                                   _stacked([r.points for r in rooms]).to(device),
                                   _stacked([r.camera for r in rooms]).to(device),
                                   torch.tensor([r.focal for r in rooms], device=device),
                                   _padded([r.boxes for r in rooms], most).to(device),
                                   _padded([r.inside for r in rooms], most).to(device))
        self.by_family: dict[str, dict[int, list[int]]] = {}  # family -> room -> questions
        for i, room in enumerate(rooms):
            for j, question in enumerate(room.questions):
                self.by_family.setdefault(family(question), {}).setdefault(i, []).append(j)
        self.padding = {}
        for name, by_room in self.by_family.items():
            pairs = [(i, j) for i, indices in by_room.items() for j in indices]
            self.padding[name] = PaddingSpec.of(self.encoded[i][j] for i, j in pairs)
        self.families = [name for name in FAMILIES if name in self.by_family]
        weights = np.array([FAMILIES[name] for name in self.families], float)
        self.shares = weights / weights.sum()

    def __len__(self) -> int:
        return sum(len(room.questions) for room in self.rooms)

    def sample_batch(self, seed: int, step: int, clips: int, questions: int, rank: int = 0,
                     fixed_shape: bool = False) -> Batch:
        """One family, `clips` clips, `questions` questions about each (repeated if it has fewer).

        Processes of a step draw the same family and other clips. fixed_shape: pads to the family's
        longest question.
        """
        rng = np.random.default_rng([seed, step])
        name = self.families[rng.choice(len(self.families), p=self.shares)]
        by_room = self.by_family[name]
        rng = np.random.default_rng([seed, step, rank])
        weights = np.array([min(len(indices), questions) for indices in by_room.values()], float)
        rooms = rng.choice(list(by_room), clips, replace=len(by_room) < clips,
                           p=weights / weights.sum()).tolist()
        picked = []
        for room in rooms:
            repeat = len(by_room[room]) < questions
            picked.append(rng.choice(by_room[room], questions, replace=repeat).tolist())
        return self._batch(rooms, picked, padding=self.padding[name] if fixed_shape else None)

    def eval_batches(self, name: str, clips: int, questions: int,
                     max_new_tokens: int = 0) -> Iterator[Batch]:
        """Every question of a family once, equally many a clip; max_new_tokens: as in `collate`."""
        chunks: dict[int, list[tuple[int, list[int]]]] = {}  # size -> (room, questions)
        for room, indices in self.by_family.get(name, {}).items():
            for start in range(0, len(indices), questions):
                part = indices[start:start + questions]
                chunks.setdefault(len(part), []).append((room, part))
        for same_size in chunks.values():
            for start in range(0, len(same_size), clips):
                rooms, picked = zip(*same_size[start:start + clips], strict=True)
                yield self._batch(rooms, picked, max_new_tokens)

    def visual_batches(self, clips: int) -> Iterator[VisualInputs]:
        """The visual inputs of every room once."""
        for start in range(0, len(self.rooms), clips):
            yield self._visual(torch.arange(start, min(start + clips, len(self.rooms)),
                                            device=self.device))

    def _visual(self, rooms: Tensor) -> VisualInputs:
        parts = [None if x is None else x[rooms] for x in vars(self.visual).values()]
        return VisualInputs(*parts)  # type: ignore[arg-type]

    def _batch(self, rooms: Sequence[int], picked: Sequence[list[int]], max_new_tokens: int = 0,
               padding: PaddingSpec | None = None) -> Batch:
        rows, texts = [], []
        for room, indices in zip(rooms, picked, strict=True):
            rows += [(room, j) for j in indices]
            texts.append([self.encoded[room][j] for j in indices])
        questions = collate(texts, self.encoder.end, max_new_tokens, padding)
        for name, value in vars(questions).items():
            setattr(questions, name, value.to(self.device, non_blocking=True))
        return Batch(self._visual(torch.tensor(rooms, device=self.device)), questions, rows)


def read_rooms(source: Source, ids: Sequence[str], tasks: Sequence[str], seed: int,
               draws: int = 1) -> list[RoomQuestions]:
    """Balanced questions about the clips, in order; draws: as in `read_room`. Drops empty clips."""
    from scenes.rooms.source import render_clips
    from scenes.rooms.writer import default_workers

    reader = _RoomReader(source, tasks, seed, draws)
    read = render_clips(reader, ids, default_workers() if len(ids) >= ALONE_CLIPS else 0)
    return balance_rooms([*track(read, "questions", total=len(ids))], seed)


@dataclass(frozen=True)
class _RoomReader:
    """`read_room` of a clip by its id, for the workers of `render_clips`."""
    source: Source
    tasks: Sequence[str]
    seed: int
    draws: int

    def clip(self, clip_id: str) -> RoomQuestions:
        return read_room(self.source.clip(clip_id), self.tasks, self.seed, self.draws)


def read_imported_rooms(source: Source, ids: Sequence[str], tasks: Sequence[str],
                        folder: Path) -> list[RoomQuestions]:
    """Clips with the questions of these tasks stored in `folder`; clips without any are dropped."""
    stored, rooms = load_questions(folder) or {}, []
    for clip_id in track(ids, "questions"):
        if questions := [q for q in stored.get(clip_id, []) if q.task in tasks]:
            rooms.append(imported_room(source.clip(clip_id), questions))
    return rooms


def load_features(store: FeatureStore, rooms: Sequence[RoomQuestions]) -> Tensor:
    """Features of the rooms, [N,T,D,14,14] float16. Raises ValueError for one that is missing."""
    # threads: the store hashes each file at its first reading
    with ThreadPoolExecutor(READERS) as readers:
        return torch.stack([*readers.map(lambda room: store.get(room.id), rooms)])


def save_rooms(rooms: Sequence[RoomQuestions], path: Path) -> None:
    """Writes rooms to one safetensors file for `load_rooms`."""
    arrays, texts = {}, []
    for i, room in enumerate(rooms):
        for name in _ARRAYS:
            arrays[f"{i}/{name}"] = np.ascontiguousarray(getattr(room, name))
        questions = [asdict(question) for question in room.questions]
        for fields in questions:
            del fields["boxes"]
        texts.append({"id": room.id, "focal": room.focal, "candidates": room.candidates,
                      "mentions": room.mentions, "asked": questions})
    # a tensor: a safetensors header holds at most 100 MB
    arrays["rooms"] = np.frombuffer(to_json(texts).encode(), np.uint8)
    with atomic_write(path) as scratch:
        save_file(arrays, scratch)


def load_rooms(path: Path) -> list[RoomQuestions]:
    with (reading(path, "questions of rooms", "delete it and run vega3d teacher train again"),
          safe_open(path, "np") as file):
        rooms = []
        for i, room in enumerate(parse_json(file.get_tensor("rooms").tobytes().decode())):
            points, camera, boxes, inside = (file.get_tensor(f"{i}/{n}") for n in _ARRAYS)
            questions = []
            for fields, indices in zip(room["asked"], room["candidates"], strict=True):
                own = boxes[indices] if indices else boxes[:0]
                questions.append(Question(**{**fields, **tuples_of(fields), "boxes": own}))
            rooms.append(RoomQuestions(room["id"], points, camera, room["focal"], boxes, inside,
                                       questions, room["candidates"], room["mentions"]))
    return rooms


def _check_shapes(rooms: Sequence[RoomQuestions], streams: dict[str, Tensor | None]) -> None:
    frames = len(rooms[0].points)
    for name, stream in streams.items():
        if stream is not None and stream.shape[:2] != (len(rooms), frames):
            raise ValueError(f"dataset: {name} features are of {stream.shape[0]} clips x "
                             f"{stream.shape[1]} frames, the questions of {len(rooms)} x {frames}")


def _stacked(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _padded(arrays: Sequence[np.ndarray], most: int) -> Tensor:
    return _stacked([np.pad(a, ((0, most - len(a)), (0, 0))) for a in arrays])
