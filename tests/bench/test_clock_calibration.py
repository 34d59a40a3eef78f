"""Clock calibration finds a right clock and a wrong one."""
import pytest

from bench.latency.clock_calibration import SPIN_MS, check, cpu_calibration
from bench.latency.timing import TimingConfig
from tests.bench.test_latency import Clock

QUICK = TimingConfig(seconds=0.02, iterations=5, rounds=2, warmup_seconds=0.001)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("bench.latency.timing.time", clock)
    return clock


@pytest.mark.parametrize(("takes", "error"), [(2.0, 0.0), (2.06, 3.0), (1.9, -5.0)])
def test_the_error_is_what_the_clock_says_against_what_is_true(clock, takes, error):
    row = check("work", clock.case("work", takes).call, "cpu", QUICK, truth_ms=2.0)
    assert row["error_percent"] == pytest.approx(error) and row["latency_ms"] == takes


def test_both_kinds_of_work_are_timed_here():
    spin, product = cpu_calibration(QUICK)
    # it cannot end sooner, however loaded we are
    assert spin["truth_ms"] >= SPIN_MS and spin["latency_ms"] >= SPIN_MS
    assert product["latency_ms"] <= product["truth_ms"]  # the calls lie inside the long run
