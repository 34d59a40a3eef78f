"""What the other diffusion generators share: noise a latent, run the net as far as the tap, average over draws."""
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn

from teacher.backbones import GRID
from teacher.chunks import chunk_size, in_chunks
from teacher.geometry import registered
from teacher.prompt import Prompt


class DiffusionTower(ABC):
    """frames [B,T,3,H,W] in [0,1] -> [B,T,D,14,14], each frame alone. Noise depends on (seed, frame of the clip) alone.

    k: noise level, 0 (clean) .. 1000. block: of a transformer, 0-based. side: 224 px as every tower sees; other grids
    than 14x14 are averaged or spread.
    """
    kind: ClassVar[str]
    multiple: ClassVar[int]                # px that a side must fill
    level: ClassVar[int]                   # the default k

    def __init__(self, vae: Any, net: Any, prompt: Prompt | None, k: int | None = None, block: int | None = None,
                 seeds: int = 1, seed: int = 0, side: int = 224, digest: str = "unsaved"):
        self.vae, self.net = (m.eval().requires_grad_(False) for m in (vae, net))
        self.prompt, self.seeds, self.seed, self.side = prompt, seeds, seed, side
        self.k = self.level if k is None else k
        if not 0 <= self.k <= 1000:
            raise ValueError(f"{self.kind}: k is {k}, expected 0 (clean) to 1000 (pure noise)")
        self.dim, self.block = self._tap(block)
        self.spec = {"tower": self.kind, "weights": digest, "dim": self.dim, "grid": GRID, "k": self.k,
                     "block": self.block, "seeds": seeds, "seed": seed, "side": side}

    def to(self, device: torch.device | str) -> "DiffusionTower":
        for module in self._modules():
            module.to(device)
        self.prompt = self.prompt and self.prompt.to(device)
        return self

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        b, t = frames.shape[:2]
        x = registered(frames.flatten(0, 1), self.side, self.multiple)
        each = x[0].numel() * 4 * 6 * 128 // 3  # the VAE's first layers: 128 channels at full resolution
        out = in_chunks(lambda part: self._averaged(x[part], [i % t for i in range(b * t)[part]]), b * t,
                        chunk_size(each, x.device), 0, "use a smaller side")
        return out.unflatten(0, (b, t))

    def _averaged(self, x: Tensor, numbers: list[int]) -> Tensor:
        z, more = self.latents(x * 2 - 1), self.condition(x)
        total = torch.zeros((), device=z.device)
        for s in range(self.seeds):
            noise = torch.stack([torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(
                (self.seed + s) * 1009 + i)) for i in numbers]).to(z)
            kept, share = self.shares()
            total = total + self.grid(kept * z + share * noise, more).float()
        return F.adaptive_avg_pool2d(total / self.seeds, (GRID, GRID))

    @abstractmethod
    def latents(self, x: Tensor) -> Tensor:
        """[N,3,H,W] in [-1,1] -> what noise is added to [N,C,...]."""

    def condition(self, x: Tensor) -> Mapping[str, Tensor]:
        """What else the net is told of frames [N,3,H,W] in [0,1]."""
        return {}

    @abstractmethod
    def shares(self) -> tuple[float, float]:
        """Factors of latent and noise at `k`."""

    @abstractmethod
    def grid(self, z: Tensor, more: Mapping[str, Tensor]) -> Tensor:
        """The tapped tokens as a picture [N,D,h,w]."""

    @abstractmethod
    def _tap(self, block: int | None) -> tuple[int, int | None]:
        """(channels, block). Raises ValueError for a block that there is not."""

    def _modules(self) -> list[nn.Module]:
        return [self.vae, self.net]


class ScheduledTower(DiffusionTower):
    """z_k = sqrt(a_k) z + sqrt(1 - a_k) eps with the checkpoint's own schedule (arXiv 2006.11239, eq. 4)."""

    def __init__(self, *args: Any, schedule: DDPMScheduler | None = None, **knobs: Any):
        super().__init__(*args, **knobs)
        self.kept = float((schedule or DDPMScheduler()).alphas_cumprod[min(self.k, 999)])

    def shares(self) -> tuple[float, float]:
        return self.kept ** 0.5, (1 - self.kept) ** 0.5
