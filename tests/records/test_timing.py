"""Interleaved timing, by a clock of the test's own."""
from itertools import count

import pytest

from records.timing import interleave, sample_block, time_interleaved
from tests.fake_clock import FakeClock


def test_blocks_take_turns_and_results_keep_their_order():
    order = []

    def block(name):
        return lambda i: order.append(name) or (name, i)

    progress = []
    results = interleave([block("a"), block("b"), block("c")], 3, lambda: progress.append(None))
    assert order == ["a", "b", "c", "c", "b", "a", "a", "b", "c"] and len(progress) == 3
    assert results == [[(name, i) for i in range(3)] for name in "abc"]


def test_medians_are_given_and_each_block_begins_with_an_untimed_call():
    clock, log = FakeClock(), []
    slow, slower = time_interleaved([clock.call_taking(40, log), clock.call_taking(90, log)], clock,
                                    rounds=4)
    assert (slow, slower) == (pytest.approx(40), pytest.approx(90))
    after_warm_up = log[6:]
    # A B, B A, ...; one untimed call before each
    assert after_warm_up == [40, 40, 90, 90, 90, 90, 40, 40] * 2


def test_a_single_slow_spell_does_not_decide():
    clock, calls = FakeClock(), []

    def disturbed():
        calls.append(None)
        clock.now += 0.001 if len(calls) % 60 else 1.0

    assert time_interleaved([disturbed, clock.call_taking(2)], clock)[0] == pytest.approx(1)


def test_block_lasts_for_its_calls_and_its_seconds():
    clock, numbers = FakeClock(), count()

    def sample():
        clock.now += 0.1
        return next(numbers)

    assert sample_block(sample, 3, clock=clock) == [1, 2, 3]  # 0 is not timed
    assert len(sample_block(sample, 1, 0.45, clock)) == 5
