"""What diffusion towers share: noise a latent, run the net up to the tap, average over draws."""
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn

from teacher.towers.base import GRID, NoiseBank, chunk_size, in_chunks, resize_registered
from teacher.towers.prompt import Prompt


class DiffusionTower(ABC):
    """frames [B,T,3,H,W] in [0,1] -> [B,T,D,14,14], each frame alone; other grids are resampled.

    k: noise level, 0 (clean) .. 1000. block: of a transformer, 0-based. side: px of the short side.
    Noise depends on the seed alone, or with noise="fresh" also on the frame's place in its clip.
    """
    kind: ClassVar[str]
    vae_class: ClassVar[Any]               # of diffusers, in vae/
    net_class: ClassVar[Any]               # of diffusers, in the folder `part`
    part: ClassVar[str] = "transformer"
    files: ClassVar[tuple[str, ...]] = ("prompt.safetensors",)  # that a checkpoint needs besides
    multiple: ClassVar[int]                # px that a side must fill
    level: ClassVar[int]                   # the default k

    def __init__(self, vae: Any, net: Any, prompt: Prompt | None, k: int | None = None,
                 block: int | None = None, seeds: int = 1, seed: int = 0, side: int = 224,
                 noise: str = "shared", digest: str = "unsaved"):
        self.vae, self.net = (m.eval().requires_grad_(False) for m in (vae, net))
        self.prompt, self.seeds, self.seed, self.side = prompt, seeds, seed, side
        self.noise = noise
        self.k = self.level if k is None else k
        if not 0 <= self.k <= 1000:
            raise ValueError(f"{self.kind}: k is {k}, expected 0 (clean) to 1000 (pure noise)")
        self.dim, self.block = self._tap(block)
        self.spec = {"tower": self.kind, "weights": digest, "dim": self.dim, "grid": GRID,
                     "k": self.k, "block": self.block, "seeds": seeds, "seed": seed, "side": side}
        if noise != "fresh":  # the first stores' value
            self.spec["noise"] = noise
        self._noise = NoiseBank()

    @classmethod
    def load_extras(cls, folder: Path) -> dict[str, Any]:
        """Further constructor arguments that a checkpoint folder holds."""
        return {}

    def to(self, device: torch.device | str) -> "DiffusionTower":
        for module in self._modules():
            module.to(device)
        self.prompt = self.prompt and self.prompt.to(device)
        return self

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        b, t = frames.shape[:2]
        x = resize_registered(frames.flatten(0, 1), self.side, self.multiple)
        # the VAE's first layers: 128 channels at full resolution
        each = x[0].numel() * 4 * 6 * 128 // 3
        # which draw each frame gets
        numbers = [i % t if self.noise == "fresh" else 0 for i in range(b * t)]
        out = in_chunks(lambda part: self._averaged(x[part], numbers[part]), b * t,
                        chunk_size(each, x.device), 0, "use a smaller side")
        return out.unflatten(0, (b, t))

    def _averaged(self, x: Tensor, numbers: list[int]) -> Tensor:
        z, condition = self.latents(x * 2 - 1), self.condition(x)
        signal, sigma = self.shares()
        mean = self._noise.average(
            lambda noise: self.grid(signal * z + sigma * noise, condition),
            range(self.seed, self.seed + self.seeds), numbers, z)
        return F.adaptive_avg_pool2d(mean, (GRID, GRID))

    @abstractmethod
    def latents(self, x: Tensor) -> Tensor:
        """[N,3,H,W] in [-1,1] -> what noise is added to, [N,C,...]."""

    def condition(self, x: Tensor) -> Mapping[str, Tensor]:
        """Further inputs of the net, from frames [N,3,H,W] in [0,1]."""
        return {}

    @abstractmethod
    def shares(self) -> tuple[float, float]:
        """Factors of latent and noise at `k`."""

    @abstractmethod
    def grid(self, z: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The tapped tokens as a grid [N,D,h,w]."""

    @abstractmethod
    def _tap(self, block: int | None) -> tuple[int, int | None]:
        """(channels, block). Raises ValueError for a block that does not exist."""

    def _modules(self) -> list[nn.Module]:
        return [self.vae, self.net]


class ScheduledTower(DiffusionTower):
    """z_k = sqrt(a_k) z + sqrt(1 - a_k) eps by the checkpoint's schedule (2006.11239, eq. 4)."""
    files: ClassVar[tuple[str, ...]] = ("prompt.safetensors", "scheduler/scheduler_config.json")

    def __init__(self, *args: Any, schedule: DDPMScheduler | None = None, **options: Any):
        super().__init__(*args, **options)
        self.alpha = float((schedule or DDPMScheduler()).alphas_cumprod[min(self.k, 999)])

    @classmethod
    def load_extras(cls, folder: Path) -> dict[str, Any]:
        return {"schedule": DDPMScheduler.from_pretrained(folder, subfolder="scheduler")}

    def shares(self) -> tuple[float, float]:
        return self.alpha ** 0.5, (1 - self.alpha) ** 0.5

    def _inputs(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The timesteps [N] and the empty prompt [N,L,D'] of latents z."""
        assert self.prompt is not None
        k = torch.full((len(z),), min(self.k, 999), device=z.device)
        return k, self.prompt.padded().expand(len(z), -1, -1).to(z)


class TransformerTower(DiffusionTower):
    """A video transformer: its width and a block, two thirds up by default."""
    multiple, level = 16, 300

    def _tap(self, block: int | None) -> tuple[int, int | None]:
        count = len(self.net.transformer_blocks)
        block = 2 * count // 3 if block is None else block
        if not 0 <= block < count:
            raise ValueError(
                f"block is {block}, expected 0 to {count - 1}: the generator has {count} blocks")
        return self.net.config.num_attention_heads * self.net.config.attention_head_dim, block
