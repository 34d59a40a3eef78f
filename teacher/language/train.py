"""`vega3d teacher train`: clips -> features -> questions -> the full teacher, its curves and scores
on unseen rooms.

The folder it writes: config.json, rooms_SPLIT-KEY.safetensors (questions), metrics.jsonl,
curves.png, teacher.safetensors (what was trained), scores.json. On several GPUs: accelerate launch
-m vega3d teacher train …
"""
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from records.environment import environment
from records.files import atomic_write, digest, sha256, write_json
from scenes.clip import SPLITS, ClipFolder, Source, Split
from scenes.questions.question import IMPORTED_TASKS, NUMERIC, TASKS
from scenes.questions.scoring import summary
from scenes.questions.stored import QUESTIONS_FILE, load_questions
from teacher.data.feature_store import FeatureStore, fill
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
    RECIPES,
    FinetuneConfig,
    autocast,
    build,
    fit,
    load_trainable,
    set_statistics,
    trainable_state_dict,
    validation_loss,
    warm_start,
)
from teacher.language.generate import predict
from teacher.language.model import LanguageShape, LanguageTeacher, Objects, Query
from teacher.language.position import PositionMode
from teacher.towers.base import Tower
from teacher.towers.controls import FixedNoise, RGBPatches, VAELatents, Zeros
from teacher.towers.efficientnet import SemanticEncoder
from teacher.towers.image_encoders import load_siglip
from teacher.towers.tap import Tap
from teacher.towers.wan import load_wan

Features = Literal["generator", "none", "zeros", "noise", "rgb", "vae_latents"]
WEIGHTS = "teacher.safetensors"


@dataclass(frozen=True)
class LanguageTeacherConfig:
    """What the full teacher is trained on, and how."""
    out: Path = Path("runs/teacher")
    clips: Path | None = None  # of `vega3d scenes render`; None: rooms are rendered into OUT/clips
    rooms: int = 200  # to render, of which 80 % train, 10 % each validate and test
    frames: int = 5                     # of each rendered clip
    # or siglip-so400m, siglip2-so400m, a hub id or folder of a SigLIP
    semantic: str = "efficientnet-lite0"
    # the second stream, or a control in its place; none: semantic only
    features: Features = "generator"
    generator: str = "wan-nano"
    tap: Tap = field(default_factory=Tap)
    fusion: str = "token_gate"          # one of teacher.fusion.FUSIONS
    position: PositionMode = "depth_pose"
    grid: int = 7                       # visual tokens to a frame's side
    objects: Objects = "fused"
    # what a grounding question is known by: its words' states, or that of <ground>
    query: Query = "words"
    draws: int = 1  # of a training clip's distances and single boxes to ask about: others each time
    metric: float = 0.0         # weight of telling the distances between visual tokens, in training
    # OUT of a teacher of --features none that this one goes on from; None: from nothing
    start: Path | None = None
    tasks: tuple[str, ...] = TASKS
    tuning: FinetuneConfig = field(default_factory=FinetuneConfig)
    exam: bool = True                   # score it on the test rooms at the end

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tasks) - set(IMPORTED_TASKS)):
            raise ValueError(f"course: no task {unknown[0]!r}; there are: {', '.join(TASKS)}")
        if self.draws < 1:
            raise ValueError(f"course: got draws={self.draws}, expected at least 1")
        if self.metric < 0:
            raise ValueError(f"course: got metric={self.metric}, expected a weight of at least 0")
        if self.rooms < 10 and self.clips is None:
            raise ValueError(f"course: got rooms={self.rooms}, expected at least 10")


def train_language_teacher(config: LanguageTeacherConfig) -> dict[str, dict[str, float]]:
    """Trains (or goes on training) and scores; returns scenes.scoring.summary of the test rooms, {}
    without exam."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # a batch is of one task, so each step leaves some heads without a gradient
    accelerator = Accelerator(
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    device = accelerator.device
    start = None if config.start is None else _start(config.start)
    config.out.mkdir(parents=True, exist_ok=True)
    source, key = _source(config, accelerator.is_main_process)
    accelerator.wait_for_everyone()
    stores = _stores(config, source, key, device, accelerator)
    rooms = {split: _rooms(config, source, split, accelerator) for split in SPLITS}
    if not rooms["train"]:
        raise ValueError(f"{config.clips or config.out}: has no questions about training clips")
    second = stores[1]
    shape = LanguageShape(stores[0].spec["dim"], 1 if second is None else second.spec["dim"],
                          "semantic_only" if second is None else config.fusion, config.position,
                          config.grid, config.objects, config.query, metric=config.metric)
    model, writer = build(config.tuning, shape, device)
    dataset = {
        split: question_dataset(part, stores, writer, device)
        for split, part in rooms.items() if part
    }
    set_statistics(model, dataset["train"])
    if start is not None:
        warm_start(model, {name: value.to(device) for name, value in start.items()})
    if accelerator.is_main_process:
        write_json({"config": _jsonable(config), "shape": asdict(shape), "env": environment()},
                   config.out / "config.json")
    val = dataset.get("val")
    curve = fit(
        model, dataset["train"], config.tuning, config.out, accelerator=accelerator, validate=None
        if val is None else lambda objective: validation_loss(objective, val, config.tuning))
    trained = trainable_state_dict(model)  # every process: a sharded model is gathered
    if not accelerator.is_main_process:
        return {}
    draw_curves(curve, config.out / "curves.png")
    _tensorboard(curve, config.out)
    save_language_teacher(trained, model, config, config.out / WEIGHTS)
    (config.out / CHECKPOINT).unlink(missing_ok=True)
    scores = evaluate(model, dataset["test"],
                     config.tuning) if config.exam and "test" in dataset else {}
    write_json({"scores": scores, "steps": config.tuning.steps}, config.out / "scores.json")
    return scores


def evaluate(model: LanguageTeacher, dataset: QuestionDataset,
            config: FinetuneConfig) -> dict[str, dict[str, float]]:
    """scenes.scoring.summary over every question of the dataset."""
    questions, outputs = [], []
    for name in dataset.families:
        with autocast(config, dataset.device) if dataset.device.type == "cuda" else nullcontext():
            for reply in predict(model, dataset, name):
                question = dataset.rooms[reply.room].questions[reply.question]
                questions.append(question)
                outputs.append(reply.output(question))
    scores = summary(questions, outputs)
    numeric = [scores[t]["mra"] for t in NUMERIC if t in scores]
    return scores | ({"vsi_numeric": {"mra": sum(numeric) / len(numeric)}} if numeric else {})


def question_dataset(rooms: Sequence[RoomQuestions], stores: tuple[FeatureStore, FeatureStore | None],
               writer: PromptEncoder, device: torch.device) -> QuestionDataset:
    """Rooms with the features of both stores."""
    second = None if stores[1] is None else load_features(stores[1], rooms)
    return QuestionDataset(rooms, load_features(stores[0], rooms), second, writer, device)


def save_language_teacher(trained: dict[str, Tensor], model: LanguageTeacher, config: LanguageTeacherConfig,
                  path: Path) -> None:
    """What was trained, and how the rest is had: the published language model stays where it is."""
    about = {"shape": json.dumps(asdict(model.shape)), "tuning": json.dumps(asdict(config.tuning))}
    with atomic_write(path) as scratch:
        save_file({k: v.detach().cpu().contiguous()
                   for k, v in trained.items()}, scratch, metadata=about)


def load_language_teacher(path: Path, device: torch.device) -> tuple[LanguageTeacher, PromptEncoder, FinetuneConfig]:
    """What `save_language_teacher` wrote, with its language model. Raises ValueError naming the file if it
    is not whole."""
    state, config, shape = _state(path)
    model, writer = build(config, shape, device)
    load_trainable(model, state)
    return model.eval(), writer, config


def _start(folder: Path) -> dict[str, Tensor]:
    """What a teacher without a second stream has learnt. Raises ValueError if the folder holds
    none."""
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder}: holds no trained teacher to start from; "
                         f"train it with: vega3d teacher train --features none --out {folder}")
    state, _, shape = _state(folder / WEIGHTS)
    if shape.fusion != "semantic_only":
        raise ValueError(
            f"{folder}: its teacher has a second stream ({shape.fusion}); start from one that was "
            "trained with --features none")
    return state


def _state(path: Path) -> tuple[dict[str, Tensor], FinetuneConfig, LanguageShape]:
    if not path.is_file():
        raise ValueError(f"{path}: no such teacher; train it with: vega3d teacher train")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        known = {f.name for f in fields(FinetuneConfig)}
        config = FinetuneConfig(**{k: v for k, v in json.loads(about["tuning"]).items() if k in known})
        return load_file(path), config, LanguageShape(**json.loads(about["shape"]))
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: not a whole teacher ({error}); train it with: vega3d teacher train"
        ) from error


def draw_curves(curve: Sequence[dict], path: Path) -> None:
    """Training loss, and the validation loss of each family, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted({name
                    for row in curve
                    for name in row if name != "step"}, key=lambda n: (n != "loss", n))
    figure, axes = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    for name in names:
        points = [(row["step"], row[name]) for row in curve if name in row]
        label = "training, all families" if name == "loss" else f"validation, {name.removeprefix('loss_')}"
        axes.plot(*zip(*points, strict=True), label=label, color="gray" if name == "loss" else None,
                  marker=".")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as scratch:
        figure.savefig(scratch, dpi=110)
    plt.close(figure)


def recipe(name: str) -> LanguageTeacherConfig:
    """One of teacher.tuning.RECIPES, with the course that it is for. Raises ValueError listing
    them."""
    if name not in RECIPES:
        raise ValueError(f"course: no recipe {name!r}; there are: {', '.join(RECIPES)}")
    if name == "paper":
        return LanguageTeacherConfig(semantic="siglip-so400m", generator="wan2.1-t2v-1.3b", frames=32,
                            grid=14, tap=Tap(block=20, k=300, seeds=1), objects="semantic",
                            query="ground", tuning=RECIPES[name])
    return LanguageTeacherConfig(draws=3, metric=1.0, tuning=RECIPES[name])


def _source(config: LanguageTeacherConfig, render: bool) -> tuple[Source, str]:
    """The clips and their key."""
    if config.clips is not None:
        card = config.clips / "scenes.json"
        source = ClipFolder(config.clips)
        if not card.is_file():
            raise ValueError(
                f"{config.clips}: has no scenes.json, so its clips have no name; render them with: "
                "vega3d scenes render")
        return source, json.loads(card.read_text())["key"]
    from scenes.rooms.source import RoomSource
    from scenes.rooms.writer import default_workers, render_folder

    held = config.rooms // 10
    rooms = RoomSource(train=config.rooms - 2 * held, val=held, test=held, frames=config.frames)
    folder = config.out / "clips" / rooms.key
    if render:
        render_folder(rooms, [i for split in SPLITS for i in rooms.ids(split)], folder,
                      default_workers())
    return ClipFolder(folder), rooms.key


def _stores(config: LanguageTeacherConfig, source: Source, key: str, device: torch.device, accelerator: Any
            ) -> tuple[FeatureStore, FeatureStore | None]:
    ids = [i for split in SPLITS for i in source.ids(split)]

    def filled(tower: Tower) -> FeatureStore:
        if accelerator.is_main_process:
            fill(FeatureStore(config.out / "features", tower.spec, key), tower, source, ids, device)
        accelerator.wait_for_everyone()
        return FeatureStore(config.out / "features", tower.spec, key)

    second = _tower(config, device)
    return filled(_semantic(config).to(device)), None if second is None else filled(second)


def _semantic(config: LanguageTeacherConfig) -> Any:
    return SemanticEncoder() if config.semantic == "efficientnet-lite0" else load_siglip(
        config.semantic)


def _tower(config: LanguageTeacherConfig, device: torch.device) -> Tower | None:
    plain = {"zeros": Zeros, "noise": FixedNoise, "rgb": RGBPatches}
    if config.features == "none":
        return None
    if config.features in plain:
        return plain[config.features]()
    wan = load_wan(config.generator, config.tap).to(device)
    return VAELatents(wan) if config.features == "vae_latents" else wan


def _rooms(config: LanguageTeacherConfig, source: Source, split: Split, accelerator: Any) -> list[RoomQuestions]:
    ids = source.ids(split)
    if config.clips is not None and (config.clips / QUESTIONS_FILE).is_file():
        return _imported_rooms(config, config.clips, source, split, accelerator)
    draws = config.draws if split == "train" else 1
    path = config.out / f"rooms_{split}-{digest(ids, config.tasks, draws, 'evened, text apart')}.safetensors"
    if accelerator.is_main_process and not path.is_file():
        save_rooms(read_rooms(source, ids, config.tasks, 0, draws), path)
    accelerator.wait_for_everyone()
    return load_rooms(path)


def _imported_rooms(config: LanguageTeacherConfig, clips: Path, source: Source, split: Split,
                    accelerator: Any) -> list[RoomQuestions]:
    """The questions that `vega3d scenes import` stored with the clips; all tasks by default."""
    tasks = IMPORTED_TASKS if config.tasks == TASKS else config.tasks
    ids = source.ids(split)
    key = digest(ids, tasks, sha256(clips / QUESTIONS_FILE))
    path = config.out / f"rooms_{split}-{key}.safetensors"
    if accelerator.is_main_process and not path.is_file():
        save_rooms(read_imported_rooms(source, ids, tasks, load_questions(clips) or {}), path)
    accelerator.wait_for_everyone()
    rooms = load_rooms(path)
    needs_points = config.position == "depth_pose" or (config.metric > 0 and split == "train")
    lacking = [room.id for room in rooms if np.isnan(room.points).any()]
    if needs_points and lacking:
        raise ValueError(f"{clips}: {len(lacking)} clips such as {lacking[0]} have no depth and "
                         "poses; train with --position pose_free --metric 0")
    return rooms


def _tensorboard(curve: Sequence[dict], folder: Path) -> None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for row in curve:
            for name, value in row.items():
                if name != "step":
                    writer.add_scalar(name, value, row["step"])


def _jsonable(config: LanguageTeacherConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(replace(config)), default=str))
