"""One pass over the clip is diffusers' chunked pass, forwards and backwards."""
import pytest
import torch
from diffusers import AutoencoderKLWan

from teacher.fast.whole_clip_vae import WholeClipVAE
from teacher.wan_nano.vae import build_vae


@pytest.mark.parametrize("frames", [1, 5, 9, 13])
def test_equals_the_chunked_pass(frames: int) -> None:
    torch.manual_seed(frames)
    vae = build_vae().double()
    x = torch.rand(2, 3, frames, 32, 48, dtype=torch.float64) * 2 - 1
    chunked = vae.encode(x).latent_dist
    torch.manual_seed(5)
    expected = vae.decode(chunked.sample()).sample
    expected.square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}
    vae.zero_grad()
    torch.manual_seed(5)
    out, posterior = WholeClipVAE(vae)(x)
    out.square().sum().backward()
    torch.testing.assert_close(posterior.mean, chunked.mean)
    torch.testing.assert_close(out, expected)
    for name, p in vae.named_parameters():
        if name in wanted:
            # diffusers upsamples in float32
            assert (p.grad - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name


def test_the_vae_itself_still_works_in_chunks() -> None:
    torch.manual_seed(0)
    vae = build_vae()
    x = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    before = vae.decode(vae.encode(x).latent_dist.mode()).sample
    WholeClipVAE(vae)
    torch.testing.assert_close(vae.decode(vae.encode(x).latent_dist.mode()).sample, before)


def test_refuses_the_residual_vae() -> None:
    residual = AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1,
                                temperal_downsample=[True], is_residual=True, patch_size=2,
                                in_channels=12, out_channels=12, latents_mean=[0.0] * 4,
                                latents_std=[1.0] * 4)
    with pytest.raises(ValueError, match=r"Wan2\.2"):
        WholeClipVAE(residual)
