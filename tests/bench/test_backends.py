"""Backends, and what surrounds a latency row: soak, meters, cross-checks."""
import json
import stat
import sys

import numpy as np
import onnx
import pytest
import torch

from bench.artefacts import Artefact, find
from bench.latency.backends import BACKENDS, student_cases
from bench.latency.crosscheck import crosscheck
from bench.latency.measure import latency
from bench.latency.meters import Tegrastats, cpu_state
from bench.latency.soak import INTERVALS, soak
from bench.latency.timing import BenchCase, LatencyConfig, TimingConfig, time_for
from bench.tables.save_results import save_result_file
from records.results import load
from student.config import SHIPPED
from tests.bench.test_latency import Clock
from tests.bench_run import drawn_run

QUICK = TimingConfig(seconds=0.02, iterations=6, rounds=2, warmup_seconds=0.01)


def backends_of(file: Artefact) -> list[str]:
    return [name for name, backend in BACKENDS.items() if backend.target in file.targets]


def test_a_run_holds_its_student_and_the_files_meant_for_each_backend():
    artefacts, _ = find(drawn_run())
    suited = {file.path.name: backends_of(file) for file in artefacts}
    assert suited["student.safetensors"] == ["torch", "compile"]
    assert "ort-cpu" in suited["model.int8.cpu.onnx"] and "ort-cpu" not in suited["model.fp16.onnx"]


def test_a_lone_file_is_described_by_its_graph(tmp_path):
    for name, precision in (("model.onnx", "fp32"), ("model.fp16.onnx", "fp16")):
        copied = tmp_path / f"mine_{name}"
        copied.write_bytes((drawn_run() / "export" / name).read_bytes())
        ((file,), _) = find(copied)
        assert (file.precision, file.batch) == (precision, 1) and "ort-cpu" in backends_of(file)


def test_the_shipped_student_is_a_source_of_its_own():
    ((file,), _) = find(SHIPPED)
    assert file.kind == "student" and file.batch == "dynamic"


@pytest.mark.parametrize(("make", "says"), [
    (lambda p: p / "gone.onnx", "no such file or folder"),
    (lambda p: p, "neither a run, a student"),
    (lambda p: write(p / "cut.onnx", b"\xff\xff\xff\xff"), "not an ONNX model"),
    (lambda p: write(p / "a.engine", b"plan"), "no engine with a sidecar"),
    (lambda p: write(p / "two.onnx", two_inputs()), "expected one input"),
])
def test_anything_else_is_refused_in_one_line(tmp_path, make, says):
    with pytest.raises(ValueError, match=says):
        find(make(tmp_path))


def test_an_engine_of_a_killed_build_is_an_absent_row(tmp_path):
    for folder in ("student", "export"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "config.yaml", b"")
    write(tmp_path / "student" / "student.safetensors", b"weights")
    for name in ("a.engine", "b.engine", "c.engine"):
        write(tmp_path / "export" / name, b"plan")
    write(tmp_path / "export" / "b.engine.json", b"[]")
    write(tmp_path / "export" / "c.engine.json", b'{"builder": "rtx-1", "precision": "int8"}')
    artefacts, missing = find(tmp_path)
    assert [artefact.path.name for artefact in artefacts] == ["student.safetensors", "c.engine"]
    rows = {row["what"]: row for row in missing}
    for name in ("a.engine", "b.engine"):
        assert rows[name]["kind"] == "absent" and "vega3d export trt" in rows[name]["fix"]
        assert rows[name]["why"].startswith("no engine with a sidecar")


def write(path, content: bytes):
    path.write_bytes(content)
    return path


def two_inputs() -> bytes:
    values = [onnx.helper.make_tensor_value_info(name, 1, [1, 3, 8, 8]) for name in "abc"]
    node = onnx.helper.make_node("Add", ["a", "b"], ["c"])
    return onnx.helper.make_model(onnx.helper.make_graph([node], "two", values[:2],
                                                         values[2:])).SerializeToString()


def test_a_missing_backend_is_named_and_the_others_run():
    artefacts, _ = find(drawn_run())
    frames = torch.rand(2, 3, 224, 224)
    found, missing = student_cases(artefacts, frames, (1,), list(BACKENDS), 1)
    here = {case.info["backend"] for case in found}
    gone = {row["what"].split(" on ")[-1].split()[0] for row in missing}
    assert {"torch", "compile", "ort-cpu"} <= here
    assert set(BACKENDS) <= here | gone
    assert "compile" not in {case.info["backend"]
                             for case in student_cases(artefacts, frames, (1,), [], 1)[0]}
    with pytest.raises(ValueError, match="got 'tensorflow', expected some of torch,"):
        student_cases(artefacts, frames, (1,), ["tensorflow"], 1)


def test_a_config_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="got soak '10'"):
        LatencyConfig(soak="10")
    assert LatencyConfig(soak="10m").soak_seconds == 600
    assert LatencyConfig(backends="torch, ort-cpu").backend_names == ["torch", "ort-cpu"]


def test_files_alone_are_timed_with_tails_throughput_and_preprocessing_apart():
    files = [drawn_run() / "export" / name for name in ("model.onnx", "model.int8.cpu.onnx")]
    rows = latency(files, LatencyConfig(QUICK, backends="ort-cpu", memory=False))
    timed = [row for row in rows if row["kind"] == "latency"]
    assert [row["precision"] for row in timed] == ["fp32", "int8"]
    for row in timed:
        assert row["frames_per_s"] == pytest.approx(1000 / row["frame_ms"])
        assert row["p10_ms"] <= row["latency_ms"] <= row["p90_ms"] <= row["p99_ms"]
    assert [row["stage"] for row in rows if row["kind"] == "preprocess"] == ["preprocess"]
    with pytest.raises(ValueError, match="nothing here can be timed by trt"):
        latency(files[:1], LatencyConfig(QUICK, backends="trt"))


def test_a_long_run_shows_when_it_slowed_and_by_what(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("bench.latency.timing.time", clock)
    monkeypatch.setattr("bench.latency.soak.time", clock)
    monkeypatch.setattr(clock, "monotonic", clock.perf_counter, raising=False)
    hot = clock.case("model", lambda now_ms: 10.0 if now_ms < 30_000 else 15.0, backend="trt")
    states = [{"temperature_c": 50.0 + i, "sm_mhz": 1980 - 20 * i,
               "slowed_by": "thermal limit" if i > 10 else "nothing"} for i in range(INTERVALS)]
    total, *intervals = soak(hot, 60.0, iter(states).__next__)
    assert (total["first_ms"], total["last_ms"], total["slowdown"]) == (10.0, 15.0, 1.5)
    assert (total["slowed_by"], total["hottest_c"]) == ("thermal limit", 69.0)
    assert total["slowest_mhz"] == 1600
    assert len(intervals) == INTERVALS and intervals[0]["latency_ms"] == 10.0
    assert total["seconds"] == pytest.approx(60, rel=0.05)


def test_timing_for_a_while_keeps_every_call(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("bench.latency.timing.time", clock)
    ms = time_for(clock.case("a", 4.0), 1.0)
    assert np.all(ms == 4.0) and len(ms) == clock.calls.count("a") and 250 <= len(ms) <= 280


def test_the_state_of_a_cpu_has_all_fields():
    assert set(cpu_state()) == {"temperature_c", "cpu_mhz", "load_1m", "throttle_count"}


def tool(folder, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


TEGRASTATS = """import time
while True:
    print("RAM 1821/7620MB cpu@48.5C gpu@47.2C tj@51.0C VDD_IN 5000mW/4900mW", flush=True)
    time.sleep(0.02)
"""


def test_a_jetson_s_rail_is_summed_to_joules(tmp_path, monkeypatch):
    import time

    tool(tmp_path, "tegrastats", TEGRASTATS)
    monkeypatch.setenv("PATH", str(tmp_path))
    meter = Tegrastats()
    deadline = time.monotonic() + 20
    while meter.joules() < 0.5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert meter.joules() >= 0.5 and meter.state() == {"power_w": 5.0, "temperature_c": 51.0}
    meter.close()


TRTEXEC = """import json, sys
times = next(a for a in sys.argv if a.startswith("--exportTimes=")).split("=")[1]
json.dump([{"computeMs": ms, "latencyMs": 9} for ms in (1.9, 2.0, 2.2)], open(times, "w"))
"""


def test_trtexec_s_median_stands_beside_ours(tmp_path, monkeypatch):
    engine = Artefact(tmp_path / "model.engine", "e", "int8", "abc", kind="engine",
                      targets=("trt",))
    row = {"artefact": "model.engine", "sha256": "abc", "backend": "trt", "batch": 1,
           "latency_ms": 2.1}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert crosscheck(row, engine)["why"] == "trtexec is not here"
    tool(tmp_path, "trtexec", TRTEXEC)
    found = crosscheck(row, engine)
    assert (found["tool"], found["tool_ms"]) == ("trtexec", 2.0)
    assert found["ratio"] == pytest.approx(1.05)
    tool(tmp_path, "trtexec", "print('no such engine')")
    assert "no such engine" in crosscheck(row, engine)["why"]
    assert crosscheck({**row, "backend": "torch"}, engine) is None


def foreign(path, kind: int, shape: list):
    tensors = [onnx.helper.make_tensor_value_info(name, kind, shape) for name in "ab"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["a"], ["b"])], "g",
                                   tensors[:1], tensors[1:])
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_a_foreign_model_is_timed_at_its_own_size_or_refused_in_words(tmp_path):
    frames = torch.rand(2, 3, 224, 224)
    for shape in ([1, 3, 100, 120], ["b", 3, "h", "w"]):
        ((file,), _) = find(foreign(tmp_path / "other.onnx", onnx.TensorProto.FLOAT, shape))
        (case,), gaps = student_cases([file], frames, (1,), ["ort-cpu"], 1)
        expected = (1, 3, 100, 120) if shape[0] == 1 else (1, 3, 224, 224)
        assert not gaps and case.call()[0].shape == expected
    for kind, shape, why in ((onnx.TensorProto.INT64, [1, 3, 224, 224], "takes int64"),
                             (onnx.TensorProto.FLOAT, [1, 4, 224, 224], "expected float frames"),
                             (onnx.TensorProto.FLOAT, [1, 3], "another kind of model")):
        with pytest.raises(ValueError, match=why):
            find(foreign(tmp_path / "other.onnx", kind, shape))


POLYGRAPHY = """class OnnxrtRunner:
    def __init__(self, session): self.session, self.calls = session, 0
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def infer(self, feed): self.calls += bool(self.session.run(None, feed))
    def last_inference_time(self): return 9.0 if self.calls <= 20 else 0.004
"""


def test_polygraphy_s_median_stands_beside_ours(tmp_path, monkeypatch):
    path = drawn_run() / "export" / "model.onnx"
    file = Artefact(path, "o", "fp32", "abc", targets=("cpu",))
    row = {"artefact": "model.onnx", "sha256": "abc", "backend": "ort-cpu", "precision": "fp32",
           "batch": 1, "latency_ms": 5.0, "threads": 1}
    package = tmp_path / "polygraphy" / "backend" / "onnxrt"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").write_text(POLYGRAPHY if folder == package else "")
    (tmp_path / "polygraphy-9.8.7.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: polygraphy\nVersion: 9.8.7\n"
    (tmp_path / "polygraphy-9.8.7.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = crosscheck(row, file)
    # the warm-up's 9 s are not in it
    assert (found["tool"], found["tool_ms"]) == ("polygraphy 9.8.7", 4.0)
    assert found["ratio"] == pytest.approx(1.25)
    save_result_file("crosscheck_cpu", [found], {"commit": "abc"}, tmp_path)
    assert load(tmp_path / "crosscheck_cpu.json").rows[0]["tool_ms"] == 4.0
    with pytest.raises(ValueError, match="pip install polygraphy"):
        save_result_file("crosscheck_cpu", [row | {"kind": "latency"}], {"commit": "abc"}, tmp_path)


def test_a_soaked_file_is_the_fastest_one(tmp_path):
    files = [drawn_run() / "export" / "model.onnx"]
    rows = latency(files, LatencyConfig(QUICK, backends="ort-cpu", memory=False, soak="0.2s"))
    (total,) = [row for row in rows if row["kind"] == "soak"]
    assert total["artefact"] == "model.onnx" and total["slowdown"] > 0
    assert len([row for row in rows if row["kind"] == "soak_interval"]) == INTERVALS
    assert json.dumps(rows)


def test_a_case_that_raises_is_named_not_fatal(tmp_path):
    cut = tmp_path / "model.onnx"
    model = onnx.load(drawn_run() / "export" / "model.onnx")
    model.graph.node[3].op_type = "NoSuchOp"
    onnx.save(model, cut)
    (file,), _ = find(cut)
    found, missing = student_cases([file], torch.rand(1, 3, 224, 224), (1,), ["ort-cpu"], 1)
    assert found == [] and "onnxruntime cannot load it" in missing[0]["why"]
    assert isinstance(BenchCase({}, lambda: None).rounds, list)
