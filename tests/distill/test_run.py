import json
import signal
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import vega3d
from distill import loop, stages
from distill.config import RunConfig, ScenesConfig, StudentTraining, TeacherConfig
from distill.loop import build_student
from distill.run import open_distill_run
from distill.stages import run_distillation, student_stream
from export.source import load_trained_run
from records.interrupts import Interrupted, handled
from scenes.clip import save_clip
from student.config import SHIPPED_BY_SIZE, StudentConfig
from student.vit import load_student, save_student
from teacher.config import DenseTraining
from teacher.data.dataset import Examples
from teacher.towers.tap import Tap
from teacher.training import checkpoint
from tests.fakes import FakeRooms


@pytest.fixture
def config(tmp_path, tiny_wan, monkeypatch):
    rooms = FakeRooms(train=6, test=3, frames=1)
    monkeypatch.setattr("distill.clips.open_source", lambda *_: (rooms, "fake"))
    return RunConfig(
        name="a", runs=tmp_path / "runs",
        teacher=TeacherConfig(str(tiny_wan), Tap(block=1, seeds=1),
                              DenseTraining(epochs=1, batch=3, width=8), ("zeros", )),
        student=StudentTraining(StudentConfig(depth=1, stem="patch"), init="scratch", epochs=2,
                                batch=2))


def test_a_run_folder_holds_what_the_design_promises(config):
    folder = run_distillation(config)
    for name in ("config.yaml", "env.json", "metrics.jsonl", "accuracy.json",
                 "student/student.safetensors", "teacher/teacher_seed0.safetensors",
                 "teacher/semantic_only_seed0.safetensors", "frames/calibration.safetensors",
                 "frames/heldout.safetensors", "MODEL_CARD.md"):
        where = folder / ("student" if name == "metrics.jsonl" else "") / name
        assert where.is_file(), name
    assert (folder.parent / "latest").resolve() == folder.resolve()
    rows = {r["features"]: r for r in json.loads((folder / "accuracy.json").read_text())}
    assert set(rows) == {"teacher", "semantic_only", "zeros", "student_fp32"}
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "finished" and status["stage"]
    assert set(status) == {"state", "stage", "step", "steps", "rate", "eta_s", "updated", "pid"}
    frames = load_file(folder / "frames/heldout.safetensors")
    assert frames["frames"].shape == (3, 3, 224, 224) and frames["depth"].shape == (3, 14, 14)
    assert not list(folder.rglob(".*"))


def test_every_control_replaces_the_generator_in_a_dense_teacher(config):
    controls = "noise", "rgb", "vae", "random_weights"
    teacher = replace(config.teacher, controls=controls)
    folder = run_distillation(replace(config, teacher=teacher))
    rows = json.loads((folder / "accuracy.json").read_text())
    assert {row["features"] for row in rows} == {"teacher", "semantic_only", "student_fp32",
                                                 *controls}
    run = open_distill_run(folder)
    frames = torch.rand(2, 1, 3, 224, 224)
    random, trained = run.control("random_weights").features(frames), run.tower.features(frames)
    assert random.shape == trained.shape == (2, 1, run.tower.dim, 14, 14)
    assert not torch.allclose(random, trained)
    assert torch.equal(random, run.control("random_weights").features(frames))  # drawn alike


def test_latest_is_the_last_finished_run_and_a_failed_start_leaves_nothing(config, monkeypatch):
    folder, latest = run_distillation(config), config.runs / "latest"
    broken = replace(config, name=None,
                     teacher=replace(config.teacher, generator=str(config.runs / "nowhere")))
    with pytest.raises(ValueError, match="nowhere"), monkeypatch.context() as patch:
        patch.setattr("distill.clips.open_source", lambda *_: pytest.fail("rooms were rendered"))
        run_distillation(broken)
    with pytest.raises(ValueError, match="nowhere"):
        run_distillation(replace(broken, runs=config.runs / "new"))
    assert sorted(path.name for path in config.runs.iterdir()) == ["a", "latest"]

    unnamed, true_step = replace(config, name=None), loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *_: raises_keyboard_interrupt())
    with pytest.raises(KeyboardInterrupt):
        run_distillation(unnamed)
    assert latest.resolve() == folder.resolve() and (config.runs / "001/config.yaml").is_file()
    monkeypatch.setattr(loop, "train_step", true_step)
    assert run_distillation(unnamed) == config.runs / "001"  # resumed
    assert latest.resolve() == (config.runs / "001").resolve()
    assert run_distillation(config) == folder and latest.resolve() == folder.resolve()


def raises_keyboard_interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(("train", "val", "test", "held_out", "said"), [
    (2, 12, 20, 32, ["training"]),                    # val is held out too
    (2, 3, 20, 20, ["training", "held-out"]),
    (32, 3, 32, 32, [])])
def test_too_few_frames_to_export_are_said_before_training_and_at_the_end(
        config, monkeypatch, capsys, train, val, test, held_out, said):
    rooms = FakeRooms(train=train, val=val, test=test, frames=1, labelled=False)
    monkeypatch.setattr("distill.clips.open_source", lambda *_: (rooms, "fake"))

    def named(printed):
        return [name for name in ("training", "held-out") if f" {name} frames; " in printed]

    def stopped(*_):
        assert named(capsys.readouterr().out) == said

    monkeypatch.setattr(loop, "train_step", lambda *args, step=loop.train_step: (
        stopped() if not calls else None, calls.append(1), step(*args))[-1])
    calls: list[int] = []
    folder = run_distillation(config)
    assert len(load_file(folder / "frames/heldout.safetensors")["frames"]) == held_out and calls
    capsys.readouterr()
    monkeypatch.setattr(stages, "run_distillation", lambda config: folder)
    vega3d.main(["distill", "run"])
    printed = capsys.readouterr().out
    assert named(printed) == said and ("next: vega3d export" in printed) != bool(said)
    with pytest.raises(ValueError, match="frames, expected >= 32") if said else nullcontext():
        load_trained_run(folder)


@pytest.mark.parametrize(("teacher", "student", "expected"), [
    ((0.6, 20.0), (0.58, 21.0), {"delta1": 0.8, "normal_deg": 0.9}),
    ((0.6, 30.1), (0.5, 21.0), {"delta1": 0.0}),  # no gain in normals
])
def test_recovery_is_the_share_of_the_teachers_gain_where_there_is_one(
        monkeypatch, teacher, student, expected):
    teacher, student = (dict(zip(("delta1", "normal_deg"), scores, strict=True))
                        for scores in (teacher, student))
    base = {"features": "semantic_only", "seed": 0, "delta1": 0.5, "normal_deg": 30.0}
    monkeypatch.setattr(stages, "score", lambda *_: (student, []))
    monkeypatch.setattr(stages, "fidelity", lambda *_, **__: {"cosine_mean": 0.9})
    opened = type("Opened", (), {"dense_teacher": lambda *_: None})()
    rows = [base, {"features": "teacher", "seed": 0, **teacher}, {**base, "seed": 1, "delta1": 9.0}]
    row = stages.score_student(opened, None, "student_fp32", None, 0, rows, stream=lambda e: None)
    found = {k.removeprefix("recovery_"): v for k, v in row.items() if k.startswith("recovery_")}
    assert found == pytest.approx(expected)
    assert ("recovery" in row) == (len(expected) == 2)
    assert row.get("recovery", 0.8) == pytest.approx(0.8)


def test_a_finished_run_is_not_trained_again(config, monkeypatch):
    folder = run_distillation(config)
    before = load_file(folder / "student/student.safetensors")
    monkeypatch.setattr(loop, "train_step", lambda *_: pytest.fail("trained again"))
    assert run_distillation(config) == folder
    for name, value in load_file(folder / "student/student.safetensors").items():
        assert torch.equal(value, before[name])


def test_a_killed_run_resumes_to_the_same_student(config, monkeypatch):
    uninterrupted = run_distillation(config)
    other = replace(config, name="b")
    true_step, calls = loop.train_step, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return true_step(*args)

    monkeypatch.setattr(loop, "train_step", killed)
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run_distillation(other)
    folder = other.runs / "b"
    assert (folder / "student/student.ckpt.safetensors").is_file()
    assert not (folder / "accuracy.json").exists()
    run_distillation(other)
    assert (folder / "student/metrics.jsonl").read_bytes() == (
        uninterrupted / "student/metrics.jsonl").read_bytes()
    assert not list(folder.rglob("*.ckpt.safetensors"))
    assert len(calls) == 5 + 2  # six steps in all: four done, the killed one and the last again
    resumed = load_student(folder / "student").state_dict()
    for name, a in load_student(uninterrupted / "student").state_dict().items():
        assert torch.equal(a, resumed[name]), name


def test_a_run_that_is_terminated_saves_the_step_and_resumes_to_the_same_files(config, monkeypatch):
    uninterrupted, true_step, calls = run_distillation(config), loop.train_step, []

    def terminated(*args):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return true_step(*args)

    monkeypatch.setattr(loop, "train_step", terminated)
    folder = config.runs / "b"
    with pytest.raises(Interrupted, match="terminated"), handled():
        run_distillation(replace(config, name="b"))
    with safe_open(folder / "student/student.ckpt.safetensors", "pt") as file:
        assert file.metadata()["step"] == "2"
    (folder / "student/.vega3d-tmp-x-1").mkdir()  # what a kill -9 leaves
    run_distillation(replace(config, name="b"))
    assert len(calls) == 6
    for name in ("student/metrics.jsonl", "student/student.safetensors", "accuracy.json"):
        assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    assert not list(folder.rglob("*.ckpt.*")) and not list(folder.rglob(".*"))


def test_a_checkpoint_of_a_finished_student_and_teacher_goes(config):
    folder = run_distillation(config)
    left = [folder / "student/student.ckpt.safetensors",
            folder / "teacher/teacher_seed0.ckpt.safetensors"]
    for path in left:  # killed between the weights and the removal
        path.write_bytes(b"")
    times = {name: (folder / name).stat().st_mtime_ns for name in ("config.yaml", "MODEL_CARD.md")}
    run_distillation(config)
    assert not any(path.exists() for path in left)
    assert times == {name: (folder / name).stat().st_mtime_ns for name in times}


def test_an_unnamed_run_takes_the_next_number_and_an_unfinished_one_goes_on(config):
    unnamed = replace(config, name=None)
    first = run_distillation(unnamed)
    assert first.name == "001"
    assert run_distillation(unnamed).name == "002"
    (config.runs / "002" / "accuracy.json").unlink()
    assert run_distillation(unnamed).name == "002"


def test_a_name_taken_by_another_configuration_is_refused(config):
    run_distillation(config)
    with pytest.raises(ValueError, match="made with another configuration"):
        run_distillation(replace(config, student=replace(config.student, epochs=1)))


def test_the_students_stream_is_in_the_teachers_raw_units(config):
    opened = open_distill_run(run_distillation(config))
    _, example = next(iter(opened.examples("test").in_order()))
    student = opened.student(0)
    raw = student_stream(student)(example)
    assert raw.shape == example["generative"].shape
    scaled = student(example["frames"].float() / 255) * student.target_std.view(1, -1, 1, 1)
    torch.testing.assert_close(raw, scaled + student.target_mean.view(1, -1, 1, 1))
    torch.testing.assert_close(student.standardise(raw) * student.target_std.view(1, -1, 1, 1),
                               scaled)


def test_unlabelled_clips_are_distilled_without_heads(config, monkeypatch):
    rooms = FakeRooms(train=4, test=2, frames=1, labelled=False)
    monkeypatch.setattr("distill.clips.open_source", lambda *_: (rooms, "fake"))
    folder = run_distillation(config)
    assert json.loads((folder / "accuracy.json").read_text()) == []
    assert (folder / "student/student.safetensors").is_file() and not (folder / "teacher").exists()
    assert set(load_file(folder / "frames/heldout.safetensors")) == {"frames"}


def test_a_shipped_start_keeps_the_head_only_for_the_same_teacher(tmp_path, monkeypatch):
    scratch = StudentTraining(StudentConfig(depth=1, stem="patch"), "scratch")
    shipped = build_student(scratch, "teacher-a", torch.ones(8), torch.ones(8), 5)
    save_student(shipped, tmp_path)
    monkeypatch.setitem(SHIPPED_BY_SIZE, "ti", tmp_path)
    start = StudentTraining(StudentConfig(depth=1, stem="patch"), "shipped")
    same = build_student(start, "teacher-a", torch.zeros(8), torch.ones(8), 0)
    other = build_student(start, "teacher-b", torch.zeros(8), torch.ones(8), 0)
    assert torch.equal(same.head.weight, shipped.head.weight) and same.target_mean[0] == 1
    assert not torch.equal(other.head.weight, shipped.head.weight) and other.target_mean[0] == 0
    assert torch.equal(other.blocks[0].fc1.weight, shipped.blocks[0].fc1.weight)
    with pytest.raises(ValueError, match=r"got .*depth=2, .*expected .*depth=1, .*init scratch"):
        build_student(replace(start, model=StudentConfig(depth=2, stem="patch")), "teacher-a",
                      torch.zeros(8), torch.ones(8), 0)


@pytest.mark.parametrize("size", SHIPPED_BY_SIZE)
def test_a_shipped_start_is_the_shipped_student_of_the_asked_size(size):
    shipped = load_student(SHIPPED_BY_SIZE[size])
    dim, teacher = shipped.config.out_dim, shipped.config.teacher
    student = build_student(StudentTraining(StudentConfig(size)), teacher, torch.zeros(dim),
                            torch.ones(dim), 0)
    assert student.training and student.config == shipped.config
    for name, value in shipped.state_dict().items():
        assert torch.equal(student.state_dict()[name], value), name


def test_a_size_that_does_not_ship_has_to_start_from_scratch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        vega3d.main(["distill", "run", "--student.model.size", "b"])
    assert stopped.value.code == 2 and not list(tmp_path.iterdir())
    assert "no ViT-B ships (sizes: ti, s); use --student.init scratch" in capsys.readouterr().err
    assert StudentTraining(StudentConfig("b"), "scratch").model.width == 768


def test_opening_what_is_no_run_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no run here"):
        open_distill_run(tmp_path)


def test_an_augmented_student_resumes_to_the_same_weights(config, monkeypatch):
    training = replace(config.student, augment=("photometric",))
    config = replace(config, student=training)
    expected = load_student(run_distillation(config) / "student")
    other, true_step, calls = replace(config, name="b"), loop.train_step, []

    def killed(*arguments):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return true_step(*arguments)

    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(loop, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run_distillation(other)
    monkeypatch.setattr(loop, "train_step", true_step)
    resumed = load_student(run_distillation(other) / "student")
    for name, value in expected.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(("odd", "difference"), [
    ({"frames": 2}, r"depth is \[2, 224, 224\], that of clip train/000 \[1, 224, 224\]"),
    ({"labelled": False}, r"depth is none, that of clip train/000 \[1, 224, 224\]"),
])
@pytest.mark.parametrize("split", ["train", "test"])
def test_mixed_clips_are_named_before_anything_is_trained(tmp_path, tiny_wan, config, monkeypatch,
                                                          odd, difference, split):
    monkeypatch.undo()
    rooms, other = FakeRooms(train=3, test=2, frames=1), FakeRooms(**{"frames": 1, **odd})
    for clip_id in rooms.ids("train") + rooms.ids("test"):
        source = other if clip_id == f"{split}/001" else rooms
        save_clip(source.clip(clip_id), tmp_path / "clips" / f"{clip_id}.safetensors")
    with pytest.raises(ValueError, match=f"clip {split}/001: {difference}"):
        run_distillation(replace(config, scenes=ScenesConfig(path=tmp_path / "clips")))
    assert not list((config.runs / "a").rglob("*.ckpt.safetensors"))
    assert not (config.runs / "a" / "student").exists()


def test_streamed_and_memory_examples_name_a_clip_of_another_length(monkeypatch, tmp_path):
    rooms = FakeRooms(train=3, frames=2)
    longer = FakeRooms(train=3, frames=1)
    mixed = type("Mixed", (), {"clip": lambda _, i: (longer if i == "train/002" else rooms).clip(i),
                               "ids": lambda _, split: rooms.ids(split)})()
    with pytest.raises(ValueError, match=r"clip train/002: .* that of clip train/000"):
        Examples(mixed, mixed.ids("train"), {}, torch.device("cpu"))
    monkeypatch.setattr("teacher.data.dataset.CPU_BUDGET", 0)
    streamed = Examples(mixed, mixed.ids("train"), {}, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"clip train/002: .* that of clip train/000"):
        list(streamed.batches(2, 0, 0))
