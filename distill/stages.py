"""The stages of `distill run`. Each skips what its folder has: a killed run resumes."""
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.config import EXPORT_FRAMES, AdaptConfig, RunConfig, anchored
from distill.heads import ensure_heads
from distill.loop import CHECKPOINT, build_student, fidelity, train_student
from distill.run import DistillRun, check_folder, choose_folder, link_latest, open_run
from records import manifest
from records.events import emit, status_file
from records.files import (
    atomic_write,
    exclusive,
    read_json,
    remove_stale_scratch,
    spec_digest,
    write_if_changed,
    write_json,
)
from scenes.clip import SPLITS, Split, frames_of
from scenes.sources.remote import url_of
from student.vit import Student
from teacher.data.dataset import Examples, moments
from teacher.dense import DenseShape, Stream, score, train_dense_teacher
from teacher.towers.efficientnet import SEMANTIC_DIM
from teacher.training.checkpoint import remove_checkpoint
from teacher.training.processes import join_processes, resolve_device

# (run, training, held-out examples) -> the rows of accuracy.json
TrainAndScore = Callable[[DistillRun, Examples, Examples], list[dict]]
CALIBRATION_FRAMES, HELD_OUT_FRAMES = 320, 64
COLUMNS = {"delta1": 3, "abs_rel": 3, "normal_deg": 1, "miou": 3, "cosine_mean": 3, "recovery": 3}
# recovery is a ratio: least gain of the teacher over semantic_only that may stand below the line
LEAST_GAIN = {"delta1": 0.005, "normal_deg": -0.2}


def run_distillation(config: RunConfig, train: TrainAndScore | None = None) -> Path:
    """Makes or resumes a run, points runs/latest to it when it is finished, and returns its folder.

    Raises ValueError, and leaves no folder, if something cannot be opened; and if another command
    makes this run. train: instead of train_and_score. The processes of an `accelerate launch`
    extract features and train students together; the first one does the rest and writes.
    """
    if (url := url_of(config.runs)) and not config.runs.exists():
        raise ValueError(f"--runs {url}: runs are written to local folders; --scenes.path and "
                         "--features may be URLs")
    if config.runs.is_absolute() or ".." in config.runs.parts:
        config = anchored(config, Path.cwd())
    processes = join_processes(resolve_device(config.device))
    processes.part(config.student.batch)  # before there is a folder: is there one for each?
    folder = Path(processes.text_of_main(str(choose_folder(config))))
    if processes.main:
        check_folder(config, folder)
    with exclusive(folder, "vega3d distill run", make=True):
        if processes.main:
            remove_stale_scratch(folder, below=True)
        emit("stage", stage="open", run=str(folder))
        run = processes.main_first(lambda: open_run(config, folder, render=processes.main,
                                                    create=processes.main, processes=processes))
        with status_file(folder):
            _run_stages(run, train or train_and_score)
        if processes.main:
            link_latest(folder)
        processes.leave()
    return folder


def _run_stages(run: DistillRun, train_stages: TrainAndScore) -> None:
    folder, config, console = run.folder, run.config, Console(quiet=not run.processes.main)
    console.print(f"run {folder}", highlight=False, markup=False, soft_wrap=True)
    held_out = _check_counts(run) if run.processes.main else []
    train, test = run.examples("train"), run.examples("test")
    rows = train_stages(run, train, test)
    if not run.processes.main:
        return
    save_frames(folder / "frames" / "calibration.safetensors", [train],
                CALIBRATION_FRAMES)
    save_frames(folder / "frames" / "heldout.safetensors", [test, *map(run.examples, held_out)],
                HELD_OUT_FRAMES)
    write_json(rows, folder / "accuracy.json")
    write_card(folder, config, run.tower.spec, rows)
    clips = getattr(run.source, "root", None)
    manifest.create(folder, manifest.files_below(folder), uses=[clips] if clips else [])
    if rows:
        console.print(accuracy_table(rows), highlight=False, soft_wrap=True)


def _check_counts(run: DistillRun) -> list[Split]:
    """The splits that export's held-out frames come from besides test: val, if that makes enough.

    Says before the training if the run will have too few frames to export.
    """
    clip = len(frames_of(run.source, run.source.ids("train")[0]))
    train, val, test = (clip * len(run.source.ids(split)) for split in SPLITS)
    held_out: list[Split] = ["val"] if test < EXPORT_FRAMES <= test + val else []
    for line in _too_few(train, test + val * len(held_out)):
        print(line)
    return held_out


def next_step(folder: Path, export: str) -> str:
    """What a finished run ends with: the command that exports it, or why none will."""
    counts = []
    for name in ("calibration", "heldout"):
        with safe_open(folder / "frames" / f"{name}.safetensors", "pt") as frames:
            counts.append(frames.get_slice("frames").get_shape()[0])
    return "\n".join(_too_few(*counts)) or f"next: {export}"


def _too_few(training: int, held_out: int) -> list[str]:
    return [f"note: {count} {name} frames; vega3d export needs {EXPORT_FRAMES} of them: use a "
            "longer video or more clips"
            for name, count in (("training", training), ("held-out", held_out))
            if count < EXPORT_FRAMES]


def train_and_score(run: DistillRun, train: Examples, test: Examples) -> list[dict]:
    """Dense teachers and a student for each seed; returns the accuracy rows of labelled clips.

    Only the first process has rows.
    """
    rows: list[dict] = []
    scored, config = run.labelled and run.processes.main, run.config.heads
    for seed in run.config.seeds:
        if scored:
            rows += train_dense_teachers(run, train, test, seed)
        folder = run.student_folder(seed)
        student = distil_student(run, train, test, seed)
        if run.has_heads:
            if scored and config.training == "joint":
                rows.append(_distilled_row(run, student, test, seed, rows))
            heads = ensure_heads(folder, train, test, config, run.config.student, seed)
            student = run.student(seed)
        if scored:
            rows.append(score_student(run, student, "student_fp32", test, seed, rows))
        if run.has_heads:
            rows.append(heads)
    return rows


def _distilled_row(run: DistillRun, student: Student, test: Examples, seed: int,
                   rows: Sequence[dict]) -> dict:
    """Scores of the student before it is trained with its heads, which replaces its weights."""
    path = run.student_folder(seed) / "distilled.json"
    if not path.is_file():
        write_json(score_student(run, student, "student_distilled", test, seed, rows), path)
    return read_json(path, "delete the run folder and run again")


def train_dense_teachers(run: DistillRun, train: Examples, test: Examples,
                         seed: int) -> list[dict]:
    """Rows of the fused teacher, the semantic-only baseline and the controls."""
    from scenes.furniture.pack import CLASSES

    dims = {"teacher": run.tower.dim, "semantic_only": 0}
    dims |= {name: run.control(name).dim for name in run.config.teacher.controls}
    folder, config = run.folder / "teacher", run.config.teacher.heads
    rows = []
    for name, dim in dims.items():
        stream, file_name = run.stream(name), f"{name}_seed{seed}"
        if (folder / f"{file_name}.safetensors").is_file():
            remove_checkpoint(folder / f"{file_name}.ckpt.safetensors")
        else:
            shape = DenseShape(SEMANTIC_DIM, dim, len(CLASSES), config.width)
            train_dense_teacher(file_name, train, stream, shape, config, seed, folder)
        scores, _ = score(run.dense_teacher(name, seed), test, stream)
        rows.append({"features": name, "head": "dense", "seed": seed, **scores})
    return rows


def distil_student(run: DistillRun, train: Examples, test: Examples, seed: int) -> Student:
    """Trains the student of one seed, or opens it if it is there."""
    folder = run.student_folder(seed)
    if (folder / "student.safetensors").is_file():
        remove_checkpoint(folder / CHECKPOINT)  # of a run killed in between
        return run.student(seed)
    student = initial_student(run, train, seed)
    return train_student(student, train, test, run.config.student, seed, folder)


def initial_student(run: DistillRun, train: Examples, seed: int) -> Student:
    mean, std = moments(train, lambda example: example["generative"].float())
    return build_student(run.config.student, spec_digest(run.tower.spec), mean, std, seed)


def score_student(run: DistillRun, student: Student, name: str, test: Examples, seed: int,
                  rows: Sequence[dict], stream: Stream | None = None) -> dict:
    """The row of a student whose features replace the generator's in the trained dense teacher.

    stream: raw features in place of the student's own. rows: of the teacher and the semantic-only
    baseline of this seed, for the recovery.
    """
    teacher = run.dense_teacher("teacher", seed)
    scores, _ = score(teacher, test, stream or student_stream(student))
    row = {"features": name, "head": "dense", "seed": seed, **scores,
           **fidelity(student, test, stream)}
    by_name = {r["features"]: r for r in rows if r["seed"] == seed}
    if {"teacher", "semantic_only"} <= by_name.keys():
        row |= recovery(row, by_name["teacher"], by_name["semantic_only"])
    return row


def recovery(row: dict, teacher: dict, semantic_only: dict) -> dict[str, float]:
    """recovery_METRIC = (student - semantic only) / (teacher - semantic only), and the smallest.

    A metric is left out where the teacher gains less than LEAST_GAIN, and `recovery` with it.
    """
    shares = {}
    for metric, least in LEAST_GAIN.items():
        low, high = semantic_only[metric], teacher[metric]
        if (high - low) / least >= 1:
            shares[f"recovery_{metric}"] = (row[metric] - low) / (high - low)
    if len(shares) == len(LEAST_GAIN):
        shares["recovery"] = min(shares.values())
    return shares


def student_stream(student: Student) -> Stream:
    """The student's features in the teacher's raw units."""
    return lambda example: student.destandardise(student(example["frames"].float() / 255))


def save_frames(path: Path, splits: Sequence[Examples], count: int) -> None:
    """`count` frames spread over splits, with known depth, for export. Leaves an intact file."""
    damage = manifest.fault(path)
    if path.is_file() and not damage:
        return
    if damage:
        print(f"{damage}; making it again")
    per_clip = max(1, -(-count // sum(len(examples.ids) for examples in splits)))
    frames: list[Tensor] = []
    depth: list[Tensor] = []
    for _, example in chain.from_iterable(examples.in_order() for examples in splits):
        rows = _evenly_spaced(len(example["frames"]), per_clip).to(example["frames"].device)
        frames.append(example["frames"][rows].cpu())
        if "patch_depth" in example:
            depth.append(example["patch_depth"][rows].cpu())
    fields = {"frames": torch.cat(frames)} | ({"depth": torch.cat(depth)} if depth else {})
    rows = _evenly_spaced(len(fields["frames"]), count)
    with atomic_write(path) as scratch:
        save_file({k: v[rows].contiguous() for k, v in fields.items()}, scratch)


def _evenly_spaced(length: int, most: int) -> Tensor:
    return torch.linspace(0, length - 1, min(most, length)).long()


def write_card(folder: Path, config: RunConfig, spec: dict, rows: Sequence[dict]) -> None:
    """Writes folder/MODEL_CARD.md. spec: of the generator's tap; rows: those of accuracy.json."""
    scenes, student, generator = config.scenes, config.student, config.teacher.generator
    rooms = f"{scenes.train} rendered rooms x {scenes.clips_per_room} clips"
    clips, training = scenes.path or rooms, f"{student.epochs} epochs of batch {student.batch}"
    if isinstance(config, AdaptConfig):
        clips, training = f"{clips} and {rooms}", f"{config.heads.steps} steps on footage and rooms"
    lines = [
        f"# {folder.name}: ViT-{student.model.size.title()} student of {generator}", "",
        "One RGB frame [3,224,224] in [0,1] -> features of a video generator [D,14,14], "
        "standardised per channel.", "",
        f"- **Teacher:** {generator} (weights {spec['weights']}), block {spec['block']}, t = "
        f"{spec['k'] / 1000}, {spec['frames']} mode, mean of {spec['seeds']} noise draws",
        f"- **Clips:** {clips}, {scenes.frames} frames each",
        f"- **Initial weights:** {student.init}",
        f"- **Training:** {training}, seeds {', '.join(map(str, config.seeds))}",
        "- **Configuration:** config.yaml; machine and versions in env.json", ""
    ]
    if rows:
        lines += ["## Held-out rooms and furniture", "", accuracy_table(rows), ""]
    lines += [
        "## Limits", "",
        "Trained on the clips named above only. Features are per frame: no tracking. The scale of",
        "depth is unsure on photographs: score your own recording with vega3d bench real FOLDER.",
        "Licence of the weights: Apache-2.0.", ""
    ]
    write_if_changed("\n".join(lines), folder / "MODEL_CARD.md")


def accuracy_table(rows: Sequence[dict]) -> str:
    """Markdown: scores by seed and features, and the matches of the student's heads."""
    lines = [_line("features", "seed", COLUMNS), "|---" * (2 + len(COLUMNS)) + "|"]
    for row in rows:
        scores = [f"{row[k]:.{n}f}" if k in row else "-" for k, n in COLUMNS.items()]
        lines.append(_line(row["features"], row["seed"], scores))
    for row in rows:
        matches = [f"{name.removeprefix('match_')} {value:.3f}" for name, value in row.items()
                   if name.startswith("match_")]
        if matches:
            lines += ["", "Cells matched within one of 14x14, first to last frame and back: "
                      + ", ".join(matches)]
    return "\n".join(lines)


def _line(features: str, seed: str | int, scores: Iterable[str]) -> str:
    return f"| {features:17} | {seed:>4} | " + " | ".join(f"{s:>7}" for s in scores) + " |"
