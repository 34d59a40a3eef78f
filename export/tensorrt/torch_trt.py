"""`--via torch-tensorrt`: the torch student compiled to an FP16 engine, without ONNX.

Every step needs a GPU, even the import. FP16 only: its INT8 would need ModelOpt's quantisers.
"""
import copy
import importlib
from types import ModuleType

import torch
from torch import Tensor, nn

from export.graph.export_onnx import Batch
from export.tensorrt.builder import DYNAMIC_BATCHES
from student.vit import Student

INSTALL = ("pip install torch-tensorrt, or torch-tensorrt-rtx for GeForce cards; both need a GPU "
           "and torch with CUDA")


def load() -> ModuleType:
    """The torch_tensorrt package. Raises ValueError if it cannot be imported here."""
    try:
        return importlib.import_module("torch_tensorrt")
    except Exception as error:  # without a GPU: an AssertionError of torch.cuda
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"export trt --via torch-tensorrt: cannot be used here ({reason}); {INSTALL}; or leave "
            "--via out: the ONNX route needs neither") from error


class HalfStudent(nn.Module):
    """The student in float16 with float32 input, output and LayerNorm statistics."""

    def __init__(self, student: Student):
        super().__init__()
        self.student = copy.deepcopy(student).half()

    def forward(self, frames: Tensor) -> Tensor:
        return self.student(frames.half()).float()  # [B,D,14,14]


def build(package: ModuleType, student: Student, batch: Batch) -> bytes:
    """The serialised FP16 engine. Raises ValueError with torch-tensorrt's message if it fails."""
    frame = (3, student.config.image_size, student.config.image_size)
    low, best, high = DYNAMIC_BATCHES
    if batch == "dynamic":
        frames = torch.zeros(best, *frame).cuda()
        shapes = {"frames": {0: torch.export.Dim("batch", min=low, max=high)}}
        spec = package.Input(min_shape=(low, *frame), opt_shape=(best, *frame),
                             max_shape=(high, *frame), dtype=torch.float32)
    else:
        frames, shapes = torch.zeros(batch, *frame).cuda(), None
        spec = package.Input(tuple(frames.shape), dtype=torch.float32)
    try:
        program = torch.export.export(HalfStudent(student).eval().cuda(), (frames,),
                                      dynamic_shapes=shapes)
        plan = package.dynamo.convert_exported_program_to_serialized_trt_engine(
            program, arg_inputs=(spec,), require_full_compilation=True)
    except Exception as error:  # torch's, TensorRT's and its own exceptions share no base
        raise ValueError(
            "export trt --via torch-tensorrt: cannot build it: "
            f"{' '.join(str(error).split())[:300]}; leave --via out for the ONNX route") from error
    return bytes(plan)
