"""Every way to run the student that this machine may have, by name; what is not here is named with its remedy."""
import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.artefacts import Artefact, absent
from bench.timing import Subject
from records.results import Row

Found = tuple[list[Subject], list[Row]]
Open = Callable[[Artefact, Tensor, int], Found]  # artefact, frames [B,3,H,W] in [0,1], CPU threads


def student_subjects(artefacts: Sequence[Artefact], frames: Tensor, batches: Sequence[int], backends: Sequence[str],
                     threads: int) -> Found:
    """What can be timed, and `absent` rows for what cannot. frames [N,3,H,W] in [0,1].

    A file runs on the backends it is meant for (`Artefact.backends`). Raises ValueError for an unknown backend.
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
            missing.append(absent(name, "no engine was given", f"vega3d export trt --target {name}"))
        for artefact in suited if not gap else ():
            for batch in batches:
                subjects, gaps = _opened(name, artefact, frames[torch.arange(batch) % len(frames)], threads)
                found, missing = found + subjects, missing + gaps
    return found, missing


def _opened(name: str, artefact: Artefact, images: Tensor, threads: int) -> Found:
    what = f"{artefact.path.name} at batch {len(images)} on {name}"
    if artefact.batch not in (len(images), "dynamic"):
        return [], [absent(what, f"its batch is fixed at {artefact.batch}", "vega3d export onnx --batch dynamic")]
    if (size := _size(artefact)) not in (None, tuple(images.shape[2:])):
        images = torch.nn.functional.interpolate(images, size)  # another's model of another size
    try:
        return BACKENDS[name](artefact, images, threads)
    except (ValueError, RuntimeError, OSError) as error:
        return [], [absent(what, " ".join(str(error).split())[:200], "see the message")]


def _size(artefact: Artefact) -> tuple[int, int] | None:
    """Height and width that a file is fixed at."""
    sides = artefact.facts.get("input", {}).get("shape", [])[2:]
    return (sides[0], sides[1]) if len(sides) == 2 and all(isinstance(side, int) for side in sides) else None


def _gap(name: str) -> Row | None:
    """Why a backend is not here; None if it is."""
    import onnxruntime as ort

    needs = {"ort-cuda": "CUDAExecutionProvider", "ort-trt": "TensorrtExecutionProvider"}
    if name in needs and needs[name] not in ort.get_available_providers():
        return absent(name, f"this onnxruntime has no {needs[name]}", "pip install 'vega3d-edge[gpu]'")
    packages = {"trt": ("tensorrt", "tensorrt"), "rtx": ("tensorrt_rtx", "rtx"), "openvino": ("openvino", "openvino")}
    if name in packages and importlib.util.find_spec(packages[name][0]) is None:
        return absent(name, f"{packages[name][0]} is not installed", f"pip install 'vega3d-edge[{packages[name][1]}]'")
    if name in ("trt", "rtx", "ort-cuda", "ort-trt"):
        from export import cuda

        if cuda.device() is None:
            return absent(name, "no NVIDIA GPU here", "run on a machine with one")
    return None


def _torch(artefact: Artefact, images: Tensor, threads: int) -> Found:
    from bench.students import torch_subjects

    found, missing = torch_subjects(artefact.path.parent, images, "cpu")
    if not torch.cuda.is_available():
        return found, [absent("torch CUDA", "no GPU here", "run on a machine with an NVIDIA GPU")]
    for precision in ("fp32", "fp16"):
        more, gaps = torch_subjects(artefact.path.parent, images, "cuda", precision)
        found, missing = found + more, missing + gaps
    return found, missing


def _compile(artefact: Artefact, images: Tensor, threads: int) -> Found:
    from bench.students import torch_subjects

    if not torch.cuda.is_available():
        return torch_subjects(artefact.path.parent, images, "cpu", "fp32", "compile")
    found, missing = torch_subjects(artefact.path.parent, images, "cuda", "fp32", "compile")
    more, gaps = torch_subjects(artefact.path.parent, images, "cuda", "fp16", "compile")
    return found + more, missing + gaps


def _onnxruntime(name: str) -> Open:
    def open_(artefact: Artefact, images: Tensor, threads: int) -> Found:
        from bench.onnx_backends import onnxruntime_subject

        return [onnxruntime_subject(name, artefact, images.numpy(), threads)], []
    return open_


def _openvino(artefact: Artefact, images: Tensor, threads: int) -> Found:
    from bench.onnx_backends import openvino_subject

    return [openvino_subject(artefact, images.numpy(), threads)], []


def _engine(name: str) -> Open:
    def open_(artefact: Artefact, images: Tensor, threads: int) -> Found:
        from bench.engines import engine_subject

        return [engine_subject(name, artefact, images.numpy())], []
    return open_


BACKENDS: dict[str, Open] = {
    "torch": _torch, "compile": _compile, "ort-cpu": _onnxruntime("ort-cpu"), "ort-cuda": _onnxruntime("ort-cuda"),
    "ort-trt": _onnxruntime("ort-trt"), "trt": _engine("trt"), "rtx": _engine("rtx"), "openvino": _openvino}
