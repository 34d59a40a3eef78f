"""Presets for apps: the student with its heads as one ONNX file, in the layout of Hugging Face.

The student's part is the file that `export onnx` made and gated. The heads are appended in float32,
where they cost few percent of a frame, and the complete file is compared with torch once more.
Shapes are static, but for the batch of model_quantized.onnx (graph/dialects.py).

edge    model_quantized.onnx (uint8: CPU), model_int8.onnx (TensorRT), model_fp16.onnx
web     model_fp16.onnx (WebGPU), model.onnx (float32), model_quantized.onnx (WASM)
mobile  model.onnx (float32: CoreML and NNAPI choose their own half precision)
"""
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import starmap
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx.compose
import torch
from onnx import helper
from torch import Tensor

from export.artefact import Facts, discard, save_onnx, source_digest, up_to_date
from export.graph.export_onnx import Batch, interface, traced
from export.graph.index import copy_model, rename
from export.graph.session import OnnxModel
from export.parity import THRESHOLDS, GateError, misses, token_cosine
from export.pipeline import FP16, FP32, INT8, INT8_CPU, ArtefactSpec, ExportedFile, Exporter
from export.source import TrainedRun, to_input
from records.files import atomic_write, digest, sha256, write_json
from student.heads import FILE, Heads, StudentWithHeads, load_heads

# frames float32 [N,3,H,W] in [0,1] -> features and the outputs of heads, [N,C,h,w]
Outputs = Callable[[np.ndarray], list[np.ndarray]]
Preset = Literal["edge", "web", "mobile"]
PRESETS: dict[Preset, dict[str, ArtefactSpec]] = {
    "edge": {"model_quantized.onnx": INT8_CPU, "model_int8.onnx": INT8, "model_fp16.onnx": FP16},
    "web": {"model_fp16.onnx": FP16, "model.onnx": FP32, "model_quantized.onnx": INT8_CPU},
    "mobile": {"model.onnx": FP32}}
GATE_FRAMES = 32
# what transformers.js loads by default, with and without WebGPU
_BY_DEVICE: dict[Preset, Facts] = {
    "edge": {"dtype": "q8"},
    "web": {"dtype": "q8", "device_config": {"webgpu": {"dtype": "fp16"}}},
    "mobile": {"dtype": "fp32"}}
_CHOOSE = """
const gpu = await navigator.gpu?.requestAdapter();   // without WebGPU: model_quantized.onnx on WASM
const options = gpu ? { device: 'webgpu', dtype: gpu.features.has('shader-f16') ? 'fp16' : 'fp32' \
} : {};"""


@dataclass(frozen=True)
class Drift:
    """How far a file's outputs are from torch's; means over held-out frames."""
    features_cosine: float
    depth_ratio: float          # |ln(depth / depth)|
    depth_delta1: float         # share of pixels within 25 % of torch's depth
    normals_deg: float
    descriptors_cosine: float
    colours: float              # 0 to 1
    confidence: float = 0.0     # 0 to 1


# float32 differs in the order of sums only; int8 as far as the student's own gate allows
LIMITS = {"fp32": Drift(THRESHOLDS["fp32"].cosine_mean, 0.001, 0.9999, 0.2, 0.9999, 0.002, 0.002),
          "fp16": Drift(THRESHOLDS["fp16"].cosine_mean, 0.01, 0.999, 1.0, 0.999, 0.01, 0.01),
          "int8": Drift(THRESHOLDS["int8"].cosine_mean, 0.03, 0.99, 2.5, 0.99, 0.03, 0.03)}


def export_preset(exporter: Exporter, preset: Preset,
                  out: Path | None = None) -> list[ExportedFile]:
    """Writes config.json, preprocessor_config.json, README.md and onnx/model*.onnx into `out`."""
    run = exporter.run
    folder = out or run.out / preset
    heads = load_heads(run.folder / "student", run.student_sha256)
    files = [_export(exporter, heads, spec, folder / "onnx" / name)
             for name, spec in PRESETS[preset].items()]
    write_json(_config(run, heads, preset), folder / "config.json")
    write_json(_preprocessor(run), folder / "preprocessor_config.json")
    with atomic_write(folder / "README.md") as scratch:
        scratch.write_text(_card(run, preset, files))
    return files


def with_heads(student: onnx.ModelProto, heads: Heads, px: int, batch: Batch) -> onnx.ModelProto:
    """The student's graph and its heads' as one; px: of the student's frames; batch: as of it."""
    shape = heads.shape
    inputs = {"features": (shape.in_dim, shape.grid, shape.grid), "frames": (3, px, px)}
    return attach(student, traced(heads, inputs, shape.outputs, batch))


def attach(student: onnx.ModelProto, heads: onnx.ModelProto) -> onnx.ModelProto:
    """One checked graph: `features` stays an output and feeds the heads, whose outputs follow."""
    model = copy_model(student)
    graph = model.graph
    added = onnx.compose.add_prefix(heads, "heads.").graph
    shared = ("features", "frames", *(output.name for output in heads.graph.output))
    rename(added, {f"heads.{name}": name for name in shared})
    graph.node.extend(added.node)
    graph.initializer.extend(added.initializer)
    graph.output.extend(heads.graph.output)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for entry in heads.opset_import:
        if versions.setdefault(entry.domain, entry.version) != entry.version:
            raise ValueError(f"attach: got opset {versions[entry.domain]} and heads of "
                             f"{entry.version}, expected one")
    del model.opset_import[:]
    model.opset_import.extend(starmap(helper.make_opsetid, versions.items()))
    del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def drift(reference: StudentWithHeads, candidate: Outputs, frames: np.ndarray) -> Drift:
    """frames float32 [N,3,H,W] in [0,1]."""
    names = ("features", *reference.heads.shape.outputs)
    with torch.inference_mode():
        expected = dict(zip(names, map(Tensor.numpy, reference(torch.from_numpy(frames))),
                            strict=True))
    got = dict(zip(names, candidate(frames), strict=True))
    for name, a in expected.items():
        if a.shape != (b := got[name]).shape or not np.isfinite(b).all():
            raise GateError(f"{name}: got {list(b.shape)}, expected finite {list(a.shape)}; half "
                            "precision overflowed?")
    cosine = {name: token_cosine(expected[name], got[name])
              for name in ("features", "normals", "descriptors")}
    change = np.abs(np.log(got["depth"] / expected["depth"]))
    away = {name: float(np.abs(expected[name] - got[name]).mean())
            for name in ("colours", "confidence") if name in expected}
    return Drift(features_cosine=float(cosine["features"].mean()),
                 depth_ratio=float(change.mean()),
                 depth_delta1=float((change < np.log(1.25)).mean()),
                 normals_deg=float(np.degrees(np.arccos(cosine["normals"].clip(-1, 1))).mean()),
                 descriptors_cosine=float(cosine["descriptors"].mean()), **away)


def gate_heads(run: TrainedRun, heads: Heads, candidate: Outputs, precision: str,
               name: str) -> Drift:
    """Of a file's outputs on held-out frames. Raises GateError if a limit is exceeded."""
    frames = to_input(run.heldout.frames[:GATE_FRAMES])
    found = drift(StudentWithHeads(run.student, heads), candidate, frames)
    if missed := misses(found, LIMITS[precision]):
        raise GateError(f"{name}: its outputs differ from the student's: {'; '.join(missed)}")
    return found


def _export(exporter: Exporter, heads: Heads, spec: ArtefactSpec, path: Path) -> ExportedFile:
    run, label = exporter.run, f"{path.parent.parent.name}/{path.name}"
    student = next(file for file in exporter.export(spec.precision) if file.spec == spec)
    key = digest(sha256(student.path), sha256(run.folder / "student" / FILE), source_digest())
    if facts := up_to_date(path, key, exporter.log):
        exporter.log(f"{label}: up to date")
        return ExportedFile(path, spec, facts, reused=True)
    batch = "dynamic" if spec.open_batch else exporter.options.batch
    model = with_heads(onnx.load(student.path), heads, run.student.config.image_size, batch)
    exporter.log(f"gate: {label}")
    found = gate_heads(run, heads, OnnxModel(model, optimise=True).outputs, spec.precision,
                       str(path))
    facts = {name: fact for name, fact in student.facts.items()
             if name not in ("schema", "file", "sha256", "size_mb")}
    facts |= {"cache_key": key, "outputs": output_facts(heads), "drift": asdict(found),
              "student_file": student.path.name, **camera_facts(heads)}
    discard(path)
    return ExportedFile(path, spec, save_onnx(model, path, facts), reused=False)


def camera_facts(heads: Heads) -> Facts:
    """canonical_focal: px at the model's input; without it depth is in metres of any camera."""
    focal = heads.shape.canonical_focal
    return {"canonical_focal": focal} if focal else {}


def output_facts(heads: Heads) -> Facts:
    shape = heads.shape
    depth, dense, fine = (shape.depth_cells, shape.grid * shape.dense_up,
                          shape.grid * shape.descriptor_up)
    scale = "; metres = depth * focal length (px at the input) / canonical_focal"
    facts: dict[str, Facts] = {
        "features": {"shape": [shape.in_dim, shape.grid, shape.grid],
                     "meaning": "standardised teacher features"},
        "depth": {"shape": [1, depth, depth], "unit": "m", "range": [0.1, 50],
                  "meaning": "along the optical axis" + (scale if shape.canonical_focal else "")},
        "normals": {"shape": [3, dense, dense], "range": [-1, 1], "meaning": "unit vectors in "
                    "camera axes (x right, y down, z ahead), towards the camera"},
        "descriptors": {"shape": [shape.descriptor_dim, fine, fine], "range": [-1, 1], "meaning":
                        "unit vectors; the largest dot product in another view is the same place"},
        "colours": {"shape": [3, shape.grid, shape.grid], "range": [0, 1], "meaning":
                    "three main directions of the features, one fixed map for all frames"},
        "confidence": {"shape": [1, depth, depth], "range": [0, 1], "meaning":
                       "probability that depth is within 25 % of the truth"}}
    return {name: facts[name] for name in ("features", *shape.outputs)}


def _config(run: TrainedRun, heads: Heads, preset: Preset) -> Facts:
    config = run.student.config
    return {"model_type": "vega3d-edge", "architectures": ["DrawableStudent"],
            "image_size": config.image_size, "patch_size": config.patch,
            "hidden_size": config.width, "num_hidden_layers": config.depth,
            "feature_dim": config.out_dim, "input": interface(run.student)["input"],
            "outputs": output_facts(heads), **camera_facts(heads),
            "student_sha256": run.student_sha256,
            "transformers.js_config": _BY_DEVICE[preset]}


def _preprocessor(run: TrainedRun) -> Facts:
    px = run.student.config.image_size
    return {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True,
            "size": {"shortest_edge": px}, "resample": 3, "do_center_crop": True,
            "crop_size": {"height": px, "width": px}, "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": False}  # the graph does that


def _card(run: TrainedRun, preset: Preset, exported: list[ExportedFile]) -> str:
    files = "\n".join(f"| onnx/{file.path.name} | {file.facts['size_mb']:.1f} | {file.spec.what} | "
                      f"{file.facts['drift']['features_cosine']:.5f} |" for file in exported)
    choose, options = (_CHOOSE, ", options") if preset == "web" else ("", "")
    px = run.student.config.image_size
    return f"""---
library_name: transformers.js
license: apache-2.0
tags: [onnx, depth-estimation, surface-normals, image-feature-extraction]
---
# vega3d-edge student, preset {preset}

One RGB frame [1,3,{px},{px}] in [0,1] as `frames`; normalisation
is inside. Shapes and units of the outputs, and the metres of `depth`: config.json.

| file | MB | for | cosine to torch |
| --- | ---: | --- | ---: |
{files}

```js
import {{ AutoModel, AutoProcessor, RawImage }} from '@huggingface/transformers';   \
// PATH: this folder{choose}
const processor = await AutoProcessor.from_pretrained(PATH);
const model = await AutoModel.from_pretrained(PATH{options});
const {{ pixel_values }} = await processor(await RawImage.read('photo.jpg'));
const {{ depth, normals, descriptors }} = await model({{ frames: pixel_values }});
```
"""
