"""Question accuracy through language teachers: a run's generator, and its students in the
generator's place. Nothing is retrained. Predictions are cached in RUN/bench/answers by the digests
of all they depend on, so an interrupted bench resumes."""
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.accuracy.intervals import RoomBootstrap, interval, interval_fields
from bench.accuracy.language_teachers import (
    LanguageFolder,
    check_unseen,
    open_teachers,
    second_tower,
    semantic_tower,
)
from bench.accuracy.question_scores import (
    CHOICES,
    NUMBERS,
    Metric,
    ScoresByMetric,
    scores_by_metric,
)
from distill.run import DistillRun
from export.source import evenly_spaced
from records.files import digest, naming, read_rows, to_json
from records.progress import track
from records.results import Row
from scenes.questions.scoring import values
from student.vit import Student
from teacher.data.feature_store import FeatureStore, fill
from teacher.language.config import FinetuneConfig
from teacher.language.dataset import QuestionDataset, load_features, read_rooms
from teacher.language.encode import PromptEncoder, RoomQuestions
from teacher.language.finetune import autocast
from teacher.language.generate import Prediction, predict
from teacher.language.model import LanguageTeacher
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
    """Opens the teachers and makes the questions about the held-out rooms. Raises ValueError for a
    teacher, student or clips that cannot be used, and for `per_task` below 1."""
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
    return [rooms[i].subset(sorted(questions)) for i, questions in sorted(chosen.items())]


def add_language_accuracy(rows: list[Row], questions: QuestionSet, run: DistillRun,
                          student: Student, stores: Mapping[str, FeatureStore]) -> None:
    """Adds task/TASK/METRIC, means over questions and training seeds, to the first seed's row of
    each feature source, or in a new row. HEADLINES also have _vs_semantic beside a semantic-only
    teacher, and students _recovery where the generator surely gains. stores: the students' features
    by the name of their row."""
    scored: dict[str, SeedScores] = {}
    for teacher in questions.teachers:
        for name, scores in _scores_by_source(teacher, questions.rooms, run, student, stores):
            scored.setdefault(name, {})[teacher.seed] = scores_by_metric(scores)
    common: Row = {"questions": sum(len(room.questions) for room in questions.rooms),
                   "asked_rooms": len(questions.rooms)}
    if questions.per_task is not None:
        common["questions_a_task"] = questions.per_task
    steps, seed = questions.teachers[0].config["tuning"]["steps"], run.config.seeds[0]
    for name, by_seed in scored.items():
        columns = {**common, "trainings": len(by_seed), "trained_steps": steps}
        for key in next(iter(by_seed.values())):
            means = [np.mean([*scores[key].values()]) for scores in by_seed.values()]
            columns[f"task/{'/'.join(key)}"] = float(np.mean(means))
        columns |= _compared(name, scored)
        row = next((row for row in rows if (row["features"], row["seed"]) == (name, seed)), None)
        if row is None:
            row = {"kind": "accuracy", "features": name, "head": "language", "seed": seed}
            rows.append(row)
        row |= columns


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
        questions, field = list(source[seeds[0]][headline]), f"task/{'/'.join(headline)}"
        values = partial(_values, seeds, headline, questions)
        rooms = RoomBootstrap([clip for clip, _ in questions])
        ours, baseline = values(source), values(semantic)
        row |= interval_fields(f"{field}_vs_semantic", *rooms.difference(ours, baseline))
        if name.startswith("student"):
            gain = values(generator) - baseline
            if rooms.count > 1 and interval(rooms.means(gain))[0] > 0:
                delta = ours - baseline
                shares = rooms.means(delta) / rooms.means(gain)
                row |= interval_fields(f"{field}_recovery", float(delta.mean() / gain.mean()),
                                       *interval(shares))
    return row


def _values(seeds: Sequence[int], metric: Metric, questions: Sequence[tuple[str, int]],
            scores: SeedScores) -> np.ndarray:
    """[seeds,questions]"""
    by_seed = [scores[seed][metric] for seed in seeds]
    return np.array([[each[question] for question in questions] for each in by_seed])


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
    loaded = cache(partial(load_language_teacher, teacher.folder / WEIGHTS, run.device))
    chunks = [rooms[i:i + CLIPS] for i in range(0, len(rooms), CLIPS)]
    for name, store in sources.items():
        key = digest(teacher.sha256, semantic.key, store and store.key, questions_key)
        path = run.folder / "bench" / "answers" / f"{name}-{key}.jsonl"
        cached = _read_predictions(path)
        todo = [i for i in range(len(chunks)) if i not in cached]
        for i in track(todo, description=f"{name}: questions", disable=not todo):
            features = _second_features(name, store, student, chunks[i])
            cached[i] = _predictions(*loaded(), chunks[i], semantic, features)
            path.parent.mkdir(parents=True, exist_ok=True)
            line = {"chunk": i, "replies": [asdict(prediction) for prediction in cached[i]]}
            with naming(path), path.open("a") as file:
                file.write(to_json(line) + "\n")
        yield name, [_score(chunk[prediction.room], prediction) for i, chunk in enumerate(chunks)
                     for prediction in cached[i]]


def _predictions(model: LanguageTeacher, encoder: PromptEncoder, tuning: FinetuneConfig,
                 rooms: Sequence[RoomQuestions], semantic: FeatureStore,
                 features: Tensor | None) -> list[Prediction]:
    device = next(model.parameters()).device
    dataset = QuestionDataset(rooms, load_features(semantic, rooms), features, encoder, device)
    with autocast(tuning, device) if device.type == "cuda" else nullcontext():
        return [prediction for family in dataset.families
                for prediction in predict(model, dataset, family, CLIPS)]


def _score(room: RoomQuestions, prediction: Prediction) -> list:
    question = room.questions[prediction.question]
    metrics = values(question, prediction.output(question))
    return [room.id, prediction.question, question.task, question.kind, metrics]


def _read_predictions(path: Path) -> dict[int, list[Prediction]]:
    """By chunk."""
    found = {}
    for row in read_rows(path):
        found[row["chunk"]] = [Prediction(**{**fields, "boxes": tuple(fields["boxes"])})
                               for fields in row["replies"]]
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
