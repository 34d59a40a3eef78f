"""Timing on a GPU without one: CPU tensors in place of the GPU's, a made-up energy counter."""
import pytest
import torch

from bench.latency.gpu import gpu_cases
from bench.latency.meters import energy_per_call
from bench.latency.timing import BenchCase
from bench.recipes.rendering import steady_rate, workers_rate


@pytest.fixture
def fake_gpu(monkeypatch):
    """torch.cuda on the CPU. Streams do nothing; a replay runs the captured call again."""
    class Stream:
        def wait_stream(self, _): ...
        def synchronize(self): ...
        def __enter__(self): ...
        def __exit__(self, *_): ...

    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 10_000_000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 13_000_000)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self.clone())

    def captured(call):
        out = call()

        def replay() -> None:
            out.copy_(call())
        return torch.inference_mode()(replay), out

    monkeypatch.setattr("bench.latency.gpu.capture_graph", captured)


INFO = {"artefact": "model", "stage": "student", "precision": "fp32", "batch": 2, "frames": 2}


def test_eager_and_graph_run_the_same_model_and_name_their_launch(fake_gpu):
    sums = []

    def model(x: torch.Tensor) -> torch.Tensor:
        sums.append(float(x.sum()))
        return 2 * x

    cases, missing = gpu_cases(model, torch.ones(2, 3), INFO, weights_mb=4.0)
    assert [case.info["launch"] for case in cases] == ["eager", "graph"] and missing == []
    assert all(c.device == "cuda" and c.info["memory_mb"] == 4.0 + 3.0 for c in cases)
    for case in cases:
        before = len(sums)
        assert torch.equal(case.call(), torch.full((2, 3), 2.0))
        case.host()
        assert sums[before:] == [6.0, 6.0]  # frames copied in anew, the model run once each


def test_a_model_that_cannot_be_captured_is_named_and_still_timed_eagerly(fake_gpu, monkeypatch):
    def refuse(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("bench.latency.gpu.capture_graph", refuse)
    cases, missing = gpu_cases(lambda x: x, torch.ones(2, 3), INFO)
    assert [case.info["launch"] for case in cases] == ["eager"]
    assert missing[0]["what"] == "model student fp32 batch 2, graph"
    assert "not permitted" in missing[0]["why"]


class Meter:
    """A GPU that draws a constant power, and a counter of it that moves every tenth of a second."""

    def __init__(self, watts: float, call_s: float):
        self.now, self.watts, self.call_s, self.calls = 0.0, watts, call_s, 0

    def perf_counter(self) -> float:
        return self.now

    def call(self) -> None:
        self.calls += 1
        self.now += self.call_s

    def joules(self) -> float:
        self.now += 1e-6  # looking costs time
        return self.watts * (int(10 * self.now) / 10)


@pytest.mark.parametrize(("watts", "call_s"), [(300, 0.0007), (60, 0.0301)])
def test_energy_is_power_times_time_though_the_counter_moves_in_steps(monkeypatch, watts, call_s):
    meter = Meter(watts, call_s)
    monkeypatch.setattr("bench.latency.meters.time", meter)
    found = energy_per_call(meter.call, meter.joules, lambda: None, seconds=1.5)
    assert found["energy_mj"] == pytest.approx(1000 * watts * call_s, rel=0.02)
    assert found["power_w"] == pytest.approx(watts, rel=0.02)


def test_a_device_without_a_meter_has_no_energy_and_a_dead_meter_ends_the_wait(monkeypatch):
    meter = Meter(100, 0.01)
    monkeypatch.setattr("bench.latency.meters.time", meter)
    assert energy_per_call(meter.call, lambda: None, lambda: None) == {}
    assert energy_per_call(meter.call, lambda: 5.0, lambda: None, seconds=0.2) == {}
    assert meter.now < 1.0


def test_the_rate_of_rendering_is_counted_while_all_workers_render():
    # two workers, rooms of two clips: worker 0 has rooms 0 and 2, worker 1 begins late with room 1
    done = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    # from 3 s to 4 s: one clip
    assert steady_rate(done, workers=2, clips_a_room=2) == pytest.approx(1.0)
    assert steady_rate([1.0, 2.0], workers=2, clips_a_room=1) == 0.0           # never both at once
    # worker 0: a clip a second from 1 to 3; worker 1, which starts when that one ends, two a second
    assert workers_rate([1.0, 5.0, 2.0, 5.5, 3.0, 6.0], workers=2,
                        clips_a_room=1) == pytest.approx(3.0)
    assert workers_rate([1.0, 2.0], workers=2, clips_a_room=1) == 0.0


def test_host_to_host_times_are_measured_too():
    from bench.latency.measure import timed_rows
    from bench.latency.timing import TimingConfig

    trips = []
    case = BenchCase({**INFO, "stage": "semantic"}, lambda: None, host=lambda: trips.append(1))
    quick = TimingConfig(seconds=0.01, iterations=4, rounds=2, warmup_seconds=0.001)
    (row,) = timed_rows([case], quick)
    assert trips and row["host_ms"] <= row["host_p90_ms"]
