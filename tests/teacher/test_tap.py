"""The tap's noise levels: k itself, or the released scheduler's pairs."""
import pytest
from diffusers import UniPCMultistepScheduler

from teacher.towers.tap import Tap, paper_time


def test_the_clock_is_k_itself_and_in_paper_geometry_the_released_scheduler_s_pair():
    assert [Tap(k=k).time for k in (0, 300, 1000)] == [(0, 0), (300, 0.3), (1000, 1)]
    pairs = [Tap(k=k, geometry="paper").time for k in (0, 300, 1000)]
    assert [t for t, _ in pairs] == [4, 299, 999]
    assert [s for _, s in pairs] == pytest.approx([0.005, 0.2999, 0.9998], abs=5e-5)
    scheduler = UniPCMultistepScheduler(num_train_timesteps=1000, prediction_type="flow_prediction",
                                        use_flow_sigmas=True, flow_shift=5.0)
    scheduler.set_timesteps(1000)
    for k in (0, 50, 300, 700, 1000):  # diffusers' list is offset by up to a step
        i = (scheduler.timesteps - k).abs().argmin()
        timestep, sigma = paper_time(k)
        assert abs(timestep - scheduler.timesteps[i]) <= 5 and abs(sigma -
                                                                   scheduler.sigmas[i]) <= 0.005
        assert 0 <= 1000 * sigma - timestep < 1  # the clock is the noise share, truncated


def test_paper_geometry_refuses_other_sizes():
    with pytest.raises(ValueError, match="expected 720 or 480"):
        Tap(geometry="paper", side=512)
