"""Every backend that can run a student. A new one is a function and its entry in BACKENDS below."""
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.artefacts import Artefact, absent
from bench.latency.gpu import gpu_cases
from bench.latency.memory import Workload
from bench.latency.timing import BenchCase, Cases, DeviceType, joined
from export.graph.session import OnnxModel
from export.openvino import OpenVinoModel, has_bfloat16
from export.tensorrt import cuda
from export.tensorrt.cuda import EngineModel
from export.tensorrt.engines import check_engine
from records.results import Row
from records.runtime import ort, try_model
from student.vit import load_student

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class Backend:
    """open: (artefact whose `targets` contain `target`, frames [B,3,H,W] in [0,1] on the CPU, CPU
    threads) -> its cases."""
    open: Callable[[Artefact, Tensor, int], Cases]
    target: str
    package: str = ""                # that must be installed
    extra: str = ""                  # of this project's pip extras, which brings it
    provider: str = ""               # that onnxruntime must have
    needs_gpu: bool = False
    memory: Workload | None = None   # on the CPU: how bench.latency.memory loads the file
    default: bool = True             # without --backends


def student_cases(artefacts: Sequence[Artefact], frames: Tensor, batches: Sequence[int],
                  names: Sequence[str], threads: int) -> Cases:
    """All combinations of artefact, batch and backend. frames [N,3,H,W] in [0,1]; names: of
    BACKENDS; none: the default ones. Raises ValueError for an unknown backend."""
    if unknown := [name for name in names if name not in BACKENDS]:
        raise ValueError(f"--backends: got {unknown[0]!r}, expected some of {','.join(BACKENDS)}")
    parts: list[Cases] = []
    for name in names or [name for name, backend in BACKENDS.items() if backend.default]:
        suited = [file for file in artefacts if BACKENDS[name].target in file.targets]
        if gap := _unavailable(name):
            parts.append(([], [gap]))
            continue
        if not suited and BACKENDS[name].target in ("trt", "rtx"):
            fix = f"vega3d export trt --target {name}"
            parts.append(([], [absent(name, "no engine was given", fix)]))
        for file in suited:
            for batch in batches:
                images = frames[torch.arange(batch) % len(frames)]
                parts.append(_open(name, file, images, threads))
    return joined(parts)


def torch_cases(file: Artefact, images: Tensor, device: DeviceType, precision: str = "fp32",
                compiled: bool = False) -> Cases:
    """file: of a student. images [B,3,H,W] in [0,1] on the CPU."""
    dtype, backend = DTYPES[precision], "compile" if compiled else "torch"
    student = load_student(file.path.parent).to(device, dtype)
    info = _info(file, backend, device, len(images)) | {"precision": precision}
    model = torch.compile(student, dynamic=False) if compiled else student
    if device == "cuda":
        weights_mb = sum(p.numel() * p.element_size() for p in student.parameters()) / 1e6
        return gpu_cases(model, images.to(dtype), info, weights_mb)
    return [BenchCase(info, torch.inference_mode()(lambda: model(images.to(dtype))))], []


def _open(name: str, file: Artefact, images: Tensor, threads: int) -> Cases:
    what = f"{file.path.name} at batch {len(images)} on {name}"
    if file.batch not in (len(images), "dynamic"):
        return [], [absent(what, f"its batch is fixed at {file.batch}",
                           "vega3d export onnx --batch dynamic")]
    images = _as_input(file, images)
    try:
        if file.kind == "onnx":
            try_model(file.path, len(images), file.data)
        return BACKENDS[name].open(file, images, threads)
    except (ValueError, RuntimeError, OSError) as error:
        return [], [absent(what, " ".join(str(error).split())[:200], "see the message")]


def _as_input(file: Artefact, images: Tensor) -> Tensor:
    """Resized where the file's frames have another size; uint8 [B,H,W,3] for one of a camera."""
    shape = file.facts.get("input", {}).get("shape", [])
    camera = len(shape) == 4 and shape[3] == 3
    sides = tuple(shape[1:3] if camera else shape[2:])
    fixed = len(sides) == 2 and all(isinstance(side, int) for side in sides)
    if fixed and sides != tuple(images.shape[2:]):
        images = torch.nn.functional.interpolate(images, sides)
    return (images * 255).byte().permute(0, 2, 3, 1).contiguous() if camera else images


def _unavailable(name: str) -> Row | None:
    """An `absent` row if this machine lacks what the backend needs."""
    backend = BACKENDS[name]
    fix = f"pip install 'vega3d-edge[{backend.extra}]'"
    if backend.provider and backend.provider not in ort.get_available_providers():
        return absent(name, f"this onnxruntime has no {backend.provider}", fix)
    if backend.package and importlib.util.find_spec(backend.package) is None:
        return absent(name, f"{backend.package} is not installed", fix)
    if backend.needs_gpu and cuda.first_gpu() is None:
        return absent(name, "no NVIDIA GPU here", "run on a machine with one")
    return None


def _torch(compiled: bool, file: Artefact, images: Tensor, threads: int) -> Cases:
    """On the CPU and the GPU; compiled: on the GPU alone, if there is one."""
    parts, on_gpu = [], torch.cuda.is_available()
    if not (compiled and on_gpu):
        parts.append(torch_cases(file, images, "cpu", compiled=compiled))
    if on_gpu:
        parts += [torch_cases(file, images, "cuda", precision, compiled)
                  for precision in DTYPES]
    elif not compiled:
        gap = absent("torch CUDA", "no GPU here", "run on a machine with an NVIDIA GPU")
        parts.append(([], [gap]))
    return joined(parts)


def _onnxruntime_cpu(file: Artefact, images: Tensor, threads: int) -> Cases:
    session, pixels = OnnxModel(file.path, optimise=True, threads=threads).session, images.numpy()
    feed = {session.get_inputs()[0].name: pixels}
    return [BenchCase(_info(file, "ort-cpu", "cpu", len(pixels)),
                      partial(session.run, None, feed))], []


def _onnxruntime_gpu(name: str, file: Artefact, images: Tensor, threads: int) -> Cases:
    """`call` works on GPU memory and waits for it (wall clock); `host` includes both copies. Raises
    ValueError if onnxruntime fell back to another provider, which it does silently."""
    provider, pixels = BACKENDS[name].provider, images.numpy()
    fp16 = name == "ort-trt" and file.precision != "fp32"
    options = {"trt_fp16_enable": "1"} if fp16 else {}
    fallbacks = ["CUDAExecutionProvider"] if name == "ort-trt" else []
    session = ort.InferenceSession(
        str(file.path), providers=[(provider, options), *fallbacks, "CPUExecutionProvider"])
    if session.get_providers()[0] != provider:
        raise ValueError(f"onnxruntime fell back to {session.get_providers()[0]}; "
                         "are its CUDA libraries installed?")
    input_name, binding = session.get_inputs()[0].name, session.io_binding()
    binding.bind_ortvalue_input(input_name, ort.OrtValue.ortvalue_from_numpy(pixels, "cuda", 0))
    binding.bind_output(session.get_outputs()[0].name, "cuda")
    return [BenchCase(_info(file, name, "cuda", len(pixels)),
                      lambda: session.run_with_iobinding(binding),
                      host=lambda: session.run(None, {input_name: pixels}))], []


def _openvino(file: Artefact, images: Tensor, threads: int) -> Cases:
    """FP32 as the file says; where the processor has bfloat16, OpenVINO's default, that too."""
    pixels, cases = images.numpy(), []
    hints = {file.precision: "f32" if file.precision == "fp32" else ""}
    if file.precision == "fp32" and has_bfloat16():
        hints["bf16"] = "bf16"
    for precision, hint in hints.items():
        request = OpenVinoModel(file.path, threads, hint).request
        info = {**_info(file, "openvino", "cpu", len(pixels)), "precision": precision}
        cases.append(BenchCase(info, partial(request.infer, [pixels])))
    return cases, []


def _engine(name: str, file: Artefact, images: Tensor, threads: int) -> Cases:
    """Timed by CUDA events if torch has a GPU, else by the wall clock. Raises ValueError for an
    engine built for another GPU or TensorRT version."""
    trt, pixels = importlib.import_module(BACKENDS[name].package), images.numpy()
    check_engine(file.path, trt, cuda.first_gpu())
    model = EngineModel(trt, file.path.read_bytes(), len(pixels))
    model(pixels)
    call: Callable[[], object] = model.run
    device: DeviceType = "cpu"
    if torch.cuda.is_available():
        call, device = partial(model.context.execute_async_v3, 0), "cuda"
    return [BenchCase(_info(file, name, "cuda", len(pixels)), call, device,
                      host=lambda: model(pixels))], []


def _info(file: Artefact, backend: str, device: DeviceType, batch: int) -> Row:
    return {"artefact": file.path.name, "sha256": file.sha256, "stage": "student",
            "backend": backend, "device": device, "precision": file.precision, "batch": batch,
            "frames": batch, "size_mb": file.size_mb}


# target: "torch"; an ONNX file's "cpu", "openvino", "cuda" or "tensorrt"; an engine's "trt", "rtx"
BACKENDS = {
    "torch": Backend(partial(_torch, False), "torch", memory="student"),
    "compile": Backend(partial(_torch, True), "torch", default=False),  # minutes
    "ort-cpu": Backend(_onnxruntime_cpu, "cpu", memory="onnx"),
    "ort-cuda": Backend(partial(_onnxruntime_gpu, "ort-cuda"), "cuda", extra="gpu",
                        provider="CUDAExecutionProvider", needs_gpu=True),
    "ort-trt": Backend(partial(_onnxruntime_gpu, "ort-trt"), "tensorrt", extra="gpu",
                       provider="TensorrtExecutionProvider", needs_gpu=True),
    "trt": Backend(partial(_engine, "trt"), "trt", "tensorrt", "tensorrt", needs_gpu=True),
    "rtx": Backend(partial(_engine, "rtx"), "rtx", "tensorrt_rtx", "rtx", needs_gpu=True),
    "openvino": Backend(_openvino, "openvino", "openvino", "openvino", memory="openvino"),
}
