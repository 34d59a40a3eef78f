"""`--via torch-tensorrt`: the student straight from torch to an engine, without ONNX; gated and
described alike.

For those who already live in torch-tensorrt (or its TensorRT-RTX build). It needs a GPU at every
step, the import included. FP16 only: INT8 by this route means ModelOpt's own quantisers, while ours
stand in the ONNX.
"""
import copy
import importlib
from types import ModuleType

import torch
from torch import Tensor, nn

from export.graph.export_onnx import Batch
from student.vit import Student

PACKAGE = "torch_tensorrt"
INSTALL = "pip install torch-tensorrt, or torch-tensorrt-rtx for GeForce cards; both need a GPU and torch with CUDA"
DYNAMIC = (1, 8, 32)  # min, opt, max


def load() -> ModuleType:
    """The torch_tensorrt package. Raises ValueError, saying what to do, if it cannot be imported
    here."""
    try:
        return importlib.import_module(PACKAGE)
    except Exception as error:  # without a GPU it fails by an AssertionError from inside torch.cuda
        said = " ".join(str(error).split())[:120]
        raise ValueError(
            f"export trt --via torch-tensorrt: cannot be used here ({said}); {INSTALL}; or leave "
            "--via out: the ONNX route needs neither") from error


def tensorrt_of(package: ModuleType) -> ModuleType:
    """The TensorRT module that this torch_tensorrt builds with and that runs its engines."""
    return importlib.import_module(getattr(package, "tensorrt_package_name", None) or "tensorrt")


class Halved(nn.Module):
    """The student in float16 between float32 ends, as model.fp16.onnx is; LayerNorm's statistics
    stay float32."""

    def __init__(self, student: Student):
        super().__init__()
        self.student = copy.deepcopy(student).half()

    def forward(self, frames: Tensor) -> Tensor:
        return self.student(frames.half()).float()  # [B,D,14,14]


def build(package: ModuleType, student: Student, batch: Batch) -> bytes:
    """The serialised FP16 engine. Raises ValueError with torch-tensorrt's words if it cannot."""
    size = student.config.image_size
    frames = torch.zeros(DYNAMIC[1] if batch == "dynamic" else batch, 3, size, size).cuda()
    low, best, high = ((n, 3, size, size) for n in DYNAMIC)
    given = package.Input(min_shape=low, opt_shape=best, max_shape=high, dtype=torch.float32) if batch == "dynamic" \
        else package.Input(tuple(frames.shape), dtype=torch.float32)
    shapes = {"frames": {0: torch.export.Dim("batch", min=low[0], max=high[0])}
              } if batch == "dynamic" else None
    try:
        program = torch.export.export(
            Halved(student).eval().cuda(), (frames, ), dynamic_shapes=shapes)
        plan = package.dynamo.convert_exported_program_to_serialized_trt_engine(
            program, arg_inputs=(given,), require_full_compilation=True)
    except Exception as error:  # torch's, TensorRT's and its own exceptions share no base
        raise ValueError(
            "export trt --via torch-tensorrt: cannot build it: "
            f"{' '.join(str(error).split())[:300]}; leave --via out for the ONNX route") from error
    return bytes(plan)
