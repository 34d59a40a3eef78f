"""The student as OpenVINO IR (.xml, .bin): in INT8 the fastest file of an export on x86 CPUs.

NNCF's OpenVINO backend quantises the Linears, as quant/int8.py does for ONNX. Beyond that, exact
rewrites keep attention in integers: pixel normalisation and the query's scale go into weights, so
that uint8 pixels are exact operands of an INT8 patch convolution; qkv is quantised once, where it
is written, and read as one transposed tensor; softmax weights are uint8 of their measured maximum.
"""
import copy
import io
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from export.artefact import Facts, discard, save_bytes, up_to_date
from export.graph.export_onnx import Batch, export_onnx, quiet
from export.pipeline import ArtefactSpec, ExportedFile, Exporter
from export.quant.int8 import calibration_batches, nncf_parameters
from export.source import to_input
from records.files import atomic_write, digest, sha256
from records.runtime import import_untracked
from student.vit import HEAD_WIDTH, Student

FP32 = ArtefactSpec("model.openvino.xml", "fp32", "FP32: OpenVINO", lambda exporter: exporter.fp32)
INT8 = ArtefactSpec("model.int8.openvino.xml", "int8", "INT8: OpenVINO on x86 CPUs",
                    lambda exporter: exporter.fp32)
LATENCY = {"NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
INSTALL = "pip install 'vega3d-edge[openvino]'"


def load() -> ModuleType:
    """Raises ValueError, with what to install, without the package."""
    try:
        return import_untracked("openvino")
    except ImportError as error:
        raise ValueError(f"OpenVINO is not installed; {INSTALL}") from error


@cache
def core() -> Any:
    """openvino.Core, one a process.

    A CPU plugin handles the signals of the thread that loads it on a stack of its own. Of two that
    end in the order in which they were loaded, the second leaves the first one's stack set, freed:
    the next signal would end the process.
    """
    return load().Core()


class OpenVinoModel:
    """An IR, an ONNX file or a model in memory. frames [N,3,H,W] float32 in [0,1] -> [N,D,h,w].

    precision: "f32", or "" for OpenVINO's choice, which is bfloat16 for what is not INT8 where the
    processor has it. Raises ValueError for a file that OpenVINO cannot read.
    """

    def __init__(self, model: Any, threads: int = 1, precision: str = ""):
        options = {**LATENCY, "INFERENCE_NUM_THREADS": threads}
        if precision:
            options["INFERENCE_PRECISION_HINT"] = precision
        source = str(model) if isinstance(model, Path) else model
        try:
            self.compiled = core().compile_model(source, "CPU", options)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{model}: OpenVINO cannot load it: {reason}") from error
        self.request = self.compiled.create_infer_request()

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        shape = self.compiled.input(0).partial_shape
        batch = shape[0].get_length() if shape[0].is_static else len(frames)
        filled = np.concatenate([frames, frames[-1:].repeat(-len(frames) % batch, 0)])
        parts = [self.request.infer([chunk])[0].copy()
                 for chunk in filled.reshape(-1, batch, *frames.shape[1:])]
        return np.concatenate(parts)[:len(frames)]


def has_bfloat16() -> bool:
    """Whether OpenVINO runs float models in bfloat16 on this processor unless told otherwise."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def found(exporter: Exporter, spec: ArtefactSpec = INT8) -> ExportedFile | None:
    """The IR, if it is up to date."""
    path = exporter.run.out / spec.file
    facts = up_to_date(path, _key(exporter, spec), exporter.log)
    if not facts or weights_fault(path, facts):
        return None
    return ExportedFile(path, spec, facts, reused=True)


def weights_fault(path: Path, facts: Facts) -> str:
    """What is wrong with the .bin of an IR; "" if nothing."""
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        return f"its weights {weights.name} are missing"
    return "" if facts.get("bin_sha256") == sha256(weights) else f"{weights.name} was changed"


def export_openvino(exporter: Exporter, spec: ArtefactSpec = INT8) -> ExportedFile:
    """Writes the IR behind the parity gate, passed at OpenVINO's own choice of precision."""
    path, int8 = exporter.run.out / spec.file, spec == INT8
    if file := found(exporter, spec):
        exporter.log(f"{spec.file}: up to date")
        return file
    model = float_model(exporter.run.student, exporter.options.batch)
    if int8:
        exporter.log("calibrating INT8 for OpenVINO")
        model = quantize(model, exporter)
    exporter.log(f"gate: {spec.file}")
    candidate = OpenVinoModel(model, precision="" if int8 else "f32")
    parity = exporter.gate(candidate, spec.precision, str(path))
    facts = exporter.facts(spec, parity, _key(exporter, spec)) | {"openvino": load().__version__}
    if int8:
        facts |= exporter.quantisation_facts("int8")
        facts["quantisation"] |= {"patch_conv": exporter.run.student.stem is None,
                                  "attention": "int8 q, k, v; uint8 softmax weights"}
    discard(path)
    return ExportedFile(path, spec, save_ir(model, path, facts), reused=False)


def _key(exporter: Exporter, spec: ArtefactSpec) -> str:
    return digest(exporter.cache_key(spec.precision), spec.file, load().__version__)


def float_model(student: Student, batch: Batch = 1) -> Any:
    """openvino.Model of the student, FP32, with the rewrites; its nodes keep their ONNX names."""
    folded = copy.deepcopy(student)
    width, depth = folded.config.width, folded.config.depth
    with torch.no_grad():
        for i in range(depth):
            qkv = cast(nn.Linear, folded.get_submodule(f"blocks.{i}.attn.qkv"))
            for parameter in qkv.parameters():
                parameter[:width] *= HEAD_WIDTH**-0.5
        if folded.stem is None:  # a padded convolution would see other borders
            patches, mean, std = folded.patch_embed, folded.pixel_mean, folded.pixel_std
            patches.weight /= std
            cast(Tensor, patches.bias).sub_((patches.weight * mean).sum((1, 2, 3)))
            folded.pixel_mean, folded.pixel_std = torch.zeros_like(mean), torch.ones_like(std)
    content = export_onnx(folded, batch).SerializeToString()
    model = core().read_model(io.BytesIO(content))
    for i in range(depth):
        _join_attention(model, f"blocks.{i}.attn", width)
    model.validate_nodes_and_infer_types()
    return model


def quantize(model: Any, exporter: Exporter) -> Any:
    """INT8 Linears by NNCF, then qkv and the softmax weights by their measured ranges."""
    nncf = import_untracked("nncf")
    recipe, student = exporter.options.recipe, exporter.run.student
    batches = calibration_batches(exporter.run.calibration, recipe.frames, exporter.options.batch)
    ends = {}
    for name, peaks in _attention_peaks(model, student, batches).items():
        ends[f"{name}.qkv/Add"] = _equalise(model, name, peaks[:3])
        ends[f"{name}/softmax"] = peaks[3]
    products = [node for node in _nodes(model) if node.endswith(("attn/scores", "attn/values"))]
    stem = [] if student.stem is None else ["Convolution", "GroupConvolution"]
    ignored = nncf.IgnoredScope(names=["head/MatMul", *products], types=stem)
    frames = nncf.Dataset(batches, lambda batch: [to_input(batch)])
    with quiet("nncf"):
        quantized = nncf.quantize(model, frames, subset_size=len(batches), ignored_scope=ignored,
                                  **nncf_parameters(recipe, bias_correction=False))
    nodes = _nodes(quantized)
    for name, peak in ends.items():
        low, levels = (0.0, 256) if name.endswith("softmax") else (-peak, 255)
        _fake_quantize(nodes[name].output(0), low, peak, levels)
    quantized.validate_nodes_and_infer_types()
    return quantized


def save_ir(model: Any, path: Path, facts: Facts) -> Facts:
    """Writes the .bin, the .xml and its sidecar, in this order; returns the sidecar's facts."""
    with TemporaryDirectory() as folder:
        xml = Path(folder) / path.name
        load().save_model(model, xml, compress_to_fp16=False)
        weights = xml.with_suffix(".bin").read_bytes()
        with atomic_write(path.with_suffix(".bin")) as scratch:
            scratch.write_bytes(weights)
        graph = xml.read_bytes()
        size_mb = round((len(graph) + len(weights)) / 1e6, 3)
        return save_bytes(graph, path, facts | {"bin_sha256": sha256(path.with_suffix(".bin")),
                                                "size_mb": size_mb})


def _join_attention(model: Any, name: str, width: int) -> None:
    """q, k and v of one transposed tensor, no scale, and names for the two products."""
    op = load().opset13

    nodes = _nodes(model)
    qkv, after = nodes[f"{name}.qkv/Add"], nodes[f"{name}.proj/MatMul"].input_value(0)
    batch, tokens = qkv.output(0).shape[:2]
    shape = [batch, tokens, 3, width // HEAD_WIDTH, HEAD_WIDTH]
    transposed = op.transpose(op.reshape(qkv, shape, False), [2, 0, 3, 1, 4])
    q, k, v = (op.squeeze(part, [0]) for part in op.split(transposed, 0, 3).outputs())
    scores = op.matmul(q, k, False, True)
    softmax = op.softmax(scores, -1)
    values = op.matmul(softmax, v, False, False)
    for node, what in ((scores, "scores"), (softmax, "softmax"), (values, "values")):
        node.set_friendly_name(f"{name}/{what}")
    joined = op.reshape(op.transpose(values, [0, 2, 1, 3]), [batch, tokens, width], False)
    after.replace(joined.output(0))


def _attention_peaks(model: Any, student: Student, batches: np.ndarray) -> dict[str, np.ndarray]:
    """By attention layer: the largest magnitudes of q, k, v and of a softmax weight."""
    probed = model.clone()
    nodes, depth = _nodes(probed), student.config.depth
    names = [f"blocks.{i}.attn" for i in range(depth)]
    watched = [f"{name}{part}" for name in names for part in (".qkv/Add", "/softmax")]
    probed.add_outputs([nodes[name].output(0) for name in watched])
    request = OpenVinoModel(probed, precision="f32").request
    peaks = np.zeros((depth, 4))
    for batch in batches:
        outputs = list(request.infer([to_input(batch)]).values())[1:]
        for i, (qkv, weights) in enumerate(zip(outputs[::2], outputs[1::2], strict=True)):
            largest = np.abs(qkv).reshape(-1, 3, qkv.shape[-1] // 3).max((0, 2))
            peaks[i] = np.maximum(peaks[i], [*largest, weights.max()])
    return dict(zip(names, peaks, strict=True))


def _equalise(model: Any, name: str, peaks: np.ndarray) -> float:
    """Scales q, k and v to one range, exactly: q k^T stays, and proj divides by v's factor. Returns
    that range, which one scale then serves without loss."""
    op = load().opset13

    nodes, target = _nodes(model), float(np.sqrt(peaks[0] * peaks[1]))
    q, k, v = target / peaks
    width = nodes[f"{name}.qkv/Add"].output(0).shape[-1] // 3
    factors = np.repeat(np.array([q, k, v], np.float32), width)
    for node, factor in ((f"{name}.qkv/MatMul", factors), (f"{name}.qkv/Add", factors),
                         (f"{name}.proj/MatMul", np.float32(1 / v))):
        source = nodes[node].input_value(1)
        scaled = op.constant(source.get_node().data * factor)
        nodes[node].input(1).replace_source_output(scaled.output(0))
    return target


def _fake_quantize(output: Any, low: float, high: float, levels: int) -> None:
    """Between `output` and all that read it now."""
    op = load().opset13

    readers = list(output.get_target_inputs())
    ends = [op.constant(np.float32(end)) for end in (low, high, low, high)]
    quantized = op.fake_quantize(output, *ends, levels)
    for reader in readers:
        reader.replace_source_output(quantized.output(0))


def _nodes(model: Any) -> dict[str, Any]:
    return {node.get_friendly_name(): node for node in model.get_ops()}
