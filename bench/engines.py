"""A TensorRT engine as something to time."""
import importlib

import numpy as np
import torch

from bench.artefacts import Artefact
from bench.onnx_backends import about
from bench.timing import Subject
from export import cuda
from export.engine import EngineModel, check_engine

MODULES = {"trt": "tensorrt", "rtx": "tensorrt_rtx"}


def engine_subject(backend: str, file: Artefact, images: np.ndarray) -> Subject:
    """images [B,3,H,W] float32 in [0,1], B the engine's own. By CUDA events where torch has a GPU (the engine runs on
    its default stream), by the wall clock otherwise. Raises ValueError for an engine of another machine or version."""
    trt = importlib.import_module(MODULES[backend])
    check_engine(file.path, trt, cuda.device())
    model = EngineModel(trt, file.path.read_bytes(), len(images))
    model(images)
    row = about(file, backend, "cuda", len(images))
    if torch.cuda.is_available():
        return Subject(row, lambda: model.context.execute_async_v3(0), "cuda", host=lambda: model(images))
    return Subject(row, model.run, host=lambda: model(images))
