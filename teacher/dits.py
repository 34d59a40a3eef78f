"""CogVideoX and LTX, read after a block (default: two thirds up, as Wan's 20 of 30), each frame a one-frame video."""
from collections.abc import Mapping

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor

from teacher.early import until
from teacher.noised import DiffusionTower, ScheduledTower


class DiTTower(DiffusionTower):
    """A video transformer: its channels and block."""
    multiple, level = 16, 300

    def _tap(self, block: int | None) -> tuple[int, int | None]:
        count = len(self.net.transformer_blocks)
        block = 2 * count // 3 if block is None else block
        if not 0 <= block < count:
            raise ValueError(f"block is {block}, expected 0 to {count - 1}: the generator has {count} blocks")
        return self.net.config.num_attention_heads * self.net.config.attention_head_dim, block


class CogVideoXTower(DiTTower, ScheduledTower):
    """The checkpoint's own schedule, empty prompt."""
    kind = "cogvideox"

    def latents(self, x: Tensor) -> Tensor:
        return self.vae.encode(x.unsqueeze(2)).latent_dist.mode() * self.vae.config.scaling_factor

    def grid(self, z: Tensor, more: Mapping[str, Tensor]) -> Tensor:
        assert self.prompt is not None and self.block is not None
        frames = z.transpose(1, 2)                                                        # [N,1,C,h,w]
        k = torch.full((len(z),), min(self.k, 999), device=z.device)
        text = self.prompt.padded().expand(len(z), -1, -1).to(z)
        tokens = until(self.net.transformer_blocks[self.block], True,
                       lambda: self.net(frames, text, k, image_rotary_emb=self._rotary(z)))
        patch = self.net.config.patch_size
        return tokens.transpose(1, 2).unflatten(2, (z.shape[3] // patch, z.shape[4] // patch))

    def _rotary(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        if not self.net.config.use_rotary_positional_embeddings:  # the 2B model adds learned positions instead
            return None
        patch = self.net.config.patch_size
        high, wide = z.shape[3] // patch, z.shape[4] // patch
        return get_3d_rotary_pos_embed(self.net.config.attention_head_dim, ((0, 0), (high, wide)), (high, wide), 1,
                                       device=z.device)


class LTXTower(DiTTower):
    """Flow matching, z_k = (1 - t) z + t eps with t = k/1000; latents of 32x32 px are its tokens."""
    kind, multiple = "ltx", 32

    def shares(self) -> tuple[float, float]:
        return 1 - self.k / 1000, self.k / 1000

    def latents(self, x: Tensor) -> Tensor:
        z = self.vae.encode(x.unsqueeze(2)).latent_dist.mode()                            # [N,C,1,h,w]
        mean, std = (v.view(1, -1, 1, 1, 1).to(z) for v in (self.vae.latents_mean, self.vae.latents_std))
        return ((z - mean) * self.vae.config.scaling_factor / std).squeeze(2)

    def grid(self, z: Tensor, more: Mapping[str, Tensor]) -> Tensor:
        assert self.prompt is not None and self.block is not None
        n, _, high, wide = z.shape
        text = self.prompt.embedding[:, :1].expand(n, -1, -1).to(z)  # its padding is masked: "" is one vector, </s>
        pixels = self.vae.spatial_compression_ratio
        tokens = until(self.net.transformer_blocks[self.block], True, lambda: self.net(
            z.flatten(2).transpose(1, 2), text, torch.full((n,), self.k, device=z.device),
            torch.ones(n, 1, device=z.device), num_frames=1, height=high, width=wide,
            rope_interpolation_scale=(1, pixels, pixels)))
        return tokens.transpose(1, 2).unflatten(2, (high, wide))
