"""Memory is bounded, and nothing but memory depends on how."""
import pytest
import torch

from teacher.towers import chunking
from teacher.towers.chunking import chunk_size, in_chunks
from teacher.towers.tap import Tap
from teacher.towers.wan import load_wan

FRAMES = torch.rand(2, 5, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("frames", ["image", "video"])
def test_features_do_not_depend_on_the_chunk(tiny_wan, frames):
    tower = load_wan(tiny_wan, Tap(block=1, seeds=2, frames=frames))
    whole = tower.block_features(FRAMES, [0, 1])
    for tower.chunk in (1, 3):
        torch.testing.assert_close(tower.block_features(FRAMES, [0, 1]), whole, rtol=1e-4,
                                   atol=1e-5)


def test_a_smaller_budget_means_smaller_chunks(monkeypatch):
    assert chunk_size(2**20, torch.device("cpu")) == 2048
    monkeypatch.setattr(chunking, "CPU_BUDGET", 1000)
    assert chunk_size(400, torch.device("cpu")) == 2 and chunk_size(10**9, torch.device("cpu")) == 1
    # MiB items: the cap, 60 %, at least one
    for free, wanted in ((20 * 2**30, 8192), (10 * 2**30, 6144), (2**20, 1)):
        monkeypatch.setattr(chunking, "_free", lambda _, f=free: f)
        assert chunk_size(2**20, torch.device("cuda")) == wanted


def test_out_of_memory_halves_the_chunk_and_goes_on():
    sizes = []

    def call(part):
        sizes.append(part.stop - part.start)
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("full")
        return torch.arange(part.start, part.stop)

    assert torch.equal(in_chunks(call, 11, 8, 0, "-"), torch.arange(11))
    assert sizes == [6, 3, 3, 3, 2]


def test_out_of_memory_with_one_is_one_clear_line():
    def full(part):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")

    with pytest.raises(ValueError,
                       match=r"^out of GPU memory with one at a time; lower tap\.side$"):
        in_chunks(full, 4, 4, 0, "lower tap.side")
    with pytest.raises(RuntimeError, match="another"):
        in_chunks(lambda part: (_ for _ in ()).throw(RuntimeError("another")), 4, 4, 0, "-")


def test_a_tower_that_runs_out_of_memory_says_the_same_in_smaller_chunks(tiny_wan, monkeypatch):
    tower = load_wan(tiny_wan, Tap(block=1, seeds=1))
    whole, sizes = tower.features(FRAMES), []
    encode, tokens = tower._encode, tower._noised_tokens

    def limited(call, most):
        def run(x, *rest):
            sizes.append(len(x))
            if len(x) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return call(x, *rest)
        return run

    monkeypatch.setattr(tower, "_encode", limited(encode, 3))
    monkeypatch.setattr(tower, "_noised_tokens", limited(tokens, 6))
    torch.testing.assert_close(tower.features(FRAMES), whole, rtol=1e-4, atol=1e-5)
    assert sizes == [10, 5, 2, 2, 2, 2, 2, 10, 5, 5]
    monkeypatch.setattr(tower, "_encode", limited(encode, 0))
    with pytest.raises(
            ValueError,
            match=r"^out of GPU memory with one at a time; lower tap\.side or set tap\.prec"):
        tower.features(FRAMES)
