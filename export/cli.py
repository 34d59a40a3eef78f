"""`vega3d export VERB`: parses options, calls one public function, prints what it wrote."""
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from records.events import emit
from records.files import exclusive
from records.options import CountOrNone, Range, Share

if TYPE_CHECKING:
    from export.pipeline import ExportedFile, Exporter
    from export.tensorrt.engines import EngineFile

Exporting = Callable[[], AbstractContextManager[tuple[Any, "Exporter"]]]
LATEST = Path("runs/latest")
SIZE = "480x640"
Precision = Literal["fp32", "fp16", "int8", "fp8"]
Batch = Annotated[int, Range(1, 1024)] | Literal["dynamic"]
RunFolder = Annotated[Path, tyro.conf.arg(help="a run folder of `vega3d distill run`")]
MaxDrop = Annotated[Share | None, tyro.conf.arg(
    help="budget for 1 - mean token cosine of INT8; the worst layers return to half precision "
         "until it holds")]
Capability = Annotated[int, Range(50, 999)]
FrameSize = Annotated[str, tyro.conf.arg(metavar="HEIGHTxWIDTH")]
Port = Annotated[int, Range(0, 65_535)]
QatSteps = Annotated[CountOrNone, tyro.conf.arg(
    help="steps of quantisation-aware distillation from the FP32 student (100 take minutes on a "
         "CPU)")]


def onnx(run: RunFolder = LATEST, precision: tuple[Precision, ...] = ("fp32", "fp16", "int8"),
         batch: Batch = 1, max_drop: MaxDrop = None, qat: QatSteps = 0, layers: bool = False,
         preset: Literal["edge", "web", "mobile"] | None = None,
         input: Literal["float", "uint8-nhwc", "nv12"] = "float",
         size: FrameSize = SIZE) -> None:
    """The student as ONNX (FP32, FP16, INT8), parity-gated; and what to ship on this CPU.

    Args:
        precision: what to export; INT8 brings FP32, which it is timed against; fp8 is for Ada,
            Hopper, Blackwell and Thor
        batch: frames a call; "dynamic" leaves it open
        layers: also print the tensors where INT8 is furthest from FP32
        preset: for an app instead: the student with its depth, normals and descriptors in the
            layout of Hugging Face; edge: INT8 and FP16; web: FP16, FP32 and uint8; mobile: FP32
        input: also write each file for frames as a camera gives them, NAME.INPUT.onnx: uint8 RGB
            [B,H,W,3], or NV12; crop, resize and normalisation are in the graph
        size: of those frames
    """
    if not precision:
        raise ValueError("--precision: is empty, expected some of fp32, fp16, int8, fp8")
    if input == "float" and size != SIZE:
        raise ValueError("--size: is of a camera's frames; give --input uint8-nhwc or nv12 too")
    from export.camera import frame_size
    with _exporting(run, "onnx", batch, max_drop, qat) as (console, exporter):
        files: list[ExportedFile] = []
        px = exporter.run.student.config.image_size
        frame = frame_size(size, input, px) if input != "float" else (px, px)
        if preset:
            files = _export_preset(console, exporter, preset)
            _export_camera(console, exporter, files, input, frame)
            return
        try:
            for each in _with_fp32(precision):
                with _stage(console, each):
                    files += exporter.export(each)
            _print_files(console, files)
            _print_cpu_verdict(console, exporter, files)
            _export_camera(console, exporter, files, input, frame)
        finally:  # most useful when the gate has just failed
            if layers:
                _print_layers(console, exporter)
        _print(console, f"in {exporter.run.out}")


def trt(run: RunFolder = LATEST, int8: bool = True, fp8: bool = False,
        sm: tuple[Capability, ...] = (),
        target: Literal["auto", "rtx", "trt", "jetson"] = "auto",
        via: Literal["onnx", "torch-tensorrt"] = "onnx",
        batch: Batch = 1, max_drop: MaxDrop = None, qat: QatSteps = 0) -> None:
    """TensorRT engines (INT8; --no-int8: FP16) for this GPU, or TensorRT-RTX ones ahead of time.

    Args:
        int8: INT8 linear layers, FP16 elsewhere; --no-int8 for FP16 throughout
        fp8: FP8 (E4M3) linear layers instead, on SM 89 and later
        sm: compute capabilities to build for with TensorRT-RTX (default 86 89 120: RTX 30, 40, 50)
        target: auto takes TensorRT where there is a GPU, else TensorRT-RTX ahead of time; jetson
            writes a folder that builds, gates and times INT8 and FP16 on the device
        via: torch-tensorrt compiles the torch student itself, FP16, on this GPU, with the same
            gate and sidecar
        batch: frames a call; "dynamic" builds for 1 to 32
    """
    exporting = partial(_exporting, run, "trt", batch, max_drop, qat)
    if target == "jetson":
        _write_jetson(exporting, sm)
    elif via == "torch-tensorrt":
        _export_torch_tensorrt(exporting, sm, target)
    else:
        _export_engines(exporting, "fp8" if fp8 else "int8" if int8 else "fp16", target, sm)


def openvino(run: RunFolder = LATEST, int8: bool = True,
             batch: Annotated[int, Range(1, 1024)] = 1) -> None:
    """The student as OpenVINO IR (.xml, .bin), parity-gated; and what to ship on this CPU.

    Args:
        int8: INT8 by NNCF, with attention in integers; --no-int8 for FP32
        batch: frames a call
    """
    from export.openvino import FP32, INT8, export_openvino, load
    load()  # first: fails at once without the package
    with _exporting(run, "openvino", batch) as (console, exporter):
        with _stage(console, "openvino"):
            file = export_openvino(exporter, INT8 if int8 else FP32)
        files = [file, *exporter.export("fp32"), *exporter.found("int8")] if int8 else [file]
        _print_files(console, files[:1])
        _print_cpu_verdict(console, exporter, files)
        _print(console, f"in {exporter.run.out}")


def web(run: RunFolder = LATEST, out: Path | None = None, serve: bool = False, port: Port = 8000,
        ort: Path | None = None) -> None:
    """A live page: camera, video or a clip through the student in the browser, offline.

    Args:
        out: the folder to write; RUN/export/page by default
        serve: serve it at once, with the headers that WASM threads need
        port: to serve on
        ort: onnxruntime-web's npm package as a .tgz file, where npm cannot be reached
    """
    from export.web.page import write_page
    from export.web.serve import serve_folder, server
    from export.web.vendor import runtime
    if serve:
        server(Path(), port).server_close()  # first: fails at once if the port is taken
    runtime_files = runtime(ort)             # or without a network
    with _exporting(run, "web") as (console, exporter), _stage(console, "page"):
        folder, size_mb = write_page(exporter, runtime_files, out)
    _print(console, f"in {folder}: {size_mb:.1f} MB, for any static server")
    if serve:
        serve_folder(folder, port, partial(_print, console))
    else:
        _print(console, f"look at it with: python -m export.web.serve {folder}")


def coreml(run: RunFolder = LATEST) -> None:
    """A Core ML program (FP16) for iOS and macOS: built and checked anywhere, gated on a Mac."""
    from export.mobile.coreml import export_coreml
    with _exporting(run, "coreml") as (console, exporter), _stage(console, "coreml"):
        file = export_coreml(exporter)
    facts = file.facts
    operators = sum(facts["operators"].values())
    _print(console, f"{file.path.name}  {facts['size_mb']:.1f} MB, {operators} operators; "
                    f"{facts['ran']}\nin {exporter.run.out}")


def litert(run: RunFolder = LATEST, precision: tuple[Literal["fp32", "fp16", "int8"], ...] = (
        "fp32", "fp16", "int8")) -> None:
    """LiteRT files (.tflite) for Android, run by its interpreter on this CPU and parity-gated.

    Args:
        precision: of the weights; int8 quantises activations of linear layers while it runs
    """
    from export.mobile.litert import export_litert
    with _exporting(run, "litert") as (console, exporter), _stage(console, "litert"):
        _print_files(console, export_litert(exporter, precision))
    _print(console, f"in {exporter.run.out}")


def check(model: Annotated[Path, tyro.conf.Positional], target: str = "trt10",
          all: bool = False) -> None:
    """Checks the Q/DQ nodes of any ONNX model against a target's rules; exit 2 if one is broken.

    Args:
        model: any ONNX file
        target: trt10, trt11, rtx, trt8.6, jetson-orin-jp5, jetson-orin-jp6, jetson-orin-jp62,
            jetson-orin-jp72, jetson-thor or cpu
        all: a line for every node, where the same rule breaks at many
    """
    from export.graph.check import brief, check_qdq, summary
    from export.graph.files import data_files, read_onnx
    from export.graph.targets import get_target
    from records.runtime import try_model
    chosen = get_target(target)
    proto = read_onnx(model)
    broken = check_qdq(proto, chosen, path=model)
    for line in map(str, broken) if all else brief(broken):
        print(line)
    if faults := [violation for violation in broken if not violation.is_advice]:
        raise ValueError(
            f"{model}: not for {target} ({chosen.what}): rules broken at {len(faults)} places")
    verdict = "ok for"
    if chosen.runs_all:
        try_model(model, data=tuple(data_files(proto, model)), must_run=False)
        verdict = f"runs, but advised against at {len(broken)} places, on" if broken else "runs on"
    print(f"{model}: {verdict} {target} ({chosen.what}); {summary(proto)}")


VERBS = {"onnx": onnx, "openvino": openvino, "trt": trt, "coreml": coreml, "litert": litert,
         "web": web, "check": check}


@contextmanager
def _stage(console, name: str) -> Iterator[None]:
    emit("stage", stage=name)
    with console.status(f"{name} …"):
        yield


def _log(console) -> Callable[[str], None]:
    def log(line: str) -> None:
        emit("log", message=line)
        _print(console, line)
    return log


def _print(console, line: object) -> None:
    """As it is: lines are not wrapped, and [brackets] of a path are no style."""
    console.print(str(line), highlight=False, markup=False, soft_wrap=True)


def _console():
    from rich.console import Console
    # this very stream: the exporter and NNCF are silenced by swapping sys.stdout
    return Console(file=sys.stdout)


@contextmanager
def _exporting(run: Path, verb: str, batch: Batch = 1, max_drop: float | None = None,
               qat: int = 0) -> Iterator[tuple[Any, "Exporter"]]:
    """A console, and the run's exporter, while no other process uses the run."""
    console = _console()
    with exclusive(run, f"vega3d export {verb}"):
        with _stage(console, "reading the run"):
            from export.pipeline import Exporter, Options
            from export.source import load_trained_run
            options = Options(batch, max_drop=max_drop, qat=qat)
            exporter = Exporter(load_trained_run(run), options, _log(console))
        yield console, exporter


def _with_fp32(precision: tuple[Precision, ...]) -> tuple[Precision, ...]:
    return ("fp32", *precision) if "int8" in precision and "fp32" not in precision else precision


def _export_camera(console, exporter: "Exporter", files: "list[ExportedFile]",
                   input: Literal["float", "uint8-nhwc", "nv12"], size: tuple[int, int]) -> None:
    from export.camera import export_camera
    for file in export_camera(exporter, files, input, size) if input != "float" else ():
        _print(console, f"{file.path.name}  {input} of {size[0]}x{size[1]}: cosine to prepared "
                        f"frames {file.facts['camera_cosine']:.5f}, passed")


def _export_preset(console, exporter: "Exporter",
                   preset: Literal["edge", "web", "mobile"]) -> "list[ExportedFile]":
    from export.presets import export_preset
    with _stage(console, preset):
        files = export_preset(exporter, preset)
    for file in files:
        drift = file.facts["drift"]
        _print(console,
               f"{file.path.parent.name}/{file.path.name}  {file.facts['size_mb']:.1f} MB, "
               f"{file.spec.precision}: features cosine {drift['features_cosine']:.5f}, depth off "
               f"by {100 * drift['depth_ratio']:.2f} %, normals by {drift['normals_deg']:.2f}°, "
               f"descriptors cosine {drift['descriptors_cosine']:.5f}; passed")
    _print(console, f"in {exporter.run.out / preset}")
    return files


def _export_engines(exporting: Exporting, precision: Literal["int8", "fp16", "fp8"],
                    target: Literal["auto", "rtx", "trt"], sm: tuple[int, ...]) -> None:
    from export.tensorrt.engines import build_engines, choose_build_target, onnx_for
    from export.tensorrt.int8_verdict import engine_verdict
    build_target = choose_build_target(target, sm, _log(_console()))  # first: fails at once
    with exporting() as (console, exporter):
        with _stage(console, precision):
            source = onnx_for(exporter, build_target.api, precision)
        engines = build_engines(exporter, build_target, precision)
        _print_files(console, [source])
        _print_engines(console, engines)
        for engine in engines if precision != "fp16" else ():
            _print(console, engine_verdict(exporter, build_target, engine))
        _print(console, f"in {exporter.run.out}")


def _export_torch_tensorrt(exporting: Exporting, sm: tuple[int, ...], target: str) -> None:
    from export.tensorrt import torch_trt
    from export.tensorrt.engines import build_torch_engine
    if sm or target != "auto":
        raise ValueError("export trt --via torch-tensorrt: leave --sm and --target out: it builds "
                         "for this GPU, with the TensorRT that came with it")
    torch_trt.load()  # first: fails at once without the package
    with exporting() as (console, exporter):
        _print_engines(console, [build_torch_engine(exporter, exporter.log)])


def _write_jetson(exporting: Exporting, sm: tuple[int, ...]) -> None:
    from export.jetson.bundle import write_bundle
    if sm:
        raise ValueError(
            "export trt --target jetson: got --sm; leave it out: the device builds for itself")
    with exporting() as (console, exporter), _stage(console, "jetson"):
        folder = write_bundle(exporter)
    _print(console, f"in {folder}; copy it to the device and run there: python3 run_on_jetson.py")


def _print_files(console, files: "list[ExportedFile]") -> None:
    from rich.table import Table
    table = Table(box=None, header_style="bold")
    for name in ("file", "MB", "cosine mean", "p1", "delta1 drop", "verdict"):
        table.add_column(name, justify="left" if name in ("file", "verdict") else "right",
                         no_wrap=True)
    float_layers: set[str] = set()
    for file in files:
        parity = file.parity
        drop = "-" if parity["delta1_drop"] is None else f"{parity['delta1_drop']:+.2f}"
        table.add_row(file.spec.file, f"{file.facts['size_mb']:.1f}",
                      f"{parity['cosine_mean']:.6f}", f"{parity['cosine_p1']:.6f}", drop, "passed")
        float_layers.update(file.facts.get("quantisation", {}).get("float_layers") or ())
    console.print(table)
    if float_layers:
        _print(console, f"returned to half precision: {', '.join(sorted(float_layers))}")


def _print_engines(console, engines: "list[EngineFile]") -> None:
    for engine in engines:
        facts = engine.facts
        parity = facts["parity"]
        gated = f"cosine {parity['cosine_mean']:.6f}, passed" if parity else facts["device"]
        took = "up to date" if engine.reused else f"built in {facts['build_seconds']:.1f} s"
        line = f"{engine.path.name}  {facts['size_mb']:.1f} MB, {took}; {gated}"
        _print(console, f"{line}\n  {facts.get('layers', 'no layer report')}")


def _print_cpu_verdict(console, exporter: "Exporter", files: "list[ExportedFile]") -> None:
    from export.cpu_verdict import cpu_verdict
    from export.pipeline import FP32, INT8_CPU
    timed = [file for file in files if file.spec in (FP32, INT8_CPU) or file.path.suffix == ".xml"]
    if {"fp32", "int8"} <= {file.spec.precision for file in timed}:
        with _stage(console, "timing INT8 against float"):
            verdict = cpu_verdict(exporter, timed)
        _print(console, verdict)


def _print_layers(console, exporter: "Exporter") -> None:
    from export.graph.session import OnnxModel
    from export.quant.layer_diff import furthest, layerwise
    from export.source import to_input
    int8 = exporter.int8.model
    frame, cosine = exporter.gate.measure(OnnxModel(int8)).worst_frames[0]
    _print(console, f"held-out frame {frame}, the worst (cosine {cosine}); tensors furthest from "
                    "FP32:")
    batch = 1 if exporter.options.batch == "dynamic" else exporter.options.batch
    frames = exporter.run.heldout.frames[[frame] * batch]
    rows = layerwise(exporter.fp32, int8, to_input(frames))
    for row in furthest(rows):
        _print(console, f"  {row.tensor:44} cosine {row.cosine:.6f}  error "
                        f"{row.relative_error:.4f}")
