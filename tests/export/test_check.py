"""The Q/DQ check passes our exports, fails NNCF's defaults, and names each planted fault."""
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graph.check import brief, check_qdq, summary
from export.graph.dialects import to_jetpack5, to_unsigned, to_weakly_typed
from export.graph.fp16 import to_half
from export.graph.index import redirect
from export.graph.targets import TARGETS
from export.source import to_input
from records.runtime import import_untracked
from tests.export_run import fp32, int8, run
from vega3d import main

FC1 = "blocks.0.fc1/MatMul"


@cache
def strongly_typed() -> onnx.ModelProto:
    return to_half(int8())


@pytest.mark.parametrize("target", TARGETS)
def test_each_dialect_passes_for_its_targets(target):
    dialects = {"model.int8.onnx": strongly_typed,
                "model.int8.cpu.onnx": lambda: to_unsigned(int8()),
                "model.int8.flagged.onnx": lambda: to_weakly_typed(int8()),
                "jetson/model.int8.jp5.onnx": lambda: to_jetpack5(to_weakly_typed(int8()))}
    assert check_qdq(dialects[TARGETS[target].dialect](), target, want_int8=True) == []


@cache
def _nncf(**settings: object) -> onnx.ModelProto:
    nncf = import_untracked("nncf")
    name = fp32().graph.input[0].name
    frames = nncf.Dataset(run().calibration.frames[:4], lambda frame: {name: to_input(frame[None])})
    return nncf.quantize(fp32(), frames, subset_size=4, **settings)


def test_nncf_defaults_fail_for_uint8_and_for_the_residual_stream():
    broken = check_qdq(_nncf())
    assert {"type", "placement"} <= {violation.rule for violation in broken}
    assert any(violation.rule == "placement" and "residual Add" in violation.why
               for violation in broken)


def test_nncf_transformer_defaults_fail_for_shifted_zero_points():
    broken = check_qdq(_nncf(model_type=import_untracked("nncf").ModelType.TRANSFORMER))
    assert "zero-point" in {violation.rule for violation in broken}


# --- planted faults: each damages one thing in a good model

def _tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def _set(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = _tensor(model, name)
    tensor.CopyFrom(
        numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor).copy())), name))


def _uint8_activation(model):
    _set(model, f"{FC1}.input_zero", lambda zero: zero.astype(np.uint8))


def _shifted_zero_point(model):
    _set(model, f"{FC1}.input_zero", lambda zero: zero + np.int8(5))


def _shifted_weight_zero_point(model):
    _set(model, f"{FC1}.weight_zero", lambda zero: zero + np.int8(1))


def _swapped_axis(model):
    for entry in _node(model, f"{FC1}.weight/DequantizeLinear").attribute:
        entry.i = 0


def _square_swapped_axis(model):
    """On proj, a square weight, the shapes still agree: only the meaning of the axis is wrong."""
    for entry in _node(model, "blocks.0.attn.proj/MatMul.weight/DequantizeLinear").attribute:
        entry.i = 0


def _nan_scale(model):
    _set(model, f"{FC1}.input_scale", lambda scale: scale * np.nan)


def _infinite_scale(model):
    _set(model, f"{FC1}.weight_scale", lambda scale: scale / 0)


def _zero_scale(model):
    _set(model, f"{FC1}.weight_scale", lambda scale: scale * (np.arange(scale.size) > 0))


def _negative_scale(model):
    _set(model, f"{FC1}.input_scale", lambda scale: -scale)


def _computed_scale(model):
    name = f"{FC1}.input_scale"
    redirect(model.graph.node, name, f"{name}.run")
    frames = model.graph.input[0].name
    model.graph.node.insert(0, helper.make_node("ReduceMax", [frames], ["peak"], keepdims=0))
    model.graph.node.insert(1, helper.make_node("Mul", ["peak", name], [f"{name}.run"]))


def _per_channel_activation(model):
    for end in ("scale", "zero"):
        _set(model, f"{FC1}.input_{end}", lambda value: np.full(192, value))
    for name in ("QuantizeLinear", "DequantizeLinear"):
        _node(model, f"{FC1}.input/{name}").attribute.append(helper.make_attribute("axis", 2))


def _quantise(model, node: onnx.NodeProto, position: int) -> None:
    """Q/DQ on one input of a node, with good numbers: only the place is wrong."""
    read, at = node.input[position], f"{node.name}.planted"
    scale = _tensor(model, f"{FC1}.input_scale").name
    zero = _tensor(model, f"{FC1}.input_zero").name
    index = list(model.graph.node).index(node)
    model.graph.node.insert(
        index, helper.make_node("QuantizeLinear", [read, scale, zero], [f"{at}.q"], name=f"{at}/Q"))
    model.graph.node.insert(
        index + 1,
        helper.make_node("DequantizeLinear", [f"{at}.q", scale, zero], [f"{at}.dq"],
                         name=f"{at}/DQ"))
    model.graph.node[index + 2].input[position] = f"{at}.dq"


def _on(name: str, position: int = 0):
    def plant(model):
        _quantise(model, _node(model, name), position)
    return plant


def _half_quantised(model):
    """The weight keeps its DQ, the activation loses its Q/DQ: runs in floating point, silently."""
    source = _node(model, f"{FC1}.input/QuantizeLinear").input[0]
    _node(model, FC1).input[0] = source


def _unpaired_scale(model):
    name = f"{FC1}.input_scale"
    other = model.graph.initializer.add()
    other.CopyFrom(
        numpy_helper.from_array(
            numpy_helper.to_array(_tensor(model, name)) * np.float16(2), "other_scale"))
    _node(model, f"{FC1}.input/DequantizeLinear").input[1] = "other_scale"


def _quantizer_read_by_cast(model):
    quantised = _node(model, f"{FC1}.input/QuantizeLinear").output[0]
    model.graph.node.append(
        helper.make_node("Cast", [quantised], ["leak"], name="leak/Cast", to=TensorProto.FLOAT))


def _int32_bias(model):
    bias = _tensor(model, "blocks.0.fc1.bias")
    values = numpy_helper.to_array(bias)
    bias.CopyFrom(numpy_helper.from_array((values * 1000).astype(np.int32), bias.name))
    scale = model.graph.initializer.add()
    scale.CopyFrom(numpy_helper.from_array(np.float16(1e-3), "bias_scale"))
    add = _node(model, "blocks.0.fc1/Add")
    index = list(model.graph.node).index(add)
    model.graph.node.insert(
        index, helper.make_node("DequantizeLinear", [bias.name, "bias_scale"], ["bias_dq"]))
    model.graph.node[index + 1].input[1] = "bias_dq"


def _nan_weight(model):
    _set(model, "blocks.0.norm1.weight",
         lambda weight: np.where(np.arange(weight.size) == 3, np.nan, weight))


def _wrong_opset(model):
    model.opset_import[0].version = 21


def _integer_operator(model):
    model.graph.node.append(helper.make_node("MatMulInteger", ["a", "b"], ["c"], name="planted"))


def _foreign_domain(model):
    node = _node(model, "blocks.0/Gelu")
    node.op_type, node.domain = "FastGelu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _half_statistics(model):
    for entry in _node(model, "blocks.0.norm1/LayerNormalization").attribute:
        if entry.name == "stash_type":
            entry.i = TensorProto.FLOAT16


def _decomposed_layernorm(model):
    """LayerNorm as old exporters write it: mean, difference, Pow, mean, Sqrt, Div; in float16."""
    node = _node(model, "blocks.0.norm1/LayerNormalization")
    x, gamma, beta = node.input
    constants = [("two", np.float16(2)), ("eps", np.float16(1e-5))]
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value), name) for name, value in constants)
    axes = model.graph.initializer.add()
    axes.CopyFrom(numpy_helper.from_array(np.array([-1]), "axes"))
    make = helper.make_node
    steps = [
        make("ReduceMean", [x, "axes"], ["m"], name="ln/mean"),
        make("Sub", [x, "m"], ["d"], name="ln/sub"),
        make("Pow", ["d", "two"], ["p"], name="ln/Pow"),
        make("ReduceMean", ["p", "axes"], ["v"], name="ln/var"),
        make("Add", ["v", "eps"], ["ve"], name="ln/eps"),
        make("Sqrt", ["ve"], ["s"], name="ln/sqrt"),
        make("Div", ["d", "s"], ["n"], name="ln/div"),
        make("Mul", ["n", gamma], ["g"], name="ln/mul"),
        make("Add", ["g", beta], [node.output[0]], name="ln/add")
    ]
    index = list(model.graph.node).index(node)
    model.graph.node.remove(node)
    for step in reversed(steps):
        model.graph.node.insert(index, step)


def _lost_qdq(model):
    model.CopyFrom(to_half(fp32()))


FAULTS = [
    (_uint8_activation, f"{FC1}.input/QuantizeLinear", "type"),
    (_shifted_zero_point, f"{FC1}.input/QuantizeLinear", "zero-point"),
    (_shifted_weight_zero_point, f"{FC1}.weight/DequantizeLinear", "zero-point"),
    (_swapped_axis, f"{FC1}.weight/DequantizeLinear", "axis"),
    (_square_swapped_axis, "blocks.0.attn.proj/MatMul.weight/DequantizeLinear", "axis"),
    (_nan_scale, f"{FC1}.input/QuantizeLinear", "scale"),
    (_infinite_scale, f"{FC1}.weight/DequantizeLinear", "scale"),
    (_zero_scale, f"{FC1}.weight/DequantizeLinear", "scale"),
    (_negative_scale, f"{FC1}.input/QuantizeLinear", "scale"),
    (_computed_scale, f"{FC1}.input/QuantizeLinear", "scale"),
    (_per_channel_activation, f"{FC1}.input/QuantizeLinear", "per-tensor"),
    (_on("blocks.0/Add"), "blocks.0/Add", "placement"),
    (_on("blocks.0/Add_2", 1), "blocks.0/Add_2", "placement"),
    (_on("blocks.0.norm2/LayerNormalization"), "blocks.0.norm2/LayerNormalization", "placement"),
    (_on("blocks.0.attn/Softmax"), "blocks.0.attn/Softmax", "placement"),
    (_on("blocks.0/Gelu"), "blocks.0/Gelu", "placement"),
    (_on("blocks.0.attn/MatMul", 1), "blocks.0.attn/MatMul", "placement"),
    (_on("blocks.0.attn/MatMul_2"), "blocks.0.attn/MatMul_2", "placement"),
    (_on("head/MatMul"), "head/MatMul", "half-quantised"),
    (_half_quantised, FC1, "half-quantised"),
    (_unpaired_scale, f"{FC1}.input/DequantizeLinear", "pair"),
    (_quantizer_read_by_cast, f"{FC1}.input/QuantizeLinear", "pair"),
    (_int32_bias, "blocks.0.fc1/Add", "placement"),
    (_nan_weight, "blocks.0.norm1.weight", "finite"),
    (_wrong_opset, "graph", "opset"),
    (_integer_operator, "planted", "operator"),
    (_foreign_domain, "blocks.0/Gelu", "operator"),
    (_half_statistics, "blocks.0.norm1/LayerNormalization", "layernorm"),
    (_decomposed_layernorm, "ln/Pow", "layernorm"),
    (_lost_qdq, "graph", "quantised"),
]


@pytest.mark.parametrize(("plant", "node", "rule"), FAULTS,
                         ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_planted_fault_is_named_with_its_node_and_rule(plant, node, rule):
    model = onnx.ModelProto.FromString(strongly_typed().SerializeToString())
    plant(model)
    found = check_qdq(model, "trt10", want_int8=True)
    assert (node, rule) in {(violation.node, violation.rule) for violation in found}


def test_int8_initialisers_are_refused_for_tensorrt_8_6():
    rules = {violation.rule for violation in check_qdq(strongly_typed(), "jetson-orin-jp6")}
    assert {"opset", "weights", "scale-type"} <= rules


def test_signed_activations_are_refused_for_the_cpu_file():
    assert {violation.rule for violation in check_qdq(int8(), "cpu")} == {"type"}


def test_dq_may_be_moved_across_a_reshape():
    """TensorRT commutes them; NNCF hoists proj's Q above them when SmoothQuant is off."""
    model = onnx.ModelProto.FromString(strongly_typed().SerializeToString())
    node = _node(model, FC1)
    shape = model.graph.initializer.add()
    shape.CopyFrom(numpy_helper.from_array(np.array([1, 196, 192]), "same_shape"))
    index = list(model.graph.node).index(node)
    model.graph.node.insert(
        index, helper.make_node("Reshape", [node.input[0], "same_shape"], ["moved"], name="moved"))
    model.graph.node[index + 1].input[0] = "moved"
    assert check_qdq(model) == []


def test_brief_gives_three_places_a_rule_and_counts_the_rest():
    lines = brief(check_qdq(strongly_typed(), "trt8.6"))
    weights = [line for line in lines if ": weights: " in line]
    assert len(weights) == 3 and weights[-1].endswith("(and 5 more)")


def test_summary_counts_int8_layers():
    assert summary(strongly_typed()) == "8 of 10 layers with weights are INT8"
    assert summary(fp32()) == "nothing in it is INT8"


def test_check_command_passes_a_good_file_and_fails_a_bad_one(tmp_path, capsys):
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    onnx.save(strongly_typed(), good)
    onnx.save(_nncf(), bad)
    main(["export", "check", str(good), "--target", "jetson-orin-jp62"])
    assert "ok for jetson-orin-jp62" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["export", "check", str(bad), "--target", "jetson-orin-jp62"])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and "residual Add" in captured.out
    assert len(captured.err.strip().splitlines()) == 1


@pytest.mark.parametrize(("content", "message"), [
    (None, "no such file"), (b"this is no model", "not an ONNX model"), (b"", "not an ONNX model")])
def test_check_of_something_else_is_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main(["export", "check", str(path)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]


def test_unknown_target_lists_the_targets(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", "check", str(tmp_path / "x.onnx"), "--target", "orin"])
    assert "jetson-orin-jp62" in capsys.readouterr().err
