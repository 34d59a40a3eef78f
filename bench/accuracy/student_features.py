"""Features of the student and of its exported files on held-out clips, from the very files shipped.

They are cached in RUN/bench/features by the file's SHA-256: a second bench of the same files is
quick, and other files never read them.
"""
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.artefacts import Artefact
from distill.run import DistillRun
from export.graph.session import OnnxModel
from export.openvino import OpenVinoModel
from records import manifest
from records.files import sha256
from student.vit import Student
from teacher.data.feature_store import FeatureStore, fill
from teacher.dense import Stream

TORCH = "student_fp32"  # the accuracy row of the torch student
CPU_FILES = ("model.onnx", "model.int8.cpu.onnx")


class OnnxTower:
    """An exported file as a tower: frames [B,T,3,224,224] in [0,1] -> features [B,T,D,14,14].

    Features are standardised. CPU_FILES run fully optimised, as their users run them; the others at
    onnxruntime's basic level, which keeps the graph as it is meant for other machines.
    """

    def __init__(self, file: Artefact, dim: int):
        self.dim = dim
        self.spec = {"tower": file.features, "sha256": file.sha256, "dim": dim}
        self._model = (OpenVinoModel(file.path) if file.kind == "ir" else
                       OnnxModel(file.path, optimise=file.path.name in CPU_FILES))

    def features(self, frames: Tensor) -> Tensor:
        flat = frames.flatten(0, 1).cpu().numpy()
        return torch.from_numpy(self._model(flat)).float().unflatten(0, frames.shape[:2])


class StudentTower:
    """The torch student as a tower: as OnnxTower."""

    def __init__(self, student: Student, file: Path):
        self.student, self.dim = student, student.config.out_dim
        self.spec = {"tower": TORCH, "sha256": sha256(file), "dim": self.dim}

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        return self.student(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])


def extract_student_features(run: DistillRun, student: Student, files: Sequence[Artefact],
                             ids: Sequence[str]) -> dict[str, FeatureStore]:
    """A filled store of each by the name of its accuracy row; stores of replaced files go."""
    root = run.folder / "bench" / "features"
    weights = run.folder / "student" / "student.safetensors"
    towers: dict[str, OnnxTower | StudentTower] = {TORCH: StudentTower(student, weights)}
    towers |= {file.features: OnnxTower(file, student.config.out_dim) for file in files}
    stores = {}
    for name, tower in towers.items():
        stores[name] = FeatureStore(root, tower.spec, run.stores["generative"].spec["source"])
        for stale in root.glob(f"{name}-*"):
            if stale != stores[name].folder and (stale / "manifest.json").is_file():
                manifest.forget([stale / "manifest.json"])
                shutil.rmtree(stale)
        fill(stores[name], tower, run.source, ids, run.device)
    return stores


def stored_stream(student: Student, name: str) -> Stream:
    """The stored features of one row, in the teacher's raw units."""
    return lambda example: student.destandardise(example[name].float())
