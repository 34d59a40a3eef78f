"""Whether INT8 pays here, by a fake clock, so that both verdicts occur."""
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from export import cli, cpu_verdict, openvino
from export.artefact import save_bytes, sidecar_path
from export.pipeline import FP32, INT8_CPU, ExportedFile
from export.tensorrt import int8_verdict as verdicts
from export.tensorrt.engines import BuildTarget, EngineFile
from export.tensorrt.int8_verdict import Int8Verdict, engine_verdict
from tests.fake_clock import FakeClock


@pytest.mark.parametrize(("verdict", "line"), [
    (Int8Verdict(17.2, 32.0, "fp32", 0.99972, "CPU 1 thread"),
     "INT8 1.86x of FP32 here (17.2 vs 32.0 ms, CPU 1 thread), cosine 0.9997: "
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
    """(exporter, files, clock, ms of a call by candidate): no model runs."""
    clock, ms = FakeClock(), {}
    files = []
    for spec in (FP32, INT8_CPU, openvino.INT8):
        path = tmp_path / spec.file
        facts = save_bytes(spec.file.encode(), path, {"parity": PARITY})
        files.append(ExportedFile(path, spec, facts, False))
    heldout = SimpleNamespace(frames=np.zeros((32, 3, 4, 4), "uint8"))
    exporter = SimpleNamespace(options=SimpleNamespace(batch=1),
                               run=SimpleNamespace(heldout=heldout))

    def load(candidate):
        call = clock.call_taking(ms[candidate.runtime, candidate.precision, candidate.file.spec])
        return lambda frames: call()

    monkeypatch.setattr(cpu_verdict.Candidate, "load", load)
    monkeypatch.setattr(cpu_verdict, "has_bfloat16", lambda: True)
    monkeypatch.setattr(cpu_verdict.importlib.util, "find_spec", lambda name: True)
    ms.update({("onnxruntime", "fp32", FP32): 28, ("OpenVINO", "fp32", FP32): 26,
               ("OpenVINO", "bf16", FP32): 16.5, ("onnxruntime", "int8", INT8_CPU): 18,
               ("OpenVINO", "int8", INT8_CPU): 12, ("OpenVINO", "int8", openvino.INT8): 11})
    return exporter, files, clock, ms


def test_cpu_verdict_compares_the_best_of_every_runtime_and_names_what_to_ship(cpu_files):
    exporter, files, clock, _ = cpu_files
    verdict = cpu_verdict.cpu_verdict(exporter, files, clock)
    assert str(verdict) == ("INT8 1.50x of BF16 here (11.0 vs 16.5 ms, model.int8.openvino.xml on "
                            "OpenVINO vs model.onnx on OpenVINO, CPU 1 thread; FP32 26.0 ms), "
                            "cosine 0.9997: use INT8")
    sidecar = json.loads(sidecar_path(files[2].path).read_text())
    assert sidecar["verdict"]["use"] == "INT8" and sidecar["verdict"]["line"] == str(verdict)
    # the rest is unchanged
    assert sidecar["sha256"] == files[2].facts["sha256"] and sidecar["parity"] == PARITY


def test_int8_that_only_beats_fp32_is_not_recommended(cpu_files):
    exporter, files, clock, ms = cpu_files
    for key in ms:
        ms[key] = 17 if key[1] == "int8" else ms[key]
    verdict = cpu_verdict.cpu_verdict(exporter, files, clock)
    assert verdict.use == "BF16" and verdict.other == "bf16"


def test_same_files_on_the_same_machine_are_not_timed_again(cpu_files):
    exporter, files, clock, _ = cpu_files
    first = cpu_verdict.cpu_verdict(exporter, files, clock)
    again = replace(files[2], facts=json.loads(sidecar_path(files[2].path).read_text()))
    before = clock.now
    assert cpu_verdict.cpu_verdict(exporter, [*files[:2], again], clock) == first
    assert clock.now == before
    other = replace(files[0], facts={**files[0].facts, "sha256": "another"})
    cpu_verdict.cpu_verdict(exporter, [other, files[1], again], clock)
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


def test_lines_are_printed_as_they_are(capsys):
    line = f"in /home/me/[old] runs/{'n' * 100}/export"  # no style, no line of 80 columns
    cli._log(cli._console())(line)
    assert capsys.readouterr().out == f"{line}\n"
