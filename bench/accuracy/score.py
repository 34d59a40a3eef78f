"""What each student keeps of the teacher, on held-out clips, with the very files that are timed."""
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.accuracy.intervals import add_intervals
from bench.accuracy.language_accuracy import add_language_accuracy, load_question_set
from bench.accuracy.student_features import TORCH, extract_student_features, stored_stream
from bench.artefacts import Artefact, exported
from bench.report.pictures import draw_pictures, match_rows
from bench.report.precision_map import layer_rows
from distill.config import load_run_config
from distill.loop import fidelity
from distill.run import DistillRun, open_distill_run
from distill.stages import score_student
from records import manifest
from records.files import read_json, sha256
from records.results import Row
from student.vit import Student
from teacher.data.dataset import Examples
from teacher.dense import score


@dataclass
class _ScoredRun:
    """A finished run with the features of its exported files, and its accuracy rows."""
    seed: int
    student: Student
    files: list[Artefact]
    missing: list[Row]
    test: Examples
    rows: list[Row]


def accuracy(folder: Path, also: Sequence[Path] = (), teachers: Sequence[Path] = (),
             questions: int | None = None) -> list[Row]:
    """Rows of kind `accuracy`, `picture`, `match_pair`, `match`, `layer`, `verdict` and `absent`.
    The rows that the run recorded, of every seed; and the first seed's exported files, scored
    alike, with fp32_cosine to the torch student. also, teachers, questions: as in bench.cli. Raises
    ValueError if a run is unfinished, or one of `also` or `teachers` does not fit this one."""
    for other in also:  # before minutes of scoring
        _check_same_config(folder, other)
    run = open_distill_run(_finished(folder), render=True)
    question_set = load_question_set(teachers, run, questions) if teachers else None
    scored = _score(run)
    test, files = scored.test, scored.files
    if run.labelled:
        first_seed = [row for row in scored.rows if row["seed"] == scored.seed]
        add_intervals(first_seed, _per_clip(run, scored), test.ids)
    if question_set:
        add_language_accuracy(scored.rows, question_set, run, scored.student, test.stores)
    rows = scored.rows
    for other in also:
        rows += _score(open_distill_run(_finished(other), render=True)).rows
    names = [file.features for file in files]
    rows += draw_pictures(run, scored.student, test, names)
    rows += match_rows(run, test, names) + layer_rows(files)
    return rows + [row for file in files if (row := _verdict_row(file))] + scored.missing


def _score(run: DistillRun) -> _ScoredRun:
    folder, seed = run.folder, run.config.seeds[0]
    recorded = read_json(folder / "accuracy.json", "run again: vega3d distill run", kind=list)
    files, missing = exported(folder)
    student = run.student(seed)
    test = run.examples("test")
    stores = test.stores | extract_student_features(run, student, files, test.ids)
    test = Examples(run.source, test.ids, stores, run.device)
    rows = [{"kind": "accuracy", **row} for row in recorded]
    if not run.labelled:
        rows.append(_unlabelled_row(student, test, TORCH, seed))
    weights = folder / "student" / "student.safetensors"
    for row in rows:
        if row["features"] == TORCH and row["seed"] == seed:
            row |= {"artefact": weights.name, "sha256": sha256(weights)}
    for file in files:
        name = file.features
        row = _unlabelled_row(student, test, name, seed) if not run.labelled else {
            "kind": "accuracy", **score_student(run, student, name, test, seed, recorded,
                                                stored_stream(student, name))}
        rows.append(row | {"artefact": file.path.name, "sha256": file.sha256,
                           "size_mb": file.size_mb, **_fp32_cosine(test, name)})
    return _ScoredRun(seed, student, files, missing, test, rows)


def _check_same_config(folder: Path, other: Path) -> None:
    ours, theirs = (load_run_config(_finished(path)) for path in (folder, other))
    like = replace(theirs, seeds=ours.seeds, name=ours.name, runs=ours.runs, features=ours.features)
    if like != ours:
        raise ValueError(
            f"--also {other}: its configuration differs from {folder}'s in more than the seeds")
    if shared := set(ours.seeds) & set(theirs.seeds):
        raise ValueError(
            f"--also {other}: seed {min(shared)} is also in {folder}, and would be counted twice")


def _verdict_row(file: Artefact) -> Row | None:
    """The export's own verdict, where its sidecar holds one: which precision to use here."""
    verdict = file.facts.get("verdict")
    return verdict and {"kind": "verdict", "artefact": file.path.name, "sha256": file.sha256,
                        "use": verdict.get("use"), "line": verdict["line"]}


def _finished(folder: Path) -> Path:
    path, remedy = folder / "accuracy.json", f"vega3d distill run --name {folder.resolve().name}"
    load_run_config(folder)  # raises ValueError if it is no run
    if not path.is_file():
        raise ValueError(f"{path}: not there, so the run is unfinished; finish it with: {remedy}")
    manifest.check(path, f"score again with: {remedy}")
    return folder


def _unlabelled_row(student: Student, test: Examples, name: str, seed: int) -> Row:
    return {"kind": "accuracy", "features": name, "head": "none", "seed": seed,
            **fidelity(student, test, stored_stream(student, name))}


def _fp32_cosine(test: Examples, name: str) -> Row:
    """Token cosine between a file's features and the torch student's: the cost of export alone."""
    cosines = []
    for _, example in test.in_order():
        ours, fp32 = example[name].double(), example[TORCH].double()
        cosines.append(torch.cosine_similarity(ours, fp32, dim=1).flatten())
    values = torch.cat(cosines).cpu().numpy()
    return {"fp32_cosine_mean": float(values.mean()),
            "fp32_cosine_p1": float(np.percentile(values, 1))}


def _per_clip(run: DistillRun, scored: _ScoredRun) -> dict[str, list[Row]]:
    """The dense metrics of every clip, by the row's `features`."""
    seed, found = scored.seed, {}
    for name in ("teacher", "semantic_only", *run.config.teacher.controls):
        found[name] = score(run.dense_teacher(name, seed), scored.test, run.stream(name))[1]
    for name in (TORCH, *(file.features for file in scored.files)):
        stream = stored_stream(scored.student, name)
        found[name] = score(run.dense_teacher("teacher", seed), scored.test, stream)[1]
    return found
