import pytest
import torch

from distill.augment import PHOTOMETRIC_DRAWS, Augmentation, photometric

FRAMES = torch.randint(0, 256, (6, 3, 32, 48), generator=torch.Generator().manual_seed(0),
                       dtype=torch.uint8)
CPU = torch.device("cpu")
NEUTRAL = {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5, 5: 0.5, 6: 0.5, 7: 0.5, 8: 0.9, 9: 0.8 / 1.3, 10: 0.2,
           11: 0.2, 12: 0.5664, 15: 0.2, 18: 0.5, 19: 0.5}  # draws that change nothing


def draws(**changed):
    table = torch.full((len(FRAMES), PHOTOMETRIC_DRAWS), 0.5)
    for index, value in (NEUTRAL | {int(k[1:]): v for k, v in changed.items()}).items():
        table[:, 16 + index] = value
    return table


def test_without_names_frames_are_only_scaled():
    assert torch.equal(Augmentation((), 0, CPU)(FRAMES, 3), FRAMES.float() / 255)


def test_neutral_draws_give_the_frame_back():
    frames = FRAMES.float() / 255
    torch.testing.assert_close(photometric(frames, draws()), frames, atol=0.03, rtol=0)


def test_exposure_spans_half_to_one_point_seven():
    grey = torch.full((6, 3, 32, 32), 0.4)
    for value, factor in ((0.0, 0.5), (1.0, 1.7)):
        out = photometric(grey, draws(d12=value))
        torch.testing.assert_close(out, grey * factor, atol=0.01, rtol=0)


def test_a_blur_keeps_the_mean_and_moves_along_its_line_alone():
    frames = torch.zeros(6, 3, 33, 33)
    frames[..., 16, 16] = 1
    out = photometric(frames, draws(d0=0.0, d1=1.0))[0, 0]  # angle 0, 6 px
    assert out[16, 13] > 0.1 and out[13, 16] < 0.01


def test_noise_is_unbiased_grows_with_light_and_differs_between_frames():
    grey = torch.full((6, 3, 64, 64), 0.4)
    table = draws(d18=1.0)
    table[:, 16 + 17] = torch.linspace(0.1, 0.9, 6)
    noise = photometric(grey, table) - 0.4
    assert noise.mean().abs() < 2e-3
    assert noise.std() == pytest.approx(0.04 * (0.4 + 0.03)**0.5, rel=0.05)
    assert photometric(grey / 4, table).std() < 0.7 * noise.std()
    flat = noise.flatten(1)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.05
    assert torch.corrcoef(noise[0].flatten(1)).fill_diagonal_(0).abs().max() < 0.05  # colours
    shifted = torch.corrcoef(torch.stack([noise[0, 0, :, 1:].flatten(),
                                          noise[0, 0, :, :-1].flatten()]))
    assert shifted[0, 1].abs() < 0.05


def test_compression_leaves_flat_and_loses_fine_detail_in_blocks():
    ramp = torch.linspace(0.2, 0.8, 64).expand(6, 3, 64, 64)
    fine = 0.5 + 0.02 * (torch.arange(64) % 2 * 2 - 1).expand(6, 3, 64, 64)
    torch.testing.assert_close(photometric(ramp, draws(d19=1.0)), ramp, atol=0.06, rtol=0)
    out = photometric(fine, draws(d19=1.0))
    assert out.std() < 0.1 * fine.std()
    odd = FRAMES.float()[..., :21, :43] / 255
    torch.testing.assert_close(photometric(odd, draws()), odd, atol=0.03, rtol=0)
    changed = (photometric(odd, draws(d19=1.0)) - odd).abs()
    assert changed.mean() > 0.02


def test_frames_depend_on_the_seed_and_step_but_not_on_how_a_batch_is_shared():
    augment = Augmentation(("photometric",), 7, CPU)
    whole = augment(FRAMES, 5)
    parts = [augment(FRAMES[rows], 5, rows, len(FRAMES)) for rows in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(torch.cat(parts), whole)
    for other in (augment(FRAMES, 6), Augmentation(("photometric",), 8, CPU)(FRAMES, 5)):
        assert not torch.equal(other, whole)
    assert whole.min() >= 0 and whole.max() <= 1
