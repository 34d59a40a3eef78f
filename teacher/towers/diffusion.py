"""What the other diffusion generators share: noise a latent, run the net as far as the tap, average
over draws."""
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import log
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor, nn

from teacher.towers.base import GRID
from teacher.towers.capture import capture_activation
from teacher.towers.chunking import chunk_size, in_chunks
from teacher.towers.prompt import Prompt
from teacher.towers.resize import registered


class DiffusionTower(ABC):
    """frames [B,T,3,H,W] in [0,1] -> [B,T,D,14,14], each frame alone. Noise depends on (seed, frame
    of the clip) alone.

    k: noise level, 0 (clean) .. 1000. block: of a transformer, 0-based. side: 224 px as every tower
    sees; other grids than 14x14 are averaged or spread.
    """
    kind: ClassVar[str]
    multiple: ClassVar[int]                # px that a side must fill
    level: ClassVar[int]                   # the default k

    def __init__(self, vae: Any, net: Any, prompt: Prompt | None, k: int | None = None,
                 block: int | None = None, seeds: int = 1, seed: int = 0, side: int = 224,
                 digest: str = "unsaved"):
        self.vae, self.net = (m.eval().requires_grad_(False) for m in (vae, net))
        self.prompt, self.seeds, self.seed, self.side = prompt, seeds, seed, side
        self.k = self.level if k is None else k
        if not 0 <= self.k <= 1000:
            raise ValueError(f"{self.kind}: k is {k}, expected 0 (clean) to 1000 (pure noise)")
        self.dim, self.block = self._tap(block)
        self.spec = {
            "tower": self.kind, "weights": digest, "dim": self.dim, "grid": GRID, "k": self.k,
            "block": self.block, "seeds": seeds, "seed": seed, "side": side
        }

    def to(self, device: torch.device | str) -> "DiffusionTower":
        for module in self._modules():
            module.to(device)
        self.prompt = self.prompt and self.prompt.to(device)
        return self

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        b, t = frames.shape[:2]
        x = registered(frames.flatten(0, 1), self.side, self.multiple)
        # the VAE's first layers: 128 channels at full resolution
        each = x[0].numel() * 4 * 6 * 128 // 3
        out = in_chunks(lambda part: self._averaged(x[part], [i % t for i in range(b * t)[part]]),
                        b * t, chunk_size(each, x.device), 0, "use a smaller side")
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
    """z_k = sqrt(a_k) z + sqrt(1 - a_k) eps with the checkpoint's own schedule (arXiv 2006.11239,
    eq. 4)."""

    def __init__(self, *args: Any, schedule: DDPMScheduler | None = None, **knobs: Any):
        super().__init__(*args, **knobs)
        self.kept = float((schedule or DDPMScheduler()).alphas_cumprod[min(self.k, 999)])

    def shares(self) -> tuple[float, float]:
        return self.kept ** 0.5, (1 - self.kept) ** 0.5


class DiTTower(DiffusionTower):
    """A video transformer: its channels and block."""
    multiple, level = 16, 300

    def _tap(self, block: int | None) -> tuple[int, int | None]:
        count = len(self.net.transformer_blocks)
        block = 2 * count // 3 if block is None else block
        if not 0 <= block < count:
            raise ValueError(
                f"block is {block}, expected 0 to {count - 1}: the generator has {count} blocks")
        return self.net.config.num_attention_heads * self.net.config.attention_head_dim, block


class CogVideoXTower(DiTTower, ScheduledTower):
    """The checkpoint's own schedule, empty prompt."""
    kind = "cogvideox"

    def latents(self, x: Tensor) -> Tensor:
        return self.vae.encode(x.unsqueeze(2)).latent_dist.mode() * self.vae.config.scaling_factor

    def grid(self, z: Tensor, more: Mapping[str, Tensor]) -> Tensor:
        assert self.prompt is not None and self.block is not None
        frames = z.transpose(1, 2)  # [N,1,C,h,w]
        k = torch.full((len(z),), min(self.k, 999), device=z.device)
        text = self.prompt.padded().expand(len(z), -1, -1).to(z)
        tokens = capture_activation(self.net.transformer_blocks[self.block], True,
                       lambda: self.net(frames, text, k, image_rotary_emb=self._rotary(z)))
        patch = self.net.config.patch_size
        return tokens.transpose(1, 2).unflatten(2, (z.shape[3] // patch, z.shape[4] // patch))

    def _rotary(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        # the 2B model adds learned positions instead
        if not self.net.config.use_rotary_positional_embeddings:
            return None
        patch = self.net.config.patch_size
        high, wide = z.shape[3] // patch, z.shape[4] // patch
        return get_3d_rotary_pos_embed(self.net.config.attention_head_dim, ((0, 0), (high, wide)),
                                       (high, wide), 1, device=z.device)


class LTXTower(DiTTower):
    """Flow matching, z_k = (1 - t) z + t eps with t = k/1000; latents of 32x32 px are its
    tokens."""
    kind, multiple = "ltx", 32

    def shares(self) -> tuple[float, float]:
        return 1 - self.k / 1000, self.k / 1000

    def latents(self, x: Tensor) -> Tensor:
        z = self.vae.encode(x.unsqueeze(2)).latent_dist.mode()  # [N,C,1,h,w]
        mean, std = (v.view(1, -1, 1, 1, 1).to(z)
                     for v in (self.vae.latents_mean, self.vae.latents_std))
        return ((z - mean) * self.vae.config.scaling_factor / std).squeeze(2)

    def grid(self, z: Tensor, more: Mapping[str, Tensor]) -> Tensor:
        assert self.prompt is not None and self.block is not None
        n, _, high, wide = z.shape
        # its padding is masked: "" is one vector, </s>
        text = self.prompt.embedding[:, :1].expand(n, -1, -1).to(z)
        pixels = self.vae.spatial_compression_ratio
        tokens = capture_activation(self.net.transformer_blocks[self.block], True, lambda: self.net(
            z.flatten(2).transpose(1, 2), text, torch.full((n,), self.k, device=z.device),
            torch.ones(n, 1, device=z.device), num_frames=1, height=high, width=wide,
            rope_interpolation_scale=(1, pixels, pixels)))
        return tokens.transpose(1, 2).unflatten(2, (high, wide))


# what SVD is told of a clip: its defaults, but for noise on the still
FPS, MOTION, AUGMENTED = 6.0, 127.0, 0.0


class UNetTower(ScheduledTower):
    """Stable Diffusion's UNet with the empty prompt."""
    kind, multiple, level = "unet", 8, 250

    def latents(self, x: Tensor) -> Tensor:
        return self.vae.encode(x).latent_dist.mode() * self.vae.config.scaling_factor

    def grid(self, z: Tensor, more: Mapping[str, Tensor]) -> Tensor:
        assert self.prompt is not None
        k = torch.full((len(z),), min(self.k, 999), device=z.device)
        text = self.prompt.padded().expand(len(z), -1, -1).to(z)
        return capture_activation(self.net.mid_block, False, lambda: self.net(z, k, text))

    def _tap(self, block: int | None) -> tuple[int, int | None]:
        return self.net.config.block_out_channels[-1], None


class SVDTower(UNetTower):
    """SVD's UNet on one-frame clips, conditioned on the frame itself: by its CLIP embedding and its
    own latents.

    Its clock is a quarter of the logarithm of noise over signal; k picks that ratio on the
    checkpoint's schedule.
    """
    kind = "svd"

    def __init__(self, vae: Any, net: Any, image_encoder: Any, mean: list[float], std: list[float],
                 **knobs: Any):
        super().__init__(vae, net, None, **knobs)
        self.image_encoder = image_encoder.eval().requires_grad_(False)
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))

    def condition(self, x: Tensor) -> Mapping[str, Tensor]:
        size = self.image_encoder.config.image_size
        seen = F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        seen = (seen - self.mean.to(x)) / self.std.to(x)
        return {"embedding": self.image_encoder(seen).image_embeds[:, None],              # [N,1,D']
                # unscaled, as SVD was trained
                "still": self.vae.encode(x * 2 - 1).latent_dist.mode()}

    def grid(self, z: Tensor, more: Mapping[str, Tensor]) -> Tensor:
        kept, share = self.shares()
        clock = torch.full((len(z),), 0.25 * log(share / kept), device=z.device)
        about = z.new_tensor([FPS, MOTION, AUGMENTED]).expand(len(z), -1)
        frames = torch.cat([z, more["still"]], 1)[:, None]  # [N,1,2C,h,w]
        return capture_activation(self.net.mid_block, False,
                     lambda: self.net(frames, clock, more["embedding"], about))

    def _modules(self) -> list[nn.Module]:
        return [*super()._modules(), self.image_encoder]
