"""Whether INT8 pays on this device, by timing: at batch 32 it was 0.68x of FP16 on one GPU."""
import platform
import time
from dataclasses import asdict, dataclass, fields, replace

from export.artefact import Facts, annotate
from export.pipeline import Exporter
from export.tensorrt.cuda import EngineModel
from export.tensorrt.engines import BuildTarget, EngineFile, build_engines
from export.tensorrt.packages import AHEAD_OF_TIME
from records.files import digest
from records.timing import MIN_SPEEDUP, Clock, time_interleaved


@dataclass(frozen=True)
class Int8Verdict:
    """INT8 (or FP8) against the fastest float on a CPU, or against FP16 on a GPU."""
    int8_ms: float         # median of a call
    other_ms: float
    other: str             # fp32, fp16 or bf16
    cosine: float          # mean token cosine to FP32
    where: str = ""        # "" for the engines of a GPU
    what: str = "INT8"     # or FP8

    @property
    def speedup(self) -> float:
        return self.other_ms / self.int8_ms

    @property
    def use(self) -> str:
        return self.what if self.speedup >= MIN_SPEEDUP else self.other.upper()

    def __str__(self) -> str:
        other = self.other.upper()
        times = f"{ms_text(self.int8_ms)} vs {ms_text(self.other_ms)} ms"
        if self.where:
            other, times = f"{other} here", f"{times}, {self.where}"
        here = "" if self.use == self.what else " here"
        return (f"{self.what} {self.speedup:.2f}x of {other} ({times}), "
                f"cosine {self.cosine:.4f}: use {self.use}{here}")

    def facts(self) -> Facts:
        derived = {"speedup": round(self.speedup, 3), "use": self.use, "line": str(self)}
        return asdict(self) | derived


def engine_verdict(exporter: Exporter, target: BuildTarget, int8: EngineFile,
                   clock: Clock = time.perf_counter) -> Int8Verdict | str:
    """The engine against an FP16 one, which is built; without its GPU, how to get it there."""
    sm = int8.facts["sm"]
    if target.is_ahead_of_time(sm):
        line = _verdict_command(int8.facts, target.api.name)
        annotate(int8.path, verdict={"use": None, "line": line})
        return line
    (fp16,) = build_engines(exporter, replace(target, sms=(sm,)), "fp16")
    key = digest(fp16.facts["sha256"], int8.facts["sha256"], int8.facts["device"], platform.node())
    if cached := recorded_verdict(int8.facts, key):
        return cached
    models = [EngineModel(target.module, engine.path.read_bytes()) for engine in (int8, fp16)]
    int8_ms, fp16_ms = time_interleaved([model.run for model in models], clock)
    verdict = Int8Verdict(int8_ms, fp16_ms, "fp16", int8.facts["parity"]["cosine_mean"],
                          what=int8.facts["precision"].upper())
    annotate(int8.path, verdict={**verdict.facts(), "key": key})
    return verdict


def _verdict_command(facts: Facts, builder: str) -> str:
    precision, sm = facts["precision"], facts["sm"]
    option = " --fp8" if precision == "fp8" else ""
    return (f"{precision.upper()} or FP16 on SM {sm}? The verdict needs that GPU "
            f"({AHEAD_OF_TIME.split(':')[0]} build); there, on a copy of this run folder: "
            f"vega3d export trt{option} --target {builder} --sm {sm}")


def recorded_verdict(facts: Facts, key: str) -> Int8Verdict | None:
    verdict = facts.get("verdict") or {}
    if verdict.get("key") != key:
        return None
    return Int8Verdict(*(verdict[field.name] for field in fields(Int8Verdict)))


def ms_text(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
