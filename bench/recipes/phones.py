"""The shipped student's files for phones, and model.onnx on onnxruntime: fidelity, size, and
milliseconds where they run here. `python -m bench.recipes.phones [--run RUN]` writes
bench/results/phones.json."""
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.device import device_facts
from bench.recipes.shipped_model import run_of_shipped
from export.graph.session import OnnxModel
from export.mobile.coreml import export_coreml
from export.mobile.litert import LiteRtModel, export_litert
from export.pipeline import ExportedFile, Exporter
from export.presets import export_preset
from export.source import load_trained_run, to_input
from records.results import ROOT, Row, measured, save
from records.timing import time_interleaved
from vega3d import run_recipe

RESULTS = ROOT / "bench" / "results" / "phones.json"


def main(run: Path | None = None, out: Path = RESULTS) -> None:
    """run: a run folder with heads; by default one of the shipped student, on rendered rooms."""
    with TemporaryDirectory() as scratch:
        exporter = Exporter(load_trained_run(run or run_of_shipped(Path(scratch) / "run")))
        frame = to_input(exporter.run.heldout.frames[:1])
        onnx, = export_preset(exporter, "mobile")
        files = [onnx, *export_litert(exporter, ("fp32", "fp16", "int8"))]
        models: list[Callable[[Any], Any]] = [OnnxModel(onnx.path, optimise=True)]
        models += [LiteRtModel(file.path.read_bytes(), list(file.facts["outputs"]))
                   for file in files[1:]]
        env = device_facts()
        times = time_interleaved([partial(model, frame) for model in models])
        env["load_1m_after"] = device_facts()["load_1m"]
        rows = [_row(file, "LiteRT" if file.path.suffix == ".tflite" else "onnxruntime", ms)
                for file, ms in zip(files, times, strict=True)]
        rows.append(_row(export_coreml(exporter), "Core ML", None))
        save(measured("phones", rows, env), out)
    print(out)


def _row(file: ExportedFile, runtime: str, milliseconds: float | None) -> Row:
    parity = file.facts["parity"] or {}
    worst = parity.get("worst_frames") or [[0, None]]
    return {"file": file.path.name, "runtime": runtime, "precision": file.spec.precision,
            "ran_on": "this CPU" if parity else "not run here",
            "cosine_mean": parity.get("cosine_mean"), "cosine_min": worst[0][1],
            "latency_ms": milliseconds, "size_mb": file.facts["size_mb"],
            "sha256": file.facts["sha256"], "device": "cpu", "batch": 1, "threads": 1}


if __name__ == "__main__":
    run_recipe(main)
