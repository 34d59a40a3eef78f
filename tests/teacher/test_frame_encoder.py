"""The single-frame encoder equals the 3D encoder on one frame."""
import pytest
import torch
from diffusers import AutoencoderKLWan

from teacher.fast.frame_encoder import FirstConv, FrameConv, FrameEncoder
from teacher.towers.wan import normalise_latents
from tests.fakes import save_tiny_5b


@pytest.mark.parametrize("five_b", [False, True])
def test_the_frame_encoder_is_the_3d_encoder_of_one_frame(tiny_wan, tmp_path, five_b):
    folder = save_tiny_5b(tmp_path) if five_b else tiny_wan
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    encoder = FrameEncoder(vae)
    frames = torch.rand(3, 3, 64, 96)
    with torch.inference_mode():
        wanted = normalise_latents(vae.encode((frames * 2 - 1).unsqueeze(2)).latent_dist.mode(),
                           vae).squeeze(2)
        torch.testing.assert_close(encoder(frames), wanted, rtol=1e-4, atol=1e-5)
    first = encoder.encoder.conv_in
    assert isinstance(first,
                      FrameConv if five_b else FirstConv) and first.weight[0].numel() % 8 == 0
    flat = [m for m in encoder.modules() if isinstance(m, FrameConv)]
    assert len(flat) > 10 and all(m.weight.shape[1] % 8 == 0 for m in flat)
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in flat)


def test_only_the_last_slice_of_a_causal_kernel_is_read(tiny_wan):
    vae = AutoencoderKLWan.from_pretrained(tiny_wan / "vae", torch_dtype=torch.float32).eval()
    frames = torch.rand(1, 3, 64, 64)
    before = FrameEncoder(vae)(frames)
    vae.encoder.conv_in.weight.data[:, :, :-1] += 1
    torch.testing.assert_close(FrameEncoder(vae)(frames), before)
    vae.encoder.conv_in.weight.data[:, :, -1] += 1
    assert not torch.allclose(FrameEncoder(vae)(frames), before)
