"""Question accuracy of a run's teacher and students, through language teachers of its generator.

Each student's features take the generator's place; nothing is retrained. Captions are left out:
they have no score of their own. Predictions are cached in RUN/bench/answers by the digests of all
they depend on, so an interrupted bench resumes.
"""
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.accuracy.intervals import interval_fields
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
    ScoresByMetric,
    bounds,
    choice_scores,
    differences,
    mean_over_seeds,
    recovery,
    scores_by_metric,
)
from distill.run import DistillRun
from export.source import evenly_spaced
from records.files import digest, parse_json, to_json
from records.progress import track
from records.results import Row
from scenes.questions.scoring import values
from student.vit import Student
from teacher.data.feature_store import FeatureStore, fill
from teacher.language.dataset import QuestionDataset, load_features, read_rooms
from teacher.language.encode import RoomQuestions
from teacher.language.finetune import autocast
from teacher.language.generate import Prediction, predict
from teacher.language.weights import WEIGHTS, load_language_teacher
from teacher.towers.base import Tower

HEADLINES = (NUMBERS, CHOICES, ("ground", "acc@0.25"), ("ground", "acc@0.5"))
CLIPS = 8  # a chunk of predictions; each chunk is written as it is done
REQUIRED = ("depth", "intrinsics", "poses", "instances", "room_size")  # of a clip
SeedScores = dict[int, ScoresByMetric]  # by training seed


@dataclass(frozen=True)
class QuestionSet:
    """Language teachers that fit the run, and its held-out rooms with the questions to score."""
    teachers: list[LanguageFolder]
    rooms: list[RoomQuestions]
    per_task: int | None  # at most so many questions; None: all


def load_question_set(folders: Sequence[Path], run: DistillRun,
                      per_task: int | None = None) -> QuestionSet:
    """Opens the teachers and makes the questions about the held-out rooms.

    Raises ValueError for a teacher that cannot be used (language_teachers), a student distilled
    from another generator, clips without REQUIRED fields, `per_task` below 1.
    """
    if per_task is not None and per_task < 1:
        raise ValueError(f"--questions: got {per_task}, expected at least 1 a task")
    ids = run.source.ids("test")
    clip = run.source.clip(ids[0])
    if missing := [name for name in REQUIRED if getattr(clip, name) is None]:
        raise ValueError(f"--teacher: clip {clip.id} lacks {', '.join(missing)}; questions need "
                         "rendered rooms (vega3d scenes render)")
    run.student(run.config.seeds[0])  # raises ValueError if it is of another generator
    teachers = open_teachers(folders, run)
    tasks = [task for task in teachers[0].config["tasks"] if task != "caption"]
    rooms = read_rooms(run.source, ids, tasks, 0)
    check_unseen(teachers, rooms)
    if not rooms:
        raise ValueError("--teacher: the run's held-out rooms allow no question; use more rooms")
    return QuestionSet(teachers, subsample(rooms, per_task), per_task)


def subsample(rooms: Sequence[RoomQuestions], per_task: int | None) -> list[RoomQuestions]:
    """At most `per_task` questions of a task, evenly spread over the rooms; empty rooms go."""
    by_task: dict[str, list[tuple[int, int]]] = {}
    for i, room in enumerate(rooms):
        for j, question in enumerate(room.questions):
            by_task.setdefault(question.task, []).append((i, j))
    chosen: dict[int, list[int]] = {}  # room -> questions
    for places in by_task.values():
        for i, j in evenly_spaced(np.array(places), per_task or len(places)).tolist():
            chosen.setdefault(i, []).append(j)
    out = []
    for i, questions in sorted(chosen.items()):
        out.append(rooms[i].subset(sorted(questions)))
    return out


def add_language_accuracy(rows: list[Row], questions: QuestionSet, run: DistillRun,
                          student: Student, stores: Mapping[str, FeatureStore]) -> None:
    """Adds task/TASK/METRIC to the first seed's row of each feature source, or a new row, in place.

    Values are means over questions and training seeds. HEADLINES also have _vs_semantic (over the
    seeds both have) where a semantic-only teacher is given, and students _recovery where the
    interval of the generator's gain is above zero; both with _low and _high.
    stores: the students' features by the name of their row.
    """
    scored: dict[str, SeedScores] = {}
    for teacher in questions.teachers:
        for name, scores in _scores_by_source(teacher, questions.rooms, run, student, stores):
            metrics = scores_by_metric(scores)
            if choice := choice_scores(metrics):
                metrics[CHOICES] = choice
            scored.setdefault(name, {})[teacher.seed] = metrics
    common: Row = {"questions": sum(len(room.questions) for room in questions.rooms),
                   "asked_rooms": len(questions.rooms)}
    if questions.per_task is not None:
        common["questions_a_task"] = questions.per_task
    steps, seed = questions.teachers[0].config["tuning"]["steps"], run.config.seeds[0]
    for name, by_seed in scored.items():
        columns = {**common, "trainings": len(by_seed), "trained_steps": steps}
        for task, metric in next(iter(by_seed.values())):
            columns[f"task/{task}/{metric}"] = mean_over_seeds(by_seed, (task, metric))
        columns |= _compared(name, scored)
        matching = [row for row in rows if row["features"] == name and row["seed"] == seed]
        if matching:
            matching[0] |= columns
        else:
            rows.append({"kind": "accuracy", "features": name, "head": "language", "seed": seed,
                         **columns})


def _compared(name: str, scored: Mapping[str, SeedScores]) -> Row:
    """Of each headline: the difference to semantic only, and a student's recovery."""
    if name == "semantic_only":
        return {}
    source, semantic, generator = (scored.get(key, {})
                                   for key in (name, "semantic_only", "teacher"))
    seeds = [seed for seed in source if seed in semantic]
    row: Row = {}
    for headline in HEADLINES if seeds else ():
        if not all(headline in scores[seed] for scores in (source, semantic) for seed in seeds):
            continue
        field = f"task/{'/'.join(headline)}"
        baseline = [semantic[seed][headline] for seed in seeds]
        rooms, delta = differences([source[seed][headline] for seed in seeds], baseline)
        row |= interval_fields(f"{field}_vs_semantic", float(delta.mean()), *bounds(rooms, delta))
        if name.startswith("student"):
            _, gain = differences([generator[seed][headline] for seed in seeds], baseline)
            if bounds(rooms, gain)[0] > 0:
                share = recovery(rooms, delta, gain)
                row |= interval_fields(f"{field}_recovery", share["value"], share["low"],
                                       share["high"])
    return row


def _scores_by_source(teacher: LanguageFolder, rooms: Sequence[RoomQuestions], run: DistillRun,
                      student: Student, stores: Mapping[str, FeatureStore]
                      ) -> Iterator[tuple[str, list[list]]]:
    """(row name, scores of every question): the teacher's own features, then the students'."""
    tower = second_tower(teacher.config, run)
    semantic = _filled_store(semantic_tower(teacher.config, run), rooms, run)
    sources = {teacher.row: None if tower is None else _filled_store(tower, rooms, run)}
    if teacher.row == "teacher":
        sources |= {name: store for name, store in stores.items() if name.startswith("student")}
    questions = []
    for room in rooms:
        facts = [asdict(q) | {"boxes": q.boxes.tolist()} for q in room.questions]
        questions.append([room.id, facts])
    questions_key = digest(questions)
    predictor = _Predictor(teacher, semantic, run, student)
    chunks = [rooms[i:i + CLIPS] for i in range(0, len(rooms), CLIPS)]
    for name, store in sources.items():
        key = digest(teacher.sha256, semantic.key, store and store.key, questions_key)
        path = run.folder / "bench" / "answers" / f"{name}-{key}.jsonl"
        cached = _read_predictions(path)
        todo = [i for i in range(len(chunks)) if i not in cached]
        for i in track(todo, description=f"{name}: questions", disable=not todo):
            cached[i] = predictor(name, store, chunks[i])
            path.parent.mkdir(parents=True, exist_ok=True)
            line = {"chunk": i, "replies": [asdict(prediction) for prediction in cached[i]]}
            with path.open("a") as file:
                file.write(to_json(line) + "\n")
        yield name, [_score(chunk[prediction.room], prediction) for i, chunk in enumerate(chunks)
                     for prediction in cached[i]]


class _Predictor:
    """A language teacher that is loaded when the first prediction is missing."""

    def __init__(self, teacher: LanguageFolder, semantic: FeatureStore, run: DistillRun,
                 student: Student):
        self.teacher, self.semantic, self.run, self.student = teacher, semantic, run, student
        self.loaded: Any = None

    def __call__(self, name: str, store: FeatureStore | None,
                 rooms: Sequence[RoomQuestions]) -> list[Prediction]:
        device = self.run.device
        self.loaded = self.loaded or load_language_teacher(self.teacher.folder / WEIGHTS, device)
        model, encoder, tuning = self.loaded
        features = _second_features(name, store, self.student, rooms)
        dataset = QuestionDataset(rooms, load_features(self.semantic, rooms), features, encoder,
                                  device)
        with autocast(tuning, device) if device.type == "cuda" else nullcontext():
            return [reply for family in dataset.families
                    for reply in predict(model, dataset, family, CLIPS)]


def _score(room: RoomQuestions, prediction: Prediction) -> list:
    question = room.questions[prediction.question]
    metrics = values(question, prediction.output(question))
    return [room.id, prediction.question, question.task, question.kind, metrics]


def _read_predictions(path: Path) -> dict[int, list[Prediction]]:
    """By chunk. The last line of an interrupted bench may be incomplete and is skipped."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = parse_json(line)
            found[row["chunk"]] = [Prediction(**{**fields, "boxes": tuple(fields["boxes"])})
                                   for fields in row["replies"]]
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _filled_store(tower: Tower, rooms: Sequence[RoomQuestions], run: DistillRun) -> FeatureStore:
    """The run's own store of these features, completed for the rooms."""
    store = FeatureStore(run.folder / "features", tower.spec,
                         run.stores["generative"].spec["source"])
    fill(store, tower, run.source, [room.id for room in rooms], run.device)
    return store


@torch.no_grad()
def _second_features(name: str, store: FeatureStore | None, student: Student,
                     rooms: Sequence[RoomQuestions]) -> Tensor | None:
    """A source's features in the generator's units, [N,T,D,14,14]; None: no second stream."""
    if store is None:
        return None
    features = load_features(store, rooms)
    if not name.startswith("student"):
        return features
    raw = student.destandardise(features.flatten(0, 1).to(student.target_mean.device).float())
    return raw.half().unflatten(0, features.shape[:2])  # float16, as the generator's are stored
