"""ONNX files -> engines: which builder, which GPU, what is known about it, and no engine at its name that failed."""
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from export import cuda, kernels, rtx, trt
from export.artefact import Facts, discard, save_bytes, up_to_date
from export.builder import Surface, build, precision_flags, surface
from export.engine import EngineModel
from export.parity import Precision
from export.pipeline import FLAGGED, FP16, INT8, INT8_FLAGGED, Exporter, Made, Say
from export.progress import Monitor
from export.qdq import read_onnx
from export.sensitivity import quantized_layers
from records.files import digest

Builder = Literal["auto", "rtx", "trt"]


@dataclass(frozen=True)
class Engine:
    path: Path
    facts: Facts
    reused: bool


@dataclass(frozen=True)
class Site:
    """Where engines are built: the module, and the SMs it is to build for (the present GPU's own for TensorRT)."""
    module: ModuleType
    surface: Surface
    sms: tuple[int, ...]
    gpu: cuda.Device | None

    def ahead(self, sm: int) -> bool:
        """True if an engine for `sm` cannot run here."""
        return self.gpu is None or self.gpu.sm != sm


def site(target: Builder, sms: tuple[int, ...], say: Say = print) -> Site:
    """Chooses the builder: TensorRT where there is a GPU and the package, else TensorRT-RTX ahead of time.

    Raises ValueError for a missing package, an SM that RTX does not build, or TensorRT without a GPU.
    """
    gpu = cuda.device()
    if target == "auto":
        target = "trt" if gpu is not None and not sms and _installed(trt) else "rtx"
    if target == "rtx":
        module = rtx.load()
        for sm in sms or rtx.DEFAULT_SMS:
            rtx.for_sm(module, sm)
        return Site(module, surface(module), sms or rtx.DEFAULT_SMS, gpu)
    module = trt.load()
    if gpu is None:
        raise ValueError("export trt: TensorRT builds on the GPU it will run on, and there is none here; "
                         "use --target rtx (no GPU needed), or copy the run folder to the device")
    if sms and sms != (gpu.sm,):
        raise ValueError(f"export trt: got --sm {' '.join(map(str, sms))}, expected {gpu.sm} ({gpu.name}): TensorRT "
                         "builds for the GPU present; leave --sm out")
    if reason := trt.warning(module.__version__):
        say(f"warning: {reason}")
    return Site(module, surface(module), (gpu.sm,), gpu)


def make_engines(exporter: Exporter, where: Site, precision: Literal["fp16", "int8"]) -> list[Engine]:
    """One engine for each SM, from the ONNX dialect that the builder reads.

    Raises GateError (exit 3) if one that can run here fails on the held-out frames; it is then removed.
    """
    source = onnx_for(exporter, where.surface, precision)
    return [_make(exporter, where, source, precision, sm) for sm in where.sms]


def onnx_for(exporter: Exporter, there: Surface, precision: Literal["fp16", "int8"]) -> Made:
    """The exported ONNX that a builder with this surface turns into an engine of `precision`."""
    if precision == "int8":
        wanted = INT8 if there.dialect == "typed" else INT8_FLAGGED
        return next(made for made in exporter.make("int8") if made.kind == wanted)
    return exporter.make_kinds((FP16 if there.dialect == "typed" else FLAGGED,))[0]


def _make(exporter: Exporter, where: Site, source: Made, precision: Precision, sm: int) -> Engine:
    path = exporter.run.out / f"model.{precision}.{where.surface.label}.sm{sm}.engine"
    key = digest(source.facts["sha256"], precision, where.surface.label, sm, where.gpu.name if where.gpu else None)
    if held := up_to_date(path, key):
        exporter.say(f"{path.name}: up to date")
        return Engine(path, held, True)
    discard(path)
    ahead = where.ahead(sm)
    configure = rtx.for_sm(where.module, sm) if where.surface.name == "rtx" else lambda _: None
    cache = None if ahead else trt.timing_cache(where.surface.version, sm)
    began = time.perf_counter()
    with Monitor(f"building {path.name}") as monitor:
        plan = build(where.module, source.path, precision, configure, cache, monitor)
    device = rtx.AHEAD_OF_TIME if ahead or where.gpu is None else where.gpu.name
    facts: Facts = {"build_seconds": round(time.perf_counter() - began, 2), "builder": where.surface.label, "sm": sm,
                    "device": device, "precision": precision,
                    "dialect": where.surface.dialect, "flags": precision_flags(where.module, precision),
                    "onnx": source.path.name, "onnx_sha256": source.facts["sha256"], "cache_key": key,
                    "onnx_parity": source.parity, "parity": None, "layers": kernels.NEEDS_GPU}
    if ahead:
        return Engine(path, save_bytes(plan, path, facts), False)
    model = EngineModel(where.module, plan)
    facts["parity"] = exporter.gate(model, precision, str(path)).facts()
    found, told = kernels.inspect(where.module, model.engine, quantized_layers(read_onnx(source.path)))
    facts["layers"] = str(found)
    held = save_bytes(plan, path, facts)
    kernels.write_report(found, told, path)
    return Engine(path, held, False)


def _installed(room: ModuleType) -> bool:
    try:
        room.load()
    except ValueError:
        return False
    return True
