"""Controls without learned 3D knowledge: a gain that they show too is not the generator's."""
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from teacher.towers.base import GRID

if TYPE_CHECKING:
    from teacher.towers.wan import WanTower


class Zeros:
    """No information: what the additional parameters alone gain."""

    def __init__(self, dim: int = 256):
        self.dim = dim  # the generator's, for the same number of parameters
        self.spec = {"tower": "zeros", "dim": dim}

    def features(self, frames: Tensor) -> Tensor:
        return frames.new_zeros(*frames.shape[:2], self.dim, GRID, GRID)


class FixedNoise:
    """One Gaussian vector a grid cell, the same in every frame: a position code alone."""
    dim = 64

    def __init__(self, seed: int = 0):
        self.spec = {"tower": "noise", "dim": self.dim, "seed": seed}
        self.noise = torch.randn(1, 1, self.dim, GRID, GRID,
                                 generator=torch.Generator().manual_seed(seed))

    def features(self, frames: Tensor) -> Tensor:
        return self.noise.to(frames).expand(*frames.shape[:2], -1, -1, -1)


class RGBPatches:
    """The raw pixels under each cell: [3,16,16] unrolled to 768."""
    dim = 3 * 16 * 16
    spec: ClassVar[dict] = {"tower": "rgb", "dim": dim, "side": 16 * GRID}

    def features(self, frames: Tensor) -> Tensor:
        side = 16 * GRID
        small = F.interpolate(frames.flatten(0, 1), (side, side), mode="area")  # [B*T,3,224,224]
        return F.pixel_unshuffle(small, 16).unflatten(0, frames.shape[:2])  # [B,T,768,14,14]


class VAELatents:
    """The generator's VAE latents, 2x2 per cell, without its transformer."""

    def __init__(self, tower: "WanTower"):
        self.tower = tower
        self.dim = 4 * tower.vae.config.z_dim
        sized = {k: v for k, v in tower.spec.items()
                 if k in ("geometry", "side", "precision", "vae")}
        self.spec = {"tower": "vae", "weights": tower.spec["weights"], "dim": self.dim, **sized}

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        resized = self.tower.resize(frames.flatten(0, 1)).unsqueeze(1)
        z = F.pixel_unshuffle(self.tower.latents(resized).squeeze(2), 2)  # [N,4C,h,w]
        return F.adaptive_avg_pool2d(z, (GRID, GRID)).unflatten(0, frames.shape[:2])
