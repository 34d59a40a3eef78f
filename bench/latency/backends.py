"""Every way to run the student that this machine may have, by name; what is not here is named with
its remedy."""
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from bench.artefacts import Artefact, absent
from bench.latency.gpu import LAUNCHES, Launch, gpu_subjects
from bench.latency.timing import Device, Subject
from export.graph.session import OnnxModel
from export.tensorrt import cuda
from export.tensorrt.runtime import EngineModel, check_engine
from records.files import sha256
from records.results import Row
from student.vit import load_student

Found = tuple[list[Subject], list[Row]]
Open = Callable[[Artefact, Tensor, int], Found]  # artefact, frames [B,3,H,W] in [0,1], CPU threads


def student_subjects(artefacts: Sequence[Artefact], frames: Tensor, batches: Sequence[int],
                     backends: Sequence[str], threads: int) -> Found:
    """What can be timed, and `absent` rows for what cannot. frames [N,3,H,W] in [0,1].

    A file runs on the backends it is meant for (`Artefact.backends`). Raises ValueError for an
    unknown backend.
    """
    if unknown := [name for name in backends if name not in BACKENDS]:
        raise ValueError(f"--backends: got {unknown[0]!r}, expected some of {','.join(BACKENDS)}")
    found: list[Subject] = []
    missing: list[Row] = []
    for name in backends:
        suited = [artefact for artefact in artefacts if name in artefact.backends]
        if gap := _gap(name):
            missing.append(gap)
        elif not suited and name in ("trt", "rtx"):
            missing.append(absent(name, "no engine was given",
                                  f"vega3d export trt --target {name}"))
        for artefact in suited if not gap else ():
            for batch in batches:
                subjects, gaps = _opened(name, artefact, frames[torch.arange(batch) % len(frames)],
                                         threads)
                found, missing = found + subjects, missing + gaps
    return found, missing


def _opened(name: str, artefact: Artefact, images: Tensor, threads: int) -> Found:
    what = f"{artefact.path.name} at batch {len(images)} on {name}"
    if artefact.batch not in (len(images), "dynamic"):
        return [], [
            absent(what, f"its batch is fixed at {artefact.batch}",
                   "vega3d export onnx --batch dynamic")
        ]
    if (size := _size(artefact)) not in (None, tuple(images.shape[2:])):
        images = torch.nn.functional.interpolate(images, size)  # another's model of another size
    try:
        return BACKENDS[name](artefact, images, threads)
    except (ValueError, RuntimeError, OSError) as error:
        return [], [absent(what, " ".join(str(error).split())[:200], "see the message")]


def _size(artefact: Artefact) -> tuple[int, int] | None:
    """Height and width that a file is fixed at."""
    sides = artefact.facts.get("input", {}).get("shape", [])[2:]
    return (sides[0], sides[1]) if len(sides) == 2 and all(isinstance(side, int)
                                                           for side in sides) else None


def _gap(name: str) -> Row | None:
    """Why a backend is not here; None if it is."""
    import onnxruntime as ort

    needs = {"ort-cuda": "CUDAExecutionProvider", "ort-trt": "TensorrtExecutionProvider"}
    if name in needs and needs[name] not in ort.get_available_providers():
        return absent(name, f"this onnxruntime has no {needs[name]}",
                      "pip install 'vega3d-edge[gpu]'")
    packages = {
        "trt": ("tensorrt", "tensorrt"), "rtx": ("tensorrt_rtx", "rtx"),
        "openvino": ("openvino", "openvino")
    }
    if name in packages and importlib.util.find_spec(packages[name][0]) is None:
        return absent(name, f"{packages[name][0]} is not installed",
                      f"pip install 'vega3d-edge[{packages[name][1]}]'")
    if name in ("trt", "rtx", "ort-cuda", "ort-trt"):
        from export.tensorrt import cuda

        if cuda.first_gpu() is None:
            return absent(name, "no NVIDIA GPU here", "run on a machine with one")
    return None


def _torch(artefact: Artefact, images: Tensor, threads: int) -> Found:
    from bench.latency.backends import torch_subjects

    found, missing = torch_subjects(artefact.path.parent, images, "cpu")
    if not torch.cuda.is_available():
        return found, [absent("torch CUDA", "no GPU here", "run on a machine with an NVIDIA GPU")]
    for precision in ("fp32", "fp16"):
        more, gaps = torch_subjects(artefact.path.parent, images, "cuda", precision)
        found, missing = found + more, missing + gaps
    return found, missing


def _compile(artefact: Artefact, images: Tensor, threads: int) -> Found:
    from bench.latency.backends import torch_subjects

    if not torch.cuda.is_available():
        return torch_subjects(artefact.path.parent, images, "cpu", "fp32", "compile")
    found, missing = torch_subjects(artefact.path.parent, images, "cuda", "fp32", "compile")
    more, gaps = torch_subjects(artefact.path.parent, images, "cuda", "fp16", "compile")
    return found + more, missing + gaps


def _onnxruntime(name: str) -> Open:
    def open_(artefact: Artefact, images: Tensor, threads: int) -> Found:
        from bench.latency.backends import onnxruntime_subject

        return [onnxruntime_subject(name, artefact, images.numpy(), threads)], []
    return open_


def _openvino(artefact: Artefact, images: Tensor, threads: int) -> Found:
    from bench.latency.backends import openvino_subject

    return [openvino_subject(artefact, images.numpy(), threads)], []


def _engine(name: str) -> Open:
    def open_(artefact: Artefact, images: Tensor, threads: int) -> Found:
        from bench.latency.backends import engine_subject

        return [engine_subject(name, artefact, images.numpy())], []
    return open_


BACKENDS: dict[str, Open] = {
    "torch": _torch, "compile": _compile, "ort-cpu": _onnxruntime("ort-cpu"),
    "ort-cuda": _onnxruntime("ort-cuda"), "ort-trt": _onnxruntime("ort-trt"), "trt": _engine("trt"),
    "rtx": _engine("rtx"), "openvino": _openvino
}


Torch = Literal["torch", "compile"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def torch_subjects(folder: Path, images: Tensor, device: Device, precision: str = "fp32",
                   backend: Torch = "torch",
                   launches: Sequence[Launch] = LAUNCHES) -> tuple[list[Subject], list[Row]]:
    """folder: student.safetensors and student.json. images [B,3,H,W] in [0,1] on the CPU."""
    file, dtype = folder / "student.safetensors", DTYPES[precision]
    student = load_student(folder).to(device, dtype)
    weights_mb = sum(p.numel() * p.element_size() for p in student.parameters()) / 1e6
    about: Row = {
        "artefact": file.name, "sha256": sha256(file), "stage": "student", "backend": backend,
        "device": device, "precision": precision, "batch": len(images), "frames": len(images),
        "size_mb": file.stat().st_size / 1e6
    }
    model: Callable[[Tensor], Tensor] = torch.compile(
        student, dynamic=False) if backend == "compile" else student
    if device == "cuda":
        return gpu_subjects(model, images.to(dtype), about, launches, weights_mb)
    call = torch.inference_mode()(lambda: model(images.to(dtype)))
    return [Subject(about, call)], []


PROVIDERS = {"ort-cuda": "CUDAExecutionProvider", "ort-trt": "TensorrtExecutionProvider"}


def onnxruntime_subject(backend: str, file: Artefact, images: np.ndarray, threads: int) -> Subject:
    """images [B,3,H,W] float32 in [0,1]. On a GPU the call works on memory of the GPU and waits for
    it, by the wall clock; `host` brings the frames and takes the features back.

    Raises ValueError if onnxruntime would run the file elsewhere than asked: it falls back without
    a word.
    """
    if backend == "ort-cpu":
        session = OnnxModel(file.path, optimise=True, threads=threads).session
        name = session.get_inputs()[0].name
        return Subject(about(file, backend, "cpu", len(images)),
                       lambda: session.run(None, {name: images}))
    provider = PROVIDERS[backend]
    options: dict[str, str] = {"trt_fp16_enable": "1"
                               } if backend == "ort-trt" and file.precision != "fp32" else {}
    rest = ["CUDAExecutionProvider"] if backend == "ort-trt" else []
    session = ort.InferenceSession(str(file.path), providers=[(provider, options), *rest,
                                                              "CPUExecutionProvider"])
    if session.get_providers()[0] != provider:
        raise ValueError(
            f"onnxruntime fell back to {session.get_providers()[0]}; are its CUDA libraries "
            "installed?"
        )
    name, binding = session.get_inputs()[0].name, session.io_binding()
    binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(images, "cuda", 0))
    binding.bind_output(session.get_outputs()[0].name, "cuda")
    row = about(file, backend, "cuda", len(images))
    return Subject(row, lambda: session.run_with_iobinding(binding),
                   host=lambda: session.run(None, {name: images}))


def openvino_subject(file: Artefact, images: np.ndarray, threads: int) -> Subject:
    """On the CPU in float32 where the graph says so: some processors would take bfloat16 without
    being asked."""
    import openvino

    model = openvino.Core().compile_model(str(file.path), "CPU", {
        "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32"})
    request = model.create_infer_request()
    return Subject(about(file, "openvino", "cpu", len(images)), lambda: request.infer([images]))


def about(file: Artefact, backend: str, device: Device, batch: int) -> Row:
    return {
        "artefact": file.path.name, "sha256": file.sha256, "stage": "student", "backend": backend,
        "device": device, "precision": file.precision, "batch": batch, "frames": batch,
        "size_mb": file.size_mb
    }


MODULES = {"trt": "tensorrt", "rtx": "tensorrt_rtx"}


def engine_subject(backend: str, file: Artefact, images: np.ndarray) -> Subject:
    """images [B,3,H,W] float32 in [0,1], B the engine's own. By CUDA events where torch has a GPU
    (the engine runs on its default stream), by the wall clock otherwise. Raises ValueError for an
    engine of another machine or version."""
    trt = importlib.import_module(MODULES[backend])
    check_engine(file.path, trt, cuda.first_gpu())
    model = EngineModel(trt, file.path.read_bytes(), len(images))
    model(images)
    row = about(file, backend, "cuda", len(images))
    if torch.cuda.is_available():
        return Subject(row, lambda: model.context.execute_async_v3(0), "cuda",
                       host=lambda: model(images))
    return Subject(row, model.run, host=lambda: model(images))
