"""Features of the student and of its exported files on held-out clips, cached in RUN/bench/features
by the file's SHA-256."""
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

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


class FileTower:
    """A student or exported file as a tower: frames [B,T,3,224,224] in [0,1] -> [B,T,D,14,14].
    model: frames [N,3,224,224] -> standardised features [N,D,14,14]."""

    def __init__(self, name: str, sha256: str, dim: int, model: Callable[[Tensor], Tensor]):
        self.dim, self.model = dim, model
        self.spec = {"tower": name, "sha256": sha256, "dim": dim}

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        return self.model(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])


def load_file(file: Artefact) -> Callable[[Tensor], Tensor]:
    """CPU_FILES run fully optimised, as their users run them; the others at onnxruntime's basic
    level, which keeps the graph as it is meant for other machines."""
    pool = ThreadPoolExecutor(torch.get_num_threads())
    model = OpenVinoModel(file.path) if file.kind == "ir" else partial(
        OnnxModel(file.path, optimise=file.path.name in CPU_FILES), apply=pool.map)
    return lambda frames: torch.from_numpy(model(frames.cpu().numpy())).float()


def extract_student_features(run: DistillRun, student: Student, files: Sequence[Artefact],
                             ids: Sequence[str]) -> dict[str, FeatureStore]:
    """A filled store of each by the name of its accuracy row; stores of replaced files go."""
    root = run.folder / "bench" / "features"
    weights, dim = run.folder / "student" / "student.safetensors", student.config.out_dim
    towers = {TORCH: FileTower(TORCH, sha256(weights), dim, student)}
    for file in files:
        towers[file.features] = FileTower(file.features, file.sha256, dim, load_file(file))
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
