"""`vega3d teacher train` from clips to scores with a tiny language model: files and errors."""
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import teacher.language.train
from scenes.clip import SPLITS, ClipFolder, save_clip
from scenes.rooms.source import RoomSource
from teacher.data.feature_store import FeatureStore
from teacher.language import dataset
from teacher.language.config import FinetuneConfig, LanguageTeacherConfig, recipe
from teacher.language.finetune import CHECKPOINT
from teacher.language.train import (
    evaluate,
    question_dataset,
    train_language_teacher,
)
from teacher.language.weights import load_language_teacher
from tests.fakes import FakeRooms
from tests.language_fakes import sample_room, save_tiny_lm


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder in the layout of rendered clips."""
    folder, rooms = tmp_path_factory.mktemp("clips"), FakeRooms(train=3, val=1, test=2, frames=2)
    for split in SPLITS:
        for clip_id in rooms.ids(split):
            save_clip(rooms.clip(clip_id), folder / f"{clip_id}.safetensors")
    (folder / "scenes.json").write_text('{"key": "fake"}')
    return folder


@pytest.fixture
def config(clips, tmp_path, monkeypatch):
    # the analytic clips show too few objects for questions
    monkeypatch.setattr(teacher.language.train, "read_rooms",
                        lambda source, ids, *_: [sample_room(i) for i in ids])
    tuning = FinetuneConfig(lm=str(save_tiny_lm(tmp_path / "lm")), steps=4, clips=2, questions=2,
                        save_every=2, validate_every=2)
    return LanguageTeacherConfig(out=tmp_path / "out", clips=clips, features="noise", grid=2,
                                 depth_ray=1.0, tuning=tuning)


def test_a_training_writes_its_files_and_its_loaded_teacher_scores_the_same(config):
    scores = train_language_teacher(config)
    out = config.out
    assert {path.name for path in out.iterdir() if path.is_file()} >= {
        "config.json", "metrics.jsonl", "curves.png", "teacher.safetensors", "scores.json",
        "answers.jsonl"}
    assert not (out / CHECKPOINT).exists()
    assert Image.open(out / "curves.png").size[0] > 400
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert {"loss_ground", "loss_vsi_number", "loss_caption"} <= set(rows[0])
    assert {"ground", "vsi", "vsi_numeric", "caption"} <= set(scores) and scores["ground"]["n"] == 2
    model, encoder, tuning = load_language_teacher(out / "teacher.safetensors", torch.device("cpu"))
    stores = []
    for path in sorted((out / "features").glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        spec = {k: v for k, v in manifest.items() if k not in ("format", "grid", "dtype", "source")}
        stores.append(FeatureStore(out / "features", spec, "fake"))
    assert len(stores) == 2
    dataset = question_dataset([sample_room(i) for i in ("test/000", "test/001")], stores, encoder,
                         torch.device("cpu"))
    fused, gate = scores.pop("fused"), scores.pop("gate")
    assert 0 < gate["all"] < 1 and 0 < gate["depth_edges"] < 1
    assert evaluate(model, dataset, tuning) == scores
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == len(dataset)
    numbers = [row for row in answers if row["task"] == "camera_distance"]
    assert {row["clip"] for row in numbers} == {"test/000", "test/001"}
    assert np.mean([row["scores"]["mra"] for row in numbers]) == scores["camera_distance"]["mra"]
    assert {row["answer"] for row in numbers} == {"3"} and all(row["output"] for row in numbers)
    assert set(fused) == {"depth_r2", "ray_r2"} and max(fused.values()) < 1


def test_semantic_only_has_no_second_stream(config):
    train_language_teacher(replace(config, features="none", exam=False))
    assert len(list((config.out / "features").iterdir())) == 1
    shape = json.loads((config.out / "config.json").read_text())["shape"]
    assert shape["fusion"] == "semantic_only" and shape["generative_dim"] == 1


def test_clips_without_depth_train_without_the_loss_on_depth_and_rays(config, monkeypatch, capsys):
    def without_depth(clip_id):
        room = sample_room(clip_id)
        nothing = np.full_like(room.camera, np.nan)
        return replace(room, camera=nothing, points=nothing)

    monkeypatch.setattr(teacher.language.train, "read_rooms",
                        lambda source, ids, *_: [without_depth(i) for i in ids])
    scores = train_language_teacher(config)
    assert "trains without the loss on depth and rays" in capsys.readouterr().err
    assert json.loads((config.out / "config.json").read_text())["shape"]["depth_ray"] == 0
    assert not {name for name in load_file(config.out / "teacher.safetensors")
                if name.startswith("depth_ray.")}
    assert scores["camera_distance"]["n"] and "fused" not in scores
    with pytest.raises(ValueError, match="--layer-losses 0"):
        train_language_teacher(replace(config, layer_losses=0.2, out=config.out / "layers"))


def test_only_training_rooms_have_several_draws(config, monkeypatch):
    draws_of: dict[str, int] = {}

    def read(source, ids, tasks, seed, draws):
        draws_of[ids[0].partition("/")[0]] = draws
        return [sample_room(i) for i in ids]

    monkeypatch.setattr(teacher.language.train, "read_rooms", read)
    train_language_teacher(replace(config, draws=3, exam=False))
    assert draws_of == {"train": 3, "val": 1, "test": 1}


def test_bad_configurations_are_one_clear_line(config, clips, tmp_path):
    with pytest.raises(ValueError, match="no task 'vsi:colour'"):
        replace(config, tasks=("vsi:colour",))
    with pytest.raises(ValueError, match=r"depth_ray is -1\.0, expected at least 0"):
        replace(config, depth_ray=-1.0)
    with pytest.raises(ValueError, match=r"got 2 questions a clip; give --tuning\.questions 1"):
        replace(config, fusion="context_gated")
    with pytest.raises(ValueError, match="draws is 0, expected at least 1"):
        replace(config, draws=0)
    with pytest.raises(ValueError, match="no recipe 'big'; expected one of: embedded, paper"):
        recipe("big")
    bare = shutil.copytree(clips, tmp_path / "bare")
    (bare / "scenes.json").unlink()
    with pytest.raises(ValueError, match=r"has no scenes\.json"):
        train_language_teacher(replace(config, clips=bare))
    too_deep = replace(config, clips=tmp_path / "none", tuning=replace(config.tuning, layers=99))
    with pytest.raises(ValueError, match="got 99 layers, expected 1 to 2"):  # before any clip
        train_language_teacher(too_deep)
    with pytest.raises(ValueError, match="no such teacher"):
        load_language_teacher(tmp_path / "none.safetensors", torch.device("cpu"))
    (tmp_path / "half.safetensors").write_bytes(b"\x08")
    with pytest.raises(ValueError, match="not a complete teacher"):
        load_language_teacher(tmp_path / "half.safetensors", torch.device("cpu"))


def test_a_clip_the_store_lacks_is_named(config):
    train_language_teacher(replace(config, exam=False))
    from teacher.towers.controls import FixedNoise

    store = FeatureStore(config.out / "features", FixedNoise().spec, "fake")
    with pytest.raises(ValueError, match="has no features of clip train/zzz"):
        question_dataset([sample_room("train/zzz")], (store, None), None, torch.device("cpu"))


def test_questions_of_many_clips_are_read_by_processes(tmp_path, monkeypatch):
    source = RoomSource(train=3, val=1, test=1, frames=1, size=56)
    for clip_id in source.ids("train"):
        save_clip(source.clip(clip_id), tmp_path / f"{clip_id}.safetensors")
    folder, ids = ClipFolder(tmp_path), source.ids("train")
    alone = dataset.read_rooms(folder, ids, ("camera_distance",), 0)
    monkeypatch.setattr(dataset, "ALONE_CLIPS", 1)
    monkeypatch.setattr("scenes.rooms.writer.default_workers", lambda: 2)
    shared = dataset.read_rooms(folder, ids, ("camera_distance",), 0)
    assert alone and [room.id for room in shared] == [room.id for room in alone]
    for one, other in zip(shared, alone, strict=True):
        assert [q.prompt for q in one.questions] == [q.prompt for q in other.questions]
        assert (one.inside == other.inside).all()
