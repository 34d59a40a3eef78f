"""Every FP32 and INT8 file of some runs on every CPU runtime here, timed in turn: `python -m
bench.recipes.openvino_cpu RUN ...`, after `vega3d export onnx` and `vega3d export openvino`.
vs_best_fp32, vs_best_float: times faster than the best FP32, and than the best float, of any
runtime with as many threads. A run without a teacher's digest has random weights."""
from functools import partial
from pathlib import Path

from tyro.conf import Positional

from bench.device import device_facts
from export import openvino
from export.cpu_verdict import Candidate, candidates
from export.pipeline import FP32, INT8_CPU, Exporter
from export.source import load_trained_run, to_input
from records.results import Row, measured, save
from records.timing import time_interleaved
from vega3d import run_recipe

THREADS = (1, 2)


def rows_of(folder: Path) -> list[Row]:
    exporter = Exporter(load_trained_run(folder), log=lambda _: None)
    files = [file for file in (*exporter.export("fp32"), *exporter.export("int8"),
                               openvino.export_openvino(exporter))
             if file.spec in (FP32, INT8_CPU, openvino.INT8)]
    entries = candidates(files)
    parities = [exporter.gate.measure(entry.load()) for entry in entries]
    frames, rows = to_input(exporter.run.heldout.frames[:1]), []
    config = exporter.run.student.config
    about = {"model": f"ViT-{config.size.title()}",
             "weights": "trained" if config.teacher else "random"}
    for threads in THREADS:
        calls = [partial(entry.load(threads), frames) for entry in entries]
        ms = time_interleaved(calls)
        best_fp32, best_float = (_best(entries, ms, kinds)
                                 for kinds in (("fp32",), ("fp32", "bf16")))
        for entry, parity, each in zip(entries, parities, ms, strict=True):
            rows.append({**about, "runtime": entry.runtime, "precision": entry.precision,
                         "artefact": entry.file.path.name, "sha256": entry.file.facts["sha256"],
                         "threads": threads, "batch": 1, "latency_ms": each,
                         "cosine_mean": parity.cosine_mean, "cosine_p1": parity.cosine_p1,
                         "vs_best_fp32": best_fp32 / each, "vs_best_float": best_float / each,
                         "size_mb": entry.file.facts["size_mb"]})
    return rows


def _best(entries: list[Candidate], ms: list[float], precisions: tuple[str, ...]) -> float:
    return min(each for entry, each in zip(entries, ms, strict=True)
               if entry.precision in precisions)


def main(run: Positional[Path], more: Positional[tuple[Path, ...]] = (),
         out: Path = Path("bench/results/openvino_cpu.json")) -> None:
    rows = [row for folder in (run, *more) for row in rows_of(folder)]
    save(measured("openvino_cpu", rows, device_facts()), out)


if __name__ == "__main__":
    run_recipe(main)
