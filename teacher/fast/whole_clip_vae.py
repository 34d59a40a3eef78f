"""The Wan VAE over a complete clip in one pass, for training.

diffusers walks a clip in chunks of 1, 4, 4, … frames, which bounds the memory of long videos. On a
short clip one pass computes the same numbers with a third of the kernels.
"""
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class WholeClipVAE(nn.Module):
    """[B,3,T,h,w] in [-1,1] -> (reconstruction, posterior), T = 4n+1, with the weights of a
    Wan2.1-like `vae`. ValueError for Wan2.2's residual VAE, whose shortcuts differ by chunk."""

    def __init__(self, vae: AutoencoderKLWan):
        super().__init__()
        if vae.config.is_residual:
            raise ValueError("whole-clip pass: Wan2.2's residual VAE is not supported; train a "
                             "Wan2.1-like one")
        for module in [*vae.modules()]:
            for name, child in module.named_children():
                if type(child) is WanResample:
                    setattr(module, name, WholeClipResample(child))
            if isinstance(module, nn.Conv2d | nn.Conv3d):  # the layout that tensor cores read
                module.weight.data = module.weight.contiguous(
                    memory_format=_CHANNELS_LAST[module.weight.ndim])
        self.vae = vae

    def forward(self, x: Tensor) -> tuple[Tensor, DiagonalGaussianDistribution]:
        vae, side = self.vae, self.vae.config.patch_size
        x = (patchify(x, side) if side else x).contiguous(memory_format=_CHANNELS_LAST[5])
        posterior = DiagonalGaussianDistribution(vae.quant_conv(vae.encoder(x)))
        out = vae.decoder(vae.post_quant_conv(posterior.sample()))
        return (unpatchify(out, side) if side else out).clamp(-1, 1), posterior


class WholeClipResample(WanResample):
    """`original`, whose path without a cache also applies the time convolution, to all T frames.

    A clip's first frame stands alone: it is never merged with others, nor split.
    """

    def __init__(self, original: WanResample):
        nn.Module.__init__(self)  # takes the original's layers instead of allocating its own
        self.dim, self.mode, self.resample = original.dim, original.mode, original.resample
        if hasattr(original, "time_conv"):
            self.time_conv = original.time_conv

    def forward(self, x: Tensor, feat_cache: list | None = None,
                feat_idx: list[int] | None = None) -> Tensor:
        if feat_cache is not None:
            return super().forward(x, feat_cache, feat_idx)
        if self.mode == "upsample3d" and x.shape[2] > 1:
            b, c, t, h, w = x[:, :, 1:].shape
            # its channels hold two frames each
            pairs = self.time_conv(x[:, :, 1:]).view(b, 2, c, t, h, w)
            later = pairs.permute(0, 3, 1, 4, 5, 2).reshape(b, 2 * t, h, w, c)
            x = torch.cat([x[:, :, :1], later.permute(0, 4, 1, 2, 3)], 2)
        b, _, t, _, _ = x.shape
        x = self.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (b, t)).transpose(1, 2)
        if self.mode == "downsample3d" and t > 1:
            x = torch.cat([x[:, :, :1], self.time_conv(x)], 2)  # 4n+1 -> 2n+1 frames
        return x
