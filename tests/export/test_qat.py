"""Quantisation-aware distillation: used only if it helps, in the graph form of `quantize`."""
from collections import Counter
from functools import cache

import numpy as np
import onnx
import pytest
import torch

from export.graph.check import check_qdq
from export.graph.dialects import to_unsigned, to_weakly_typed
from export.graph.fp16 import to_half
from export.graph.index import GraphIndex
from export.graph.session import OnnxModel, TorchModel
from export.pipeline import Exporter, Options
from export.quant.int8 import Recipe
from export.quant.qat import QuantLinear, distil_int8, prepare, qdq, to_onnx
from export.quant.sensitivity import quantized_layers
from export.source import to_input
from tests.export_run import gate, int8, run

STEPS = 20


@cache
def _distilled() -> onnx.ModelProto:
    return distil_int8(run().student, run().calibration, quantized_layers(int8()), Recipe(), STEPS)


def test_qdq_rounds_to_steps_and_clips_to_the_range():
    x = torch.tensor([0.0, 0.26, -0.24, 100.0, -100.0])
    zero = torch.zeros((), dtype=torch.int8)
    assert qdq(x, torch.tensor(0.5), zero, 0).tolist() == [0, 0.5, 0, 63.5, -63.5]
    torch.library.opcheck(qdq, (x, torch.tensor(0.5), zero, 0),
                          test_utils=("test_schema", "test_faketensor"))


def test_gradient_passes_inside_the_range_and_stops_outside():
    x = torch.tensor([0.3, 100.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    qdq(x, scale, torch.zeros((), dtype=torch.int8), 0).sum().backward()
    assert x.grad.tolist() == [1, 0] and scale.grad > 0  # a clipped value asks for a wider range


def test_one_scale_a_row_is_applied_along_its_axis():
    x, scale = torch.tensor([[0.3, 0.6], [3.0, 6.0]]), torch.tensor([0.1, 1.0])
    out = qdq(x, scale, torch.zeros(2, dtype=torch.int8), 0)
    assert torch.allclose(out, x, atol=1e-6)


def test_distilled_model_has_the_form_that_the_verifier_accepts():
    model, index = _distilled(), GraphIndex(_distilled())
    assert not check_qdq(model, "trt10", want_int8=True)
    assert quantized_layers(model) == quantized_layers(int8())
    ops = [Counter(node.op_type for node in m.graph.node) for m in (model, int8())]
    assert ops[0] == ops[1]  # the same graph, node for node
    stored = [index.value(node.input[0]) for node in model.graph.node
              if node.op_type == "DequantizeLinear" and index.is_weight(node.input[0])]
    assert len(stored) == 8 and {values.dtype.name for values in stored} == {"int8"}


def test_every_dialect_is_derived_from_it():
    assert not check_qdq(to_half(_distilled()), "trt11", want_int8=True)
    assert not check_qdq(to_unsigned(_distilled()), "cpu", want_int8=True)
    assert not check_qdq(to_weakly_typed(_distilled()), "trt8.6", want_int8=True)


def test_distillation_does_not_lose_fidelity():
    start = prepare(run().student, torch.from_numpy(run().calibration.frames),
                    quantized_layers(int8()), Recipe())
    before = gate().measure(TorchModel(start))
    after = gate().measure(OnnxModel(_distilled()))
    assert before.cosine_mean > 0.999 and after.relative_error <= before.relative_error * 1.02
    assert gate()(OnnxModel(_distilled()), "int8", "qat")


def test_onnx_equals_the_fake_quantised_student():
    start = prepare(run().student, torch.from_numpy(run().calibration.frames),
                    ["blocks.1.fc2/MatMul"], Recipe())
    frames = to_input(run().heldout.frames[:2])
    assert np.abs(TorchModel(start)(frames) - OnnxModel(to_onnx(start))(frames)).max() < 2e-2


def test_student_is_unchanged_and_only_named_layers_are_quantised():
    before = {name: value.clone() for name, value in run().student.state_dict().items()}
    quantised = prepare(run().student, torch.from_numpy(run().calibration.frames),
                        ["blocks.0.fc1/MatMul"], Recipe())
    assert [name for name, module in quantised.named_modules()
            if isinstance(module, QuantLinear)] == ["blocks.0.fc1"]
    after = run().student.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())


@pytest.mark.parametrize(("result", "used"), [("distilled", True), ("noise", False)])
def test_exporter_uses_it_only_if_it_helps(monkeypatch, tmp_path, result, used):
    exporter = Exporter.__new__(Exporter)
    logged: list[str] = []
    exporter.run, exporter.options, exporter.log = run(), Options(qat=STEPS), logged.append
    damaged = onnx.ModelProto.FromString(int8().SerializeToString())
    name = "blocks.1.fc1/MatMul.input_scale"
    index = GraphIndex(damaged)
    index.set_value(name, index.value(name) * np.float32(20))
    before, after = (damaged, int8()) if used else (int8(), damaged)
    monkeypatch.setattr("export.quant.qat.distil_int8", lambda *args: after)
    assert exporter._distilled(before) is (after if used else before)
    assert ("kept the model without it" in logged[-1]) != used


def test_no_steps_is_an_error():
    with pytest.raises(ValueError, match="expected >= 1 steps"):
        distil_int8(run().student, run().calibration, ["blocks.0.fc1/MatMul"], Recipe(), 0)
