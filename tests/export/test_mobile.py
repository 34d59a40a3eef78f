"""Phones: LiteRT files are run and gated; a Core ML program is checked, and computed in torch."""
import json
import re
import shutil
import sys
from collections import Counter
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vega3d
from export.artefact import sidecar_path
from export.graph.export_onnx import traced
from export.mobile.network import PhoneStudent, ScaledLayerNorm, phone_network
from export.parity import GateError
from export.source import to_input
from records import manifest
from student.config import StudentConfig
from student.heads import StudentWithHeads
from student.vit import Student
from tests import mil
from tests.export.test_web import OUTPUTS, exporter, run_with_heads
from tests.export_run import exported_run

pytest.importorskip("ai_edge_litert")
from export.mobile.litert import LiteRtModel, export_litert
from export.mobile.tflite import to_tflite

# what LiteRT's GPU delegate runs of what we write, and DEQUANTIZE of float16 constants
GPU_OPERATORS = {
    "ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "EXP", "SQRT", "GELU", "MEAN", "SUM",
    "SOFTMAX", "BATCH_MATMUL", "FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE",
    "RESHAPE", "TRANSPOSE", "DEQUANTIZE", "RELU", "LOGISTIC"}
NAMES = ("features", *OUTPUTS)


@cache
def lite_files() -> dict[str, Any]:
    """By precision; the run is shared."""
    files = export_litert(exporter(run_with_heads()), ("fp32", "fp16", "int8"))
    return {file.spec.precision: file for file in files}


@pytest.fixture
def run_copy(tmp_path) -> Path:
    return shutil.copytree(run_with_heads(), tmp_path / "run",
                           ignore=shutil.ignore_patterns("*.tflite*", "*.mlpackage*"))


def expected_outputs(frames: np.ndarray) -> list[np.ndarray]:
    run = exporter(run_with_heads())
    heads = PhoneStudent(run).heads
    assert heads is not None
    with torch.inference_mode():
        return [t.numpy() for t in StudentWithHeads(run.run.student, heads)(
            torch.from_numpy(frames))]


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("fp16", 1e-3), ("int8", 0.01)])
def test_a_tflite_file_computes_the_students_outputs_with_channels_last(precision, error):
    frames = to_input(exporter(run_with_heads()).run.heldout.frames[:2])
    run = LiteRtModel(lite_files()[precision].path.read_bytes(), NAMES).run
    details = run.get_input_details()["frames"]
    assert [*details["shape"]] == [1, 224, 224, 3] and details["dtype"] == np.float32
    got = run(frames=frames[1:].transpose(0, 2, 3, 1))
    assert set(got) == set(NAMES)
    for name, value in zip(NAMES, expected_outputs(frames[1:]), strict=True):
        difference = np.abs(got[name].transpose(0, 3, 1, 2) - value).mean()
        assert difference < error * np.abs(value).mean(), name


def test_the_sidecar_and_the_file_hold_the_contract_and_the_gates_result():
    sizes = []
    for precision, file in lite_files().items():
        facts = json.loads(sidecar_path(file.path).read_text())
        assert facts["precision"] == precision and facts["parity"]["cosine_mean"] >= 0.999
        assert facts["input"]["shape"] == [1, 224, 224, 3] and facts["input"]["layout"] == "NHWC"
        assert facts["outputs"]["depth"]["shape"] == [112, 112, 1]
        assert facts["drift"]["features_cosine"] >= 0.999
        stored = metadata(file.path.read_bytes())
        assert stored["student"] == facts["student"] and stored["parity"] == facts["parity"]
        assert set(facts) - set(stored) == {"schema", "file", "sha256", "size_mb"}
        sizes.append(facts["size_mb"])
    assert sizes == sorted(sizes, reverse=True) and sizes[1] < 0.55 * sizes[0]


def test_the_documentation_states_names_order_and_shapes_of_the_files():
    text = (Path(vega3d.__file__).parent / "docs" / "phones.md").read_text()
    shapes = lite_files()["fp32"].facts["outputs"]
    for i, name in enumerate(NAMES):
        row, = re.findall(rf"^\| `{name}`.*", text, re.MULTILINE)
        height, width, channels = shapes[name]["shape"]
        channels = {"features": "D", "descriptors": 32}.get(name, channels)
        assert f"`[1,{height},{width},{channels}]`, output {i} |" in row
        assert f"`[1,{channels},{height},{width}]`" in row
    assert f"outputs[{NAMES.index('depth')}].readFloat()" in text
    assert 'featureName == "depth"' in text and "`[1,224,224,3]`, RGB in [0,1]" in text


def metadata(content: bytes) -> dict[str, Any]:
    from ai_edge_litert.schema_py_generated import Model
    model = Model.GetRootAs(content)
    assert model.Metadata(0).Name() == b"vega3d"
    return json.loads(model.Buffers(model.Metadata(0).Buffer()).DataAsNumpy().tobytes())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_gpu_delegate_can_run_every_operator(precision):
    """No split of q, k and v, no gather, no tensor of five axes; nothing but 1-D, or of the same
    rank, is broadcast (LiteRT: tools/versioning/gpu_compatibility.cc)."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
    reader = Interpreter(str(lite_files()[precision].path), experimental_op_resolver_type=(
        OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES))
    shapes = {t["index"]: t["shape"] for t in reader.get_tensor_details()}
    assert max(map(len, shapes.values())) == 4
    operators = reader._get_ops_details()
    counts = Counter(each["op_name"] for each in operators)
    assert set(counts) <= GPU_OPERATORS
    assert counts["FULLY_CONNECTED"] == 6 * 2 + 1  # q, k, v, proj, fc1, fc2 a block, and the head
    assert counts["TRANSPOSE"] == 4 * 2            # of attention alone: convolutions need none
    for each in operators:
        if each["op_name"] in ("ADD", "MUL"):
            ranks = [len(shapes[i]) for i in each["inputs"]]
            assert ranks[0] == ranks[1] or min(ranks) == 1


def test_a_second_export_keeps_the_files_and_other_heads_replace_them(run_copy):
    first, = export_litert(exporter(run_copy), ("int8",))
    again, = export_litert(exporter(run_copy), ("int8",))
    assert (first.reused, again.reused) == (False, True)
    manifest.create(run_copy, [first.path])
    first.path.write_bytes(b"damaged")
    assert "damaged" in manifest.fault(first.path)
    restored, = export_litert(exporter(run_copy), ("int8",))
    assert not restored.reused and not manifest.fault(first.path)
    (run_copy / "student" / "heads.safetensors").unlink()
    bare, = export_litert(exporter(run_copy), ("int8",))
    assert not bare.reused and not bare.facts["outputs"]
    assert len(LiteRtModel(bare.path.read_bytes(), ["features"]).run.get_output_details()) == 1


@pytest.mark.parametrize("layer", ["blocks.1.attn.proj.weight", "depth.scale.2.bias"])
def test_a_file_that_differs_from_the_student_is_not_written(run_copy, monkeypatch, layer):
    export_litert(exporter(run_copy), ("fp16",))
    before = (run_copy / "export" / "model.fp16.tflite").read_bytes()
    network = PhoneStudent.network

    def other_weights(self, has_layer_norm):
        made = deepcopy(network(self, has_layer_norm))
        part = made.heads if layer.startswith("depth") else made.student
        changed = dict(part.named_parameters())[layer].data
        changed += 0.1 if changed.ndim == 1 else changed.flip(0)
        return made

    monkeypatch.setattr(PhoneStudent, "network", other_weights)
    monkeypatch.setattr("export.pipeline.source_digest", lambda: "of edited code")
    with pytest.raises(GateError, match=r"model\.tflite: (failed the fp32|its outputs differ)"):
        export_litert(exporter(run_copy), ("fp32", "fp16"))
    assert not (run_copy / "export" / "model.tflite").exists()
    assert (run_copy / "export" / "model.fp16.tflite").read_bytes() == before


@pytest.mark.parametrize(("verb", "module"), [("litert", "ai_edge_litert"),
                                              ("coreml", "coremltools")])
def test_a_missing_package_is_one_line_that_names_the_extra(verb, module, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as stopped:
        vega3d.main(["export", verb, "--run", str(run_with_heads())])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and len(error.splitlines()) == 1
    assert f"pip install 'vega3d-edge[{verb}]'" in error


# --- the translation, against torch


def conv(*arguments: Any, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(*arguments, **options)


CASES: dict[str, tuple[Any, *tuple[nn.Module, ...]]] = {  # functions of x [1,4,14,12] and layers
    "a strided convolution": (lambda x, c: c(x), conv(4, 8, (7, 4), (7, 4))),
    "odd sides": (lambda x, c: c(x), conv(4, 8, 3, padding=1)),
    "dilation": (lambda x, c: c(x), conv(4, 6, 3, padding=3, dilation=3)),
    "no bias, an oblong kernel": (
        lambda x, c: c(x), conv(4, 6, (1, 3), padding=(0, 1), bias=False)),
    "a depthwise convolution": (lambda x, c: c(x), conv(4, 8, 5, padding=2, groups=4)),
    "a pixel shuffle": (lambda x, c: F.pixel_shuffle(c(x), 3), conv(4, 18, 1)),
    "unit vectors": (lambda x: x / x.square().sum(1, keepdim=True).sqrt(),),
    "means over an inner axis": (lambda x: x - x.mean(2, keepdim=True),),
    "tokens and back": (
        lambda x, l: l(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (14, 12)),
        nn.Linear(4, 10)),
    "axes in another order": (lambda x: x.permute(0, 3, 1, 2).exp(),),
    "one tensor in both layouts": (
        lambda x, c: c(x) + x.flatten(1, 2).exp().reshape(1, 4, 14, 12), conv(4, 4, 1)),
    "a constant along channels, one along a side": (
        lambda x: (x - torch.arange(4.).view(1, 4, 1, 1)) * torch.arange(12.) / 2,),
    "limits, powers and a softmax": (
        lambda x: (x.clamp(0.2, 0.7) ** 2).flatten(2).softmax(-1).view(1, 4, 14, 12),),
    "activations": (lambda x: F.gelu(x) + F.gelu(x, approximate="tanh") + x.relu() * x.tanh()
                    + x.sigmoid(),),
    "a product of tensors": (lambda x: x @ x.transpose(2, 3) / 8,),
    "layer norm of large values": (lambda x, n: n(x * 900), ScaledLayerNorm(nn.LayerNorm(12)))}


class AllCases(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList(layers) for _, *layers in CASES.values())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(function(x, *layers) for (function, *_), layers in
                     zip(CASES.values(), self.layers, strict=True))  # type: ignore[arg-type]


def test_the_translation_equals_torch():
    module, x = AllCases().eval(), torch.rand(1, 4, 14, 12)
    names = [name.replace(" ", "_") for name in CASES]
    with torch.no_grad():
        expected = module(x)
        graph = traced(module, {"frames": (4, 14, 12)}, names)
    for name, got, value in zip(names, LiteRtModel(to_tflite(graph, "fp32", {}), names)(x.numpy()),
                                expected, strict=True):
        assert got.shape == value.shape, name
        assert np.abs(got - value.numpy()).max() < 2e-5 * max(1, value.abs().max()), name


def test_layer_norm_in_steps_equals_torchs():
    norm = nn.LayerNorm(16, eps=1e-6)
    nn.init.normal_(norm.weight)
    x = torch.randn(3, 16) * 50
    torch.testing.assert_close(ScaledLayerNorm(norm)(x), norm(x))


def test_a_student_with_efficientnets_stem_is_translated():
    torch.manual_seed(0)
    student = Student(StudentConfig(depth=1, out_dim=8, stem="lite0"), pretrained_stem=False).eval()
    frames = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = student(frames).numpy()
        graph = traced(phone_network(student, None, False), {"frames": (3, 224, 224)},
                       ("features",))
    got, = LiteRtModel(to_tflite(graph, "fp32", {}), ["features"])(frames.numpy())
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("operator", "options"), [("Cos", {}), ("Softmax", {"axis": 2})])
def test_an_operator_without_translation_is_named(operator, options):
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, 3, 4, 4]) for name in ("frames", "y")]
    node = onnx.helper.make_node(operator, ["frames"], ["y"], "layer/it", **options)
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    with pytest.raises(ValueError, match=f"^export litert: layer/it: no translation of {operator}"):
        to_tflite(model, "fp32", {})


# --- Core ML


@cache
def core_ml() -> Any:
    """coremltools' model of the run with heads, as it would be saved."""
    tools = pytest.importorskip("coremltools")
    from export.mobile.coreml import convert
    return convert(tools, PhoneStudent(exporter(run_with_heads())))


def test_the_ml_program_computes_the_students_outputs():
    frames = to_input(exporter(run_with_heads()).run.heldout.frames[:2])
    for name, got, value in zip(NAMES, mil.outputs(core_ml(), frames), expected_outputs(frames),
                                strict=True):
        assert np.abs(got - value).mean() < 2e-3 * np.abs(value).mean(), name


def test_coreml_is_written_and_says_that_it_did_not_run(run_copy, monkeypatch, capsys):
    pytest.importorskip("coremltools")
    from coremltools.models.utils import load_spec
    monkeypatch.setattr("export.mobile.coreml.convert", lambda *_: core_ml())
    monkeypatch.setattr("export.pipeline.Exporter.gate", None)  # not needed
    manifest.create(run_copy)
    for _ in range(2):  # the second replaces the first
        vega3d.main(["export", "coreml", "--run", str(run_copy)])
        assert "not run here: Core ML needs macOS" in capsys.readouterr().out
    path = run_copy / "export" / "model.mlpackage"
    facts = json.loads(sidecar_path(path).read_text())
    assert facts["parity"] is None and facts["ran"].startswith("not run here")
    assert facts["operators"]["linear"] == 13 and not {"split", "gather"} & set(facts["operators"])
    description = load_spec(str(path)).description
    image = description.input[0].type.imageType
    assert (description.input[0].name, image.width, image.height) == ("frames", 224, 224)
    shapes = {o.name: [*o.type.multiArrayType.shape] for o in description.output}
    assert list(shapes) == [*NAMES] and shapes["depth"] == [1, 1, 112, 112]
    stored = json.loads(description.metadata.userDefined["vega3d"])
    assert stored["student"] == facts["student"] and stored["outputs"] == facts["outputs"]
    weights = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    assert manifest.is_listed(weights) and not manifest.faults(run_copy)
    weights.write_bytes(b"damaged")
    assert manifest.faults(run_copy) == [f"{weights}: damaged (its SHA-256 is not the one in "
                                         "manifest.json)"]


@pytest.mark.parametrize("scale", [1, 1.2])
def test_on_macos_the_ml_program_is_gated(run_copy, monkeypatch, scale):
    pytest.importorskip("coremltools")
    from export.mobile import coreml
    seen = []

    def predict(inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        pixels = np.asarray(inputs["frames"]).transpose(2, 0, 1)[None]
        seen.append(pixels.dtype)
        values = expected_outputs(to_input(pixels))
        return dict(zip(NAMES, [values[0] * scale, *values[1:]], strict=True))

    model = core_ml()
    monkeypatch.setattr(coreml, "convert", lambda *_: model)
    monkeypatch.setattr(model, "predict", predict)
    monkeypatch.setattr(coreml.sys, "platform", "darwin")
    if scale == 1:
        file = coreml.export_coreml(exporter(run_copy))
        assert file.facts["ran"] == "gated on this Mac" and seen[0] == np.uint8
        assert file.facts["parity"]["cosine_mean"] > 0.99999
    else:
        with pytest.raises(GateError, match=r"model\.mlpackage: failed the fp16 parity gate"):
            coreml.export_coreml(exporter(run_copy))
        assert not (run_copy / "export" / "model.mlpackage").exists()


def test_a_graph_with_a_gather_or_five_axes_is_refused():
    tools = pytest.importorskip("coremltools")
    from coremltools.converters.mil import Builder as mb

    from export.mobile.coreml import check
    phone = PhoneStudent(exporter(exported_run()))
    assert phone.outputs == ("features",)

    def program(function: Any) -> Any:
        specs = [mb.TensorSpec((1, 4, 4))]
        made = mb.program(input_specs=specs, opset_version=tools.target.iOS16)(function)
        return tools.convert(made, convert_to="mlprogram",
                             minimum_deployment_target=tools.target.iOS16)

    for function, why in (
            (lambda x: mb.gather(x=x, indices=[0, 2], axis=1, name="features"), "gather with 3"),
            (lambda x: mb.reshape(x=x, shape=[1, 2, 2, 2, 2], name="features"), "reshape with 5"),
            (lambda x: mb.exp(x=x, name="other"), "got outputs")):
        with pytest.raises(GateError, match=why):
            check(program(function), phone, "model.mlpackage")
