"""TensorRT-RTX builds ViT-S ahead of time for three GPU generations, on a machine without a GPU."""
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.graph.check import check_qdq, summary
from export.graph.export_onnx import export_onnx
from export.graph.fp16 import to_half
from export.quant.int8 import Recipe, quantize
from export.source import Frames
from export.tensorrt.builder import build
from export.tensorrt.packages import RTX, RTX_SMS, rtx_compile_for
from student.config import StudentConfig
from student.vit import Student

pytestmark = pytest.mark.skipif(not RTX.installed(), reason=RTX.install)
WEIGHT_BYTES = {"int8": 21.2e6, "fp16": 42.4e6}  # 21.2 M weights in the blocks


@cache
def fp32() -> onnx.ModelProto:
    """ViT-S with random weights."""
    torch.manual_seed(0)
    return export_onnx(Student(StudentConfig("s", depth=12, stem="patch")).eval())


@cache
def vit_small(precision: str) -> onnx.ModelProto:
    """In the strongly typed dialect of TensorRT 10 and RTX; INT8 ranges are of one random frame."""
    if precision == "fp16":
        return to_half(fp32())
    frames = np.random.default_rng(0).integers(0, 256, (1, 3, 224, 224), np.uint8)
    return to_half(quantize(fp32(), Frames(frames, None, "random"), Recipe(frames=1)))


@pytest.mark.parametrize(("precision", "sm"), [*(("int8", sm) for sm in RTX_SMS), ("fp16", 89)])
def test_vit_small_is_built_ahead_of_time(tmp_path: Path, precision, sm):
    path = tmp_path / "model.onnx"
    onnx.save(vit_small(precision), path)
    plan = build(RTX.load(), path, precision, rtx_compile_for(RTX.load(), sm))
    assert WEIGHT_BYTES[precision] < len(plan) < 1.5 * WEIGHT_BYTES[precision]


def test_built_graph_is_int8_in_every_block():
    assert check_qdq(vit_small("int8"), "rtx", want_int8=True) == []
    assert summary(vit_small("int8")) == "48 of 50 layers with weights are INT8"
