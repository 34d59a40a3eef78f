"""ONNX files -> engines: which builder, which GPU, what is known about it, and no engine at its
name that failed."""
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from export.artefact import Facts, discard, save_bytes, up_to_date
from export.graph.check import read_onnx
from export.parity import Precision
from export.pipeline import FP16, INT8, INT8_WEAKLY_TYPED, WEAKLY_TYPED, ExportedFile, Exporter, Log
from export.quant.fp8 import SMS as FP8_SMS
from export.quant.sensitivity import quantized_layers
from export.tensorrt import cuda, engine_report, rtx, torch_trt, trt
from export.tensorrt.builder import Surface, build, precision_flags, surface
from export.tensorrt.progress import Monitor
from export.tensorrt.runtime import EngineModel
from records.files import digest

Builder = Literal["auto", "rtx", "trt"]
EnginePrecision = Literal["fp16", "int8", "fp8"]


@dataclass(frozen=True)
class Engine:
    path: Path
    facts: Facts
    reused: bool


@dataclass(frozen=True)
class Site:
    """Where engines are built: the module, and the SMs it is to build for (the present GPU's own
    for TensorRT)."""
    module: ModuleType
    surface: Surface
    sms: tuple[int, ...]
    gpu: cuda.Device | None

    def ahead(self, sm: int) -> bool:
        """True if an engine for `sm` cannot run here."""
        return self.gpu is None or self.gpu.sm != sm


def site(target: Builder, sms: tuple[int, ...], log: Log = print) -> Site:
    """Chooses the builder: TensorRT where there is a GPU and the package, else TensorRT-RTX ahead
    of time.

    Raises ValueError for a missing package, an SM that RTX does not build, or TensorRT without a
    GPU.
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
        raise ValueError(
            "export trt: TensorRT builds on the GPU it will run on, and there is none here; "
            "use --target rtx (no GPU needed), or copy the run folder to the device")
    if sms and sms != (gpu.sm,):
        raise ValueError(
            f"export trt: got --sm {' '.join(map(str, sms))}, expected {gpu.sm} ({gpu.name}): "
            "TensorRT builds for the GPU present; leave --sm out")
    if reason := trt.warning(module.__version__):
        log(f"warning: {reason}")
    return Site(module, surface(module), (gpu.sm,), gpu)


def make_engines(exporter: Exporter, where: Site, precision: EnginePrecision) -> list[Engine]:
    """One engine for each SM, from the ONNX dialect that the builder reads.

    Raises GateError (exit 3) if one that can run here fails on the held-out frames; it is then
    removed. ValueError for FP8 on an SM without it.
    """
    without = [sm for sm in where.sms if sm not in FP8_SMS]
    if precision == "fp8" and without:
        raise ValueError(
            f"export trt --fp8: SM {' and '.join(map(str, without))} has no FP8, expected some of "
            f"{', '.join(map(str, FP8_SMS))}; use INT8 there, or choose with --sm")
    source = onnx_for(exporter, where.surface, precision)
    return [_make(exporter, where, source, precision, sm) for sm in where.sms]


def make_torch_engine(exporter: Exporter, log: Log = print) -> Engine:
    """The FP16 engine that torch-tensorrt makes for this GPU, behind the same gate and with the
    same sidecar.

    Raises GateError if it fails (it is not kept), ValueError if torch-tensorrt cannot be used here
    or cannot build it.
    """
    package, gpu = torch_trt.load(), cuda.device()
    if gpu is None:
        raise ValueError(
            f"export trt --via torch-tensorrt: there is no GPU here; {torch_trt.INSTALL}")
    module = torch_trt.tensorrt_of(package)
    where = Site(module, surface(module), (gpu.sm,), gpu)
    if where.surface.name == "trt" and (reason := trt.warning(module.__version__)):
        log(f"warning: {reason}")
    path = exporter.run.out / f"model.fp16.torch-{where.surface.label}.sm{gpu.sm}.engine"
    via = f"torch-tensorrt {package.__version__}"
    key = digest(exporter.run.student_sha256, via, where.surface.label, gpu.sm, gpu.name,
                 exporter.options.batch)
    if held := up_to_date(path, key):
        log(f"{path.name}: up to date")
        return Engine(path, held, True)
    discard(path)
    log(f"building {path.name}")
    began = time.perf_counter()
    plan = torch_trt.build(package, exporter.run.student, exporter.options.batch)
    return _keep(
        exporter, where, path, plan, "fp16", [], {
            "build_seconds": round(time.perf_counter() - began,
                                   2), "sm": gpu.sm, "device": gpu.name, "via": via, "flags": [],
            "student_sha256": exporter.run.student_sha256, "cache_key": key
        })


def onnx_for(exporter: Exporter, there: Surface, precision: EnginePrecision) -> ExportedFile:
    """The exported ONNX that a builder with this surface turns into an engine of `precision`."""
    if precision == "fp8":
        return exporter.export("fp8")[0]
    if precision == "int8":
        wanted = INT8 if there.dialect == "typed" else INT8_WEAKLY_TYPED
        return next(made for made in exporter.export("int8") if made.spec == wanted)
    return exporter.export_files((FP16 if there.dialect == "typed" else WEAKLY_TYPED,))[0]


def _make(exporter: Exporter, where: Site, source: ExportedFile, precision: Precision, sm: int) -> Engine:
    path = exporter.run.out / f"model.{precision}.{where.surface.label}.sm{sm}.engine"
    key = digest(source.facts["sha256"], precision, where.surface.label, sm,
                 where.gpu.name if where.gpu else None)
    if held := up_to_date(path, key):
        exporter.log(f"{path.name}: up to date")
        return Engine(path, held, True)
    discard(path)
    ahead = where.ahead(sm)
    configure = rtx.for_sm(where.module, sm) if where.surface.name == "rtx" else lambda _: None
    cache = None if ahead else trt.timing_cache(where.surface.version, sm)
    began = time.perf_counter()
    with Monitor(f"building {path.name}") as monitor:
        plan = build(where.module, source.path, precision, configure, cache, monitor)
    device = rtx.AHEAD_OF_TIME if ahead or where.gpu is None else where.gpu.name
    facts: Facts = {
        "build_seconds": round(time.perf_counter() - began, 2), "sm": sm, "device": device,
        "flags": precision_flags(where.module, precision), "onnx": source.path.name,
        "onnx_sha256": source.facts["sha256"], "cache_key": key, "onnx_parity": source.parity
    }
    return _keep(exporter, where, path, plan, precision, quantized_layers(read_onnx(source.path)),
                 facts)


def _keep(exporter: Exporter, where: Site, path: Path, plan: bytes, precision: Precision,
          quantised: list[str], facts: Facts) -> Engine:
    """Gates an engine that can run here, reports on its layers, and only then writes it with its
    sidecar."""
    facts |= {
        "builder": where.surface.label, "dialect": where.surface.dialect, "precision": precision,
        "parity": None, "layers": engine_report.NEEDS_GPU
    }
    if where.ahead(facts["sm"]):
        return Engine(path, save_bytes(plan, path, facts), False)
    model = EngineModel(where.module, plan)
    facts["parity"] = exporter.gate(model, precision, str(path)).facts()
    found, told = engine_report.inspect(where.module, model.engine, quantised)
    facts["layers"] = str(found)
    held = save_bytes(plan, path, facts)
    engine_report.write_report(found, told, path)
    return Engine(path, held, False)


def _installed(room: ModuleType) -> bool:
    try:
        room.load()
    except ValueError:
        return False
    return True
