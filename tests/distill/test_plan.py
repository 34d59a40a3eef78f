import pytest

import vega3d
from distill.config import RunConfig, StudentTraining
from distill.plan import Rates, plan

RATES = Rates(generative=10, semantic=100, student=50, channels=256, weights=1_000_000)


def test_hours_and_storage_follow_from_the_rates():
    config = RunConfig(student=StudentTraining(epochs=4), seeds=(0, 1))
    found = plan(RATES, config, 36_000, 1)
    assert found.hours == pytest.approx({"generative extraction": 1, "semantic extraction": 0.1,
                                         "student": 36_000 * 8 / 50 / 3600})
    assert found.bytes["generative features"] == 36_000 * 256 * 196 * 2
    assert found.bytes["clips"] == 36_000 * 150_528
    assert sum(plan(RATES, config, 36_000, 8).hours.values()) == pytest.approx(
        sum(found.hours.values()) / 8)
    assert found.lines()[-1] == "cost drivers: clips (storage), student (time)"


def test_plan_prints_the_measured_rates(monkeypatch, capsys):
    monkeypatch.setattr("distill.plan.measure", lambda config: RATES)
    vega3d.main(["distill", "plan", "--hours", "1000", "--gpus", "8"])
    out = capsys.readouterr().out
    assert "18,000,000 frames on 8 devices" in out and "62.5000 h" in out
    for option in ("--hours=0", "--gpus=0", "--fps=nan"):
        with pytest.raises(SystemExit) as error:
            vega3d.main(["distill", "plan", option])
        assert error.value.code == 2
