"""`distill run`: scenes, teacher, features, student and scores, in one folder that a killed run
goes on from.

runs/NAME/ config.yaml env.json accuracy.json MODEL_CARD.md frames/ features/ teacher/
student/{metrics.jsonl,maps/}
"""
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from distill.card import write_card
from distill.config import RunConfig, dump_config, load_config
from distill.heads import can_train, make_heads
from distill.loop import build_student, fidelity, train_student
from records.environment import environment
from records.files import atomic_write, spec_digest, write_json
from scenes.clip import Source, Split
from student.vit import Student, load_student
from teacher.data.dataset import Example, Examples, moments
from teacher.data.feature_store import FeatureStore, fill
from teacher.dense.model import DenseShape, DenseTeacher
from teacher.dense.train import Stream, load_teacher, score, train_dense_teacher
from teacher.towers.base import FixedNoise, RGBPatches, Tower, Zeros
from teacher.towers.checkpoints import generator_folder
from teacher.towers.efficientnet import SEMANTIC_DIM, SemanticEncoder
from teacher.towers.wan import VAELatents, WanTower, load_wan

CALIBRATION_FRAMES, HELD_OUT_FRAMES = 320, 64
# of the teacher over semantic only, for a recovery to mean anything
LEAST_GAIN = {"delta1": 0.005, "normal_deg": -0.2}


@dataclass
class DistillRun:
    """An opened run: its configuration, clips, frozen towers and feature stores."""
    folder: Path
    config: RunConfig
    device: torch.device
    source: Source
    tower: WanTower
    semantic: SemanticEncoder
    stores: dict[str, FeatureStore]

    @property
    def labelled(self) -> bool:
        """Whether the clips have depth, normals and classes, so that heads can be trained and
        scored."""
        return self.source.clip(self.source.ids("train")[0]).depth is not None

    def examples(self, split: Split) -> Examples:
        """The split's frames, features and targets; features that are missing are extracted
        first."""
        ids = self.source.ids(split)
        fill(self.stores["semantic"], self.semantic, self.source, ids, self.device)
        fill(self.stores["generative"], self.tower, self.source, ids, self.device)
        return Examples(self.source, ids, self.stores, self.device)

    def stream(self, name: str) -> Stream:
        """The generative stream of a row of the accuracy table, in raw units: teacher, or a control
        by name."""
        if name == "semantic_only":
            return lambda example: None
        if name == "teacher":
            return lambda example: example["generative"].float()
        control = self.control(name)
        return lambda example: control.features(example["frames"][:, None].float() / 255)[:, 0]

    def control(self, name: str) -> Tower:
        makers: dict[str, Callable[[], Tower]] = {
            "zeros": Zeros, "noise": FixedNoise, "rgb": RGBPatches,
            "vae": lambda: VAELatents(self.tower)
        }
        return makers[name]()

    def heads(self, name: str, seed: int) -> DenseTeacher:
        return load_teacher(self.folder / "teacher", f"{name}_seed{seed}").to(self.device)

    def student(self, seed: int) -> Student:
        return load_student(self.student_folder(seed)).to(self.device)

    def student_folder(self, seed: int) -> Path:
        """The first seed's student is the run's; the others are there for the spread."""
        return self.folder / ("student" if seed == self.config.seeds[0] else f"student_seed{seed}")


def student_stream(student: Student) -> Stream:
    """The student in the teacher's place: its features in the teacher's raw units."""
    return lambda example: student.destandardise(student(example["frames"].float() / 255))


def run(config: RunConfig) -> Path:
    """Makes or resumes a run and returns its folder."""
    console = Console()
    folder = choose_folder(config)
    resolved = dump_config(config)
    file = folder / "config.yaml"
    if file.is_file() and file.read_text() != resolved:
        raise ValueError(
            f"{folder}: was made with another configuration; use another --name, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(resolved)
    write_json(environment(), folder / "env.json")
    _point_latest(folder)
    console.print(f"run {folder}", highlight=False)
    opened = open_distill_run(folder, render=True)
    train, test = opened.examples("train"), opened.examples("test")
    rows: list[dict] = []
    for seed in config.seeds:
        if opened.labelled:
            rows += teach(opened, train, test, seed)
        student = distil(opened, train, test, seed)
        if opened.labelled:
            rows += score_student(opened, student, "student_fp32", test, seed, rows)
    if config.heads.steps and can_train(opened.source):
        rows.append(
            make_heads(folder / "student", opened.source, config.heads, config.seeds[0],
                       opened.device))
    _write_frames(folder / "frames" / "calibration.safetensors", train, CALIBRATION_FRAMES)
    _write_frames(folder / "frames" / "heldout.safetensors", test, HELD_OUT_FRAMES)
    write_json(rows, folder / "accuracy.json")
    write_card(folder, config, opened.tower.spec, rows)
    if rows:
        console.print(_summary(rows), highlight=False)
    return folder


def teach(run: DistillRun, train: Examples, test: Examples, seed: int) -> list[dict]:
    """Trains and scores the fused teacher, the semantic-only baseline and the controls; returns
    their rows."""
    from scenes.furniture.pack import CLASSES

    rows = []
    for name in ("teacher", "semantic_only", *run.config.teacher.controls):
        stream, file = run.stream(name), run.folder / "teacher" / f"{name}_seed{seed}.safetensors"
        width = {"teacher": run.tower.dim, "semantic_only": 0}.get(name)
        dim = run.control(name).dim if width is None else width
        shape = DenseShape(SEMANTIC_DIM, dim, len(CLASSES), run.config.teacher.heads.width)
        if not file.is_file():
            train_dense_teacher(f"{name}_seed{seed}", train, stream, shape, run.config.teacher.heads, seed,
                        file.parent)
        whole, _ = score(run.heads(name, seed), test, stream)
        rows.append({"features": name, "head": "dense", "seed": seed, **whole})
    return rows


def distil(run: DistillRun, train: Examples, test: Examples, seed: int) -> Student:
    """Trains (or re-opens) the student of one seed."""
    folder = run.student_folder(seed)
    if (folder / "student.safetensors").is_file():
        return run.student(seed)
    mean, std = moments(train, lambda example: example["generative"].float())
    student = build_student(run.config.student, spec_digest(run.tower.spec), mean, std, seed)
    return train_student(student, train, test, run.config.student, seed, folder)


def score_student(run: DistillRun, student: Student, name: str, test: Examples, seed: int,
                  rows: Sequence[dict], stream: Stream | None = None) -> list[dict]:
    """The row of a student dropped into the trained teacher, unchanged, in the generator's place.

    recovery = (student - semantic only) / (teacher - semantic only), for delta1 and for the normal
    angle; the row's `recovery` is the smaller of the two. Left out where the teacher gains too
    little to divide by.
    """
    whole, _ = score(run.heads("teacher", seed), test, stream or student_stream(student))
    row = {
        "features": name, "head": "dense", "seed": seed, **whole, **fidelity(student, test, stream)
    }
    by_name = {r["features"]: r for r in rows if r["seed"] == seed}
    if {"teacher", "semantic_only"} <= by_name.keys():
        shares = []
        for metric, least in LEAST_GAIN.items():
            low, high = by_name["semantic_only"][metric], by_name["teacher"][metric]
            if (high - low) / least >= 1:
                shares.append((row[metric] - low) / (high - low))
                row[f"recovery_{metric}"] = shares[-1]
        if len(shares) == len(LEAST_GAIN):
            row["recovery"] = min(shares)
    return [row]


def open_distill_run(folder: Path, render: bool = False) -> DistillRun:
    """Opens a run folder. Raises ValueError if it is none. `render` lets it render the clips it
    needs."""
    from distill.clips import open_source

    if not (folder / "config.yaml").is_file():
        raise ValueError(
            f"{folder}: no run here (no config.yaml); make one with: vega3d distill run")
    config = load_config(folder / "config.yaml")
    device = torch.device("cuda" if config.device == "auto" and torch.cuda.is_available() else
                          config.device.replace("auto", "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU; use --device auto")
    source, source_key = open_source(config.scenes, config.runs / "cache" / "clips", render)
    if not source.ids("train") or not source.ids("test"):
        raise ValueError(
            "scenes: the train or the test split is empty; give more rooms or a longer video")
    tower = load_wan(generator_folder(config.teacher.generator), config.teacher.tap).to(device)
    semantic = SemanticEncoder().to(device)
    root = folder / "features"
    stores = {"semantic": FeatureStore(root, semantic.spec, source_key),
              "generative": FeatureStore(root, tower.spec, source_key)}
    return DistillRun(folder, config, device, source, tower, semantic, stores)


def choose_folder(config: RunConfig) -> Path:
    """runs/NAME; without a name the newest run, if it is unfinished and of this configuration, else
    the next number."""
    if config.name is not None:
        return config.runs / config.name
    latest = config.runs / "latest"
    file = latest / "config.yaml"
    if file.is_file() and not (
            latest / "accuracy.json").is_file() and file.read_text() == dump_config(config):
        return config.runs / os.readlink(latest)
    taken = [int(p.name) for p in config.runs.glob("[0-9][0-9][0-9]")]
    return config.runs / f"{max(taken, default=0) + 1:03d}"


def _point_latest(folder: Path) -> None:
    with atomic_write(folder.parent / "latest") as scratch:
        scratch.symlink_to(folder.name)


def _write_frames(path: Path, examples: Examples, count: int) -> None:
    """Frames spread evenly over the split's clips, with their patch depth where known: what export
    measures on."""
    if path.is_file():
        return
    per_clip = max(1, -(-count // len(examples.ids)))
    taken: list[Example] = []
    for _, example in examples.in_order():
        pick = torch.linspace(0,
                              len(example["frames"]) - 1, min(per_clip,
                                                              len(example["frames"]))).long()
        fields_here = [k for k in ("frames", "patch_depth") if k in example]
        taken.append({k: example[k][pick.to(example[k].device)].cpu() for k in fields_here})
    fields: dict[str, Tensor] = {k: torch.cat([t[k] for t in taken]) for k in taken[0]}
    total = len(fields["frames"])
    rows = torch.linspace(0, total - 1, min(count, total)).long()
    with atomic_write(path) as scratch:
        save_file(
            {("depth" if k == "patch_depth" else k): v[rows].contiguous()
             for k, v in fields.items()}, scratch)


def _summary(rows: Sequence[dict]) -> str:
    lines = [
        f"{'features':16} {'seed':>4} {'delta1':>7} {'abs_rel':>8} {'normal':>7} {'mIoU':>6} "
        f"{'recovery':>9}"
    ]
    for r in (r for r in rows if "miou" in r):
        recovery = f"{r['recovery']:9.2f}" if "recovery" in r else " " * 9
        lines.append(f"{r['features']:16} {r['seed']:4} {r['delta1']:7.3f} {r['abs_rel']:8.3f} "
                     f"{r['normal_deg']:6.1f}° {r['miou']:6.3f} {recovery}")
    lines += [
        f"own heads: delta1 {r['delta1']:.3f}, normals {r['normal_deg']:.1f}°, places found again "
        f"{r['match_descriptor']:.2f} (colours {r['match_rgb']:.2f}, chance "
        f"{r['match_chance']:.2f})"
        for r in rows if "match_descriptor" in r
    ]
    return "\n".join(lines)
