"""Every way to run the student that this machine has: torch and onnxruntime, on the CPU and on a GPU."""
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from bench.artefacts import Artefact, absent, exported
from bench.timing import Device, Subject
from export.session import OnnxModel
from records.files import sha256
from records.results import Row
from student.vit import load_student

CPU_FILES = ("model.onnx", "model.int8.cpu.onnx")  # FP16 on a CPU is emulated: nobody should run it
CUDA_FILES = ("model.onnx", "model.fp16.onnx")
Found = tuple[list[Subject], list[Row]]


def student_subjects(run: Path, frames: Tensor, batches: tuple[int, ...], threads: int) -> Found:
    """What can be timed, and `absent` rows for what cannot. frames [N,3,224,224] in [0,1]."""
    files, missing = exported(run)
    found: list[Subject] = []
    for batch in batches:
        images = frames[torch.arange(batch) % len(frames)]  # [batch,3,224,224]
        pixels = images.numpy()
        for subjects, gaps in (_torch_cpu(run, images), _torch_cuda(run, images),
                               _onnx(files, pixels, "cpu", threads), _onnx(files, pixels, "cuda", threads)):
            found += subjects
            missing += [gap for gap in gaps if gap not in missing]
    return found, missing


def _torch_cpu(run: Path, images: Tensor) -> Found:
    return [_torch(run, images, "cpu", torch.float32)], []


def _torch_cuda(run: Path, images: Tensor) -> Found:
    if not torch.cuda.is_available():
        return [], [absent("torch CUDA", "no GPU here", "run on a machine with an NVIDIA GPU")]
    return [_torch(run, images, "cuda", torch.float32), _torch(run, images, "cuda", torch.float16)], []


def _torch(run: Path, images: Tensor, device: Device, dtype: torch.dtype) -> Subject:
    file = run / "student" / "student.safetensors"
    student = load_student(run / "student").to(device, dtype)
    images = images.to(device, dtype)
    call = torch.inference_mode()(student)
    precision = "fp32" if dtype == torch.float32 else "fp16"
    return Subject(_about(file.name, sha256(file), file.stat().st_size / 1e6, "torch", device, precision, len(images)),
                   lambda: call(images), device)


def _onnx(files: list[Artefact], images: np.ndarray, device: Device, threads: int) -> Found:
    if device == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        return [], [absent("onnxruntime CUDA", "not installed", "pip install 'vega3d-edge[gpu]'")]
    subjects, missing = [], []
    for file in files:
        if file.path.name not in (CPU_FILES if device == "cpu" else CUDA_FILES):
            continue
        if file.batch not in (len(images), "dynamic"):
            missing.append(absent(f"{file.path.name} at batch {len(images)}", f"its batch is fixed at {file.batch}",
                                  "vega3d export onnx --batch dynamic"))
            continue
        about = _about(file.path.name, file.sha256, file.size_mb, "onnxruntime", device, file.precision, len(images))
        # a GPU session is timed host to host: onnxruntime copies the frames in and the features out
        subjects.append(Subject(about, _session_call(file, images, device, threads)))
    return subjects, missing


def _session_call(file: Artefact, images: np.ndarray, device: Device, threads: int):
    if device == "cpu":
        model = OnnxModel(file.path, optimise=True, threads=threads)
        session, name = model.session, model.input.name
    else:
        session = ort.InferenceSession(str(file.path), providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
        name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: images})


def _about(artefact: str, digest: str, size_mb: float, backend: str, device: Device, precision: str, batch: int) -> Row:
    return {"artefact": artefact, "sha256": digest, "stage": "student", "backend": backend, "device": device,
            "precision": precision, "batch": batch, "frames": batch, "size_mb": size_mb}
