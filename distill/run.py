"""A run of `distill run`: its folder, frozen towers and feature stores.

runs/NAME/ config.yaml env.json accuracy.json MODEL_CARD.md frames/ features/ teacher/
student/{metrics.jsonl,joint_metrics.jsonl,distilled.json,maps/}
"""
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from distill.clips import open_clips
from distill.config import AdaptConfig, RunConfig, TeacherConfig, dump_config, load_run_config
from distill.heads import can_train
from records import manifest
from records.environment import environment
from records.files import atomic_write, spec_digest, write_if_changed, write_json
from records.outputs import holds_files
from scenes.clip import Clip, Source, Split, check_alike, frames_of
from scenes.sources.remote import url_of
from student.config import StudentConfig
from student.vit import Student, load_student
from teacher.data.dataset import Examples
from teacher.data.feature_store import FeatureStore, RemoteStore, fill
from teacher.dense import DenseTeacher, Stream, load_teacher
from teacher.towers.base import Tower
from teacher.towers.checkpoints import generator_folder
from teacher.towers.controls import FixedNoise, RGBPatches, VAELatents, Zeros
from teacher.towers.efficientnet import SemanticEncoder
from teacher.towers.wan import WanTower, check_fp8, load_wan
from teacher.training.processes import Processes, resolve_device


@dataclass
class DistillRun:
    """An opened run: its configuration, clips, frozen towers and feature stores."""
    folder: Path
    config: RunConfig
    processes: Processes
    source: Source
    tower: WanTower
    semantic: SemanticEncoder
    stores: dict[str, FeatureStore]

    @property
    def device(self) -> torch.device:
        return self.processes.device

    @cached_property
    def first_clip(self) -> Clip:
        return self.source.clip(self.source.ids("train")[0])

    @property
    def labelled(self) -> bool:
        """Whether dense teachers are trained and scored: on clips with ground truth."""
        return self.first_clip.depth is not None and not isinstance(self.config, AdaptConfig)

    @property
    def has_heads(self) -> bool:
        """Whether heads are trained: there are steps, and clips with depth and cameras."""
        return bool(self.config.heads.steps) and can_train(self.first_clip)

    def examples(self, split: Split) -> Examples:
        """The split's frames, features and targets; missing features are extracted first."""
        ids = self.source.ids(split)
        # clips whose features are stored were checked before those were extracted
        new = [i for i in ids if i not in self.stores["generative"]]
        check_alike(self.source, [self.source.ids("train")[0], *new])
        if new and self.tower.tap.precision == "fp8":
            frames = torch.from_numpy(frames_of(self.source, new[0])).to(self.device)[None]
            check_fp8(self.tower, generator_folder(self.config.teacher.generator),
                      frames.float() / 255)
        fill(self.stores["semantic"], self.semantic, self.source, ids, self.device)
        fill(self.stores["generative"], self.tower, self.source, ids, self.device)
        return Examples(self.source, ids, self.stores, self.device, self.has_heads,
                        processes=self.processes if split == "train" else None)

    def stream(self, name: str) -> Stream:
        """The generative stream, in raw units, of `teacher`, `semantic_only` or a control."""
        if name == "semantic_only":
            return lambda example: None
        if name == "teacher":
            return lambda example: example["generative"].float()
        control = self.control(name)
        return lambda example: control.features(example["frames"][:, None].float() / 255)[:, 0]

    def control(self, name: str) -> Tower:
        if name == "vae":
            return VAELatents(self.tower)
        if name == "zeros":
            return Zeros(self.tower.dim)
        if name == "random_weights":
            folder, tap = generator_folder(self.config.teacher.generator), self.tower.tap
            return load_wan(folder, tap, random_weights=True).to(self.device)
        return {"noise": FixedNoise, "rgb": RGBPatches}[name]()

    def dense_teacher(self, name: str, seed: int) -> DenseTeacher:
        return load_teacher(self.folder / "teacher", f"{name}_seed{seed}").to(self.device)

    def student(self, seed: int) -> Student:
        teacher = spec_digest(self.tower.spec)
        return load_student(self.student_folder(seed), teacher).to(self.device)

    def student_folder(self, seed: int) -> Path:
        """The first seed's student is the run's; those of other seeds show the spread."""
        return self.folder / ("student" if seed == self.config.seeds[0] else f"student_seed{seed}")


def create_folder(config: RunConfig, folder: Path) -> None:
    """Writes config.yaml and env.json of a new or an unfinished run. Raises: check_folder."""
    check_folder(config, folder)
    file = folder / "config.yaml"
    write_if_changed(dump_config(config), file)
    manifest.create(folder, [file])
    write_json(environment(), folder / "env.json")


def check_folder(config: RunConfig, folder: Path) -> None:
    """Raises ValueError if the folder belongs to another configuration, or is no run's."""
    resolved, file = dump_config(config), folder / "config.yaml"
    if file.is_file() and file.read_text() != resolved:
        manifest.check(file, "undo the change, or use another --name")
        raise ValueError(
            f"{folder}: was made with another configuration; use another --name, or delete it")
    if not file.is_file() and folder.is_dir() and holds_files(folder):
        raise ValueError(f"{folder}: is not empty and not a run (no config.yaml); use another "
                         "--name")


def link_latest(folder: Path) -> None:
    """Points runs/latest to a finished run."""
    with atomic_write(folder.parent / "latest") as scratch:
        scratch.symlink_to(folder.name)


def choose_folder(config: RunConfig) -> Path:
    """runs/NAME, or the last number if unfinished and of this configuration, or the next number."""
    if config.name is not None:
        return config.runs / config.name
    taken = max((int(p.name) for p in config.runs.glob("[0-9][0-9][0-9]")), default=0)
    last = config.runs / f"{taken:03d}"
    file, finished = last / "config.yaml", (last / "accuracy.json").is_file()
    if not finished and file.is_file() and file.read_text() == dump_config(config):
        return last
    return config.runs / f"{taken + 1:03d}"


def open_distill_run(folder: Path, render: bool = False) -> DistillRun:
    """Opens a run folder; `render` allows it to render the clips that the cache lacks.

    Raises ValueError if the folder is no run, its clips are missing, or there is no such device.
    """
    return open_run(load_run_config(folder), folder, render)


def open_run(config: RunConfig, folder: Path, render: bool, create: bool = False,
             processes: Processes | None = None) -> DistillRun:
    """As `open_distill_run`; create: the folder's files, once all that the run reads was opened.

    processes: that open it together, on their devices; None: this one, on the run's device.
    """
    processes = processes or Processes(resolve_device(config.device))
    device = processes.device
    # before rooms are rendered: what is wrong with the generator is said at once
    tower = load_wan(generator_folder(config.teacher.generator), config.teacher.tap).to(device)
    if (width := config.student.model.out_dim) not in (StudentConfig.out_dim, tower.dim):
        raise ValueError(f"student.model.out_dim is {width}, but the generator's features have "
                         f"{tower.dim} channels, which the student gets: leave it out")
    if isinstance(config, AdaptConfig) and create:
        default = config.teacher == TeacherConfig()  # which the shipped student is of
        load_student(config.student.model.shipped, spec_digest(tower.spec) if default else None)
    source, source_key = open_clips(config, folder.resolve().parent / "cache" / "clips", render)
    if not source.ids("train") or not source.ids("test"):
        raise ValueError("scenes: no train or test clips; give more rooms or a longer video")
    semantic = SemanticEncoder().to(device)
    root = config.features or folder / "features"
    store = FeatureStore
    if config.features and not root.is_dir():
        if not url_of(root):
            raise ValueError(f"{root}: no such folder; give a run's features folder, or its URL")
        store = RemoteStore
    stores = {"semantic": store(root, semantic.spec, source_key),
              "generative": store(root, tower.spec, source_key)}
    if create:
        create_folder(config, folder)
    return DistillRun(folder, config, processes, source, tower, semantic, stores)
