"""Interleaved timing: calls timed in turn, so that drift of the machine affects all alike.

Standard library only and Python 3.8, because `export trt --target jetson` copies this file to the
device.
"""
from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Callable, Sequence, TypeVar  # noqa: UP035  (collections.abc: 3.9)

# The least speed-up for which a lower precision is recommended: less is within the clock's noise.
MIN_SPEEDUP = 1.03
MAX_BLOCK = 50  # calls

Clock = Callable[[], float]  # seconds
T = TypeVar("T")


def time_interleaved(calls: Sequence[Callable[[], object]], clock: Clock = time.perf_counter,
                     rounds: int = 21, block_seconds: float = 0.05) -> list[float]:
    """Milliseconds of each call: the median over rounds of a block's median.

    A block has as many calls as fit into `block_seconds`, 1 to MAX_BLOCK.
    """
    samples = [partial(_timed, call, clock) for call in calls]
    lengths = [_block_length(sample, block_seconds) for sample in samples]
    blocks = [partial(_block_median, sample, length)
              for sample, length in zip(samples, lengths)]
    return [1000 * statistics.median(medians) for medians in interleave(blocks, rounds)]


def interleave(blocks: Sequence[Callable[[int], T]], rounds: int,
               progress: Callable[[], object] = lambda: None) -> list[list[T]]:
    """Runs each block, called with the round's index, once a round, every other round in reverse
    order: A B, B A, A B, ... Returns [block][round]."""
    results: list[list[T]] = [[] for _ in blocks]
    for i in range(rounds):
        order = range(len(blocks))
        for which in order if i % 2 == 0 else reversed(order):
            results[which].append(blocks[which](i))
        progress()
    return results


def sample_block(sample: Callable[[], T], min_calls: int, min_seconds: float = 0.0,
                 clock: Clock = time.perf_counter) -> list[T]:
    """What `sample` returns, called at least `min_calls` times and for at least `min_seconds`.

    An extra call comes first, its result dropped: it brings the weights back into the caches.
    """
    sample()
    began = clock()
    results: list[T] = []
    while len(results) < min_calls or clock() - began < min_seconds:
        results.append(sample())
    return results


def _block_median(sample: Callable[[], float], calls: int, _round: int) -> float:
    return statistics.median(sample_block(sample, calls))


def _block_length(sample: Callable[[], float], block_seconds: float) -> int:
    seconds = min(sample_block(sample, 2))
    return min(max(round(block_seconds / max(seconds, 1e-9)), 1), MAX_BLOCK)


def _timed(call: Callable[[], object], clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start
