"""Is INT8 worth it here? Both precisions timed in turn on this very device, and one line that says
which to ship.

INT8 is not always faster (0.68x of FP16 for a ViT at batch 32 on one GPU): nobody should have to
find out later.
"""
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from export.artefact import Facts, annotate
from export.graph.session import OnnxModel
from export.pipeline import ExportedFile, Exporter
from export.source import to_input
from export.tensorrt import rtx
from export.tensorrt.engines import Engine, Site, make_engines
from export.tensorrt.runtime import EngineModel
from records.files import digest
from records.timing import MIN_SPEEDUP, Clock, time_interleaved

CPU = "onnxruntime CPU 1 thread"
Call = Callable[[], object]


@dataclass(frozen=True)
class Verdict:
    """int8_ms, other_ms: medians of a call. cosine: INT8's mean token cosine to FP32. where: "" for
    a GPU's engines."""
    int8_ms: float
    other_ms: float
    other: Literal["fp32", "fp16"]
    cosine: float
    where: str = ""
    what: str = "INT8"     # or FP8, likewise against FP16

    @property
    def speedup(self) -> float:
        return self.other_ms / self.int8_ms

    @property
    def use(self) -> str:
        return self.what if self.speedup >= MIN_SPEEDUP else self.other.upper()

    def __str__(self) -> str:
        here, where = (" here", f", {self.where}") if self.where else ("", "")
        times = f"{_ms(self.int8_ms)} vs {_ms(self.other_ms)} ms{where}"
        return (
            f"{self.what} {self.speedup:.2f}x of {self.other.upper()}{here} ({times}), cosine "
            f"{self.cosine:.4f}: use {self.use}{'' if self.use == self.what else ' here'}")

    def facts(self) -> Facts:
        return {
            **asdict(self), "speedup": round(self.speedup, 3), "use": self.use, "line": str(self)
        }


def onnx_verdict(exporter: Exporter, fp32: ExportedFile, int8: ExportedFile,
                 clock: Clock = time.perf_counter) -> Verdict:
    """The uint8 file against the FP32 one, by onnxruntime on one CPU thread; recorded in the INT8
    file's sidecar."""
    key = digest(fp32.facts["sha256"], int8.facts["sha256"], CPU, platform.node())
    if held := _held(int8.facts, key):
        return held
    batch = exporter.options.batch
    frames = to_input(exporter.run.heldout.frames[:1 if batch == "dynamic" else batch])
    ours, other = (_session_call(made.path, frames) for made in (int8, fp32))
    verdict = Verdict(*time_interleaved((ours, other), clock), "fp32", int8.parity["cosine_mean"], CPU)
    annotate(int8.path, verdict={**verdict.facts(), "key": key})
    return verdict


def engine_verdict(exporter: Exporter, where: Site, int8: Engine,
                   clock: Clock = time.perf_counter) -> Verdict | str:
    """The INT8 (or FP8) engine against the FP16 one, built for it; or, for a GPU that is not here,
    how to get one.

    Recorded in the INT8 engine's sidecar either way.
    """
    sm = int8.facts["sm"]
    if where.ahead(sm):
        what, option = int8.facts["precision"].upper(
        ), " --fp8" if int8.facts["precision"] == "fp8" else ""
        there = f"vega3d export trt{option} --target {where.surface.name} --sm {sm}"
        line = (
            f"{what} or FP16 on SM {sm}? The verdict needs that GPU "
            f"({rtx.AHEAD_OF_TIME.split(':')[0]} build); there, on a copy of this run folder: "
            f"{there}")
        annotate(int8.path, verdict={"use": None, "line": line})
        return line
    (fp16,) = make_engines(exporter, replace(where, sms=(sm,)), "fp16")
    key = digest(fp16.facts["sha256"], int8.facts["sha256"], int8.facts["device"], platform.node())
    if held := _held(int8.facts, key):
        return held
    ours, other = (EngineModel(where.module, engine.path.read_bytes()) for engine in (int8, fp16))
    verdict = Verdict(*time_interleaved((ours.run, other.run), clock), "fp16",
                      int8.facts["parity"]["cosine_mean"], what=int8.facts["precision"].upper())
    annotate(int8.path, verdict={**verdict.facts(), "key": key})
    return verdict


def _held(facts: Facts, key: str) -> Verdict | None:
    """What was measured before, of the same two files on the same machine."""
    held = facts.get("verdict") or {}
    if held.get("key") != key:
        return None
    return Verdict(held["int8_ms"], held["other_ms"], held["other"], held["cosine"], held["where"],
                   held["what"])


def _session_call(path: Path, frames) -> Call:
    session = OnnxModel(path, optimise=True)
    return lambda: session(frames)


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
