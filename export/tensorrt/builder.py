"""ONNX -> engine bytes, strongly typed: one builder for TensorRT 10, 11 and RTX, and the flags that
8.6 still needs.

Versions are told apart by what they offer (`hasattr`), never by guesswork: 11 removed
BuilderFlag.INT8 and weak typing, 8.6 has no strong typing and needs EXPLICIT_BATCH and the
precision flags.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from export.parity import Precision
from export.tensorrt.progress import Monitor

Config = Any                         # trt.IBuilderConfig; the package is optional, so are its types
WORKSPACE_BYTES = 1 << 30  # a ViT-B needs a tenth; Jetson shares memory with everything else
DYNAMIC_BATCHES = (1, 8, 32)         # min, opt, max of a dynamic ONNX's optimisation profile


@dataclass(frozen=True)
class Surface:
    """What a TensorRT-like module offers, and hence which ONNX dialect it is fed."""
    name: str                                  # "trt" or "rtx", as it stands in an engine's name
    version: str
    dialect: Literal["typed", "flagged"]

    @property
    def label(self) -> str:
        return f"{self.name}-{self.version}"

    @property
    def target(self) -> str:
        """Its row in targets.py."""
        if self.name == "rtx":
            return "rtx"
        return "trt8.6" if self.dialect == "flagged" else "trt11" if int(
            self.version.split(".")[0]) >= 11 else "trt10"


def surface(trt: ModuleType) -> Surface:
    """Raises ValueError for a TensorRT that has neither strong typing nor the INT8 flag."""
    name = "rtx" if "rtx" in trt.__name__ else "trt"
    typed = hasattr(trt.NetworkDefinitionCreationFlag,
                    "STRONGLY_TYPED") or not hasattr(trt.BuilderFlag, "FP16")
    if not typed and not hasattr(trt.BuilderFlag, "INT8"):
        raise ValueError(
            f"{name} {trt.__version__}: got neither strong typing nor INT8, expected TensorRT >= "
            "8.6"
        )
    return Surface(name, trt.__version__, "typed" if typed else "flagged")


def network_flags(trt: ModuleType) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    if surface(trt).dialect == "flagged":
        return 1 << int(flags.EXPLICIT_BATCH)
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def precision_flags(trt: ModuleType, precision: Precision) -> list[str]:
    """Builder flags to set: none where the graph's own types decide, which is everywhere but 8.6.

    Raises ValueError for FP8 there.
    """
    if surface(trt).dialect == "typed":
        return []
    if precision == "fp8":
        raise ValueError(
            f"export trt: FP8 needs TensorRT 10 or later, this is {trt.__version__}; use INT8 or "
            "FP16"
        )
    return {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"]}[precision]


def build(trt: ModuleType, onnx_file: Path, precision: Precision,
          configure: Callable[[Config], None] = lambda _: None, timing_cache: Path | None = None,
          monitor: Monitor | None = None) -> bytes:
    """The serialised engine. `configure` sets what only its caller knows (an ahead-of-time SM,
    say).

    Raises ValueError with the parser's or the builder's own words if it cannot; KeyboardInterrupt
    if cancelled.
    """
    log = _logger(trt)
    log.errors.clear()
    builder = trt.Builder(log)
    network = builder.create_network(network_flags(trt))
    _parse(trt, network, log, onnx_file)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if hasattr(trt, "ProfilingVerbosity"):
        # names in the layer report; costs nothing to run
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for flag in precision_flags(trt, precision):
        config.set_flag(getattr(trt.BuilderFlag, flag))
    _profile(builder, network, config)
    configure(config)
    cache_handle = _load_timing(config, timing_cache)
    attached = monitor.attach(trt, config) if monitor else None
    plan = builder.build_serialized_network(network, config)
    if monitor and monitor.cancelled:
        raise KeyboardInterrupt
    if plan is None:
        raise ValueError(f"{onnx_file}: {surface(trt).label} cannot build it: {log.said()}")
    del attached  # the builder holds it by a bare pointer until here
    _save_timing(config, cache_handle, timing_cache)
    return bytes(plan)


def _parse(trt: ModuleType, network: Any, log: Any, onnx_file: Path) -> None:
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx_file.read_bytes()):
        said = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ValueError(
            f"{onnx_file}: {surface(trt).label} cannot read it: {' '.join(said.split())[:300]}; "
            f"see why with: vega3d export check {onnx_file} --target {surface(trt).target}")


def _profile(builder: Any, network: Any, config: Config) -> None:
    frames = network.get_input(0)
    if frames.shape[0] != -1:
        return
    profile = builder.create_optimization_profile()
    profile.set_shape(frames.name,
                      *((batch, *tuple(frames.shape)[1:]) for batch in DYNAMIC_BATCHES))
    config.add_optimization_profile(profile)


def _load_timing(config: Config, path: Path | None) -> Any:
    """A timing cache makes the second build take seconds; a foreign or broken one is ignored, never
    fatal."""
    if path is None or not hasattr(config, "create_timing_cache"):
        return None
    held = path.read_bytes() if path.is_file() else b""
    handle = config.create_timing_cache(held) or config.create_timing_cache(b"")
    if handle is not None and not config.set_timing_cache(handle, ignore_mismatch=False):
        handle = config.create_timing_cache(b"")
        config.set_timing_cache(handle, ignore_mismatch=False)
    return handle


def _save_timing(config: Config, handle: Any, path: Path | None) -> None:
    if handle is None or path is None:
        return
    from records.files import atomic_write
    with atomic_write(path) as scratch:
        scratch.write_bytes(bytes(config.get_timing_cache().serialize()))


@cache
def _logger(trt: ModuleType) -> Any:
    """One for each module: TensorRT keeps the first it is given for the life of the process."""
    class Log(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

        def said(self) -> str:
            return " ".join("; ".join(self.errors[-3:]).split())[:300] or "it gives no reason"

    return Log()
