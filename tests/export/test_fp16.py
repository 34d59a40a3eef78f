"""float16 around Q/DQ: a valid graph, loadable at every optimisation level, within 11 bits."""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from export.graph.check import check_qdq
from export.graph.export_onnx import export_onnx
from export.graph.fp16 import SMALLEST_SCALE, to_half
from export.graph.index import GraphIndex
from export.graph.session import OnnxModel, TorchModel
from export.source import to_input
from student.config import StudentConfig
from student.vit import Student
from tests.export_run import fp32, gate, int8, run


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


@pytest.mark.parametrize("source", [fp32, int8], ids=["fp32", "int8"])
@pytest.mark.parametrize("optimise", [False, True])
def test_half_is_valid_loads_and_passes_its_gate(source, optimise):
    half = to_half(source())
    onnx.checker.check_model(half, full_check=True)
    gate()(OnnxModel(half, optimise=optimise), "fp16" if source is fp32 else "int8", "half")


def test_everything_inside_is_float16_and_both_ends_float32():
    half = to_half(int8())
    ends = [value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)]
    assert ends == [TensorProto.FLOAT] * 2
    floats = {
        tensor.name
        for tensor in half.graph.initializer if tensor.data_type == TensorProto.FLOAT
    }
    assert floats == set()
    assert [node.op_type for node in half.graph.node].count("Cast") == 2
    assert not half.graph.value_info


def test_layernorm_keeps_its_statistics_in_float32():
    norms = [node for node in to_half(fp32()).graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 2 * run().student.config.depth + 1
    assert check_qdq(to_half(fp32())) == []  # the rule "layernorm" reads stash_type


def test_qdq_keep_their_place_and_their_int8_values():
    half, wide = GraphIndex(to_half(int8())), GraphIndex(int8())
    names = [name for name in wide.constants if name.endswith("weight_q")]
    assert names
    for name in names:
        assert np.array_equal(half.value(name), wide.value(name))
    scales = [name for name in wide.constants if name.endswith("_scale")]
    assert {half.value(name).dtype.name for name in scales} == {"float16"}


def test_a_scale_too_small_for_float16_is_lifted_and_its_weights_rounded_again():
    model = _copy(int8())
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    scale = tensors["blocks.0.fc1/MatMul.weight_scale"]
    tiny = numpy_helper.to_array(scale).copy()
    tiny[5] = 1e-9  # float16 rounds it to zero
    scale.CopyFrom(numpy_helper.from_array(tiny, scale.name))
    half = GraphIndex(to_half(model))
    assert half.value(scale.name)[5] == np.float16(SMALLEST_SCALE)
    # 127e-9 is nothing in steps of 7.6e-6
    assert not half.value("blocks.0.fc1/MatMul.weight_q")[:, 5].any()
    assert check_qdq(to_half(model)) == []


def test_a_constant_beyond_float16_is_an_error_not_infinity():
    model = _copy(fp32())
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "blocks.0.fc1.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1e5), bias.name))
    with pytest.raises(ValueError,
                       match=r"blocks\.0\.fc1\.bias up to 1.*ship this student in FP32"):
        to_half(model)


def test_an_unknown_operator_is_named():
    model = _copy(fp32())
    model.graph.node[3].op_type = "GridSample"
    with pytest.raises(ValueError, match="got operator GridSample at Reshape"):
        to_half(model)


def test_qdq_below_opset_19_is_refused():
    model = _copy(int8())
    model.opset_import[0].version = 18
    with pytest.raises(ValueError, match="got opset 18 with Q/DQ, expected >= 19"):
        to_half(model)


def test_the_source_is_not_changed():
    before = int8().SerializeToString(deterministic=True)
    to_half(int8())
    assert int8().SerializeToString(deterministic=True) == before


def test_half_and_fp32_agree_token_by_token():
    frames = to_input(run().heldout.frames[:4])
    wide, half = OnnxModel(fp32())(frames), OnnxModel(to_half(fp32()))(frames)
    assert np.abs(wide - half).max() < 0.02 * np.abs(wide).max()


def test_a_convolution_stem_is_halved_with_its_clipped_activations():
    student = Student(StudentConfig("ti", depth=1, out_dim=8, stem="lite0"), pretrained_stem=False)
    half, frames = to_half(export_onnx(student.eval())), to_input(run().heldout.frames[:2])
    assert any(node.op_type == "Clip" for node in half.graph.node)
    found = OnnxModel(half, optimise=True)(frames)
    assert np.allclose(found, TorchModel(student)(frames), rtol=0.02, atol=0.02)


def test_batches_side_by_side_give_the_features_of_one_after_another():
    model, frames = OnnxModel(to_half(fp32())), to_input(run().heldout.frames[:9])
    with ThreadPoolExecutor(3) as pool:
        assert np.array_equal(model(frames, pool.map), model(frames))
