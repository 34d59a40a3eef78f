"""Frames of any size: resized whole, or squashed and cropped as the released code does; and its
clock."""
import shutil

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel

from teacher.towers.prompt import Prompt, save_prompt
from teacher.towers.resize import paper, registered, registered_size
from teacher.towers.tap import Tap, paper_time
from teacher.towers.wan import load_wan


@pytest.mark.parametrize(("size", "side", "wanted"), [
    ((480, 640), None, (480, 640)), ((968, 1296), 480, (480, 640)), ((220, 224), None, (224, 224)),
    ((1080, 1920), 480, (480, 848)), ((640, 480), 224, (304, 224)), ((5, 5), None, (16, 16))])
def test_a_registered_frame_keeps_its_aspect_to_half_a_token(size, side, wanted):
    assert registered_size(*size, side, 16) == wanted


def test_a_registered_frame_is_whole_and_one_that_fits_is_untouched():
    left_white = torch.zeros(1, 3, 100, 200)
    left_white[..., :100] = 1
    out = registered(left_white, 112, 16)
    assert out.shape == (1, 3, 112, 224) and out[..., :104].min() > 0.99 and out[...,
                                                                                 120:].max() < 0.01
    fits = torch.rand(1, 3, 32, 48)
    assert registered(fits, None, 16) is fits


@pytest.mark.parametrize(("side", "size", "rows"), [(None, (720, 1280), 0.5625), (480, (480, 832), 0.577)])
def test_paper_geometry_squashes_and_keeps_the_middle_rows(side, size, rows):
    ramp = torch.linspace(0, 1, 480).view(1, 1, -1, 1).expand(1, 3, 480, 640)
    out = paper(ramp, side)
    assert out.shape == (1, 3, *size)
    kept = out[0, 0, -1, 0] - out[0, 0, 0, 0]
    assert abs(kept - rows) < 0.005 and abs(out.mean() - 0.5) < 1e-3
    assert out[0, 0, 0].std() < 1e-5                                    # every column is there


def test_paper_geometry_is_the_released_resize_of_a_384_px_frame():
    frame = torch.rand(1, 3, 384, 384)
    wanted = F.interpolate(frame, (832, 832), mode="bilinear", align_corners=False)[:, :, 176:656]
    torch.testing.assert_close(paper(frame, 480), wanted)


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


def test_frames_of_any_size_become_14x14_tokens(tiny_wan):
    tower = load_wan(tiny_wan, Tap(block=0, seeds=1))
    assert tower.features(torch.rand(1, 1, 3, 220, 300)).shape == (1, 1, 32, 14, 14)
    small = load_wan(tiny_wan, Tap(block=0, seeds=1, side=64))
    assert small.features(torch.rand(1, 1, 3, 100, 90)).shape == (1, 1, 32, 14, 14)


def test_a_larger_grid_is_averaged_to_14x14(tiny_wan):
    tower = load_wan(tiny_wan, Tap(block=1, k=0, seeds=1))
    frames, taken = torch.rand(1, 1, 3, 448, 448), []
    hook = tower.transformer.blocks[0].register_forward_hook(lambda m, i, out: taken.append(out))
    pooled = tower.block_features(frames, [0, 1])[0, 0, 0]
    hook.remove()
    grid = taken[0][0].T.unflatten(1, (28, 28))
    torch.testing.assert_close(pooled, F.avg_pool2d(grid, 2), rtol=1e-4, atol=1e-5)


def test_paper_geometry_refuses_other_sizes():
    with pytest.raises(ValueError, match="expected 720 or 480"):
        Tap(geometry="paper", side=512)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_paper_geometry_gives_the_released_path_s_features(tiny_wan, tmp_path, monkeypatch,
                                                           precision):
    """The released way, step by step: frames through the 3D VAE one by one, all blocks, prompt
    padded to 512."""
    # the true size costs minutes here
    monkeypatch.setattr("teacher.towers.resize.PAPER_SIZES", {720: (64, 112)})
    folder = shutil.copytree(tiny_wan, tmp_path / "wan")
    prompt = Prompt(torch.randn(1, 1, 32), 512)
    save_prompt(prompt, folder / "prompt.safetensors")
    frames = torch.rand(3, 3, 48, 64)
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    full = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    square = F.interpolate(frames, (384, 384), mode="bicubic", antialias=True).clamp(0, 1)
    x = F.interpolate(square, (112, 112), mode="bilinear")[:, :, 24:88] * 2 - 1
    z = torch.cat([(vae.encode(one[None, :, None]).latent_dist.mode() - 0.1) / 0.5
                   for one in x])  # [3,4,1,8,14]
    noise = torch.stack(
        [torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(i)) for i in range(3)])
    sigma, taken = paper_time(300)[1], []
    full.blocks[1].register_forward_hook(lambda m, i, out: taken.append(out))
    with torch.inference_mode():
        full(hidden_states=(1 - sigma) * z + sigma * noise, timestep=torch.full((3,), 299),
             encoder_hidden_states=prompt.padded().expand(3, -1, -1))
    wanted = F.adaptive_avg_pool2d(taken[0].transpose(1, 2).unflatten(2, (4, 7)), (14, 14))
    tap = Tap(block=1, k=300, seeds=1, geometry="paper", precision=precision)
    found = load_wan(folder, tap).features(frames[None])[0]
    if precision == "fp32":
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    assert F.cosine_similarity(found, wanted, dim=1).min() > 0.999
