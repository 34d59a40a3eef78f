"""TensorRT-RTX builds ViT-S for three generations of cards on this machine, which has none of them: the bar is 60 s."""
import importlib.util
import time
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from bench.h200.trt_graphs import arrays_of, quantised_of
from bench.h200.trt_vit import LINEARS, Spelling, to_onnx
from export import rtx
from export.builder import build
from export.half import to_half
from export.qdq import check_qdq, summary
from student.vit import Student, StudentConfig

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason=rtx.INSTALL)
SECONDS = 60  # of processor time, so that neighbours on the machine don't count
SMALLEST = {"int8": 21e6, "fp16": 42e6}  # 21.3 M weights in the blocks


@cache
def small(precision: str) -> onnx.ModelProto:
    """ViT-S with random weights, as the product spells it for TensorRT 10 and RTX."""
    torch.manual_seed(0)
    student = Student(StudentConfig(size="s")).eval()
    if precision == "fp16":
        return to_half(to_onnx(arrays_of(student), 1, Spelling(gelu="op"))[0])
    frames = torch.from_numpy(np.random.default_rng(0).random((2, 3, 224, 224), np.float32))
    return to_half(to_onnx({}, 1, Spelling(quantised=LINEARS, gelu="op"), quantised_of(student, frames))[0])


@pytest.mark.parametrize("sm", rtx.DEFAULT_SMS)
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_vit_small_is_built_ahead_of_time_within_the_bar(tmp_path: Path, precision, sm):
    path = tmp_path / "model.onnx"
    onnx.save(small(precision), path)
    began = time.process_time()
    plan = build(rtx.load(), path, precision, rtx.for_sm(rtx.load(), sm))
    assert time.process_time() - began < SECONDS
    assert SMALLEST[precision] < len(plan) < 1.5 * SMALLEST[precision]


def test_what_is_built_is_int8_in_every_block():
    assert check_qdq(small("int8"), "rtx", want_int8=True) == []
    assert summary(small("int8")) == "48 of 50 layers with weights are INT8"
