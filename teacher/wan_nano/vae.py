"""wan-nano's VAE: Wan's causal video autoencoder in a small size, trained on random crops.

Loss = L1 + image-gradient L1 + a small KL; pixels in [-1,1]. Crops are 9 frames long: the third
latent frame is the first that decodes from a full temporal cache.
"""
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from teacher.fast.whole_clip_vae import WholeClipVAE

KL_WEIGHT, GRADIENT_WEIGHT = 1e-4, 1.0


def build_vae() -> AutoencoderKLWan:
    """2.5 M parameters; 8x in space, 4x in time, 16 channels, as Wan2.1."""
    # Wan2.2's 2x2 patchify is the first halving: no convolution runs at full resolution
    return AutoencoderKLWan(base_dim=32, z_dim=16, dim_mult=[1, 2, 2], num_res_blocks=1,
                            patch_size=2, in_channels=12, out_channels=12,
                            temperal_downsample=[True, True], latents_mean=[0.0] * 16,
                            latents_std=[1.0] * 16)


class ReconstructionLoss(nn.Module):
    """[B,T,3,h,w] uint8 -> (total, reconstruction L1)."""

    def __init__(self, vae: AutoencoderKLWan):
        super().__init__()
        self.vae = WholeClipVAE(vae)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        x = to_pixels(frames)                                                       # [B,3,T,h,w]
        out, posterior = self.vae(x)
        out = out.float()
        l1 = (out - x).abs().mean()
        gradient = sum((torch.diff(out, dim=d) - torch.diff(x, dim=d)).abs().mean() for d in (3, 4))
        mean, var, logvar = (v.float() for v in (posterior.mean, posterior.var, posterior.logvar))
        kl = 0.5 * (mean**2 + var - 1 - logvar).mean()
        return l1 + GRADIENT_WEIGHT * gradient + KL_WEIGHT * kl, l1.detach()


def crops(frames: Tensor, batch: int, side: int, seed: int, step: int) -> Tensor:
    """Random crops [B,T,3,side,side] of frames [N,T,3,H,W], by (seed, step) alone."""
    n, _, _, h, w = frames.shape
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    which = torch.randint(n, (batch,), generator=draw)
    top = torch.randint(h - side + 1, (batch,), generator=draw)
    left = torch.randint(w - side + 1, (batch,), generator=draw)
    return torch.stack([frames[i, :, :, y:y + side, x:x + side] for i, y, x in
                        zip(which.tolist(), top.tolist(), left.tolist(), strict=True)])


def to_pixels(frames: Tensor) -> Tensor:
    """[B,T,3,h,w] uint8 -> [B,3,T,h,w] float32 in [-1,1], the VAE's layout."""
    return frames.transpose(1, 2).float() / 127.5 - 1


@torch.inference_mode()
def encode_all(vae: AutoencoderKLWan, frames: Tensor, device: torch.device,
               batch: int = 64) -> Tensor:
    """Raw latent means of frames [N,T,3,H,W] uint8 -> [N,16,F,H/8,W/8] float16 on `device`."""
    dtype = next(vae.parameters()).dtype
    pixels = (to_pixels(part.to(device)).to(dtype) for part in frames.split(batch))
    return torch.cat([vae.encode(x).latent_dist.mode().half() for x in pixels])


@torch.inference_mode()
def reconstruction_psnr(vae: AutoencoderKLWan, frames: Tensor, device: torch.device,
                        batch: int = 8) -> Tensor:
    """PSNR in dB of each clip of frames [N,T,3,H,W] uint8 through the VAE -> [N]."""
    dtype = next(vae.parameters()).dtype
    scores = []
    for part in frames.split(batch):
        x = to_pixels(part.to(device))
        out = vae.decode(vae.encode(x.to(dtype)).latent_dist.mode()).sample.float()
        error = (out - x).square().mean((1, 2, 3, 4))
        scores.append(10 * torch.log10(4 / error))  # range 2, so peak^2 = 4
    return torch.cat(scores).cpu()
