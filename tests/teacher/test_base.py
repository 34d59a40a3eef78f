"""Memory is bounded, frames of any size are resized, noise depends on the video alone."""
import pytest
import torch
import torch.nn.functional as F

from teacher.towers import base
from teacher.towers.base import (
    NoiseBank,
    chunk_size,
    in_chunks,
    registered_size,
    resize_paper,
    resize_registered,
)
from teacher.towers.tap import Tap
from teacher.towers.wan import load_wan

FRAMES = torch.rand(2, 5, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("frames", ["image", "video"])
def test_features_do_not_depend_on_the_chunk(tiny_wan, frames):
    tower = load_wan(tiny_wan, Tap(block=1, seeds=2, frames=frames))
    expected = tower.block_features(FRAMES, [0, 1])
    for tower.chunk in (1, 3):
        torch.testing.assert_close(tower.block_features(FRAMES, [0, 1]), expected, rtol=1e-4,
                                   atol=1e-5)


def test_a_smaller_budget_means_smaller_chunks(monkeypatch):
    assert chunk_size(2**20, torch.device("cpu")) == 2048
    monkeypatch.setattr(base, "CPU_BUDGET", 1000)
    assert chunk_size(400, torch.device("cpu")) == 2 and chunk_size(10**9, torch.device("cpu")) == 1
    # MiB items: the cap, 60 %, at least one
    for free, wanted in ((20 * 2**30, 8192), (10 * 2**30, 6144), (2**20, 1)):
        monkeypatch.setattr(base, "_free", lambda _, f=free: f)
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
    expected, sizes = tower.features(FRAMES), []
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
    torch.testing.assert_close(tower.features(FRAMES), expected, rtol=1e-4, atol=1e-5)
    assert sizes == [10, 5, 2, 2, 2, 2, 2, 10, 5, 5]
    monkeypatch.setattr(tower, "_encode", limited(encode, 0))
    with pytest.raises(
            ValueError,
            match=r"^out of GPU memory with one at a time; lower tap\.side or set tap\.prec"):
        tower.features(FRAMES)


@pytest.mark.parametrize(("size", "side", "wanted"), [
    ((480, 640), None, (480, 640)), ((968, 1296), 480, (480, 640)), ((220, 224), None, (224, 224)),
    ((1080, 1920), 480, (480, 848)), ((640, 480), 224, (304, 224)), ((5, 5), None, (16, 16))])
def test_a_registered_frame_keeps_its_aspect_to_half_a_token(size, side, wanted):
    assert registered_size(*size, side, 16) == wanted


def test_a_registered_frame_is_whole_and_one_that_fits_is_untouched():
    left_white = torch.zeros(1, 3, 100, 200)
    left_white[..., :100] = 1
    out = resize_registered(left_white, 112, 16)
    assert out.shape == (1, 3, 112, 224) and out[..., :104].min() > 0.99 and out[...,
                                                                                 120:].max() < 0.01
    fits = torch.rand(1, 3, 32, 48)
    assert resize_registered(fits, None, 16) is fits


@pytest.mark.parametrize(("side", "size", "rows"), [(None, (720, 1280), 0.5625),
                                                    (480, (480, 832), 0.577)])
def test_paper_geometry_squashes_and_keeps_the_middle_rows(side, size, rows):
    ramp = torch.linspace(0, 1, 480).view(1, 1, -1, 1).expand(1, 3, 480, 640)
    out = resize_paper(ramp, side)
    assert out.shape == (1, 3, *size)
    spread = out[0, 0, -1, 0] - out[0, 0, 0, 0]
    assert abs(spread - rows) < 0.005 and abs(out.mean() - 0.5) < 1e-3
    assert out[0, 0, 0].std() < 1e-5                                    # every column is there


def test_paper_geometry_is_the_released_resize_of_a_384_px_frame():
    frame = torch.rand(1, 3, 384, 384)
    wanted = F.interpolate(frame, (832, 832), mode="bilinear", align_corners=False)[:, :, 176:656]
    torch.testing.assert_close(resize_paper(frame, 480), wanted)


def test_noise_is_drawn_once_a_video_and_anew_for_another_size():
    bank, z = NoiseBank(), torch.zeros(3, 4, 1, 6, 6)
    first = bank.draw(7, [0, 1, 0], z)
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    torch.testing.assert_close(
        first[1], torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(7 * 1009 + 1)))
    assert torch.equal(bank.draw(7, [1], z[:1])[0],
                       first[1]) and not torch.equal(bank.draw(8, [1], z[:1])[0], first[1])
    assert bank.draw(7, [0], F.pad(z[:1], (0, 1))).shape == (1, 4, 1, 6, 7)
