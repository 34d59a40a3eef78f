"""ONNX file -> engine bytes, by one builder for TensorRT 8.6, 10, 11 and TensorRT-RTX.

Versions are told apart by their API (`hasattr`): 11 removed BuilderFlag.INT8 and weak typing, 8.6
has no strong typing and needs EXPLICIT_BATCH and precision flags.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shlex import quote
from types import ModuleType
from typing import Any

from export.jetson.device_engine import (
    add_profile,
    attach_timings,
    is_strongly_typed,
    network_flags,
)
from export.parity import Precision
from export.tensorrt.progress import Monitor
from records.files import atomic_write
from records.interrupts import deferred

Config = Any                         # trt.IBuilderConfig; the package is optional, so are its types
WORKSPACE_BYTES = 1 << 30  # a ViT-B needs a tenth; Jetson shares memory with everything else
DYNAMIC_BATCHES = (1, 8, 32)         # min, opt, max of a dynamic ONNX's optimisation profile


@dataclass(frozen=True)
class TensorRTApi:
    """What a TensorRT module offers, and so which ONNX dialect it reads."""
    name: str                                  # "trt" or "rtx", part of an engine's file name
    version: str
    strongly_typed: bool                       # the graph's types decide, not builder flags

    @property
    def label(self) -> str:
        return f"{self.name}-{self.version}"

    @property
    def dialect(self) -> str:
        return "typed" if self.strongly_typed else "flagged"

    @property
    def target(self) -> str:
        """The name of its row in graph/targets.py."""
        if self.name == "rtx":
            return "rtx"
        if not self.strongly_typed:
            return "trt8.6"
        return "trt11" if int(self.version.split(".")[0]) >= 11 else "trt10"


def tensorrt_api(trt: ModuleType) -> TensorRTApi:
    """Raises ValueError for a TensorRT that has neither strong typing nor the INT8 flag."""
    name, strongly_typed = "rtx" if "rtx" in trt.__name__ else "trt", is_strongly_typed(trt)
    if not strongly_typed and not hasattr(trt.BuilderFlag, "INT8"):
        raise ValueError(f"{name} {trt.__version__}: got neither strong typing nor INT8, expected "
                         "TensorRT >= 8.6")
    return TensorRTApi(name, trt.__version__, strongly_typed)


def precision_flags(trt: ModuleType, precision: Precision) -> list[str]:
    """None for a strongly typed network. Raises ValueError for FP8 in a weakly typed one."""
    if is_strongly_typed(trt):
        return []
    if precision == "fp8":
        raise ValueError(f"export trt: FP8 needs TensorRT 10 or later, this is {trt.__version__}; "
                         "use INT8 or FP16")
    return {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"]}[precision]


def build(trt: ModuleType, onnx_file: Path, precision: Precision,
          configure: Callable[[Config], None] = lambda _: None, timing_cache: Path | None = None,
          monitor: Monitor | None = None) -> bytes:
    """The serialised engine. `configure` makes further settings, such as an ahead-of-time SM."""
    logger = _logger(trt)
    logger.errors.clear()
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt))
    _parse(trt, network, logger, onnx_file)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if hasattr(trt, "ProfilingVerbosity"):  # layer names for the report; free at run time
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for flag in precision_flags(trt, precision):
        config.set_flag(getattr(trt.BuilderFlag, flag))
    add_profile(builder, network, config, DYNAMIC_BATCHES)
    configure(config)
    if not hasattr(config, "create_timing_cache"):
        timing_cache = None
    if timing_cache is not None:
        attach_timings(config, timing_cache.read_bytes() if timing_cache.is_file() else b"")
    progress_hook = monitor.attach(trt, config) if monitor else None
    with deferred():  # C++ would lose the exception; the hook stops the build instead
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = _one_line("; ".join(logger.errors[-3:])) or "no reason given"
        raise ValueError(f"{onnx_file}: {tensorrt_api(trt).label} cannot build it: {reason}")
    del progress_hook  # the builder keeps a bare pointer to it until here
    if timing_cache is not None:
        with atomic_write(timing_cache) as scratch:
            scratch.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _parse(trt: ModuleType, network: Any, logger: Any, onnx_file: Path) -> None:
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_file.read_bytes()):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        api = tensorrt_api(trt)
        raise ValueError(f"{onnx_file}: {api.label} cannot read it: {_one_line(errors)}; see why "
                         f"with: vega3d export check {quote(str(onnx_file))} --target "
                         f"{api.target}")


@cache
def _logger(trt: ModuleType) -> Any:
    """One per module: TensorRT uses the first logger of a process to its end."""
    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


def _one_line(message: str) -> str:
    return " ".join(message.split())[:300]
