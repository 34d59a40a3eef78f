"""Stable Diffusion and Stable Video Diffusion, read where the paper reads them: what enters the UNet's middle block.

z_k = sqrt(a_k) z + sqrt(1 - a_k) eps with the checkpoint's own schedule; each frame alone. The paper gave them 896 px,
where the middle block is 14x14; at 224 px it is 4x4, spread over the grid.
"""
from collections.abc import Mapping
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teacher.early import until
from teacher.noised import ScheduledTower

FPS, MOTION, AUGMENTED = 6.0, 127.0, 0.0  # what SVD is told of a clip: its defaults, but for noise on the still


class UNetTower(ScheduledTower):
    """Stable Diffusion's UNet with the empty prompt."""
    kind, multiple, level = "unet", 8, 250

    def latents(self, x: Tensor) -> Tensor:
        return self.vae.encode(x).latent_dist.mode() * self.vae.config.scaling_factor

    def grid(self, z: Tensor, more: Mapping[str, Tensor]) -> Tensor:
        assert self.prompt is not None
        k = torch.full((len(z),), min(self.k, 999), device=z.device)
        text = self.prompt.padded().expand(len(z), -1, -1).to(z)
        return until(self.net.mid_block, False, lambda: self.net(z, k, text))

    def _tap(self, block: int | None) -> tuple[int, int | None]:
        return self.net.config.block_out_channels[-1], None


class SVDTower(UNetTower):
    """SVD's UNet on one-frame clips, conditioned on the frame itself: by its CLIP embedding and its own latents.

    Its clock is a quarter of the logarithm of noise over signal; k picks that ratio on the checkpoint's schedule.
    """
    kind = "svd"

    def __init__(self, vae: Any, net: Any, image_encoder: Any, mean: list[float], std: list[float], **knobs: Any):
        super().__init__(vae, net, None, **knobs)
        self.image_encoder = image_encoder.eval().requires_grad_(False)
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))

    def condition(self, x: Tensor) -> Mapping[str, Tensor]:
        size = self.image_encoder.config.image_size
        seen = F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        seen = (seen - self.mean.to(x)) / self.std.to(x)
        return {"embedding": self.image_encoder(seen).image_embeds[:, None],              # [N,1,D']
                "still": self.vae.encode(x * 2 - 1).latent_dist.mode()}                   # unscaled, as SVD was trained

    def grid(self, z: Tensor, more: Mapping[str, Tensor]) -> Tensor:
        kept, share = self.shares()
        clock = torch.full((len(z),), 0.25 * log(share / kept), device=z.device)
        about = z.new_tensor([FPS, MOTION, AUGMENTED]).expand(len(z), -1)
        frames = torch.cat([z, more["still"]], 1)[:, None]                                # [N,1,2C,h,w]
        return until(self.net.mid_block, False, lambda: self.net(frames, clock, more["embedding"], about))

    def _modules(self) -> list[nn.Module]:
        return [*super()._modules(), self.image_encoder]
