"""Whether INT8 pays here, by a fake clock, so that both verdicts occur."""
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from export import cli
from export.artefact import save_bytes, sidecar_path
from export.pipeline import FP32, INT8_CPU, ExportedFile
from export.tensorrt import int8_verdict as verdicts
from export.tensorrt.engines import BuildTarget, EngineFile
from export.tensorrt.int8_verdict import Int8Verdict, engine_verdict, onnx_verdict
from tests.fake_clock import FakeClock

CPU = verdicts.CPU


@pytest.mark.parametrize(("verdict", "line"), [
    (Int8Verdict(17.2, 32.0, "fp32", 0.99972, CPU),
     "INT8 1.86x of FP32 here (17.2 vs 32.0 ms, onnxruntime CPU 1 thread), cosine 0.9997: "
     "use INT8"),
    (Int8Verdict(0.62, 0.56, "fp16", 0.99968),
     "INT8 0.90x of FP16 (0.62 vs 0.56 ms), cosine 0.9997: use FP16 here"),
    (Int8Verdict(0.55, 0.56, "fp16", 0.99968),  # within the clock's noise
     "INT8 1.02x of FP16 (0.55 vs 0.56 ms), cosine 0.9997: use FP16 here"),
])
def test_line_says_which_to_use_and_by_how_much(verdict, line):
    assert str(verdict) == line


PARITY = {"cosine_mean": 0.99972}


@pytest.fixture
def cpu_files(tmp_path, monkeypatch):
    """(exporter, FP32 file, INT8 file, clock, ms of a call by file name): no model runs."""
    clock, ms = FakeClock(), {}
    files = {}
    for spec in (FP32, INT8_CPU):
        path = tmp_path / spec.file
        facts = save_bytes(spec.file.encode(), path, {"parity": PARITY})
        files[spec] = ExportedFile(path, spec, facts, False)
    heldout = SimpleNamespace(frames=np.zeros((32, 3, 4, 4), "uint8"))
    exporter = SimpleNamespace(options=SimpleNamespace(batch=1),
                               run=SimpleNamespace(heldout=heldout))

    def model(path, optimise):
        call = clock.call_taking(ms[path.name])
        return lambda frames: call()

    monkeypatch.setattr(verdicts, "OnnxModel", model)
    return exporter, files[FP32], files[INT8_CPU], clock, ms


@pytest.mark.parametrize(("int8_ms", "use"), [(16, "INT8"), (40, "FP32")])
def test_cpu_verdict_is_measured_and_recorded_in_the_sidecar(cpu_files, int8_ms, use):
    exporter, fp32, int8, clock, ms = cpu_files
    ms.update({"model.onnx": 32, "model.int8.cpu.onnx": int8_ms})
    verdict = onnx_verdict(exporter, fp32, int8, clock)
    assert verdict.use == use and verdict.speedup == pytest.approx(32 / int8_ms)
    sidecar = json.loads(sidecar_path(int8.path).read_text())
    assert sidecar["verdict"]["use"] == use and sidecar["verdict"]["line"] == str(verdict)
    # the rest is unchanged
    assert sidecar["sha256"] == int8.facts["sha256"] and sidecar["parity"] == PARITY


def test_same_files_on_the_same_machine_are_not_timed_again(cpu_files):
    exporter, fp32, int8, clock, ms = cpu_files
    ms.update({"model.onnx": 32, "model.int8.cpu.onnx": 16})
    first = onnx_verdict(exporter, fp32, int8, clock)
    again = replace(int8, facts=json.loads(sidecar_path(int8.path).read_text()))
    before = clock.now
    assert onnx_verdict(exporter, fp32, again, clock) == first and clock.now == before
    other = replace(fp32, facts={**fp32.facts, "sha256": "another"})
    onnx_verdict(exporter, other, again, clock)
    assert clock.now > before


@pytest.fixture
def engine_pair(tmp_path, monkeypatch):
    """(INT8 engine, its build target, clock, ms of a call by precision): no engine runs."""
    clock, ms = FakeClock(), {}

    def engine(precision: str) -> EngineFile:
        path = tmp_path / f"model.{precision}.trt-10.13.sm87.engine"
        about = {"sm": 87, "device": "Orin", "parity": PARITY, "precision": precision}
        facts = save_bytes(precision.encode(), path, about)
        return EngineFile(path, facts, False)

    class Runner:
        def __init__(self, module, plan):
            self.run = clock.call_taking(ms[plan.decode()])

    monkeypatch.setattr(verdicts, "EngineModel", Runner)
    monkeypatch.setattr(verdicts, "build_engines",
                        lambda exporter, target, precision: [engine(precision)])
    gpu = SimpleNamespace(name="Orin", sm=87)
    target = BuildTarget(SimpleNamespace(), SimpleNamespace(name="trt"), (87,), gpu)
    return engine("int8"), target, clock, ms


@pytest.mark.parametrize(("int8_ms", "use"), [(0.62, "FP16"), (0.40, "INT8")])
def test_engine_verdict_is_against_fp16_and_recorded(engine_pair, int8_ms, use):
    int8, target, clock, ms = engine_pair
    ms.update(int8=int8_ms, fp16=0.56)
    verdict = engine_verdict(None, target, int8, clock)
    assert verdict.use == use and verdict.other == "fp16"
    assert json.loads(sidecar_path(int8.path).read_text())["verdict"]["line"] == str(verdict)


def test_ahead_of_time_build_prints_how_to_get_its_verdict(engine_pair):
    int8, target, _, _ = engine_pair
    elsewhere = replace(target, gpu=None, api=SimpleNamespace(name="rtx"))
    line = engine_verdict(None, elsewhere, int8)
    assert "needs that GPU" in line and "vega3d export trt --target rtx --sm 87" in line
    assert json.loads(sidecar_path(int8.path).read_text())["verdict"] == {"use": None, "line": line}


@pytest.mark.parametrize(("requested", "exported"), [
    (("int8",), ("fp32", "int8")), (("int8", "fp32"), ("int8", "fp32")), (("fp16",), ("fp16",))])
def test_fp32_is_exported_with_int8_which_is_timed_against_it(requested, exported):
    assert cli._with_fp32(requested) == exported
