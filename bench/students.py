"""The student in torch as something to time: eager or compiled, on the CPU or on a GPU."""
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bench.gpu import LAUNCHES, Launch, gpu_subjects
from bench.timing import Device, Subject
from records.files import sha256
from records.results import Row
from student.vit import load_student

Torch = Literal["torch", "compile"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def torch_subjects(folder: Path, images: Tensor, device: Device, precision: str = "fp32", backend: Torch = "torch",
                   launches: Sequence[Launch] = LAUNCHES) -> tuple[list[Subject], list[Row]]:
    """folder: student.safetensors and student.json. images [B,3,H,W] in [0,1] on the CPU."""
    file, dtype = folder / "student.safetensors", DTYPES[precision]
    student = load_student(folder).to(device, dtype)
    weights_mb = sum(p.numel() * p.element_size() for p in student.parameters()) / 1e6
    about: Row = {"artefact": file.name, "sha256": sha256(file), "stage": "student", "backend": backend,
                  "device": device, "precision": precision, "batch": len(images), "frames": len(images),
                  "size_mb": file.stat().st_size / 1e6}
    model: Callable[[Tensor], Tensor] = torch.compile(student, dynamic=False) if backend == "compile" else student
    if device == "cuda":
        return gpu_subjects(model, images.to(dtype), about, launches, weights_mb)
    call = torch.inference_mode()(lambda: model(images.to(dtype)))
    return [Subject(about, call)], []
