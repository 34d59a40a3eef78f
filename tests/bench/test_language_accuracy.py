"""`vega3d bench accuracy --teacher`: question accuracy of every source, and what is refused."""
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import teacher.language.train
import vega3d
from bench.accuracy import language_accuracy
from bench.accuracy.language_accuracy import (
    QuestionSet,
    add_language_accuracy,
    load_question_set,
    subsample,
)
from bench.accuracy.language_teachers import LanguageFolder, open_teachers
from bench.accuracy.question_scores import CHOICES, scores_by_metric
from bench.tables.fill import table
from distill.run import open_distill_run
from records.results import Results, load, save
from scenes.clip import Clip, save_clip
from scenes.questions.question import TASKS
from teacher.data.feature_store import FeatureStore
from teacher.language.config import FinetuneConfig, LanguageTeacherConfig
from teacher.language.encode import RoomQuestions
from teacher.language.train import (
    evaluate,
    question_dataset,
    train_language_teacher,
)
from teacher.language.weights import load_language_teacher
from tests.bench_run import FRAMES, DrawnRooms, drawn_run, use
from tests.language_fakes import sample_room, save_tiny_lm

SCORED = tuple(task for task in TASKS if task != "caption")


class PosedRooms(DrawnRooms):
    """The drawn rooms with cameras: the same frames, so the run's features are theirs too."""

    def clip(self, clip_id: str) -> Clip:
        clip = super().clip(clip_id)
        return replace(clip, intrinsics=np.eye(3), poses=np.tile(np.eye(4), (FRAMES, 1, 1)),
                       room_size=(4, 4, 3))


def question_room(name: str, tasks: Sequence[str] = SCORED) -> RoomQuestions:
    """Made-up questions of some tasks; boxes differ by room."""
    room = sample_room(name, FRAMES)
    chosen = [i for i, question in enumerate(room.questions) if question.task in tasks]
    rng = np.random.default_rng(list(name.encode()))
    offsets = rng.uniform(0, 1e-3, room.boxes.shape).astype(np.float32)
    offsets[4:] = 0  # a pointer's
    return replace(room.subset(chosen), boxes=room.boxes + offsets)


@pytest.fixture(scope="module", autouse=True)
def questions():
    with pytest.MonkeyPatch.context() as patch:
        use(PosedRooms(), patch)
        # drawn rooms show too little for real questions
        for module in (teacher.language.train, language_accuracy):
            patch.setattr(module, "read_rooms",
                          lambda source, ids, tasks, *_: [question_room(i, tasks) for i in ids])
        yield


@pytest.fixture(scope="module")
def run():
    return open_distill_run(drawn_run())


@pytest.fixture(scope="module")
def course(run, tmp_path_factory) -> LanguageTeacherConfig:
    folder = tmp_path_factory.mktemp("clips")
    for i in ("train/0", "train/1", "train/2"):
        save_clip(PosedRooms().clip(i), folder / f"{i}.safetensors")
    (folder / "scenes.json").write_text('{"key": "drawn too"}')
    tuning = FinetuneConfig(lm=str(save_tiny_lm(tmp_path_factory.mktemp("lm"))), steps=3, clips=2,
                            questions=2)
    return LanguageTeacherConfig(out=tmp_path_factory.mktemp("teachers") / "generator",
                                 clips=folder, grid=2, exam=False, tap=run.config.teacher.tap,
                                 generator=run.config.teacher.generator, tuning=tuning)


@pytest.fixture(scope="module")
def trained(course) -> Path:
    train_language_teacher(course)
    return course.out


@pytest.fixture(scope="module")
def control(course) -> Path:
    other = replace(course, features="none", out=course.out.with_name("none"))
    train_language_teacher(other)
    return other.out


def bench_accuracy(out: Path, *args: object) -> dict[str, dict]:
    """The accuracy rows that the verb writes, by features."""
    vega3d.main(
        ["bench", "accuracy", "--run",
         str(drawn_run()), "--out",
         str(out), *map(str, args)])
    return {row["features"]: row for row in load(out / "results.json").of("accuracy")}


def test_every_source_gets_the_columns_and_the_generators_equal_the_trainings_own_evaluation(
        run, trained, control, tmp_path):
    rows = bench_accuracy(tmp_path, "--teacher", trained, control)
    sources = {
        "teacher", "semantic_only", "student_fp32", "student_onnx_fp32", "student_fp16",
        "student_int8_cpu"
    }
    assert {name for name, row in rows.items() if "questions" in row} == sources
    assert "zeros" in rows
    for path, name, store in ((trained, "teacher", run.stores["generative"]),
                              (control, "semantic_only", None)):
        model, encoder, tuning = load_language_teacher(path / "teacher.safetensors", run.device)
        rooms = [question_room(i) for i in run.source.ids("test")]
        stores = (run.stores["semantic"], store)
        dataset = question_dataset(rooms, stores, encoder, run.device)
        scores = evaluate(model, dataset, tuning)
        for task, metric in (("vsi_numeric", "mra"), ("ground", "acc@0.25"),
                             ("multi_ground", "f1@0.5")):
            assert rows[name][f"task/{task}/{metric}"] == pytest.approx(
                scores[task][metric]), (name, task)
    for name in sources:
        row = rows[name]
        assert (row["questions"], row["asked_rooms"], row["trainings"]) == (4 * 7, 4, 1)
        assert "delta1" in row
        assert ("task/ground/acc@0.25_vs_semantic_low" in row) == (name != "semantic_only")
        assert "questions_a_task" not in row


def test_each_source_enters_in_the_generators_units(run, trained, monkeypatch):
    inputs = {}

    def record(model, dataset, family, clips):
        inputs[dataset.rooms[0].id] = dataset.visual.generative
        return []

    monkeypatch.setattr(language_accuracy, "predict", record)
    folders, student = open_teachers([trained], run), run.student(0)
    rooms, stores = [question_room("test/2")], {"student_fp32": _store_of(run, "student_fp32")}
    frames = torch.from_numpy(PosedRooms().clip("test/2").frames).float() / 255
    with torch.no_grad():
        true = {
            "teacher": run.tower.features(frames[None])[0],
            "student_fp32": student.destandardise(student(frames))
        }
    shutil.rmtree(run.folder / "bench" / "answers", ignore_errors=True)
    for name, _ in language_accuracy._scores_by_source(folders[0], rooms, run, student, stores):
        features = inputs.pop("test/2")[0].float()
        assert torch.allclose(features, true.pop(name), atol=2e-3, rtol=2e-3), name
    assert not true
    shutil.rmtree(run.folder / "bench" / "answers")


def test_a_second_bench_predicts_nothing_and_an_interrupted_one_only_what_is_missing(
        run, trained, monkeypatch):
    def answered() -> list[dict]:
        rows: list[dict] = []
        add_language_accuracy(rows, load_question_set([trained], run, 2), run, run.student(0), {})
        return rows

    monkeypatch.setattr(language_accuracy, "CLIPS", 1)
    first = answered()
    assert first[0]["questions_a_task"] == 2 and first[0]["questions"] == 2 * 6
    killed = max((run.folder / "bench" / "answers").glob("teacher-*.jsonl"),
                 key=lambda path: path.stat().st_mtime_ns)
    lines = killed.read_text().splitlines()
    assert len(lines) > 1
    killed.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20] + "\n")
    predicted, predict = [], language_accuracy.predict

    def record(model, dataset, *rest):
        predicted.append(dataset.rooms[0].id)
        return predict(model, dataset, *rest)

    monkeypatch.setattr(language_accuracy, "predict", record)
    assert answered() == first
    assert set(predicted) == {"test/3"}
    monkeypatch.setattr(language_accuracy, "load_language_teacher",
                        lambda *_: pytest.fail("predicted again"))
    assert answered() == first


def test_questions_are_subsampled_evenly_over_the_rooms():
    rooms = [question_room(f"test/{i}") for i in range(5)]
    few = subsample(rooms, 3)
    tasks = [(room.id, question.task) for room in few for question in room.questions]
    assert [i for i, task in tasks if task == "ground"] == ["test/0", "test/2", "test/4"]
    assert sum(task == "multi_ground" for _, task in tasks) == 3
    assert all(len(room.questions) == len(room.candidates) for room in few)
    assert [len(room.questions) for room in subsample(rooms, None)] == [7] * 5
    assert [room.id for room in subsample(rooms, 1)] == ["test/0"]


def test_a_mean_over_types_counts_the_three_directions_as_one():
    scored = [("vsi:object_rel_direction_easy", 1.0)] * 4
    scored += [("vsi:object_rel_direction_hard", 0.0), ("vsi:route_planning", 0.2),
               ("vsi:route_planning", 0.4)]
    metrics = scores_by_metric([["test/0", i, task, "", {"accuracy": value}]
                                for i, (task, value) in enumerate(scored)])
    assert np.mean([*metrics[CHOICES].values()]) == pytest.approx((0.5 + 0.3) / 2)
    assert scores_by_metric([]) == {} and ("vsi_numeric", "mra") not in metrics
    numbers = [("vsi:object_counting", 0.9)] * 5 + [("vsi:room_size_estimation", 0.1)]
    metrics = scores_by_metric([["test/0", i, task, "", {"mra": value}]
                                for i, (task, value) in enumerate(numbers)])
    assert np.mean([*metrics["vsi_numeric", "mra"].values()]) == pytest.approx(0.5)


def columns(monkeypatch, given: dict[str, dict[int, np.ndarray]]) -> dict[str, dict]:
    """The first seed's rows of 40 rooms' grounding hits, `given` by features and training seed."""
    def scores(teacher, rooms, run, student, stores):
        students = [name for name in given if name.startswith("student")]
        for name in [teacher.row, *(students if teacher.row == "teacher" else [])]:
            yield name, [[f"test/{i:05d}_0", 0, "ground", "unique", {"acc@0.25": value}]
                         for i, value in enumerate(given[name][teacher.seed])]

    features = {"teacher": "generator", "semantic_only": "none", "vae": "vae_latents"}
    folders = []
    for name in (name for name in given if name in features):
        for seed in given[name]:
            config = {"features": features[name], "tuning": {"seed": seed, "steps": 9}}
            folders.append(LanguageFolder(Path(name), config, [], [], [], ""))
    monkeypatch.setattr(language_accuracy, "_scores_by_source", scores)
    rows = [{"kind": "accuracy", "features": name, "head": "dense", "seed": seed, "delta1": 0.5}
            for seed in (0, 1) for name in given if name != "vae"]
    run = open_distill_run(drawn_run())
    questions = QuestionSet(folders, [question_room("test/0")], None)
    add_language_accuracy(rows, questions, run, run.student(0), {})
    assert not any("questions" in row for row in rows if row["seed"] == 1)
    return {row["features"]: row for row in rows if row["seed"] == 0}


def test_means_differences_and_recovery_are_over_questions_and_trainings(monkeypatch):
    rng = np.random.default_rng(0)
    base = {seed: rng.uniform(0.2, 0.3, 40) for seed in (0, 1)}
    rows = columns(monkeypatch, {
        "semantic_only": base, "teacher": {seed: v + 0.4 for seed, v in base.items()},
        "student_int8": {seed: v + 0.3 for seed, v in base.items()}, "vae": {1: base[1] - 0.1}
    })
    best, student = rows["teacher"], rows["student_int8"]
    assert best["task/ground/acc@0.25"] == pytest.approx(np.mean([*base.values()]) + 0.4)
    assert best["trainings"] == 2 and best["delta1"] == 0.5
    assert [best[f"task/ground/acc@0.25_vs_semantic{end}"]
            for end in ("", "_low", "_high")] == pytest.approx([0.4] * 3)
    assert [student[f"task/ground/acc@0.25_recovery{end}"]
            for end in ("", "_low", "_high")] == pytest.approx([0.75] * 3)
    assert "task/ground/acc@0.25_recovery" not in best
    lone = rows["vae"]  # the run has no such control: a row of its own
    assert (lone["head"], lone["trainings"], "delta1" in lone) == ("language", 1, False)
    # of the seed that both have
    assert lone["task/ground/acc@0.25_vs_semantic"] == pytest.approx(-0.1)


def test_no_recovery_of_a_gain_that_may_be_zero(monkeypatch):
    rng = np.random.default_rng(1)
    base = rng.uniform(0.2, 0.3, 40)
    rows = columns(monkeypatch, {
        "semantic_only": {0: base}, "teacher": {0: base + rng.normal(0, 0.1, 40)},
        "student_fp32": {0: base + 0.1}
    })
    assert rows["teacher"]["task/ground/acc@0.25_vs_semantic_low"] < 0
    assert rows["student_fp32"]["task/ground/acc@0.25_vs_semantic_low"] > 0
    assert not [key for key in rows["student_fp32"] if "recovery" in key]
    # nothing to compare with
    teacher = columns(monkeypatch, {"teacher": {0: base}, "student_fp32": {0: base}})["teacher"]
    assert teacher["task/ground/acc@0.25"]
    assert not [key for key in teacher if "semantic" in key]


def test_the_table_shows_only_columns_that_were_measured(tmp_path):
    row = {"features": "teacher", "head": "dense", "seed": 0, "delta1": 0.75}
    shown = []
    for more in ({}, {"task/ground/acc@0.25": 0.417, "questions": 60}):
        save(Results("rooms_accuracy", "vega3d bench", "abc", {}, [row | more]),
             tmp_path / "rooms_accuracy.json")
        shown.append(table("rooms_accuracy", tmp_path))
    assert "Acc@0.25" not in shown[0] and "questions" not in shown[0]
    assert "grounding Acc@0.25, %" in shown[1] and "41.7" in shown[1]
    assert "numeric MRA" not in shown[1]


def spoiled(trained: Path, folder: Path, **course: object) -> Path:
    """A copy of the trained folder with other values in config.json; a dict changes a part."""
    shutil.copytree(trained, folder)
    card = json.loads((folder / "config.json").read_text())
    for key, value in course.items():
        card["config"][key] = {**card["config"][key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(card))
    return folder


def refused(*folders: Path, per_task: int | None = None) -> str:
    with pytest.raises(ValueError) as error:
        load_question_set(folders, open_distill_run(drawn_run()), per_task)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_teachers_of_other_features_than_the_runs_are_refused(trained, tmp_path):
    message = refused(spoiled(trained, tmp_path / "tap", tap={"block": 1}))
    assert "another tap (block 1, not 2)" in message and "vega3d teacher train" in message
    other = spoiled(trained, tmp_path / "weights")
    manifest, = other.glob("features/wan-*/manifest.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "weights": "other"}))
    assert "another wan (weights other, not" in refused(other)
    shutil.rmtree(manifest.parent)
    assert "features of no wan" in refused(other)
    control = spoiled(trained, tmp_path / "place", features="place")
    assert "--features place; expected one of generator, none" in refused(control)
    moved = open_distill_run(drawn_run())
    moved.tower.spec = {**moved.tower.spec, "weights": "trained on"}
    with pytest.raises(ValueError,
                       match=r"student: was distilled from the teacher .* undo the change"):
        load_question_set([trained], moved)


def test_a_folder_without_a_complete_language_teacher_is_refused(trained, tmp_path):
    assert "no language teacher here (no teacher.safetensors)" in refused(tmp_path)
    assert "no language teacher here" in refused(drawn_run() / "teacher")
    half = spoiled(trained, tmp_path / "half")
    (half / "teacher.safetensors").write_bytes(b"\x08")
    assert "not a complete language teacher" in refused(half)
    assert "is of another training" in refused(
        spoiled(trained, tmp_path / "mixed", tuning={"steps": 7}))
    bare = spoiled(trained, tmp_path / "bare")
    next(bare.glob("rooms_train-*.safetensors")).unlink()
    assert "has no rooms_train-*.safetensors" in refused(bare)
    foreign = spoiled(trained, tmp_path / "foreign")
    (foreign / "config.json").write_text('{"size": "ti"}')
    lacks = "config.json or teacher.safetensors lacks 'config'"
    assert f"not a complete language teacher ({lacks})" in refused(foreign)


def test_teachers_that_cannot_be_compared_are_refused(course, trained, control, tmp_path):
    assert "none of them was trained with --features generator" in refused(control)
    assert "features generator, seed 0" in refused(trained, spoiled(trained, tmp_path / "twin"))
    other = replace(course, out=tmp_path / "longer", tuning=replace(course.tuning, steps=4, seed=1))
    train_language_teacher(other)
    assert "(steps 4, not 3); only features and seed may differ" in refused(trained, other.out)
    assert "got 0, expected at least 1" in refused(trained, per_task=0)


@pytest.mark.parametrize("same", ["points", "boxes"])
def test_a_teacher_that_has_seen_a_held_out_room_is_refused(trained, same, monkeypatch):
    seen, unseen = question_room("train/1"), question_room("test/1")
    leak = replace(unseen, **{same: getattr(seen, same)})
    monkeypatch.setattr(language_accuracy, "read_rooms",
                        lambda *_: [question_room("test/0"), leak])
    assert "was trained on train/1, which is the run's held-out room test/1" in refused(trained)


def test_clips_without_poses_and_questions_without_a_teacher_are_refused_in_one_line(
        trained, tmp_path, capsys, monkeypatch):
    use(DrawnRooms(), monkeypatch)
    for args, says in ((["--teacher", trained], "lacks intrinsics, poses, room_size"),
                       (["--questions", 3], "no language teacher to answer")):
        with pytest.raises(SystemExit) as stop:
            bench_accuracy(tmp_path / "out", *args)
        assert stop.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if says in line]
        assert len(lines) == 1
    assert not (tmp_path / "out" / "results.json").exists()


def _store_of(run, name: str) -> FeatureStore:
    manifest, = (run.folder / "bench" / "features").glob(f"{name}-*/manifest.json")
    spec = {k: v for k, v in json.loads(manifest.read_text()).items()
            if k not in ("format", "grid", "dtype", "source")}
    return FeatureStore(run.folder / "bench" / "features", spec,
                        run.stores["generative"].spec["source"])
