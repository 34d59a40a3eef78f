"""Exported files speaking in the generator's place: their features of every held-out clip, from the
very file shipped.

Features are kept under RUN/bench/features by the file's SHA-256, so that a second bench of the same
files is quick and one of other files never reads them.
"""
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.artefacts import Artefact
from distill.run import DistillRun
from export.graph.session import OnnxModel
from records.files import sha256
from student.vit import Student
from teacher.data.feature_store import FeatureStore, fill
from teacher.dense.train import Stream


class OnnxTower:
    """An ONNX file as a tower: frames [B,T,3,224,224] in [0,1] -> standardised features
    [B,T,D,14,14].

    A CPU file runs as its users run it, fully optimised; the others stop at onnxruntime's basic
    level, where the graph says what it means for other machines.
    """

    def __init__(self, file: Artefact, dim: int):
        self.dim = dim
        self.spec = {"tower": file.features, "sha256": file.sha256, "dim": dim}
        self._model = OnnxModel(file.path, optimise=file.path.name
                                in ("model.onnx", "model.int8.cpu.onnx"))

    def features(self, frames: Tensor) -> Tensor:
        flat = frames.flatten(0, 1).cpu().numpy()
        return torch.from_numpy(self._model(flat)).float().unflatten(0, frames.shape[:2])


class StudentTower:
    """The torch student as a tower, likewise."""

    def __init__(self, student: Student, file: Path):
        self.student, self.dim = student, student.config.out_dim
        self.spec = {"tower": "student_fp32", "sha256": sha256(file), "dim": self.dim}

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        return self.student(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])


def speak(run: DistillRun, student: Student, files: Sequence[Artefact],
          ids: Sequence[str]) -> dict[str, FeatureStore]:
    """One filled store for the torch student and one for each file, by the name of its accuracy
    row."""
    root = run.folder / "bench" / "features"
    towers: dict[str, OnnxTower | StudentTower] = {
        "student_fp32": StudentTower(student, run.folder / "student" / "student.safetensors"),
        **{file.features: OnnxTower(file, student.config.out_dim) for file in files}}
    stores = {}
    for name, tower in towers.items():
        stores[name] = FeatureStore(root, tower.spec, run.stores["generative"].spec["source"])
        for stale in root.glob(f"{name}-*"):
            if stale != stores[name].folder:
                shutil.rmtree(stale)
        fill(stores[name], tower, run.source, ids, run.device)
    return stores


def stream_of(student: Student, name: str) -> Stream:
    """The stored features of one voice, in the teacher's raw units."""
    return lambda example: student.destandardise(example[name].float())
