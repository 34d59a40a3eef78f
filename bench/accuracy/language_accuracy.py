"""What a run's voices answer about its held-out rooms, through language teachers trained on the
generator's features.

Every voice takes the generator's place, nothing is retrained. Captions are left out: they have no
score of their own. Answers are kept under RUN/bench/answers by the digests of all they depend on,
so that a killed bench goes on.
"""
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from bench.accuracy.intervals import named
from bench.accuracy.language_teachers import (
    LanguageFolder,
    check_unseen,
    open_teachers,
    second_tower,
    semantic_tower,
)
from bench.accuracy.question_intervals import (
    CHOICES,
    NUMBERS,
    Pile,
    bounds,
    choice_pile,
    differences,
    piles_of,
    recovery,
)
from distill.run import DistillRun
from records.files import digest, spec_digest
from records.results import Row
from scenes.questions.scoring import values
from student.vit import Student
from teacher.data.feature_store import FeatureStore, fill
from teacher.language.dataset import QuestionDataset, load_features, read_rooms
from teacher.language.encode import RoomQuestions
from teacher.language.finetune import autocast
from teacher.language.generate import Prediction, predict
from teacher.language.train import WEIGHTS, load_language_teacher
from teacher.towers.base import Tower

HEADLINES = (NUMBERS, CHOICES, ("ground", "acc@0.25"), ("ground", "acc@0.5"))
CLIPS = 8  # asked about at once, then written
Piles = dict[tuple[str, str], Pile]


@dataclass(frozen=True)
class Exam:
    """teachers: opened and fit for the run; rooms: its held-out ones, with the questions that are
    asked."""
    teachers: list[LanguageFolder]
    rooms: list[RoomQuestions]
    most: int | None  # questions a task; None: all


def set_exam(folders: Sequence[Path], run: DistillRun, most: int | None = None) -> Exam:
    """Opens the teachers and reads the questions. Raises ValueError for a teacher that cannot be
    used (bench.teachers), a student of another generator, clips that lack what questions are made
    from, `most` below 1."""
    if most is not None and most < 1:
        raise ValueError(f"--questions: got {most}, expected at least 1 a task")
    ids = run.source.ids("test")
    clip = run.source.clip(ids[0])
    needed = ("depth", "intrinsics", "poses", "instances", "room_size")
    if lacks := [name for name in needed if getattr(clip, name) is None]:
        raise ValueError(
            f"--teacher: clip {clip.id} lacks {', '.join(lacks)}; questions are about rendered "
            "rooms (vega3d scenes render)")
    if run.student(run.config.seeds[0]).config.teacher != spec_digest(run.tower.spec):
        raise ValueError(
            f"--teacher: {run.folder}'s student was distilled from another generator than "
            f"{run.config.teacher.generator} now is; distil it again: vega3d distill run")
    teachers = open_teachers(folders, run)
    tasks = [task for task in teachers[0].course["tasks"] if task != "caption"]
    rooms = read_rooms(run.source, ids, tasks, 0)
    check_unseen(teachers, rooms)
    if not rooms:
        raise ValueError(
            "--teacher: the run's held-out rooms show too little to be asked about; give it more "
            "rooms"
        )
    return Exam(teachers, thinned(rooms, most), most)


def thinned(rooms: Sequence[RoomQuestions], most: int | None) -> list[RoomQuestions]:
    """The rooms with at most so many questions of a task, evenly spread over them; rooms left with
    none stay out."""
    places: dict[str, list[tuple[int, int]]] = {}
    for i, room in enumerate(rooms):
        for j, question in enumerate(room.questions):
            places.setdefault(question.task, []).append((i, j))
    kept = {
        pile[k]
        for pile in places.values()
        for k in np.linspace(0,
                             len(pile) - 1, min(most or len(pile), len(pile))).round().astype(int)
    }
    mine = [[j for j in range(len(room.questions)) if (i, j) in kept] for i, room in enumerate(rooms)]
    return [
        replace(room, questions=[room.questions[j]
                             for j in js], candidates=[room.candidates[j] for j in js])
        for room, js in zip(rooms, mine, strict=True) if js
    ]


def add_answers(rows: list[Row], exam: Exam, run: DistillRun, student: Student,
                stores: Mapping[str, FeatureStore]) -> None:
    """Adds task/TASK/METRIC, mean over questions and trainings, to the first seed's row of each
    voice, in place; a control that the run has no row of gets its own.

    stores: of the student's voices, by the name of their row. The HEADLINES also have _vs_semantic
    (mean difference over questions and the trainings' seeds that both have), where a semantic only
    teacher was given, and a student's _recovery, where the generator's gain is surely above zero;
    each with _low and _high (bench.questions).
    """
    answered: dict[str, dict[int, Piles]] = {}
    for teacher in exam.teachers:
        for name, scores in _voices(teacher, exam.rooms, run, student, stores):
            piles = piles_of(scores)
            if choice := choice_pile(piles):
                piles[CHOICES] = choice
            answered.setdefault(name, {})[teacher.seed] = piles
    about: Row = {
        "questions": sum(len(room.questions) for room in exam.rooms), "asked_rooms": len(exam.rooms),
        **({} if exam.most is None else {"questions_a_task": exam.most})
    }
    seed = run.config.seeds[0]
    for name, found in answered.items():
        columns = {
            **about, "trainings": len(found), "trained_steps": exam.teachers[0].course["tuning"]
                                                               ["steps"], **_means(found),
            **_compared(name, answered)
        }
        mine = [row for row in rows if row["features"] == name and row["seed"] == seed]
        if mine:
            mine[0] |= columns
        else:
            rows.append(
                {"kind": "accuracy", "features": name, "head": "language", "seed": seed, **columns})


def _means(found: Mapping[int, Piles]) -> Row:
    names = next(iter(found.values()))
    return {
        f"task/{task}/{metric}": float(
            np.mean([np.mean([*piles[task, metric].values()]) for piles in found.values()]))
        for task, metric in names
    }


def _compared(name: str, answered: Mapping[str, Mapping[int, Piles]]) -> Row:
    """Of each headline: the difference to semantic only, and a student's recovery."""
    mine, base, best = (answered.get(of, {}) for of in (name, "semantic_only", "teacher"))
    seeds = [seed for seed in mine if seed in base]
    row: Row = {}
    for what in HEADLINES if seeds and name != "semantic_only" else ():
        if any(what not in one[seed] for one in (mine, base) for seed in seeds):
            continue
        low = [base[seed][what] for seed in seeds]
        drawn, delta = differences([mine[seed][what] for seed in seeds], low)
        row |= named(f"task/{'/'.join(what)}_vs_semantic", float(delta.mean()),
                     *bounds(drawn, delta))
        if name.startswith("student"):
            gain = differences([best[seed][what] for seed in seeds], low)[1]
            if bounds(drawn, gain)[0] > 0:
                kept = recovery(drawn, delta, gain)
                row |= named(f"task/{'/'.join(what)}_recovery", kept["value"], kept["low"],
                             kept["high"])
    return row


def _voices(teacher: LanguageFolder, rooms: Sequence[RoomQuestions], run: DistillRun, student: Student,
            stores: Mapping[str, FeatureStore]) -> Iterator[tuple[str, list[list]]]:
    """(row, scores of every question) of the teacher's own features and, in the generator's place,
    of the students'."""
    tower = second_tower(teacher.course, run)
    semantic = _filled(semantic_tower(teacher.course, run), rooms, run)
    voices = {teacher.row: None if tower is None else _filled(tower, rooms, run)}
    if teacher.row == "teacher":
        voices |= {name: store for name, store in stores.items() if name.startswith("student")}
    asked = digest([[room.id, [asdict(q) | {"boxes": q.boxes.tolist()} for q in room.questions]]
                    for room in rooms])
    loaded = None
    for name, store in voices.items():
        key = digest(teacher.sha256, semantic.key, store and store.key, asked)
        path = run.folder / "bench" / "answers" / f"{name}-{key}.jsonl"
        done = _read(path)
        chunks = [rooms[i:i + CLIPS] for i in range(0, len(rooms), CLIPS)]
        todo = [i for i in range(len(chunks)) if i not in done]
        for i in track(todo, description=f"{name}: questions", disable=not todo):
            loaded = loaded or load_language_teacher(teacher.folder / WEIGHTS, run.device)
            model, writer, tuning = loaded
            lessons = QuestionDataset(chunks[i], load_features(semantic, chunks[i]),
                              _stream(name, store, student, chunks[i]), writer, run.device)
            with autocast(tuning, run.device) if run.device.type == "cuda" else nullcontext():
                done[i] = [
                    reply for family in lessons.families
                    for reply in predict(model, lessons, family, CLIPS)
                ]
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(
                    json.dumps({"chunk": i, "replies": [asdict(reply)
                                                        for reply in done[i]]}) + "\n")
        yield name, [
            _score(chunks[i][reply.room], reply) for i in range(len(chunks)) for reply in done[i]
        ]


def _score(room: RoomQuestions, reply: Prediction) -> list:
    question = room.questions[reply.question]
    return [
        room.id, reply.question, question.task, question.kind,
        values(question, reply.output(question))
    ]


def _read(path: Path) -> dict[int, list[Prediction]]:
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            found[row["chunk"]] = [
                Prediction(**{**one, "boxes": tuple(one["boxes"])}) for one in row["replies"]
            ]
        except (json.JSONDecodeError, KeyError, TypeError):  # the last line of a killed bench
            continue
    return found


def _filled(tower: Tower, rooms: Sequence[RoomQuestions], run: DistillRun) -> FeatureStore:
    """The run's own store of these features, with what it lacked of the rooms."""
    store = FeatureStore(run.folder / "features", tower.spec,
                         run.stores["generative"].spec["source"])
    fill(store, tower, run.source, [room.id for room in rooms], run.device)
    return store


@torch.no_grad()
def _stream(name: str, store: FeatureStore | None, student: Student,
            rooms: Sequence[RoomQuestions]) -> Tensor | None:
    """A voice's features in the generator's units, [N,T,D,14,14]; None: no second stream."""
    if store is None:
        return None
    features = load_features(store, rooms)
    if not name.startswith("student"):
        return features
    # [N*T,D,14,14]
    raw = student.destandardise(features.flatten(0, 1).to(student.target_mean.device).float())
    return raw.half().unflatten(0, features.shape[:2])  # as generators' are kept
