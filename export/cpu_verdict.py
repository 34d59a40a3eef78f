"""Whether INT8 pays on this CPU, and the file and runtime to ship: each is timed where it runs."""
import importlib.util
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from export.artefact import annotate
from export.graph.session import OnnxModel
from export.openvino import OpenVinoModel, has_bfloat16
from export.pipeline import ExportedFile, Exporter
from export.source import to_input
from export.tensorrt.int8_verdict import Int8Verdict, ms_text, recorded_verdict
from records.files import digest
from records.timing import Clock, time_interleaved

Model = Callable[[np.ndarray], np.ndarray]
THREADS = "CPU 1 thread"


@dataclass(frozen=True)
class Candidate:
    file: ExportedFile
    runtime: Literal["onnxruntime", "OpenVINO"]
    precision: str  # fp32, bf16 or int8

    def __str__(self) -> str:
        return f"{self.file.path.name} on {self.runtime}"

    def load(self, threads: int = 1) -> Model:
        if self.runtime == "onnxruntime":
            return OnnxModel(self.file.path, True, threads)
        return OpenVinoModel(self.file.path, threads, "f32" if self.precision == "fp32" else "")


def candidates(files: Sequence[ExportedFile]) -> list[Candidate]:
    """Every FP32 and INT8 file on every runtime here that reads it. OpenVINO runs FP32 in bfloat16
    where the processor has it: the faster float, at cosine .9999, which INT8 has to beat."""
    found = [Candidate(file, "onnxruntime", file.spec.precision) for file in files
             if file.path.suffix == ".onnx"]
    if importlib.util.find_spec("openvino"):
        for file in files:
            found.append(Candidate(file, "OpenVINO", file.spec.precision))
            if file.spec.precision == "fp32" and has_bfloat16():
                found.append(Candidate(file, "OpenVINO", "bf16"))
    return found


def cpu_verdict(exporter: Exporter, files: Sequence[ExportedFile],
                clock: Clock = time.perf_counter) -> Int8Verdict:
    """The fastest INT8 against the fastest float on one thread; recorded in INT8's sidecar."""
    entries = candidates(files)
    int8_files = [file for file in files if file.spec.precision == "int8"]
    key = digest([(str(entry), entry.precision, entry.file.facts["sha256"]) for entry in entries],
                 THREADS, platform.node())
    for file in int8_files:
        if cached := recorded_verdict(file.facts, key):
            return cached
    batch = exporter.options.batch
    frames = to_input(exporter.run.heldout.frames[:1 if batch == "dynamic" else batch])
    ms = time_interleaved([partial(entry.load(), frames) for entry in entries], clock)

    def fastest(*precisions: str) -> tuple[float, Candidate]:
        pairs = zip(ms, entries, strict=True)
        return min((p for p in pairs if p[1].precision in precisions), key=lambda pair: pair[0])

    (int8_ms, int8), (other_ms, other) = fastest("int8"), fastest("fp32", "bf16")
    where = f"{int8} vs {other}, {THREADS}"
    if other.precision == "bf16":
        where += f"; FP32 {ms_text(fastest('fp32')[0])} ms"
    verdict = Int8Verdict(int8_ms, other_ms, other.precision, int8.file.parity["cosine_mean"],
                          where)
    annotate(int8.file.path, verdict={**verdict.facts(), "key": key})
    return verdict
