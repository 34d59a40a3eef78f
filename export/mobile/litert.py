"""`vega3d export litert`: model.tflite, model.fp16.tflite and model.int8.tflite, run and gated."""
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from export.artefact import discard, save_bytes, up_to_date
from export.graph.export_onnx import traced
from export.mobile.network import PhoneStudent, optional_package
from export.mobile.tflite import to_tflite
from export.parity import Precision
from export.pipeline import FP16, FP32, INT8, ExportedFile, Exporter
from records.files import digest

SPECS = {"fp32": replace(FP32, file="model.tflite", what="FP32: LiteRT on CPUs and GPUs"),
         "fp16": replace(FP16, file="model.fp16.tflite", what="FP16 weights: LiteRT on GPUs"),
         "int8": replace(INT8, file="model.int8.tflite", target=None,
                         what="INT8 linear layers, FP16 elsewhere: LiteRT on CPUs")}


class LiteRtModel:
    """Runs a .tflite. frames [N,3,H,W] float32 in [0,1] -> the outputs named, each [N,C,h,w]."""

    def __init__(self, content: bytes, names: Sequence[str], threads: int = 1):
        package, self.names = optional_package("ai_edge_litert.interpreter", "litert"), names
        interpreter = package.Interpreter(model_content=content, num_threads=threads)
        self.run: Any = interpreter.get_signature_runner()  # keeps the interpreter

    def __call__(self, frames: np.ndarray) -> list[np.ndarray]:
        results = [self.run(frames=frame[None]) for frame in frames.transpose(0, 2, 3, 1)]
        return [np.concatenate([each[name] for each in results]).transpose(0, 3, 1, 2)
                for name in self.names]


def export_litert(exporter: Exporter, precisions: tuple[Precision, ...]) -> list[ExportedFile]:
    """All are gated before the first is written. Raises GateError if one fails."""
    optional_package("ai_edge_litert", "litert")  # first: fails at once
    phone, built, files = PhoneStudent(exporter), [], []
    for spec in map(SPECS.__getitem__, dict.fromkeys(precisions)):
        path = exporter.run.out / spec.file
        key = digest(exporter.cache_key(spec.precision), version("ai-edge-litert"), phone.digest)
        if facts := up_to_date(path, key, exporter.log):
            exporter.log(f"{spec.file}: up to date")
            files.append(ExportedFile(path, spec, facts, reused=True))
            continue
        with torch.no_grad():
            graph = traced(phone.network(False), {"frames": phone.shape}, phone.outputs)
        candidate = LiteRtModel(to_tflite(graph, spec.precision, {}), phone.outputs)
        facts = phone.facts(spec, candidate, key, channels_last=True)
        built.append((spec, facts, to_tflite(graph, spec.precision, facts)))
    for spec, facts, content in built:
        path = exporter.run.out / spec.file
        discard(path)
        files.append(ExportedFile(path, spec, save_bytes(content, path, facts), reused=False))
    return files
