"""What the heads cost on one CPU thread, and today's ViT-Ti beside the previous one: INT8, in turn.

    python -m bench.recipes.heads_cpu [--out bench/results/heads_cpu.json]

The shipped student, and one of the previous shape with random weights, which take the same time;
each alone, and with heads of today's shape (the shipped one's complete file is infer/model). The
graphs are those of `vega3d export onnx`, `openvino` and `onnx --preset edge`, without their parity
gate. vs_features: a complete file's time over that of its features alone; vs_previous: over the
previous student's same file; medians over rounds of ratios within a round.
"""
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from bench.artefacts import find
from bench.device import device_facts
from bench.latency.backends import student_cases
from bench.latency.timing import BenchCase, TimingConfig, ratio, summary, time_cases
from bench.recipes.shipped_model import run_of_shipped
from distill.config import HeadTraining
from distill.heads import initial_heads
from export import openvino
from export.artefact import save_onnx
from export.graph.export_onnx import interface
from export.pipeline import INT8_CPU, Exporter
from export.presets import with_heads
from export.source import TrainedRun, load_trained_run, to_input
from infer.model import SHIPPED
from records.results import ROOT, Row, measured, save
from student.config import StudentConfig
from student.heads import Heads
from student.vit import Student
from vega3d import run_recipe

PREVIOUS = StudentConfig(stem="patch", depth=12)


class Key(NamedTuple):
    student: str
    outputs: str  # features, or all
    backend: str
    kind: str     # .onnx or .xml


def main(out: Path = ROOT / "bench" / "results" / "heads_cpu.json") -> None:
    with TemporaryDirectory() as scratch:
        shipped = load_trained_run(run_of_shipped(Path(scratch) / "shipped"))
        previous = Student(PREVIOUS).eval()
        old = replace(shipped, student=previous, folder=Path(scratch) / "previous")
        heads = initial_heads(previous, HeadTraining(init="scratch"))
        found = {**cases("shipped", shipped), **cases("previous", old, heads)}
        time_cases(list(found.values()), TimingConfig())
    save(measured("heads_cpu", [row_of(key, found) for key in found], device_facts()), out)


def cases(name: str, run: TrainedRun, heads: Heads | None = None) -> dict[Key, BenchCase]:
    """heads: of the complete file; None: it is infer/model's."""
    exporter, complete = Exporter(run), SHIPPED
    features, ir = run.out / INT8_CPU.file, run.out / openvino.INT8.file
    model, facts = INT8_CPU.build(exporter), {**interface(run.student, "dynamic"),
                                              "precision": "int8"}
    save_onnx(model, features, facts)
    if heads:
        complete = run.out / "model_quantized.onnx"
        px = run.student.config.image_size
        save_onnx(with_heads(model, heads, px, "dynamic"), complete, facts)
    openvino.save_ir(openvino.quantize(openvino.float_model(run.student), exporter), ir, facts)
    frames, found = to_input(run.heldout.frames[:1]), {}
    for outputs, path in (("features", features), ("features", ir), ("all", complete)):
        for case in student_cases(find(path)[0], torch.from_numpy(frames), [1],
                                  ["ort-cpu", "openvino"], 1)[0]:
            found[Key(name, outputs, case.info["backend"], path.suffix)] = case
    return found


def row_of(key: Key, found: dict[Key, BenchCase]) -> Row:
    case = found[key]
    row: Row = {"student": key.student, "outputs": key.outputs, **case.info, "threads": 1,
                **summary(case)}
    for name, other in (("vs_features", key._replace(outputs="features")),
                        ("vs_previous", key._replace(student="previous"))):
        if other != key:
            row[name] = ratio(case, found[other])[0]
    return row


if __name__ == "__main__":
    run_recipe(main)
