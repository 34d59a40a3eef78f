"""INT8: which nodes carry Q/DQ and which do not; three dialects of one set of numbers."""
from collections import Counter
from dataclasses import replace
from itertools import chain, product

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from export.graph.dialects import to_unsigned, to_weakly_typed
from export.graph.index import GraphIndex, copy_model, opset
from export.graph.session import OnnxModel
from export.parity import GateError
from export.quant.int8 import (
    Recipe,
    calibration_facts,
    quantizable_layers,
    quantize,
    unshared,
)
from export.quant.layer_diff import layerwise
from export.quant.sensitivity import bypassed, quantized_layers, rank, within_budget
from export.quant.smoothquant import fold_smoothing
from export.source import Frames, to_input
from tests.export_run import fp32, gate, int8, run

BLOCK_LINEARS = ("attn.qkv", "attn.proj", "fc1", "fc2")
QUICK = Recipe(frames=16)


def test_block_linears_carry_qdq_and_nothing_else_does():
    model, index = int8(), GraphIndex(int8())
    dequantisers = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    readers = [index.readers[node.output[0]] for node in dequantisers]
    depth = run().student.config.depth
    assert {node.name for node in chain(*readers)} == {
        f"blocks.{i}.{name}/MatMul" for i, name in product(range(depth), BLOCK_LINEARS)}
    quantisers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    # one for each Linear's input; the weights are stored as int8
    assert len(quantisers) == 4 * depth
    sources = {index.source(node.input[0]).op_type for node in quantisers}
    assert sources == {"LayerNormalization", "Reshape", "Mul"}


def test_int8_only_and_every_zero_point_is_zero():
    index = GraphIndex(int8())
    nodes = [
        node for node in int8().graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert nodes
    for node in nodes:
        zero = index.value(node.input[2])
        assert zero.dtype == np.int8 and not zero.any(), node.name
    assert not [t for t in int8().graph.initializer if t.data_type == TensorProto.UINT8]


def test_no_residual_add_reads_or_feeds_qdq():
    index = GraphIndex(int8())
    adds = [
        node for node in int8().graph.node
        if node.op_type == "Add" and not any(map(index.is_weight, node.input))
    ]
    assert len(adds) == 2 * run().student.config.depth
    for node in adds:
        sources = [source for name in node.input if (source := index.source(name)) is not None]
        op_types = {n.op_type for n in sources + index.readers[node.output[0]]}
        assert not op_types & {"QuantizeLinear", "DequantizeLinear"}, node.name


def test_weights_are_int8_per_output_channel():
    index = GraphIndex(int8())
    for name in quantized_layers(int8()):
        node = next(n for n in int8().graph.node if n.name == name)
        weight = index.source(node.input[1])
        values, scale = index.value(weight.input[0]), index.value(weight.input[1])
        assert values.dtype == np.int8 and np.abs(values.astype(int)).max() <= 127
        assert scale.shape == values.shape[1:] and (scale > 0).all()


def test_int8_matches_fp32_on_heldout_frames():
    parity = gate()(OnnxModel(int8()), "int8", "int8")
    assert parity.cosine_mean > 0.999 and parity.cosine_p1 > 0.99 and parity.delta1_drop < 0.5


def test_file_is_no_worse_than_onnxruntimes_own_quantiser(tmp_path):
    onnx.save(fp32(), tmp_path / "fp32.onnx")

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.frames = iter(to_input(run().calibration.frames[::20]))

        def get_next(self):
            frame = next(self.frames, None)
            return None if frame is None else {"frames": frame[None]}

    quantize_static(
        tmp_path / "fp32.onnx", tmp_path / "oracle.onnx", Reader(), quant_format=QuantFormat.QDQ,
        per_channel=True, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"], nodes_to_quantize=quantized_layers(int8()), extra_options={
            "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["MatMul"]
        })
    oracle = gate().measure(OnnxModel(tmp_path / "oracle.onnx"))
    ours = gate().measure(OnnxModel(int8()))
    assert oracle.cosine_mean > 0.99  # the oracle itself works
    assert 1 - ours.cosine_mean <= 1.5 * (1 - oracle.cosine_mean)


def test_unsigned_form_gives_exactly_the_signed_numbers():
    signed, unsigned = int8(), to_unsigned(int8())
    zeros = {numpy_helper.to_array(t).dtype.name: int(numpy_helper.to_array(t).ravel()[0])
             for t in unsigned.graph.initializer if t.name.endswith("_zero")}
    assert zeros == {"uint8": 128, "int8": 0}  # activations; weights
    # as written, no kernel fused
    rows = layerwise(signed, unsigned, to_input(run().heldout.frames[:1]))
    floats = [row for row in rows if not row.tensor.endswith("_q")]
    assert floats[-1].tensor == "features" and {row.relative_error for row in floats} == {0}


def test_unsigned_form_runs_in_int8_kernels_and_takes_any_batch(tmp_path):
    """onnxruntime has no INT8 kernel for Gemm, its fusion of a static MatMul + Add: 0.7x of FP32's
    speed instead of 1.9x."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    session = ort.InferenceSession(to_unsigned(int8()).SerializeToString(), options)
    ops = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert ops["MatMulIntegerToFloat"] == len(quantized_layers(int8())) and not ops["Gemm"]
    (features,) = session.run(None, {"frames": to_input(run().heldout.frames[:3])})
    assert features.shape == (3, 64, 14, 14)


def test_unsigned_form_of_an_asymmetric_model_is_refused():
    shifted = onnx.ModelProto.FromString(int8().SerializeToString())
    zero = next(t for t in shifted.graph.initializer if t.name.endswith("input_zero"))
    zero.CopyFrom(numpy_helper.from_array(np.int8(3), zero.name))
    with pytest.raises(ValueError, match="expected int8 0"):
        to_unsigned(shifted)


def test_weakly_typed_form_is_opset_17_with_float_weights_and_the_same_numbers():
    weakly_typed = to_weakly_typed(int8())
    assert opset(weakly_typed) == 17
    index = GraphIndex(weakly_typed)
    weights = [
        n for n in weakly_typed.graph.node
        if n.op_type == "QuantizeLinear" and index.is_weight(n.input[0])
    ]
    assert len(weights) == len(quantized_layers(int8()))
    assert {index.value(node.input[0]).dtype.name for node in weights} == {"float32"}
    assert not {"Gelu"} & {node.op_type for node in weakly_typed.graph.node}
    frames = to_input(run().heldout.frames[:4])
    assert np.abs(OnnxModel(int8())(frames) - OnnxModel(weakly_typed)(frames)).max() < 2e-2


def test_weakly_typed_weights_quantise_back_to_the_same_int8():
    weakly_typed, signed = GraphIndex(to_weakly_typed(int8())), GraphIndex(int8())
    for name in [t for t in signed.constants if t.endswith("weight_q")]:
        scale = signed.value(name.replace("_q", "_scale"))
        again = np.rint(weakly_typed.value(name) / scale).clip(-127, 127).astype(np.int8)
        assert np.array_equal(again, signed.value(name)), name


def test_smoothing_is_folded_wherever_it_can_be():
    values = [GraphIndex(int8()).value(node.input[1]) for node in int8().graph.node
              if node.op_type == "Mul"]
    factors = [value for value in values if value is not None and value.size > 1]
    # one after each GELU; LayerNorms and attention took the rest
    assert len(factors) == run().student.config.depth
    assert fold_smoothing(onnx.ModelProto.FromString(int8().SerializeToString())) == 0


def test_patch_conv_and_head_are_quantised_by_option():
    model = quantize(fp32(), run().calibration, replace(QUICK, patch_conv=True, head=True))
    assert {"patch_embed/Conv", "head/MatMul"} <= set(quantized_layers(model))


def test_layers_named_stay_float():
    recipe = replace(QUICK, float_layers=("blocks.0.fc2/MatMul",))
    model = quantize(fp32(), run().calibration, recipe)
    assert set(quantized_layers(int8())) - set(quantized_layers(model)) == {"blocks.0.fc2/MatMul"}
    assert gate().measure(OnnxModel(model)).cosine_mean > 0.999


def test_unknown_layer_names_the_layers_there_are():
    with pytest.raises(ValueError, match=r"no layer called blocks\.9.*blocks\.0\.fc2/MatMul"):
        quantize(fp32(), run().calibration, replace(QUICK, float_layers=("blocks.9.fc2/MatMul",)))


def test_same_frames_give_the_same_bytes():
    once, again = (quantize(fp32(), run().calibration, QUICK) for _ in range(2))
    assert once.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)


def test_calibration_digest_follows_the_frames():
    calibration = run().calibration
    other = calibration.frames.copy()
    other[0, 0, 0, 0] ^= 1
    facts, again, changed = (
        calibration_facts(frames, Recipe())
        for frames in (calibration, calibration, Frames(other, calibration.depth, "x")))
    assert facts["frames"] == 300 == len(set(facts["frame_digests"]))
    assert again["digest"] == facts["digest"] != changed["digest"]


def test_shared_initializers_are_copied_before_bias_correction():
    shared = onnx.ModelProto.FromString(fp32().SerializeToString())
    norms = [node for node in shared.graph.node if node.op_type == "LayerNormalization"]
    norms[1].input[2] = norms[0].input[2]
    readers = GraphIndex(unshared(shared)).readers
    assert all(len(readers[t.name]) <= 1 for t in unshared(shared).graph.initializer
               if t.data_type == TensorProto.FLOAT and t.dims)


def _with_coarse_input(layer: str) -> onnx.ModelProto:
    """INT8 whose `layer` reads its input through a step 30 times too wide."""
    model = copy_model(int8())
    index, name = GraphIndex(model), f"{layer}.input_scale"
    index.set_value(name, index.value(name) * np.float32(30))
    return model


def test_sensitivity_ranks_the_damaged_layer_first():
    assert "blocks.1.fc1/MatMul" in quantized_layers(int8())
    assert rank(_with_coarse_input("blocks.1.fc1/MatMul"), gate())[0][0] == "blocks.1.fc1/MatMul"


def test_max_drop_returns_the_worst_layer_to_half_and_names_it():
    damaged, requests, logged = _with_coarse_input("blocks.1.fc1/MatMul"), [], []
    drops = [1 - gate().measure(OnnxModel(model)).cosine_mean for model in (int8(), damaged)]
    assert drops[0] < drops[1]
    model, floats = within_budget(damaged, sum(drops) / 2, gate(),
                                  lambda names: requests.append(names) or int8(), logged.append)
    assert floats == ["blocks.1.fc1/MatMul"] == requests[0] and model is int8()
    assert "blocks.1.fc1/MatMul" in logged[-1]


def test_max_drop_does_not_change_a_model_within_budget():
    model, floats = within_budget(int8(), 0.01, gate(), lambda names: pytest.fail("requantised"),
                                  lambda _: None)
    assert model is int8() and floats == []


def test_max_drop_gives_up_when_half_the_layers_do_not_suffice():
    damaged = _with_coarse_input("blocks.0.attn.qkv/MatMul")
    with pytest.raises(GateError,
                       match=r"still .* with half of the 8 INT8 layers returned; use FP16"):
        within_budget(damaged, 1e-6, gate(), lambda names: damaged, lambda _: None)


def test_bypassing_a_layer_without_qdq_is_an_error_not_a_no_op():
    with pytest.raises(ValueError, match="has no Q/DQ"):
        bypassed(int8(), "blocks.0.attn/MatMul")


def test_quantizable_layers_exclude_attention_products():
    layers = quantizable_layers(fp32())
    assert layers[0] == "patch_embed/Conv" and layers[-1] == "head/MatMul"
    assert "blocks.0.attn/MatMul" not in layers
