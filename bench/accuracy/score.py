"""What each student keeps of the teacher, measured on held-out rooms with the very files that are
timed."""
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from bench.accuracy.intervals import add_intervals
from bench.accuracy.language_accuracy import add_answers, set_exam
from bench.accuracy.student_features import speak, stream_of
from bench.artefacts import Artefact, exported
from bench.report.layer_precision import layer_rows
from bench.report.match_lines import match_rows
from bench.report.pictures import draw_strips
from distill.config import load_config
from distill.loop import fidelity
from distill.run import DistillRun, open_distill_run
from distill.stages import score_student
from records.files import sha256
from records.results import Row
from student.vit import Student
from teacher.data.dataset import Examples
from teacher.dense.train import score

TORCH = "student_fp32"  # the row of the student as it was trained


@dataclass
class _Scored:
    """A finished run with the features of its exported files, and the rows of its table."""
    seed: int
    student: Student
    files: list[Artefact]
    missing: list[Row]
    test: Examples
    rows: list[Row]


def accuracy(folder: Path, also: Sequence[Path] = (), teachers: Sequence[Path] = (),
             questions: int | None = None) -> list[Row]:
    """Rows of kind `accuracy`, `picture` (bench.strips), `match` and `match_pair` (bench.matches),
    `layer` (bench.layers), `verdict` (the export's own) and `absent`.

    Teacher, semantic only, controls and the torch student as the run scored them, for every seed;
    the exported files of the first seed through onnxruntime in the student's place: delta1,
    abs_rel, normal_deg, miou, cosine to the teacher, recovery (distill.stages.score_student), and
    fp32_cosine, to the torch student. The first seed's rows carry intervals: bench.intervals. also:
    runs like this one with other seeds, whose `accuracy` rows are added, exported files and all.
    teachers: folders of `vega3d teacher train`, for the columns of bench.questions, from at most so
    many `questions` a task. Raises ValueError if a run is unfinished, or one of `also` or
    `teachers` is not like this one.
    """
    for other in also:  # before minutes of scoring
        _check_alike(folder, other)
    run = open_distill_run(_finished(folder), render=True)
    exam = set_exam(teachers, run, questions) if teachers else None
    one = _score(run)
    test, files = one.test, one.files
    if run.labelled:
        scored = [row for row in one.rows if row["seed"] == one.seed]
        add_intervals(scored, _per_clip(run, one.student, files, test, one.seed), test.ids)
    if exam:
        add_answers(one.rows, exam, run, one.student, test.stores)
    for other in also:
        one.rows += _score(open_distill_run(_finished(other), render=True)).rows
    names = [file.features for file in files]
    rows = one.rows + draw_strips(run, one.student, test, names) + match_rows(
        run, test, names) + layer_rows(files)
    return rows + [verdict for file in files if (verdict := _verdict(file))] + one.missing


def _score(run: DistillRun) -> _Scored:
    folder, seed = run.folder, run.config.seeds[0]
    recorded = json.loads((folder / "accuracy.json").read_text())
    files, missing = exported(folder)
    student = run.student(seed)
    test = run.examples("test")
    test = Examples(run.source, test.ids, {**test.stores, **speak(run, student, files, test.ids)},
                    run.device)
    rows = [{"kind": "accuracy", **row} for row in recorded]
    if not run.labelled:
        rows.append(_unlabelled(student, test, TORCH, seed))
    weights = folder / "student" / "student.safetensors"
    for row in rows:
        if row["features"] == TORCH and row["seed"] == seed:
            row |= {"artefact": weights.name, "sha256": sha256(weights)}
    for file in files:
        rows += [{**row, "artefact": file.path.name, "sha256": file.sha256, "size_mb": file.size_mb,
                  **_to_fp32(test, file.features)}
                 for row in _rows_of(run, student, test, file, seed, recorded)]
    return _Scored(seed, student, files, missing, test, rows)


def _check_alike(folder: Path, other: Path) -> None:
    one, two = (load_config(path / "config.yaml") for path in (_finished(folder), _finished(other)))
    facts = [{k: v
              for k, v in asdict(c).items() if k not in ("seeds", "name", "runs")}
             for c in (one, two)]
    if facts[0] != facts[1]:
        raise ValueError(
            f"--also {other}: its configuration differs from {folder}'s in more than the seeds")
    if shared := set(one.seeds) & set(two.seeds):
        raise ValueError(
            f"--also {other}: seed {min(shared)} is also in {folder}, and would be counted twice")


def _verdict(file: Artefact) -> Row | None:
    """What the export found when it timed this file against another precision, as its sidecar keeps
    it."""
    verdict = file.facts.get("verdict")
    return {
        "kind": "verdict", "artefact": file.path.name, "sha256": file.sha256,
        "use": verdict.get("use"), "line": verdict["line"]
    } if verdict else None


def _finished(folder: Path) -> Path:
    path = folder / "accuracy.json"
    if not (folder / "config.yaml").is_file():
        raise ValueError(
            f"{folder}: no run here (no config.yaml); make one with: vega3d distill run")
    if not path.is_file():
        raise ValueError(
            f"{path}: not there, so the run is unfinished; finish it with: vega3d distill run "
            f"--name {folder.resolve().name}")
    return folder


def _rows_of(run: DistillRun, student: Student, test: Examples, file: Artefact, seed: int,
             recorded: Sequence[Row]) -> list[Row]:
    if not run.labelled:
        return [_unlabelled(student, test, file.features, seed)]
    row = score_student(run, student, file.features, test, seed, recorded,
                        stream_of(student, file.features))
    return [{"kind": "accuracy", **row}]


def _unlabelled(student: Student, test: Examples, name: str, seed: int) -> Row:
    return {"kind": "accuracy", "features": name, "head": "none", "seed": seed,
            **fidelity(student, test, stream_of(student, name))}


def _to_fp32(test: Examples, name: str) -> Row:
    """Token cosine between a file's features and the torch student's: what export alone cost."""
    cosines = torch.cat([
        torch.cosine_similarity(example[name].double(), example[TORCH].double(), dim=1).flatten()
        for _, example in test.in_order()
    ]).cpu().numpy()
    return {
        "fp32_cosine_mean": float(cosines.mean()),
        "fp32_cosine_p1": float(np.percentile(cosines, 1))
    }


def _per_clip(run: DistillRun, student: Student, files: Sequence[Artefact], test: Examples,
              seed: int) -> dict[str, list[Row]]:
    """The dense metrics of every clip, by the row's `features`."""
    own = ("teacher", "semantic_only", *run.config.teacher.controls)
    asked = [(name, run.dense_teacher(name, seed), run.stream(name)) for name in own]
    asked += [(name, run.dense_teacher("teacher", seed), stream_of(student, name))
              for name in (TORCH, *(file.features for file in files))]
    return {name: score(heads, test, stream)[1] for name, heads, stream in asked}
