"""INT8 of one student by several tools, on one CPU thread: fidelity, speed, time by operator.

    python -m bench.recipes.int8_tools RUN [RUN ...] [--modelopt PYTHON] [--out OUT.json]

Ours (NNCF and the uint8 rewrite), NNCF with its defaults, onnxruntime's static quantiser, and
NVIDIA's ModelOpt, which pins another onnx and runs in its own environment (python3 -m venv DIR;
DIR/bin/pip install "nvidia-modelopt[onnx]==0.47.0", 5 GB; PYTHON is DIR/bin/python). All calibrate
on the same frames; each file is scored by the export's parity gate and runs in onnxruntime at full
optimisation.
"""
import argparse
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from export.graph.session import OnnxModel
from export.pipeline import FP32, INT8_CPU, Exporter
from export.quant.int8 import unshared
from export.quant.sensitivity import quantized_layers
from export.source import evenly_spaced, load_trained_run, to_input
from records.environment import environment
from records.results import ROOT, Row, measured, save
from records.timing import interleave, sample_block

FRAMES, ROUNDS, SECONDS = 300, 20, 0.3
MODELOPT = """
import sys, numpy as np
from modelopt.onnx.quantization import quantize
quantize(onnx_path=sys.argv[1], output_path=sys.argv[2],
         calibration_data=np.load(sys.argv[3]), quantize_mode="int8", calibration_method="max",
         calibration_eps=["cpu"], op_types_to_quantize=["MatMul"],
         high_precision_dtype="fp32", disable_mha_qdq=sys.argv[4] == "linears")
"""
NNCF = {"NNCF, defaults": None, "NNCF, transformer preset": "TRANSFORMER"}
NOT_PRINTED = ("student_sha256", "backend", "threads", "batch")
NAMES = {"ti": "ViT-Ti", "s": "ViT-S", "b": "ViT-B"}


class _Reader(CalibrationDataReader):
    def __init__(self, frames: np.ndarray):
        self.items = iter([{"frames": frame[None]} for frame in frames])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.items, None)


def static(source: Path, target: Path, frames: np.ndarray, layers: list[str] | None = None) -> None:
    """onnxruntime's static quantiser: uint8 activations, int8 weights per channel; or `layers`."""
    op_types = ["MatMul"]
    quantize_static(
        str(source), str(target), _Reader(frames), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        op_types_to_quantize=op_types, nodes_to_quantize=layers,
        extra_options={"OpTypesToExcludeOutputQuantization": op_types, "QuantizeBias": False})


def plain_nncf(source: Path, target: Path, frames: np.ndarray, model_type: str | None) -> None:
    """nncf.quantize with its defaults, or the model type alone.

    Shared initialisers are duplicated first: NNCF's bias correction edits them in place, which
    would spoil the file for another reason.
    """
    import nncf

    chosen = None if model_type is None else nncf.ModelType[model_type]
    dataset = nncf.Dataset(frames, lambda frame: {"frames": frame[None]})
    model = nncf.quantize(unshared(onnx.load(source)), dataset, subset_size=len(frames),
                          model_type=chosen)
    onnx.save(model, target)


def modelopt(python: str, source: Path, target: Path, frames: np.ndarray, what: str) -> None:
    """ModelOpt's max calibration of every MatMul ("all"), or without attention ("linears")."""
    calibration = target.with_suffix(".npy")
    np.save(calibration, frames)
    command = [python, "-c", MODELOPT, str(source), str(target), str(calibration), what]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"modelopt in {python} failed: {done.stderr.strip()[-300:]}")


def measure(run: Path, python: str | None, scratch: Path) -> list[Row]:
    exporter = Exporter(load_trained_run(run))
    files = quantise_all(exporter, python, scratch)
    frame = to_input(exporter.run.calibration.frames[:1])
    model = NAMES[exporter.run.student.config.size]
    times = times_ms({tool: _call(path, frame) for tool, path in files.items()})
    rows: list[Row] = []
    for tool, path in files.items():
        parity = exporter.gate.measure(OnnxModel(path, optimise=True))
        rows.append({
            "model": model, "part": "tool", "tool": tool,
            "precision": "fp32" if tool == "fp32" else "int8", "backend": "onnxruntime-cpu",
            "batch": 1, "threads": 1, **times[tool],
            "vs_fp32": times["fp32"]["cpu_ms"] / times[tool]["cpu_ms"],
            "size_mb": path.stat().st_size / 1e6, "cosine_mean": parity.cosine_mean,
            "cosine_p1": parity.cosine_p1, "relative_error": parity.relative_error,
            "delta1_drop": parity.delta1_drop, "int8_layers": quantised_products(path),
            "student_sha256": exporter.run.student_sha256
        })
    for tool in ("fp32", "vega3d"):
        rows += [{"model": model, "part": "share", "tool": tool, "op": op, "ms": ms, "share": share}
                 for op, ms, share in shares(files[tool], frame, scratch)]
    return rows


def quantise_all(exporter: Exporter, python: str | None, scratch: Path) -> dict[str, Path]:
    """The student's file by each tool; all INT8 ones calibrated on the same frames."""
    fp32 = exporter.export("fp32")[0]
    ours = next(file for file in exporter.export("int8") if file.spec == INT8_CPU)
    assert fp32.spec == FP32
    frames = to_input(evenly_spaced(exporter.run.calibration.frames, FRAMES))
    files = {"fp32": fp32.path, "vega3d": ours.path}
    for tool, model_type in NNCF.items():
        files[tool] = scratch / f"{tool}.onnx"
        plain_nncf(fp32.path, files[tool], frames, model_type)
    same = quantized_layers(onnx.load(ours.path))
    for tool, layers in (("onnxruntime static", None), ("onnxruntime static, our layers", same)):
        files[tool] = scratch / f"{tool}.onnx"
        static(fp32.path, files[tool], frames, layers)
    if python:
        for tool, what in (("modelopt", "all"), ("modelopt, attention left out", "linears")):
            files[tool] = scratch / f"{tool}.onnx"
            modelopt(python, fp32.path, files[tool], frames, what)
    return files


def _call(path: Path, frames: np.ndarray) -> Callable[[], object]:
    session = OnnxModel(path, optimise=True).session
    return lambda: session.run(None, {session.get_inputs()[0].name: frames})


def times_ms(calls: dict[str, Callable[[], object]]) -> dict[str, dict[str, Any]]:
    """latency_ms (wall clock) and cpu_ms (of this thread): medians over rounds of medians."""
    blocks = [partial(_block, call) for call in calls.values()]
    times = {}
    for name, rounds in zip(calls, interleave(blocks, ROUNDS), strict=True):
        wall, cpu = np.median(rounds, axis=0)
        times[name] = {"latency_ms": float(wall), "cpu_ms": float(cpu), "rounds": len(rounds)}
    return times


def _block(call: Callable[[], object], _round: int) -> np.ndarray:
    """Medians over SECONDS of calls: [wall clock, CPU time], ms."""
    def sample() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.thread_time()
        call()
        return 1000 * (time.perf_counter() - wall), 1000 * (time.thread_time() - cpu)
    return np.median(sample_block(sample, 1, SECONDS), axis=0)


def quantised_products(path: Path) -> int:
    """MatMuls whose operands are both dequantised."""
    graph = onnx.load(path).graph
    dequantised: set[str] = set()
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            dequantised.update(node.output)
    return sum(node.op_type == "MatMul" and set(node.input) <= dequantised for node in graph.node)


def shares(path: Path, frames: np.ndarray, scratch: Path,
           runs: int = 20) -> list[tuple[str, float, float]]:
    """(operator, ms of a frame, share of all) by onnxruntime's profiler, the largest first."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.profile_file_prefix = str(scratch / "profile")
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(runs):
        session.run(None, {session.get_inputs()[0].name: frames})
    spent: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    total = sum(spent.values())
    return [(op, us / runs / 1000, us / total) for op, us in spent.most_common()
            if us > 0.005 * total]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--modelopt", help="python of an environment with nvidia-modelopt[onnx]")
    parser.add_argument("--out", type=Path,
                        default=ROOT / "bench" / "results" / "int8_tools.json")
    options = parser.parse_args()
    rows: list[Row] = []
    with TemporaryDirectory() as scratch:
        for run in options.runs:
            rows += measure(run, options.modelopt, Path(scratch))
    env = {**environment(), "load_average": os.getloadavg()[0]}
    save(measured("int8_tools", rows, env, "python -m bench.recipes.int8_tools"), options.out)
    for row in rows:
        print({key: round(value, 5) if isinstance(value, float) else value
               for key, value in row.items() if key not in NOT_PRINTED})


if __name__ == "__main__":
    main()
