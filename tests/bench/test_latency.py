"""Timing on a made-up clock; and the rows of a real run, whose times are not checked."""
import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch

from bench.artefacts import exported
from bench.latency.measure import held_out_frames, latency
from bench.latency.memory import peak_memory
from bench.latency.teacher_stages import Stage, stage_cases, teacher_cases
from bench.latency.timing import (
    MIN_CALLS,
    BenchCase,
    LatencyConfig,
    TimingConfig,
    ratio,
    summary,
    time_cases,
)
from records.files import write_json
from tests.bench_run import drawn_run

QUICK = TimingConfig(seconds=0.02, iterations=6, rounds=2, warmup_seconds=0.01)


class Clock:
    """In place of the module `time`: only the cases' calls advance it."""

    def __init__(self):
        self.now_ns, self.calls = 0, []

    def perf_counter(self) -> float:
        return self.now_ns / 1e9

    def perf_counter_ns(self) -> int:
        return self.now_ns

    process_time_ns = perf_counter_ns

    def case(self, name: str, ms, **info) -> BenchCase:
        """A case whose call takes `ms`: a number, or a function of the time in ms."""
        def call() -> None:
            self.calls.append(name)
            self.now_ns += round(1e6 * (ms(self.now_ns / 1e6) if callable(ms) else ms))
        return BenchCase({"artefact": name, **info}, call)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("bench.latency.timing.time", clock)
    return clock


def test_the_clock_reports_what_a_call_takes(clock):
    case = clock.case("a", 4.0)
    time_cases([case], TimingConfig(seconds=1, iterations=50))
    times = dict.fromkeys(
        ("latency_ms", "p90_ms", "p99_ms", "p10_ms", "low_ms", "high_ms", "busy_ms"), 4.0)
    assert summary(case) == {**times, "iqr_ms": 0.0, "iterations": 50}


def test_tails_come_from_the_slow_calls():
    times = summary(BenchCase({}, print, rounds=[np.array([1.0] * 85 + [3.0] * 12 + [50.0] * 3)]))
    assert (times["latency_ms"], times["p90_ms"], times["p99_ms"]) == (1.0, 3.0, 50.0)


def test_a_row_ends_at_its_seconds_or_its_iterations_whichever_is_first(clock):
    quick, slow = clock.case("quick", 1.0), clock.case("slow", 100.0)
    time_cases([quick, slow], TimingConfig(seconds=2, iterations=200))
    assert (len(quick.ms), len(slow.ms)) == (200, 20)


def test_something_very_slow_is_called_a_few_times_and_not_in_every_round(clock):
    slow = clock.case("slow", 60_000.0)
    time_cases([slow, clock.case("quick", 1.0)], TimingConfig(seconds=2))
    assert len(slow.ms) == MIN_CALLS
    assert clock.calls.count("slow") == MIN_CALLS + 2  # two to warm up, none to refill the caches


def test_subjects_take_turns_and_the_order_reverses(clock):
    a, b = clock.case("a", 1.0), clock.case("b", 1.0)
    time_cases([a, b], TimingConfig(seconds=1, iterations=40, rounds=4, warmup_seconds=0.001))
    turns = [name for name, after in pairwise([*clock.calls, ""]) if name != after]
    # warm-up ab, then ab ba ab ba: equal neighbours merge
    assert turns == ["a", "b", "a", "b", "a", "b", "a"]


def test_a_drifting_machine_does_not_change_the_ratio(clock):
    slow = clock.case("slow", lambda now: 20.0 * (1 + now / 20_000))
    fast = clock.case("fast", lambda now: 5.0 * (1 + now / 20_000))
    time_cases([slow, fast], TimingConfig(seconds=2, iterations=100, rounds=20))
    assert slow.rounds[-1].mean() > 1.1 * slow.rounds[0].mean()
    assert ratio(slow, fast)[0] == pytest.approx(4.0, rel=0.03)


def test_work_on_a_gpu_is_timed_between_its_events(clock, monkeypatch):
    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            self.at = clock.now_ns / 1e6

        def synchronize(self) -> None:
            clock.now_ns += 5_000_000  # what the host waits is not the kernel's time

        def elapsed_time(self, end: "Event") -> float:
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    case = clock.case("kernel", 2.0)
    case.device = "cuda"
    time_cases([case], TimingConfig(iterations=10))
    assert summary(case)["latency_ms"] == 2.0


def test_a_plan_of_no_length_is_refused():
    with pytest.raises(ValueError, match="seconds is 0, expected more than 0"):
        TimingConfig(seconds=0)
    with pytest.raises(ValueError, match="threads is 0"):
        LatencyConfig(threads=0)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return latency([drawn_run()], LatencyConfig(QUICK, memory=False))


def test_every_stage_and_every_file_has_its_row(rows):
    timed = {(row["stage"], row["backend"], row["precision"])
             for row in rows if row["kind"] == "latency"}
    by_openvino = {one for one in timed if one[1] == "openvino"}
    assert {precision for _, _, precision in by_openvino} - {"bf16"} == {"fp32", "int8"}
    others = timed - by_openvino
    assert others == {("vae_encode", "torch", "fp32"), ("transformer", "torch", "fp32"),
                      ("generator", "torch", "fp32"), ("semantic", "torch", "fp32"),
                      ("student", "torch", "fp32"), ("student", "ort-cpu", "fp32"),
                      ("student", "ort-cpu", "int8")}


def test_a_row_names_the_very_file_and_its_size(rows):
    import hashlib

    files = [row for row in rows if row.get("artefact") in ("model.onnx", "model.int8.cpu.onnx")
             and row["backend"] == "ort-cpu"]
    assert len(files) == 2
    for row in files:
        content = (drawn_run() / "export" / row["artefact"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert row["size_mb"] == pytest.approx(len(content) / 1e6)


def test_the_transformer_stage_is_the_generator_without_its_vae():
    found, _ = teacher_cases(drawn_run(), held_out_frames(drawn_run()), "cpu")
    calls = {case.info["stage"]: case.call for case in found}
    features = calls["generator"]()
    assert features.shape == (1, 1, 64, 14, 14)
    assert torch.equal(features, calls["transformer"]())


def test_the_generator_is_timed_in_each_precision_asked_for():
    found, _ = teacher_cases(drawn_run(), held_out_frames(drawn_run()), "cpu", ("fp32", "bf16"))
    assert [case.info["precision"] for case in found
            if case.info["stage"] == "generator"] == ["fp32", "bf16"]


def test_the_generator_weighs_its_encoder_and_its_transformer(rows):
    size = {row["stage"]: row["size_mb"] for row in rows
            if row["kind"] == "latency" and row["stage"] != "student"}
    assert size["generator"] == pytest.approx(size["vae_encode"] + size["transformer"])


def test_a_stage_is_named_by_the_precision_of_most_of_its_weights():
    mixed = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(64, 64).bfloat16())
    found, _ = stage_cases([Stage("transformer", torch.clone, [mixed], "")], "any",
                         torch.zeros(1, 1, 3, 2, 2), "cpu")
    assert [case.info["precision"] for case in found] == ["bf16"]


def test_speed_ups_are_only_against_something_else(rows):
    student = {(r["backend"], r["precision"]): r for r in rows if r.get("stage") == "student"}
    assert all(row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
               for row in student.values())
    assert "vs_torch" not in student["torch", "fp32"]
    assert "vs_fp32" not in student["ort-cpu", "fp32"]
    assert {"vs_torch", "vs_fp32"} <= student["ort-cpu", "int8"].keys()


def test_a_missing_file_or_gpu_is_named_with_its_remedy(rows):
    absent = {row["what"]: row for row in rows if row["kind"] == "absent"}
    assert absent["model.int8.onnx"]["why"] == "not exported yet"
    assert "--precision int8" in absent["model.int8.onnx"]["fix"]
    if not torch.cuda.is_available():
        assert absent["torch CUDA"]["why"] == "no GPU here"


def test_a_batch_that_a_file_does_not_take_is_named_and_torch_still_runs():
    rows = latency([drawn_run()], LatencyConfig(QUICK, batch=(2,), teacher=False, memory=False))
    assert [(row["backend"], row["frames"]) for row in rows
            if row["kind"] == "latency"] == [("torch", 2)]
    assert any(row["what"] == "model.onnx at batch 2 on ort-cpu" for row in rows
               if row["kind"] == "absent")


def test_threads_are_put_back():
    before = torch.get_num_threads()
    latency([drawn_run()], LatencyConfig(QUICK, threads=before + 1, teacher=False, memory=False))
    assert torch.get_num_threads() == before


@pytest.fixture
def copied(tmp_path):
    run = tmp_path / "run"
    left_out = shutil.ignore_patterns("features", "bench", "*.ckpt.safetensors")
    shutil.copytree(drawn_run(), run, ignore=left_out)
    return run


def of_another_student(export):
    sidecar = export / "model.onnx.json"
    write_json({**json.loads(sidecar.read_text()), "student": {"sha256": "0"}}, sidecar)


@pytest.mark.parametrize(("spoil", "why"), [
    (lambda export: (export / "model.onnx.json").unlink(), "its export did not finish"),
    (lambda export: (export / "model.onnx").write_bytes(b"other"), "not the one in"),
    (of_another_student, "from another student"),
    (lambda export: write_json({"schema": 2}, export / "model.onnx.json"), "(schema 2, this one"),
])
def test_a_file_that_is_not_intact_or_of_another_student_is_not_timed(copied, spoil, why):
    assert "model.onnx" in [file.path.name for file in exported(copied)[0]]
    spoil(copied / "export")
    usable, missing = exported(copied)
    assert "model.onnx" not in [file.path.name for file in usable]
    assert why in next(row["why"] for row in missing if row["what"] == "model.onnx")


def test_memory_is_measured_in_a_process_of_its_own():
    memory = peak_memory("onnx", drawn_run() / "export" / "model.onnx", 1)
    assert 0 < memory["runtime_mb"] < memory["memory_mb"]
    gone = drawn_run() / "export" / "gone.onnx"
    assert peak_memory("onnx", gone, 1) == {"memory_mb": None, "runtime_mb": None}


def test_a_run_without_frames_says_how_to_make_them(copied):
    (copied / "frames" / "heldout.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"damaged .* make it again with: vega3d distill run"):
        held_out_frames(copied)
    (copied / "manifest.json").unlink()
    with pytest.raises(ValueError, match="not a frames file"):
        held_out_frames(copied)
    (copied / "frames" / "heldout.safetensors").unlink()
    with pytest.raises(ValueError, match="make a run with: vega3d distill run"):
        held_out_frames(copied)
