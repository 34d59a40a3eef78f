"""ONNX files -> engines. No engine that failed its parity gate gets its final name."""
import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from export.artefact import Facts, discard, save_bytes, sidecar_path, up_to_date
from export.graph.files import read_onnx
from export.parity import Precision
from export.pipeline import FP16, INT8, INT8_WEAKLY_TYPED, WEAKLY_TYPED, ExportedFile, Exporter, Log
from export.quant.fp8 import SMS as FP8_SMS
from export.quant.sensitivity import quantized_layers
from export.tensorrt import cuda, engine_report, packages, torch_trt
from export.tensorrt.builder import TensorRTApi, build, precision_flags, tensorrt_api
from export.tensorrt.cuda import EngineModel
from export.tensorrt.progress import Monitor
from records.files import digest, read_json, sha256

Builder = Literal["auto", "rtx", "trt"]
EnginePrecision = Literal["fp16", "int8", "fp8"]


@dataclass(frozen=True)
class EngineFile:
    path: Path
    facts: Facts
    reused: bool


@dataclass(frozen=True)
class BuildTarget:
    """The TensorRT module that builds, the SMs it builds for, and the GPU of this machine."""
    module: ModuleType
    api: TensorRTApi
    sms: tuple[int, ...]
    gpu: cuda.Gpu | None

    def is_ahead_of_time(self, sm: int) -> bool:
        return self.gpu is None or self.gpu.sm != sm


def choose_build_target(builder: Builder, sms: tuple[int, ...], log: Log = print) -> BuildTarget:
    """`auto` is TensorRT where there is a GPU and the package, else TensorRT-RTX ahead of time."""
    gpu = cuda.first_gpu()
    if builder == "auto":
        present = gpu is not None and not sms and packages.TENSORRT.installed()
        builder = "trt" if present else "rtx"
    if builder == "rtx":
        module, sms = packages.RTX.load(), sms or packages.RTX_SMS
        for sm in sms:
            packages.rtx_compile_for(module, sm)
        return BuildTarget(module, tensorrt_api(module), sms, gpu)
    module = packages.TENSORRT.load()
    if gpu is None:
        raise ValueError(
            "export trt: TensorRT builds on the GPU it will run on, and there is none here; "
            "use --target rtx (no GPU needed), or copy the run folder to the device")
    if sms and sms != (gpu.sm,):
        raise ValueError(
            f"export trt: got --sm {' '.join(map(str, sms))}, expected {gpu.sm} ({gpu.name}): "
            "TensorRT builds for the GPU present; leave --sm out")
    if warning := packages.known_bad_warning(module.__version__):
        log(f"warning: {warning}")
    return BuildTarget(module, tensorrt_api(module), (gpu.sm,), gpu)


def build_engines(exporter: Exporter, target: BuildTarget,
                  precision: EnginePrecision) -> list[EngineFile]:
    """One engine per SM. Raises GateError if one fails its gate here: it is not written."""
    without_fp8 = [sm for sm in target.sms if sm not in FP8_SMS]
    if precision == "fp8" and without_fp8:
        raise ValueError(
            f"export trt --fp8: SM {' and '.join(map(str, without_fp8))} has no FP8, expected some "
            f"of {', '.join(map(str, FP8_SMS))}; use INT8 there, or choose with --sm")
    source = onnx_for(exporter, target.api, precision)
    return [_build_engine(exporter, target, source, precision, sm) for sm in target.sms]


def build_torch_engine(exporter: Exporter, log: Log = print) -> EngineFile:
    """The FP16 engine that torch-tensorrt builds for this GPU; same gate, same sidecar."""
    package, gpu = torch_trt.load(), cuda.first_gpu()
    if gpu is None:
        raise ValueError(f"export trt --via torch-tensorrt: there is no GPU here; "
                         f"{torch_trt.INSTALL}")
    # the one that it builds with, and that runs its engines
    module = importlib.import_module(getattr(package, "tensorrt_package_name", None) or "tensorrt")
    target = BuildTarget(module, tensorrt_api(module), (gpu.sm,), gpu)
    if target.api.name == "trt" and (warning := packages.known_bad_warning(module.__version__)):
        log(f"warning: {warning}")
    path = exporter.run.out / f"model.fp16.torch-{target.api.label}.sm{gpu.sm}.engine"
    via = f"torch-tensorrt {package.__version__}"
    key = digest(exporter.run.student_sha256, via, target.api.label, gpu.sm, gpu.name,
                 exporter.options.batch)
    if cached := up_to_date(path, key, log):
        log(f"{path.name}: up to date")
        return EngineFile(path, cached, True)
    log(f"building {path.name}")
    began = time.perf_counter()
    plan = torch_trt.build(package, exporter.run.student, exporter.options.batch)
    facts = {"build_seconds": round(time.perf_counter() - began, 2), "sm": gpu.sm,
             "device": gpu.name, "via": via, "flags": [],
             "student_sha256": exporter.run.student_sha256, "cache_key": key}
    return _gate_and_save(exporter, target, path, plan, "fp16", [], facts)


def onnx_for(exporter: Exporter, api: TensorRTApi, precision: EnginePrecision) -> ExportedFile:
    """The exported ONNX from which a builder with this API builds an engine of `precision`."""
    if precision == "fp8":
        return exporter.export("fp8")[0]
    if precision == "int8":
        wanted = INT8 if api.strongly_typed else INT8_WEAKLY_TYPED
        return next(file for file in exporter.export("int8") if file.spec == wanted)
    return exporter.export_files((FP16 if api.strongly_typed else WEAKLY_TYPED,))[0]


def check_engine(path: Path, trt: ModuleType, gpu: cuda.Gpu | None) -> Facts:
    """The engine's sidecar. Raises ValueError for an altered file, another SM or another TensorRT:
    TensorRT itself crashes on some of these."""
    sidecar = sidecar_path(path)
    if not path.is_file() or not sidecar.is_file():
        raise ValueError(f"{path}: no engine with a sidecar here; build one with: "
                         "vega3d export trt")
    facts: Facts = read_json(sidecar, "build it again", kind=dict, schema=1)
    try:
        built_sha256, built_sm, builder = facts["sha256"], facts["sm"], facts["builder"]
    except KeyError as error:
        raise ValueError(f"{sidecar}: not an engine's sidecar ({error}); build it again") from error
    if sha256(path) != built_sha256:
        raise ValueError(f"{path}: truncated or altered: not the file its sidecar describes; "
                         "build it again")
    label = tensorrt_api(trt).label
    if builder != label:
        raise ValueError(f"{path}: built by {builder}, this is {label}; an engine runs only under "
                         "the version that built it, build it again")
    if gpu is None or built_sm != gpu.sm:
        here = f"SM {gpu.sm} ({gpu.name})" if gpu else "a machine without a GPU"
        raise ValueError(f"{path}: built for SM {built_sm}, this is {here}; an engine runs only on "
                         "the SM it was built for, build it there")
    return facts


def _build_engine(exporter: Exporter, target: BuildTarget, source: ExportedFile,
                  precision: Precision, sm: int) -> EngineFile:
    path = exporter.run.out / f"model.{precision}.{target.api.label}.sm{sm}.engine"
    key = digest(source.facts["sha256"], precision, target.api.label, sm,
                 target.gpu.name if target.gpu else None)
    if cached := up_to_date(path, key, exporter.log):
        exporter.log(f"{path.name}: up to date")
        return EngineFile(path, cached, True)
    ahead = target.is_ahead_of_time(sm)
    is_rtx = target.api.name == "rtx"
    configure = packages.rtx_compile_for(target.module, sm) if is_rtx else lambda _: None
    timing_cache = None if ahead else packages.timing_cache_path(target.api.version, sm)
    began = time.perf_counter()
    with Monitor(f"building {path.name}") as monitor:
        plan = build(target.module, source.path, precision, configure, timing_cache, monitor)
    device = packages.AHEAD_OF_TIME if ahead or target.gpu is None else target.gpu.name
    facts = {"build_seconds": round(time.perf_counter() - began, 2), "sm": sm, "device": device,
             "flags": precision_flags(target.module, precision), "onnx": source.path.name,
             "onnx_sha256": source.facts["sha256"], "cache_key": key, "onnx_parity": source.parity}
    quantised = quantized_layers(read_onnx(source.path))
    return _gate_and_save(exporter, target, path, plan, precision, quantised, facts)


def _gate_and_save(exporter: Exporter, target: BuildTarget, path: Path, plan: bytes,
                   precision: Precision, quantised: list[str], facts: Facts) -> EngineFile:
    facts |= {"builder": target.api.label, "dialect": target.api.dialect, "precision": precision,
              "parity": None, "layers": engine_report.NEEDS_GPU}
    if target.is_ahead_of_time(facts["sm"]):
        discard(path)
        return EngineFile(path, save_bytes(plan, path, facts), False)
    model = EngineModel(target.module, plan)
    facts["parity"] = exporter.gate(model, precision, str(path)).facts()
    report, inspected = engine_report.inspect_engine(target.module, model.engine, quantised)
    facts["layers"] = str(report)
    discard(path)
    saved = save_bytes(plan, path, facts)
    engine_report.write_report(report, inspected, path)
    return EngineFile(path, saved, False)
