"""The gate passes sound candidates, rejects every planted fault, and names where it lies."""
import re
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.artefact import up_to_date
from export.graph.fp16 import to_half
from export.graph.session import OnnxModel, TorchModel
from export.parity import THRESHOLDS, DepthProbe, Gate, GateError, Thresholds, misses, token_cosine
from export.pipeline import Exporter
from export.quant.int8 import Recipe, quantize
from export.quant.layer_diff import furthest, layerwise
from export.source import Frames, load_trained_run, to_input
from student.vit import Student
from tests.export_run import fp32, gate, int8, run, trained_run


def test_a_model_equals_itself():
    parity = gate().measure(TorchModel(run().student))
    assert parity.cosine_mean == pytest.approx(1)
    assert parity.relative_error == 0 and parity.delta1_drop == 0
    assert parity.frames == 32


def test_depth_probe_beats_a_constant():
    """A gate with a blind probe would pass anything."""
    blind = DepthProbe(np.zeros(64), float(np.log(run().heldout.depth).mean()))
    delta1 = blind.delta1(gate().reference, run().heldout.depth)
    assert gate().measure(OnnxModel(fp32())).delta1_reference > 1.3 * delta1


# --- planted faults: candidates that must not pass

def _edited(change) -> onnx.ModelProto:
    model = onnx.ModelProto.FromString(int8().SerializeToString())
    for tensor in model.graph.initializer:
        value = change(tensor.name, numpy_helper.to_array(tensor))
        if value is not None:
            tensor.CopyFrom(
                numpy_helper.from_array(value.astype(numpy_helper.to_array(tensor).dtype),
                                        tensor.name))
    return model


def _clipped_ranges():
    return OnnxModel(_edited(lambda name, v: v / 20 if name.endswith("input_scale") else None))


def _coarse_ranges():
    return OnnxModel(_edited(lambda name, v: v * 40 if name.endswith("input_scale") else None))


def _stale_calibration():
    black = Frames(np.zeros_like(run().calibration.frames[:8]), None, "black")
    return OnnxModel(quantize(fp32(), black, Recipe(frames=8)))


def _weight_scales_in_another_order():
    return OnnxModel(_edited(lambda name, v: v[::-1] if name.endswith("weight_scale") else None))


def _transposed_weights():
    return OnnxModel(
        _edited(lambda name, v: v.T if name == "blocks.0.attn.proj/MatMul.weight_q" else None))


def _lost_block():
    ends = ("blocks.1.attn.proj/MatMul.weight_q", "blocks.1.fc2/MatMul.weight_q")
    return OnnxModel(_edited(lambda name, v: v * 0 if name in ends else None))


def _residual_stream_in_int8():
    """As NNCF's defaults: Q/DQ on both residual Adds of a block, at the largest channel's range."""
    model = _edited(lambda name, v: None)
    for node in list(model.graph.node):
        if re.fullmatch(r"blocks\.[^./]*/Add.*", node.name):
            _coarse_qdq(model, node)
    return OnnxModel(model)


def _coarse_qdq(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    at, (read, *_) = node.name, node.input
    model.graph.initializer.extend([numpy_helper.from_array(np.float32(1), f"{at}.s"),
                                    numpy_helper.from_array(np.int8(0), f"{at}.z")])
    index = list(model.graph.node).index(node)
    make = onnx.helper.make_node
    model.graph.node.insert(index, make("QuantizeLinear", [read, f"{at}.s", f"{at}.z"],
                                        [f"{at}.q"]))
    model.graph.node.insert(
        index + 1, make("DequantizeLinear", [f"{at}.q", f"{at}.s", f"{at}.z"], [f"{at}.dq"]))
    model.graph.node[index + 2].input[0] = f"{at}.dq"


def _lost_mean():
    return OnnxModel(_edited(lambda name, v: v * 0 if name == "pixel_mean" else None))


def _bytes_for_floats():
    return lambda frames: OnnxModel(fp32())(frames * 255)


def _normalised_twice():
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1)
                 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return lambda frames: OnnxModel(fp32())((frames - mean) / std)


def _bgr():
    return lambda frames: OnnxModel(fp32())(frames[:, ::-1].copy())


def _upside_down():
    return lambda frames: OnnxModel(fp32())(frames[:, :, ::-1].copy())


def _twice_as_large():
    return lambda frames: 2 * OnnxModel(fp32())(frames)


def _swapped_grid():
    return lambda frames: OnnxModel(fp32())(frames).swapaxes(2, 3)


def _one_frame_for_all():
    return lambda frames: OnnxModel(fp32())(frames[:1]).repeat(len(frames), 0)


def _untrained_student():
    return TorchModel(Student(run().student.config))


def _other_width():
    return TorchModel(Student(replace(run().student.config, out_dim=32)))


def _not_a_number():
    def overflow(frames):
        features = OnnxModel(fp32())(frames)
        features[3, 0, 0, 0] = np.nan
        return features
    return overflow


def _half_that_overflows():
    model = onnx.ModelProto.FromString(fp32().SerializeToString())
    for tensor in model.graph.initializer:
        if tensor.name in ("blocks.0.fc2.weight_t", "blocks.0.fc2.bias"):
            tensor.CopyFrom(
                numpy_helper.from_array(
                    numpy_helper.to_array(tensor) * np.float32(6e4), tensor.name))
    return OnnxModel(to_half(model), optimise=True)


FAULTS = [_clipped_ranges, _coarse_ranges, _stale_calibration, _weight_scales_in_another_order,
          _transposed_weights, _lost_block, _residual_stream_in_int8, _lost_mean, _bytes_for_floats,
          _normalised_twice, _bgr, _upside_down, _twice_as_large, _swapped_grid,
          _one_frame_for_all, _untrained_student, _other_width, _not_a_number, _half_that_overflows]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_planted_fault_fails_the_widest_gate(fault):
    with pytest.raises(GateError) as failure:
        gate()(fault(), "int8", "model.int8.onnx")
    assert failure.value.exit_code == 3


def test_sound_int8_passes_with_margin():
    limits = THRESHOLDS["int8"]
    tighter = Thresholds((1 + limits.cosine_mean) / 2, (1 + limits.cosine_p1) / 2,
                         limits.relative_error / 1.5, 0.5)
    gate()(OnnxModel(int8()), "int8", "int8", tighter)


def test_int8_does_not_pass_for_fp32():
    with pytest.raises(GateError, match="failed the fp32 parity gate"):
        gate()(OnnxModel(int8()), "fp32", "model.onnx")


def test_failure_names_thresholds_and_worst_frames():
    damaged = OnnxModel(fp32())

    def candidate(frames):
        features = damaged(frames)
        features[7] = -features[7]
        return features

    with pytest.raises(
            GateError,
            match=r"cosine_mean .* < 0\.999; cosine_p1 .*worst frame 7 \(-1\.0000\)"):
        gate()(candidate, "int8", "model.int8.onnx")


def test_nan_misses_every_threshold():
    parity = replace(gate().measure(OnnxModel(fp32())), cosine_mean=float("nan"),
                     relative_error=float("nan"))
    assert len(misses(parity, THRESHOLDS["int8"])) == 2


def test_fewer_than_32_frames_are_refused():
    heldout = run().heldout
    with pytest.raises(ValueError, match="got 31 held-out frames, expected >= 32"):
        Gate(TorchModel(run().student), Frames(heldout.frames[:31], None, "few"))


def test_video_without_depth_is_gated_on_features_alone():
    heldout = run().heldout
    video = Frames(heldout.frames, None, "video")
    parity = Gate(OnnxModel(fp32()), video).measure(OnnxModel(int8()))
    assert parity.delta1_drop is None and parity.delta1_reference is None
    assert parity.cosine_mean > 0.99


def test_unknown_depth_is_left_out_of_the_probe():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 8, 14, 14))
    depth = np.exp(features[:, 0]).astype(np.float32)
    depth[:, :7] = 0
    probe = DepthProbe.fit(features, depth)
    assert probe.delta1(features, depth) > 95
    assert probe.delta1(features, np.zeros_like(depth)) is None
    with pytest.raises(ValueError, match="no patch with a known depth"):
        DepthProbe.fit(features, np.zeros_like(depth))


def test_token_cosine_is_one_a_token():
    a = np.random.default_rng(0).normal(size=(2, 5, 3, 4))
    assert np.allclose(token_cosine(a, 3 * a), 1) and token_cosine(a, a).shape == (2, 12)
    assert np.allclose(token_cosine(a, -a), -1)


def test_layerwise_finds_where_the_candidate_leaves_the_reference():
    damaged = _edited(lambda name, v: v * 30
                     if name == "blocks.1.attn.proj/MatMul.input_scale" else None)
    rows = layerwise(fp32(), damaged, to_input(run().heldout.frames[:1]))
    by_name = {row.tensor: row.cosine for row in rows}
    assert by_name["blocks.0/Add_2.out"] > 0.999 > by_name["blocks.1.attn.proj/Add.out"]
    assert furthest(rows, 1)[0].tensor.startswith("blocks.1.attn.proj/")


def test_layerwise_of_unrelated_models_is_an_error():
    other = onnx.ModelProto.FromString(fp32().SerializeToString())
    for node in other.graph.node:
        for i, name in enumerate(node.output):
            node.output[i] = f"other/{name}"
    with pytest.raises(ValueError, match="share no tensor name"):
        layerwise(fp32(), other, to_input(run().heldout.frames[:1]))


def test_a_failed_gate_writes_nothing_and_leaves_the_earlier_file(tmp_path, monkeypatch):
    folder = shutil.copytree(trained_run(), tmp_path / "run")
    old = folder / "export" / "model.onnx"
    old.write_bytes(b"of an older student")
    monkeypatch.setattr("export.pipeline.export_onnx", lambda *args: fp32_of_another_student())
    exporter = Exporter(load_trained_run(folder), log=lambda _: None)
    with pytest.raises(GateError, match="failed the fp32 parity gate, and is not written"):
        exporter.export("fp32")
    assert list((folder / "export").iterdir()) == [old]
    assert old.read_bytes() == b"of an older student"
    assert up_to_date(old, exporter.cache_key("fp32"), exporter.log) is None


def fp32_of_another_student() -> onnx.ModelProto:
    model = onnx.ModelProto.FromString(fp32().SerializeToString())
    head = next(tensor for tensor in model.graph.initializer if tensor.name == "head.weight_t")
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head)[::-1].copy(), head.name))
    return model
