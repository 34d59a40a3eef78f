"""The latent world simulator: a frozen Wan video diffusion transformer, tapped mid-way (arXiv
2603.19235, eq. 4-5).

z = per-channel normalised VAE mean; z_t = (1-t) z + t eps with t = k/1000; one forward with the
empty prompt; the residual stream after block l (0-based), no norm. Blocks above the tap are never
loaded: their output is never read.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn

from teacher.fast.frame_encoder import FrameEncoder
from teacher.fast.pooled_block import PooledBlock, average, swapped_block
from teacher.fast.wan_blocks import compile_blocks, compile_forward, fast_kernels, fuse
from teacher.towers.base import GRID, NoiseBank
from teacher.towers.capture import capture_blocks
from teacher.towers.checkpoints import NANO, check_block, generator_folder, load_parts
from teacher.towers.chunking import chunk_size, in_chunks
from teacher.towers.prompt import Prompt, precompute_text_kv
from teacher.towers.resize import paper, registered
from teacher.towers.tap import Tap

# through the VAE: its convolutions are no faster on more, and each new number is tried afresh
FRAMES_AT_ONCE = 16


class WanTower:
    """frames [B,T,3,H,W] in [0,1] -> [B,T,D,14,14]; sides that do not fill tokens are resized
    (`Tap.geometry`).

    In video mode T must be 4n+1 (the VAE would silently drop the rest); a latent stands for up to
    four frames, and each of them gets that latent's features. Noise depends on (seed, frame of the
    clip) alone: every frame has its own draw, as in the paper, yet a clip's features never depend
    on its batch, nor on `chunk`: how many one-frame videos (or clips) go through at once, None: as
    many as fit. In bf16 on a GPU everything is compiled at the first call of a size (about half a
    minute for Wan2.1-1.3B); TORCH_COMPILE_DISABLE=1 in the environment leaves it out.
    """

    def __init__(self, vae: AutoencoderKLWan, transformer: WanTransformer3DModel, prompt: Prompt,
                 tap: Tap, digest: str = "unsaved"):
        check_block(tap.block, len(transformer.blocks))
        self.vae = vae.eval().requires_grad_(False)
        self.encoder: Any = FrameEncoder(vae)
        self.transformer = transformer.eval().requires_grad_(False)
        self.transformer.blocks = self.transformer.blocks[: tap.block + 1]
        fuse(self.transformer)
        self.prompt, self.tap = prompt, tap
        self.chunk: int | None = None
        self.compiled, self._backend = False, "inductor"
        self._noise = NoiseBank()
        # by block and the token grid's sides
        self._pooled: dict[tuple[int, int, int], nn.Module] = {}
        self._text = precompute_text_kv(transformer, prompt)                # [1,1,text_dim]
        self.dim = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        self.spec = {
            "tower": "wan", "weights": digest, "dim": self.dim, "grid": GRID,
            **tap.spec(self._dtype)
        }

    def to(self, device: torch.device | str) -> "WanTower":
        self.vae.to(device)
        self.encoder.to(device)
        self.transformer.to(device)
        self._pooled.clear()
        self.prompt = self.prompt.to(device)
        self._text = precompute_text_kv(self.transformer, self.prompt)
        if torch.device(
                device).type == "cuda" and self._dtype == torch.bfloat16 and not self.compiled:
            self.compile()
        return self

    def compile(self, backend: str = "inductor") -> None:
        """Compiles the one-frame encoder as a whole and the blocks by their one code, at their
        first calls."""
        compile_forward(self.encoder, backend)
        compile_blocks(self.transformer, backend)
        self._pooled.clear()
        self.compiled, self._backend = True, backend

    def features(self, frames: Tensor) -> Tensor:
        """[B,T,3,H,W] in [0,1] -> [B,T,D,14,14] at the tap."""
        return self.block_features(frames, [self.tap.block])[0]

    @torch.inference_mode()
    def block_features(self, frames: Tensor, blocks: Sequence[int]) -> Tensor:
        """The same after each of several blocks at or below the tap, from one pass ->
        [L,B,T,D,14,14]."""
        b, t = frames.shape[:2]
        if self.tap.frames == "image":
            # [L,B*T,1,D,14,14]
            tokens = self._tapped(self.resize(frames.flatten(0, 1)).unsqueeze(1), blocks, t)
            return tokens.reshape(len(blocks), b, t, -1, GRID, GRID)
        if t % 4 != 1:
            if self.tap.tail == "refuse":
                raise ValueError(
                    f"wan: video mode got {t} frames, expected 4n+1 (1, 5, 9, 17 …): the VAE "
                    "silently drops the rest; set tap.tail to pad to repeat the last frame")
            frames = torch.cat([frames, frames[:, -1:].expand(-1, -(t - 1) % 4, -1, -1, -1)], 1)
        tokens = self._tapped(
            self.resize(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]), blocks, 1)
        owner = torch.arange(t, device=frames.device).add(3) // 4   # frame -> latent: 0 1111 2222
        return tokens[:, :, owner]  # of [L,B,F,D,14,14], F = 1 + (T-1)/4

    def resize(self, frames: Tensor) -> Tensor:
        """[N,3,H,W] -> [N,3,H',W'] as the tap's geometry says, sides in whole tokens."""
        if self.tap.geometry == "paper":
            return paper(frames, self.tap.side)
        return registered(frames, self.tap.side, self.pixels_per_token)

    @property
    def pixels_per_token(self) -> int:
        """16 for Wan2.1, 32 for Wan2.2's 5B: the VAE's halvings and patchify times the
        transformer's patch."""
        vae = self.vae.config
        return 2**(len(vae.dim_mult) - 1) * (vae.patch_size
                                             or 1) * self.transformer.config.patch_size[1]

    def latents(self, frames: Tensor) -> Tensor:
        """[N,T,3,H,W] in [0,1] -> normalised VAE mean [N,C,F,H/8,W/8] float32."""
        n, t, _, h, w = frames.shape
        # the widest layer runs at the first convolution's resolution: so many copies live at once,
        # and in the middle
        # every position is compared with every other
        area = h * w // (self.vae.config.patch_size or 1) ** 2
        places = h * w // (self.pixels_per_token // 2) ** 2
        each = ((4 if self.compiled else 8) * area * self.vae.config.base_dim * min(t, 4) +
                2 * places**2) * self._dtype.itemsize
        chunk = self.chunk or min(FRAMES_AT_ONCE, chunk_size(each, frames.device))
        return in_chunks(lambda part: self._encode(frames[part]), n, chunk, 0,
                         "lower tap.side or set tap.precision to bf16")

    def _encode(self, frames: Tensor) -> Tensor:
        with fast_kernels(self.compiled and frames.is_cuda):
            if frames.shape[1] == 1:
                return self.encoder(frames[:, 0]).unsqueeze(2)
            z = self.vae.encode((frames * 2 - 1).transpose(1, 2).to(self._dtype)).latent_dist.mode()
        return (z.float() - self.encoder.mean.unsqueeze(2)) / self.encoder.std.unsqueeze(2)

    def _tapped(self, frames: Tensor, blocks: Sequence[int], videos: int) -> Tensor:
        z = self.latents(frames)
        width = 12 * self.dim + 2 * self.transformer.config.ffn_dim
        each = z[0, 0].numel() // 4 * (width * self._dtype.itemsize + 8 * len(blocks) * self.dim)
        return in_chunks(
            lambda part: self._averaged(z[part], blocks, [i % videos for i in range(len(z))[part]]),
            len(z), self.chunk or chunk_size(each, z.device), 1,
            "lower tap.side or set tap.precision to bf16")

    def _averaged(self, z: Tensor, blocks: Sequence[int], numbers: list[int]) -> Tensor:
        total = torch.zeros((), device=z.device)
        for s in range(self.tap.seeds):
            noise = self._noise.draw(self.tap.seed + s, numbers, z)
            total = total + self._noised_tokens(z, noise, blocks).float()
        return total / self.tap.seeds                               # [L,N,F,D,14,14]

    def _noised_tokens(self, z: Tensor, noise: Tensor, blocks: Sequence[int]) -> Tensor:
        timestep, sigma = self.tap.time
        inputs = {"hidden_states": ((1 - sigma) * z + sigma * noise).to(self._dtype),
                  # one for all, as is the text
                  "timestep": torch.full((1,), timestep, device=z.device),
                  "encoder_hidden_states": self._text.to(self._dtype), **self._control(z)}
        f, h, w = z.shape[2], z.shape[3] // 2, z.shape[4] // 2      # patch (1,2,2)
        last = max(blocks)
        pooled = self._pools(h, w)
        block = self._pooled_block(last, h, w) if pooled else self.transformer.blocks[last]
        with fast_kernels(self.compiled and z.is_cuda), swapped_block(self.transformer.blocks, last,
                                                                    block):
            taken = capture_blocks(self.transformer, blocks, inputs)  # L of [N,F*h*w,D]
        if (h, w) != (GRID, GRID):
            taken = [
                tokens if pooled and i == last else average(tokens.reshape(-1, h *
                                                                           w, self.dim), h, w)
                for i, tokens in zip(blocks, taken, strict=True)
            ]
        grid = torch.stack(taken).reshape(len(taken), len(z), f, GRID, GRID, self.dim)
        return grid.permute(0, 1, 2, 5, 3, 4)  # [L,N,F,D,14,14]

    @staticmethod
    def _pools(high: int, wide: int) -> bool:
        """Whether the last block's product has fewer rows after the average than before."""
        return high * wide > GRID * GRID

    def _pooled_block(self, i: int, high: int, wide: int) -> nn.Module:
        key = i, high, wide
        if key not in self._pooled:
            self._pooled[key] = PooledBlock(self.transformer.blocks[i], high, wide)
            if self.compiled:
                compile_forward(self._pooled[key], self._backend)
        return self._pooled[key]

    def _control(self, z: Tensor) -> dict[str, Tensor]:
        """VACE also reads what to do where: grey where nothing may change, the clean frames where
        all may, and a mask of ones ("all may"). The hint is added after the tapped block's own
        output."""
        channels = getattr(self.transformer.config, "vace_in_channels", None)
        if channels is None:
            return {}
        n, c, f, h, w = z.shape
        pixel = self.pixels_per_token // 2
        grey = self._encode(
            torch.full((1, 4 * f - 3, 3, h * pixel, w * pixel), 0.5, device=z.device))
        mask = z.new_ones(n, channels - 2 * c, f, h, w)
        return {"control_hidden_states": torch.cat([grey.expand_as(z), z, mask], 1).to(self._dtype)}

    @property
    def _dtype(self) -> torch.dtype:
        return self.transformer.patch_embedding.weight.dtype


class VAELatents:
    """Control: the generator's own VAE latents, 2x2 per cell, without its transformer."""

    def __init__(self, tower: WanTower):
        self.tower = tower
        self.dim = 4 * tower.vae.config.z_dim
        sized = {k: v for k, v in tower.spec.items() if k in ("geometry", "side", "precision")}
        self.spec = {"tower": "vae", "weights": tower.spec["weights"], "dim": self.dim, **sized}

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        z = self.tower.latents(self.tower.resize(frames.flatten(0, 1)).unsqueeze(1)).squeeze(
            2)  # [N,C,h,w]
        return F.adaptive_avg_pool2d(F.pixel_unshuffle(z, 2),
                                     (GRID, GRID)).unflatten(0, frames.shape[:2])


def normalise(z: Tensor, vae: AutoencoderKLWan) -> Tensor:
    """Raw latents [N,C,...] -> zero mean, unit deviation per channel, by the VAE's own
    statistics."""
    shape = (1, -1, *[1] * (z.ndim - 2))
    mean, std = (torch.tensor(v).to(z).view(shape)
                 for v in (vae.config.latents_mean, vae.config.latents_std))
    return (z - mean) / std


def load_wan(folder: Path | str = NANO, tap: Tap | None = None,
             random_weights: bool = False) -> WanTower:
    """A tower from a folder in the diffusers layout (vae/, transformer/, prompt.safetensors), a hub
    id or a name.

    random_weights keeps the VAE and re-draws the transformer: the control for what training put
    there.
    Raises ValueError naming what the generator lacks.
    """
    where, tap = generator_folder(str(folder)), tap or Tap()
    parts = load_parts(where, tap.block, tap.precision)
    if random_weights:
        torch.manual_seed(0)
        drawn = type(parts.transformer).from_config(parts.transformer.config)
        for new, old in zip(drawn.parameters(), parts.transformer.parameters(), strict=True):
            # not .to(dtype): that would round the rotary table as well
            new.data = new.data.to(old.dtype)
        parts.transformer = drawn
        parts.digest += "-random"
    return WanTower(parts.vae, parts.transformer, parts.prompt, tap, parts.digest)
