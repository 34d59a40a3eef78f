"""Two result files: noise is no regression, a slow-down is, and unlike files are refused."""
import json

import numpy as np
import pytest

import vega3d
from bench.compare import compare, compare_times
from bench.latency.timing import BenchCase, summary
from records.results import Results, save
from tests.bench_rows import ENV, accuracy_row, latency_row


def timed(ms: float, drift: float = 0.02, quick: float | None = None, **more) -> dict:
    row = latency_row("student", "model.onnx", ms, backend="ort-cpu", p10_ms=quick or 0.95 * ms,
                      low_ms=ms * (1 - drift / 2), high_ms=ms * (1 + drift / 2))
    return {**row, **more}


def results(*rows: dict, **env) -> Results:
    return Results("bench", "vega3d bench", "abc", {**ENV, **env}, list(rows))


@pytest.mark.parametrize(("before", "after", "verdict"), [
    (timed(20), timed(20.5), "equal"),                        # less than a change worth a name
    (timed(20), timed(24), "worse"),
    (timed(24), timed(20), "better"),
    (timed(20, drift=0.3), timed(24), "equal"),  # within how far the machine itself drifted
    # a burst of other work: the quick calls are as quick
    (timed(20), timed(26, quick=19.2), "equal"),
    (timed(20, drift=0.1), timed(26, drift=0.1), "worse"),
    (timed(20, busy_ms=19.0), timed(26, busy_ms=19.5), "equal"),  # the same work, waited for longer
    (timed(20, busy_ms=19.0), timed(26, busy_ms=25.0), "worse"),
])
def test_slower_is_slower_beyond_the_noise_of_both(before, after, verdict):
    assert compare_times(before, after)[1] == verdict


def test_rows_are_matched_by_what_they_are_not_by_their_place():
    old = results(timed(20), timed(90, batch=8), timed(5, device="cuda", launch="graph"))
    new = results(timed(5, device="cuda", launch="graph"), timed(20), timed(300, precision="fp64"))
    changes, alone = compare(old, new)
    assert {change.verdict for change in changes} == {"equal"}
    assert sorted(line.split(":")[0] for line in alone) == ["only after", "only before"]
    assert "batch 8" in " ".join(alone) and "fp64" in " ".join(alone)


def test_size_and_memory_may_not_grow_unseen():
    changes, _ = compare(results(timed(20)), results(timed(20, size_mb=24.0, memory_mb=81.0)))
    verdicts = {change.figure: change.verdict for change in changes}
    assert verdicts == {"latency_ms": "equal", "size_mb": "worse", "memory_mb": "equal"}


def test_accuracy_is_compared_within_its_interval_and_in_its_own_direction():
    old = results(accuracy_row("student_fp32", 0.83, 10.0))
    changes, _ = compare(old, results(accuracy_row("student_fp32", 0.825, 10.1)))
    assert {change.verdict for change in changes} == {"equal"}
    changes, _ = compare(old, results(accuracy_row("student_fp32", 0.80, 8.0)))
    verdicts = {change.figure: change.verdict for change in changes}
    assert verdicts["delta1"] == "worse" and verdicts["normal_deg"] == "better"


def test_a_jetson_s_file_is_read():
    row = {"artefact": "model.int8.engine", "precision": "int8", "batch": 1, "latency_ms": 3.0,
           "p90_ms": 3.1, "size_mb": 7.0}
    old, new = (Results("jetson", "run", "abc", {"device": "Orin"}, [{**row, "latency_ms": ms}])
                for ms in (3.0, 4.0))
    (time, _), _ = compare(old, new)
    assert time.verdict == "worse" and "int8 on trt" in time.row


def test_files_without_a_common_row_are_refused():
    with pytest.raises(ValueError, match="share no row"):
        compare(results(timed(20)), results(timed(20, backend="openvino")))


@pytest.mark.parametrize(("after", "env", "code"), [
    (20.1, {}, None), (30, {}, 1), (30, {"cpu": "another"}, None)])
def test_only_a_regression_on_the_same_machine_fails(tmp_path, capsys, after, env, code):
    save(results(timed(20)), tmp_path / "a.json")
    save(results(timed(after), **env), tmp_path / "b.json")
    arguments = ["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    if code is None:
        vega3d.main(arguments)
    else:
        with pytest.raises(SystemExit) as stop:
            vega3d.main(arguments)
        assert stop.value.code == code
    output = capsys.readouterr().out
    assert ("different machines" in output) == bool(env) and ("1 worse" in output) == (after == 30)


def jetson(power_mode: str, ms: float, clocks: str = "", **more) -> Results:
    """As run_on_jetson.py writes it: the settings are stated before and after the run."""
    row = {"kind": "latency", "precision": "int8", "backend": "tensorrt", "device": "cuda",
           "batch": 1, "latency_ms": ms, "p90_ms": 1.05 * ms, **more}
    state = {"power_mode": power_mode, "clocks": clocks, "temperature_c": {}}
    return Results("jetson", "run", "abc", {"device": "Orin", "before": state, "after": state},
                   [row])


SHOWN = """SOC family:tegra234  Machine:Orin
cpu0: Online=1 Governor={governor} MinFreq=729600 MaxFreq=1510400 CurrentFreq={now}
GPU MinFreq=306000000 MaxFreq={gpu} CurrentFreq=306000000
"""


@pytest.mark.parametrize(("before", "after", "said", "code"), [
    (jetson("MAXN 0", 82), jetson("15W 1", 164), "power mode MAXN 0 -> 15W 1", None),
    (jetson("MAXN 0", 82), jetson("", 164), "power mode MAXN 0 -> unknown", None),
    (jetson("MAXN 0", 82), jetson("MAXN 0", 164), "", 1),
    # neither the size nor the accuracy depends on the power mode
    (jetson("MAXN 0", 82, size_mb=7.0), jetson("15W 1", 164, size_mb=9.0), "power mode", 1),
    (jetson("0", 82, SHOWN.format(governor="schedutil", gpu=918000000, now=729600)),
     jetson("0", 164, SHOWN.format(governor="schedutil", gpu=408000000, now=1510400)),
     "clocks of GPU MinFreq=306000000 MaxFreq=918000000 -> MinFreq=306000000 MaxFreq=408000000",
     None),
    (jetson("0", 82, SHOWN.format(governor="schedutil", gpu=918000000, now=729600)),
     jetson("0", 164, SHOWN.format(governor="schedutil", gpu=918000000, now=1510400)), "", 1),
    (results(timed(20), cpu_governor="performance"), results(timed(40), cpu_governor="powersave"),
     "CPU governor performance -> powersave", None),
    (results(timed(20), gpu_power_limit="700.00 W"), results(timed(40), gpu_power_limit="350.00 W"),
     "GPU power limit 700.00 W -> 350.00 W", None),
    (results(timed(20), gpu_clocks_sm="345 MHz"), results(timed(40), gpu_clocks_sm="1980 MHz"),
     "", 1)])  # the clock of an instant is no setting
def test_times_of_other_power_modes_and_clocks_are_said_to_be_no_regression(
        tmp_path, capsys, before, after, said, code):
    save(before, tmp_path / "a.json")
    save(after, tmp_path / "b.json")
    try:
        vega3d.main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
        stopped = None
    except SystemExit as stop:
        stopped = stop.code
    output = capsys.readouterr().out
    assert stopped == code and said in output and ("settings" in output) == bool(said), output


def test_another_schema_is_one_line(tmp_path, capsys):
    save(results(timed(20)), tmp_path / "a.json")
    (tmp_path / "b.json").write_text(json.dumps({"schema": 7, "rows": []}))
    with pytest.raises(SystemExit) as stop:
        vega3d.main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "was written by another version of vega3d-edge (schema 7, this one reads 1)" in error


def noisy(rng: np.random.Generator, ms: float) -> dict:
    """A run on a shared machine: bursts, slow runs, a tail; CPU time hardly changes."""
    level = rng.choice([1.0, 1.15, 1.6], p=[0.6, 0.25, 0.15])
    rounds = [
        ms * rng.normal(level * rng.choice([1, 1.3], p=[0.85, 0.15]), 0.02)
        + rng.exponential(0.05 * ms, 15) for _ in range(10)
    ]
    busy = [ms * rng.normal(1.0, 0.02) for _ in range(10)]
    return summary(BenchCase({}, print, rounds=rounds, busy=busy))


def test_random_noise_is_equal_and_a_third_slower_is_still_seen():
    rng = np.random.default_rng(0)
    same = [compare_times(noisy(rng, 20), noisy(rng, 20))[1] for _ in range(300)]
    assert same.count("equal") >= 0.95 * len(same)
    slower = [compare_times(noisy(rng, 20), noisy(rng, 30))[1] for _ in range(300)]
    assert slower.count("worse") >= 0.5 * len(slower) and "better" not in slower
    quiet = [
        compare_times(timed(20 * rng.normal(1, 0.01)), timed(26 * rng.normal(1, 0.01)))[1]
        for _ in range(100)
    ]
    assert quiet.count("worse") == 100
