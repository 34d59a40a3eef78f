"""Saves the student of a run as it ships: bfloat16, with its heads and curves, listed.

    python -m bench.recipes.ship_student RUN [WEIGHTS]

Replaces vit-SIZE in WEIGHTS, by default student/weights; its README.md is then yours to write.
"""
from dataclasses import replace
from pathlib import Path

import torch
from tyro.conf import Positional

from distill import joint, loop
from records import manifest
from records.files import read_rows, sha256, write_rows
from student.config import SHIPPED
from student.heads import heads_scores, load_heads, save_heads
from student.vit import load_student, save_student
from vega3d import run_recipe


def ship(run: Positional[Path], weights: Positional[Path] = SHIPPED.parent) -> None:
    """Raises ValueError, and writes nothing, if the run has no student with heads."""
    source = run / "student"
    student = load_student(source)
    heads = load_heads(source, sha256(source / "student.safetensors"))
    folder = weights / f"vit-{student.config.size}"
    save_student(student, folder, torch.bfloat16)
    heads.shape = replace(heads.shape, student=sha256(folder / "student.safetensors"))
    save_heads(heads, folder, heads_scores(source))
    for name in (loop.METRICS, joint.METRICS):
        write_rows(read_rows(source / name), folder / name)
    manifest.create(weights, manifest.files_below(weights))


if __name__ == "__main__":
    run_recipe(ship)
