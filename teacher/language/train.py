"""`vega3d teacher train`: clips -> features -> questions -> full teacher, curves and test scores.

OUT has config.json, rooms_SPLIT-KEY.safetensors (questions), metrics.jsonl, curves.png,
teacher.safetensors, answers.jsonl (each test question with its answer and scores) and scores.json.
On several GPUs: accelerate launch -m vega3d teacher train …
"""
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from records.environment import environment
from records.files import (
    atomic_write,
    digest,
    locked,
    read_json,
    sha256,
    write_json,
    write_rows,
)
from scenes.clip import SPLITS, ClipFolder, Source, Split
from scenes.questions.question import IMPORTED_TASKS, NUMERIC, TASKS, Question
from scenes.questions.scoring import Output, summary, values
from scenes.questions.stored import QUESTIONS_FILE
from teacher.data.feature_store import FeatureStore, fill
from teacher.language.config import FinetuneConfig, LanguageTeacherConfig
from teacher.language.dataset import (
    QuestionDataset,
    load_features,
    load_rooms,
    read_imported_rooms,
    read_rooms,
    save_rooms,
)
from teacher.language.encode import PromptEncoder, RoomQuestions
from teacher.language.finetune import (
    CHECKPOINT,
    autocast,
    fit,
    set_feature_statistics,
    validation_loss,
)
from teacher.language.generate import predict
from teacher.language.lm import lm_config
from teacher.language.model import Inputs, LanguageShape, LanguageTeacher
from teacher.language.readouts import readout_scores
from teacher.language.weights import (
    WEIGHTS,
    build,
    save_language_teacher,
    trainable_state_dict,
)
from teacher.towers.base import Tower
from teacher.towers.controls import FixedNoise, RGBPatches, VAELatents, Zeros
from teacher.towers.efficientnet import SemanticEncoder
from teacher.towers.image_encoders import load_siglip
from teacher.towers.wan import load_wan

ANSWERS = "answers.jsonl"
Stores = tuple[FeatureStore, FeatureStore | None]  # semantic, generative
Data = tuple[Stores, dict[Split, list[RoomQuestions]]]


def train_language_teacher(config: LanguageTeacherConfig,
                           data: Data | None = None) -> dict[str, dict[str, float]]:
    """Trains (or resumes) and returns `evaluate` of the test rooms; {} without `exam` or test rooms
    and on all processes but the first. data: `read_data` of the configuration, if it was read."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # a batch is of one family, so some heads get no gradient in a step
    accelerator = Accelerator(
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    model, datasets = _prepare(config, accelerator, data)
    if accelerator.is_main_process:
        facts = {"config": json.loads(json.dumps(asdict(config), default=str)),
                 "shape": asdict(model.shape), "env": environment()}
        write_json(facts, config.out / "config.json")
    validate = None
    if "val" in datasets:
        validate = partial(validation_loss, dataset=datasets["val"], config=config.tuning)
    curve = fit(model, datasets["train"], config.tuning, config.out, accelerator=accelerator,
                validate=validate)
    trained = trainable_state_dict(model)  # on every process: a sharded model is gathered
    if not accelerator.is_main_process:
        return {}
    draw_curves(curve, config.out / "curves.png")
    save_language_teacher(trained, model, config, config.out / WEIGHTS)
    (config.out / CHECKPOINT).unlink(missing_ok=True)
    test = datasets.get("test") if config.exam else None
    scores = {}
    if test is not None:
        scores = evaluate(model, test, config.tuning, config.out / ANSWERS)
        if model.shape.inputs == "tokens" and not bool(test.visual.camera.isnan().any()):
            scores |= readout_scores(model, datasets["train"], test)
    write_json({"scores": scores, "steps": config.tuning.steps}, config.out / "scores.json")
    return scores


def evaluate(model: LanguageTeacher, dataset: QuestionDataset, config: FinetuneConfig,
             answers: Path | None = None) -> dict[str, dict[str, float]]:
    """scenes.questions.scoring.summary over every question of the dataset; `answers` gets a row of
    each."""
    questions, outputs = [], []
    for family in dataset.families:
        with autocast(config, dataset.device) if dataset.device.type == "cuda" else nullcontext():
            for prediction in predict(model, dataset, family):
                question = dataset.rooms[prediction.room].questions[prediction.question]
                questions.append(question)
                outputs.append(prediction.output(question))
    scores = list(map(values, questions, outputs))
    if answers is not None:
        write_rows(map(_answer_row, questions, outputs, scores), answers)
    tasks = summary(questions, outputs, scores=scores)
    numeric = [tasks[t]["mra"] for t in NUMERIC if t in tasks]
    return tasks | ({"vsi_numeric": {"mra": sum(numeric) / len(numeric)}} if numeric else {})


def _answer_row(question: Question, output: Output, scores: dict[str, float]) -> dict[str, Any]:
    shown = output if isinstance(output, str) else output.tolist()
    return {"clip": question.clip_id, "task": question.task, "kind": question.kind,
            "question": question.prompt, "answer": question.answer, "output": shown,
            "scores": scores}


def question_dataset(rooms: Sequence[RoomQuestions], stores: Stores, encoder: PromptEncoder,
                     device: torch.device, true_xyz: bool = False) -> QuestionDataset:
    """true_xyz: the rooms' own geometry is the second stream."""
    semantic, generative = stores
    second = None if generative is None else load_features(generative, rooms)
    if true_xyz:
        second = torch.stack([true_geometry(room) for room in rooms])
    return QuestionDataset(rooms, load_features(semantic, rooms), second, encoder, device)


def true_geometry(room: RoomQuestions) -> Tensor:
    """Each token's point in its frame's camera (m) and the log focal length, [T,4,14,14] half."""
    camera = torch.from_numpy(room.camera)
    if camera.isnan().any():
        raise ValueError(f"clip {room.id}: has no depth and poses, which true_xyz needs")
    focal = camera.new_full((*camera.shape[:3], 1), room.focal)
    return torch.cat([camera, focal], -1).permute(0, 3, 1, 2).half()


def draw_curves(curve: Sequence[dict], path: Path) -> None:
    """Training loss, and the validation loss of each family, as PNG."""
    from matplotlib.figure import Figure

    names = {name for row in curve for name in row if name != "step"}
    figure = Figure((8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in sorted(names, key=lambda n: (n != "loss", n)):
        points = [(row["step"], row[name]) for row in curve if name in row]
        label, color = f"validation, {name.removeprefix('loss_')}", None
        if name == "loss":
            label, color = "training, all families", "gray"
        axes.plot(*zip(*points, strict=True), label=label, color=color, marker=".")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as scratch:
        figure.savefig(scratch, dpi=110)


def read_data(config: LanguageTeacherConfig, accelerator: Any) -> Data:
    """Features and questions of every split; made once, in `data` or OUT."""
    generative = _tower(config, accelerator.device)
    semantic: Any = (SemanticEncoder() if config.semantic == "efficientnet-lite0"
                     else load_siglip(config.semantic))
    source, key = _source(config, accelerator.is_main_process)
    accelerator.wait_for_everyone()

    def filled(tower: Tower) -> FeatureStore:
        store = FeatureStore((config.data or config.out) / "features", tower.spec, key)
        fill(store, tower, source, _all_ids(source), accelerator.device)  # all processes share it
        return store

    store = filled(semantic.to(accelerator.device))
    if config.features == "semantic":
        stores: Stores = store, store
    else:
        stores = store, None if generative is None else filled(generative)
    rooms = {split: _rooms(config, source, split) for split in SPLITS}
    if not rooms["train"]:
        raise ValueError(f"{config.clips or config.out}: has no questions about training clips")
    return stores, rooms


def _prepare(config: LanguageTeacherConfig, accelerator: Any, data: Data | None
             ) -> tuple[LanguageTeacher, dict[Split, QuestionDataset]]:
    """The model, and a dataset of each split that has questions."""
    # what is missing is said before rooms are rendered
    lm_config(config.tuning.lm, config.tuning.layers)
    stores, rooms = data or read_data(config, accelerator)
    semantic, generative = stores
    depth_ray = config.depth_ray
    if depth_ray and any(np.isnan(room.camera).any() for room in rooms["train"]):
        if accelerator.is_main_process:
            print("note: trains without the loss on depth and rays, as some clips have no depth",
                  file=sys.stderr)
        depth_ray = 0.0
    generative_dim, fusion = 1, "semantic_only"
    if generative is not None or config.features == "true_xyz":
        generative_dim = 4 if generative is None else generative.spec["dim"]
        fusion = config.fusion
    inputs: dict[str, Inputs] = {"place": "place", "text_only": "text"}
    shape = LanguageShape(semantic.spec["dim"], generative_dim, fusion, config.position,
                          config.grid, config.query, config.pointers, config.numbers,
                          inputs.get(config.features, "tokens"), config.masking,
                          depth_ray, config.layer_losses, config.choices)
    model, encoder = build(config.tuning, shape, accelerator.device)
    datasets = {split: question_dataset(part, stores, encoder, accelerator.device,
                                        config.features == "true_xyz")
                for split, part in rooms.items() if part}
    set_feature_statistics(model, datasets["train"])
    return model, datasets


def _source(config: LanguageTeacherConfig, render: bool) -> tuple[Source, str]:
    if config.clips is not None:
        card = config.clips / "scenes.json"
        source = ClipFolder(config.clips)
        if not card.is_file():
            raise ValueError(f"{config.clips}: has no scenes.json with the key of its clips; "
                             "render them with: vega3d scenes render")
        return source, read_json(card, "render the clips again", kind=dict, schema=1)["key"]
    from scenes.rooms.source import RoomSource
    from scenes.rooms.writer import default_workers, render_folder

    tenth = config.rooms // 10
    rooms = RoomSource(train=config.rooms - 2 * tenth, val=tenth, test=tenth, frames=config.frames)
    folder = config.out / "clips" / rooms.key
    if render:
        render_folder(rooms, _all_ids(rooms), folder, default_workers())
    return ClipFolder(folder), rooms.key


def _all_ids(source: Source) -> list[str]:
    return [clip_id for split in SPLITS for clip_id in source.ids(split)]


def _tower(config: LanguageTeacherConfig, device: torch.device) -> Tower | None:
    controls = {"zeros": Zeros, "noise": FixedNoise, "rgb": RGBPatches}
    if config.features in ("none", "semantic", "true_xyz", "place", "text_only"):
        return None
    if config.features in controls:
        return controls[config.features]()
    wan = load_wan(config.generator, config.tap, config.features == "random_weights",
                   config.tuning.seed).to(device)
    return VAELatents(wan) if config.features == "vae_latents" else wan


def _rooms(config: LanguageTeacherConfig, source: Source, split: Split) -> list[RoomQuestions]:
    """The questions of a split, from their file; the first process to get here writes it.

    Those that `vega3d scenes import` stored with the clips, of all tasks by default, or ours.
    """
    ids, clips, tasks = source.ids(split), config.clips, config.tasks
    draws = config.draws if split == "train" else 1
    # the last part names the algorithm that made the questions
    key = digest(ids, tasks, draws, "evened, text apart, masks")
    read = partial(read_rooms, source, ids, tasks, 0, draws)
    if clips is not None and (clips / QUESTIONS_FILE).is_file():
        tasks = IMPORTED_TASKS if tasks == TASKS else tasks
        key = digest(ids, tasks, sha256(clips / QUESTIONS_FILE))
        read = partial(read_imported_rooms, source, ids, tasks, clips)
    path = (config.data or config.out) / f"rooms_{split}-{key}.safetensors"
    with locked(path.with_suffix(".lock")):
        if not path.is_file():
            save_rooms(read(), path)
    rooms = load_rooms(path)
    needs_points = config.position == "depth_pose" or (split == "train" and config.layer_losses)
    lacking = [room.id for room in rooms if np.isnan(room.points).any()]
    if needs_points and lacking:
        raise ValueError(f"{clips}: {len(lacking)} clips such as {lacking[0]} have no depth and "
                         "poses; train with --position pose_free and --layer-losses 0")
    return rooms
