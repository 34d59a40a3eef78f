"""The questions of many clips with what the model sees of them, on the device; batches are drawn by
(seed, step)."""
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from records.files import atomic_write
from scenes.clip import Source
from scenes.questions.question import Question
from scenes.questions.stored import ByClip
from teacher.data.feature_store import FeatureStore
from teacher.language.encode import (
    PaddingSpec,
    PromptEncoder,
    RoomQuestions,
    balance_rooms,
    collate,
    encode_room,
    imported_room,
    padding_spec,
    read_room,
)
from teacher.language.model import QuestionBatch, VisualInputs

# one of them a batch, as in the paper, and how often; VSI-Bench's ten types are two, as options
# make prompts long
CHOICE = "vsi_choice"
READERS = 8  # threads
FAMILIES = {
    "vsi_number": 2, CHOICE: 1, "ground": 2, "multi_ground": 2, "caption": 1, "situated": 1, "qa": 1
}


def family(question: Question) -> str:
    """Which of FAMILIES a question belongs to."""
    if question.task.startswith("vsi:"):
        return CHOICE if question.options else "vsi_number"
    return question.task


@dataclass(frozen=True)
class Batch:
    visual: VisualInputs
    questions: QuestionBatch
    rows: list[tuple[int, int]]  # (room, question) of each, clip by clip


class QuestionDataset:
    """rooms' questions and clips' features; `generative` None: no such stream.

    Raises ValueError if there are no questions, or if the two stores do not hold the same clips in
    the same shape.
    """

    def __init__(self, rooms: Sequence[RoomQuestions], semantic: Tensor, generative: Tensor | None,
                 writer: PromptEncoder, device: torch.device):
        if not any(room.questions for room in rooms):
            raise ValueError("lessons: no questions about these clips; render more rooms")
        frames = len(rooms[0].points)
        for name, stream in (("semantic", semantic), ("generative", generative)):
            if stream is not None and stream.shape[:2] != (len(rooms), frames):
                raise ValueError(
                    f"lessons: {name} features are of {stream.shape[0]} clips x {stream.shape[1]} "
                    f"frames, the questions of {len(rooms)} x {frames}; fill the stores from the "
                    "same clips"
                )
        self.rooms, self.encoder, self.device = list(rooms), writer, device
        writer.read_ahead(question for room in rooms for question in room.questions)
        self.encoded = [encode_room(writer, room) for room in rooms]
        most = max(len(room.boxes) for room in rooms)
        self.visual = VisualInputs(semantic.to(device),
                           None if generative is None else generative.to(device),
                           torch.from_numpy(np.stack([r.points for r in rooms])).to(device),
                           _padded([r.boxes for r in rooms], most).to(device),
                           _padded([r.inside for r in rooms], most).to(device))
        self.by_family: dict[str, dict[int, list[int]]] = {}
        for i, room in enumerate(rooms):
            for j, question in enumerate(room.questions):
                self.by_family.setdefault(family(question), {}).setdefault(i, []).append(j)
        self.widest = {name: padding_spec(self.encoded[i][j] for i, mine in of.items() for j in mine)
                       for name, of in self.by_family.items()}
        self.families = [name for name in FAMILIES if name in self.by_family]
        weights = np.array([FAMILIES[name] for name in self.families], float)
        self.shares = weights / weights.sum()

    def with_stream(self, generative: Tensor | None) -> "QuestionDataset":
        """The same questions with another generative stream [N,T,D,14,14]; the rest is shared."""
        other = copy(self)
        other.visual = replace(self.visual,
                              generative=None if generative is None else generative.to(self.device))
        return other

    def weigh(self, shares: dict[str, float]) -> None:
        """Sets how large a share of the batches some families are; the others keep their
        proportions. At 0 a family is none of `families` any more. Raises ValueError if the shares
        leave nothing."""
        mine = {name: share for name, share in shares.items() if name in self.families}
        rest = sum(self.shares[i] for i, name in enumerate(self.families) if name not in mine)
        left = 1 - sum(mine.values())
        if min(mine.values(), default=0.0) < 0 or left < 0 or (rest == 0) != (left == 0):
            raise ValueError(
                f"lessons: shares {mine} of {', '.join(self.families)}; expected at least 0 each, "
                "and 1 together with the others'")
        weights = [
            mine[n] if n in mine else self.shares[i] / rest * left
            for i, n in enumerate(self.families)
        ]
        kept = [i for i, weight in enumerate(weights) if weight > 0]
        self.families, self.shares = [self.families[i]
                                      for i in kept], np.array([weights[i] for i in kept])

    def __len__(self) -> int:
        return sum(len(room.questions) for room in self.rooms)

    def draw(self, seed: int, step: int, clips: int, each: int, rank: int = 0,
             alike: bool = False) -> Batch:
        """A training batch: one family, `clips` clips, `each` questions about every one (again, if
        it has fewer). Processes of one step draw the same family and other clips. alike: all
        batches of a family have one shape, that of its longest question."""
        rng = np.random.default_rng([seed, step])
        name = self.families[rng.choice(len(self.families), p=self.shares)]
        group = self.by_family[name]
        rng = np.random.default_rng([seed, step, rank])
        weights = np.array([min(len(q), each) for q in group.values()], float)
        chosen = rng.choice(list(group), clips, replace=len(group) < clips,
                            p=weights / weights.sum())
        picked = [rng.choice(group[i], each, replace=len(group[i]) < each).tolist() for i in chosen]
        return self._batch(chosen.tolist(), picked, most=self.widest[name] if alike else None)

    def eval_batches(self, name: str, clips: int, each: int, room_for: int = 0) -> Iterator[Batch]:
        """Every question of one family once, prompts only if `room_for`; batches are of equally
        many a clip."""
        chunks: dict[int, list[tuple[int, list[int]]]] = {}
        for i, mine in self.by_family.get(name, {}).items():
            for start in range(0, len(mine), each):
                part = mine[start:start + each]
                chunks.setdefault(len(part), []).append((i, part))
        for group in chunks.values():
            for start in range(0, len(group), clips):
                part_of = group[start:start + clips]
                yield self._batch([i for i, _ in part_of], [part for _, part in part_of], room_for)

    def _batch(self, rooms: list[int], picked: list[list[int]], room_for: int = 0,
               most: PaddingSpec | None = None) -> Batch:
        pairs = [(i, j) for i, mine in zip(rooms, picked, strict=True) for j in mine]
        texts = [[self.encoded[i][j] for j in mine] for i, mine in zip(rooms, picked, strict=True)]
        asked = collate(texts, self.encoder.end, room_for, most)
        rows = torch.tensor(rooms, device=self.device)
        s = self.visual
        sight = VisualInputs(s.semantic[rows], None if s.generative is None else s.generative[rows],
                      s.points[rows], s.boxes[rows], s.inside[rows])
        there = {
            name: value.to(self.device, non_blocking=True)
            for name, value in vars(asked).items()
        }
        return Batch(sight, replace(asked, **there), pairs)


def read_rooms(source: Source, ids: Sequence[str], tasks: Sequence[str], seed: int,
               draws: int = 1) -> list[RoomQuestions]:
    """The balanced questions of every task about the clips, in order, with a progress bar; clips
    that are left with no question stay out. draws: see read_room."""
    return balance_rooms([
        read_room(source.clip(i), tasks, seed, draws) for i in track(ids, description="questions")
    ], seed)


def read_imported_rooms(source: Source, ids: Sequence[str], tasks: Sequence[str],
                        stored: ByClip) -> list[RoomQuestions]:
    """The clips with their stored questions of these tasks; those without any stay out."""
    wanted = {i: [q for q in stored.get(i, []) if q.task in tasks] for i in ids}
    return [imported_room(source.clip(i), questions)
            for i, questions in track(wanted.items(), "questions") if questions]


def load_features(store: FeatureStore, rooms: Sequence[RoomQuestions]) -> Tensor:
    """A store's features of the rooms, [N,T,D,14,14] float16. Raises ValueError if it lacks one
    (FeatureStore.get)."""
    # each file is read, and checked at its first reading
    with ThreadPoolExecutor(READERS) as readers:
        return torch.stack([*readers.map(lambda room: store.get(room.id), rooms)])


def save_rooms(rooms: Sequence[RoomQuestions], path: Path) -> None:
    """Rooms in one safetensors file, questions as the bytes of a JSON text (a header holds no more
    than 100 MB); `load_rooms` reads it."""
    arrays = {f"{i}/{name}": np.ascontiguousarray(getattr(r, name)) for i, r in enumerate(rooms)
              for name in ("points", "boxes", "inside")}
    about = [{
        "id": r.id, "candidates": r.candidates,
        "asked": [{k: v
                   for k, v in asdict(q).items() if k != "boxes"} for q in r.questions]
    } for r in rooms]
    with atomic_write(path) as scratch:
        save_file(arrays | {"rooms": np.frombuffer(json.dumps(about).encode(), np.uint8)}, scratch)


def load_rooms(path: Path) -> list[RoomQuestions]:
    """What `save_rooms` wrote."""
    with safe_open(path, "np") as file:
        about = json.loads(file.get_tensor("rooms").tobytes())
        rooms = []
        for i, one in enumerate(about):
            points, boxes, inside = (file.get_tensor(f"{i}/{name}")
                                     for name in ("points", "boxes", "inside"))
            asked = [
                Question(
                    **{
                        **q, "boxes": boxes[mine] if mine else boxes[:0], "options": tuple(
                            q["options"]), "targets": tuple(q["targets"]), "answers": tuple(
                                q["answers"])
                    }) for q, mine in zip(one["asked"], one["candidates"], strict=True)
            ]
            rooms.append(RoomQuestions(one["id"], points, boxes, inside, asked, one["candidates"]))
    return rooms


def _padded(arrays: Sequence[np.ndarray], most: int) -> Tensor:
    return torch.from_numpy(np.stack([np.pad(a, ((0, most - len(a)), (0, 0))) for a in arrays]))
