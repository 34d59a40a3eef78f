"""`vega3d export coreml`: model.mlpackage, an FP16 ML program for iOS 16, macOS 13 and later.

Built and checked everywhere; it runs, and is gated, on macOS alone.
"""
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from export.artefact import Facts, sidecar_path
from export.graph.export_onnx import quiet
from export.mobile.network import PhoneStudent, optional_package
from export.parity import GateError
from export.pipeline import FP16, ExportedFile, Exporter
from records import manifest
from records.files import atomic_write, digest, files_digest, to_json, write_json

SPEC = replace(FP16, file="model.mlpackage", what="FP16 ML program: iOS 16, macOS 13 and later")
NOT_RUN = "not run here: Core ML needs macOS; export it there once to gate it"


def export_coreml(exporter: Exporter) -> ExportedFile:
    """Raises GateError for a graph that breaks the rules or, on a Mac, outputs unlike torch's."""
    tools = optional_package("coremltools", "coreml")
    phone, path = PhoneStudent(exporter), exporter.run.out / SPEC.file
    model = convert(tools, phone)
    operators = check(model, phone, str(path))
    run = _runner(model, phone.outputs) if sys.platform == "darwin" else None
    key = digest(exporter.cache_key("fp16"), tools.__version__, phone.digest)
    facts = phone.facts(SPEC, run, key) | {
        "operators": operators, "ran": "gated on this Mac" if run else NOT_RUN}
    facts["input"] |= {"layout": "image", "range": [0, 255]}
    model.short_description = f"vega3d-edge student: {', '.join(phone.outputs)}"
    model.user_defined_metadata["vega3d"] = to_json(facts, sort_keys=True)
    return ExportedFile(path, SPEC, _save(model, path, facts), reused=False)


def convert(tools: Any, phone: PhoneStudent) -> Any:
    """coremltools' model: an RGB image in, float32 arrays out."""
    shape = (1, *phone.shape)
    with quiet("coremltools"), torch.no_grad():
        traced = torch.jit.trace(phone.network(has_layer_norm=True), torch.zeros(shape))
        return tools.convert(
            traced, inputs=[tools.ImageType("frames", shape, scale=1 / 255)],
            outputs=[tools.TensorType(name, dtype=np.float32) for name in phone.outputs],
            minimum_deployment_target=tools.target.iOS16,
            compute_precision=tools.precision.FLOAT16)


def check(model: Any, phone: PhoneStudent, name: str) -> dict[str, int]:
    """The graph's operators, counted. Raises GateError for one that the Neural Engine leaves to the
    CPU, more than four axes, or outputs other than the student's."""
    spec, counts = model.get_spec(), dict[str, int]()
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    for operation in block.operations:
        counts[operation.type] = counts.get(operation.type, 0) + 1
        axes = max(output.type.tensorType.rank for output in operation.outputs)
        if axes > 4 or operation.type.startswith("gather"):
            raise GateError(f"{name}: {operation.type} with {axes} axes, expected at most four and "
                            "no gather; not written")
    outputs = [output.name for output in spec.description.output]
    if outputs != [*phone.outputs]:
        raise GateError(f"{name}: got outputs {outputs}, expected {[*phone.outputs]}; not written")
    return dict(sorted(counts.items()))


def _runner(model: Any, outputs: tuple[str, ...]) -> Any:
    def run(frames: np.ndarray) -> list[np.ndarray]:
        images = [Image.fromarray(pixels) for pixels in
                  np.rint(frames * 255).astype(np.uint8).transpose(0, 2, 3, 1)]
        results = [model.predict({"frames": image}) for image in images]
        return [np.concatenate([each[name] for each in results]) for name in outputs]
    return run


def _save(model: Any, path: Path, facts: Facts) -> Facts:
    """A folder of three files, then its sidecar. `sha256`: `files_digest` of them."""
    manifest.forget([sidecar_path(path), *path.rglob("*")])
    sidecar_path(path).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
    with atomic_write(path) as scratch:
        model.save(str(scratch))
    files = {file.relative_to(path): file for file in path.rglob("*") if file.is_file()}
    manifest.record(files.values())
    size = sum(file.stat().st_size for file in files.values())
    sidecar = {"schema": 1, "file": path.name, "sha256": files_digest(files),
               "size_mb": round(size / 1e6, 3), **facts}
    write_json(sidecar, sidecar_path(path))
    return sidecar

