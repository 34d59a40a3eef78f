"""Saves the student of a run as it ships: bfloat16, with its heads and its curves.

    python -m bench.recipes.ship_student RUN [WEIGHTS]

Replaces WEIGHTS/vit-SIZE, by default of student/weights, and lists it in WEIGHTS/manifest.json.
Then write its card from RUN/accuracy.json and, after a ViT-Ti, make infer/model again
(bench.recipes.shipped_model).
"""
import shutil
from dataclasses import replace
from pathlib import Path

import torch
import tyro

from distill.joint import METRICS as JOINT_METRICS
from distill.loop import METRICS
from records import manifest
from records.files import atomic_write, sha256
from student.config import WEIGHTS
from student.heads import heads_scores, load_heads, save_heads
from student.vit import load_student, save_student


def ship(run: tyro.conf.Positional[Path], weights: tyro.conf.Positional[Path] = WEIGHTS) -> None:
    """run: of `vega3d distill run`; its heads' scores are those of the float32 student.

    Raises ValueError, and writes nothing, if it has no student or no heads.
    """
    source = run / "student"
    student = load_student(source)
    heads = load_heads(source, sha256(source / "student.safetensors"))
    folder = weights / f"vit-{student.config.size}"
    save_student(student, folder, torch.bfloat16)
    heads.shape = replace(heads.shape, student=sha256(folder / "student.safetensors"))
    save_heads(heads, folder, heads_scores(source))
    for name in (METRICS, JOINT_METRICS):
        with atomic_write(folder / name) as copy:
            shutil.copyfile(source / name, copy)
    manifest.create(weights, manifest.files_below(weights))
    print(folder)


if __name__ == "__main__":
    tyro.cli(ship)
