"""An ONNX file as something to time: onnxruntime on a CPU, on CUDA and through TensorRT, and OpenVINO on a CPU."""
import numpy as np
import onnxruntime as ort

from bench.artefacts import Artefact
from bench.timing import Device, Subject
from export.session import OnnxModel
from records.results import Row

PROVIDERS = {"ort-cuda": "CUDAExecutionProvider", "ort-trt": "TensorrtExecutionProvider"}


def onnxruntime_subject(backend: str, file: Artefact, images: np.ndarray, threads: int) -> Subject:
    """images [B,3,H,W] float32 in [0,1]. On a GPU the call works on memory of the GPU and waits for it, by the wall
    clock; `host` brings the frames and takes the features back.

    Raises ValueError if onnxruntime would run the file elsewhere than asked: it falls back without a word.
    """
    if backend == "ort-cpu":
        session = OnnxModel(file.path, optimise=True, threads=threads).session
        name = session.get_inputs()[0].name
        return Subject(about(file, backend, "cpu", len(images)), lambda: session.run(None, {name: images}))
    provider = PROVIDERS[backend]
    options: dict[str, str] = {"trt_fp16_enable": "1"} if backend == "ort-trt" and file.precision != "fp32" else {}
    rest = ["CUDAExecutionProvider"] if backend == "ort-trt" else []
    session = ort.InferenceSession(str(file.path), providers=[(provider, options), *rest, "CPUExecutionProvider"])
    if session.get_providers()[0] != provider:
        raise ValueError(f"onnxruntime fell back to {session.get_providers()[0]}; are its CUDA libraries installed?")
    name, binding = session.get_inputs()[0].name, session.io_binding()
    binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(images, "cuda", 0))
    binding.bind_output(session.get_outputs()[0].name, "cuda")
    row = about(file, backend, "cuda", len(images))
    return Subject(row, lambda: session.run_with_iobinding(binding), host=lambda: session.run(None, {name: images}))


def openvino_subject(file: Artefact, images: np.ndarray, threads: int) -> Subject:
    """On the CPU in float32 where the graph says so: some processors would take bfloat16 without being asked."""
    import openvino

    model = openvino.Core().compile_model(str(file.path), "CPU", {
        "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32"})
    request = model.create_infer_request()
    return Subject(about(file, "openvino", "cpu", len(images)), lambda: request.infer([images]))


def about(file: Artefact, backend: str, device: Device, batch: int) -> Row:
    return {"artefact": file.path.name, "sha256": file.sha256, "stage": "student", "backend": backend,
            "device": device, "precision": file.precision, "batch": batch, "frames": batch, "size_mb": file.size_mb}
