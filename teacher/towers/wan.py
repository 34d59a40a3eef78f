"""The generator as a tower: a frozen Wan video transformer, tapped mid-way.

z = per-channel normalised VAE mean; z_t = (1-t) z + t eps with t = k/1000; one forward with the
empty prompt; the residual stream after block l (0-based), no norm (arXiv 2603.19235, eq. 4-5).
Blocks above the tap are never loaded.
"""
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn

from teacher.fast.fp8 import check_device, round_products
from teacher.fast.frame_encoder import FrameEncoder
from teacher.fast.inductor import CompiledModule, fast_kernels
from teacher.fast.wan_blocks import compile_blocks, fuse_blocks
from teacher.towers.base import (
    GRID,
    NoiseBank,
    chunk_size,
    in_chunks,
    resize_paper,
    resize_registered,
)
from teacher.towers.capture import capture_blocks
from teacher.towers.checkpoints import NANO, check_block, generator_folder, load_parts
from teacher.towers.prompt import Prompt, precompute_text_kv
from teacher.towers.tap import Tap
from teacher.towers.tiny_vae import WIDTH, TinyEncoder, load_tiny_vae

FRAMES_AT_ONCE = 16  # through the VAE: no faster on more, and each new size is timed anew
FP8_COSINE = 0.999
_OOM_ADVICE = "lower tap.side or set tap.precision to bf16"


def load_wan(folder: Path | str = NANO, tap: Tap | None = None,
             random_weights: bool = False, seed: int = 0) -> "WanTower":
    """A tower from a generator's name, a hub id or a diffusers folder; ValueError names what lacks.
    random_weights: the transformer is redrawn by `seed`, as a control for its training."""
    where, tap = generator_folder(str(folder)), tap or Tap()
    parts = load_parts(where, tap.block, tap.precision, tap.time[0])
    if random_weights:
        torch.manual_seed(seed)
        drawn = type(parts.transformer).from_config(parts.transformer.config)
        for new, old in zip(drawn.parameters(), parts.transformer.parameters(), strict=True):
            new.data = new.data.to(old.dtype)  # .to(dtype) would round the rotary table as well
        parts.transformer = drawn
        parts.digest += f"-random{seed or ''}"
    encoder = None if tap.vae == "wan" else load_tiny_vae(tap.vae, parts.vae)
    return WanTower(parts.vae, parts.transformer, parts.prompt, tap, parts.digest, encoder)


@torch.inference_mode()
def check_fp8(tower: "WanTower", folder: Path | str, frames: Tensor) -> None:
    """ValueError if FP8 moves the tokens of frames [B,T,3,H,W] from bfloat16's: cosine < .999."""
    exact = load_wan(folder, replace(tower.tap, precision="bf16")).to(frames.device)
    found, wanted = (one.features(frames).float() for one in (tower, exact))
    cosine = torch.cosine_similarity(found, wanted, dim=2).mean().item()
    if not cosine >= FP8_COSINE:
        raise ValueError(f"tap.precision fp8: tokens agree with bfloat16's to a cosine of "
                         f"{cosine:.4f} only, expected {FP8_COSINE}; set it to bf16")


def normalise_latents(z: Tensor, vae: AutoencoderKLWan) -> Tensor:
    """Raw latents [N,C,...] -> zero mean, unit deviation per channel, by the VAE's statistics."""
    shape = (1, -1, *[1] * (z.ndim - 2))
    mean, std = (torch.tensor(v).to(z).view(shape)
                 for v in (vae.config.latents_mean, vae.config.latents_std))
    return (z - mean) / std


class WanTower:
    """frames [B,T,3,H,W] in [0,1] -> [B,T,D,14,14]; other sizes are resized (`Tap.geometry`).

    In video mode T must be 4n+1; a latent stands for up to four frames, each of which gets its
    features. Noise depends on the seed alone (`Tap.noise` fresh: and on the frame's place in its
    clip), so features depend neither on the batch nor on `chunk`, how many one-frame videos (or
    clips) run at once (None: as many as fit). In bf16 on a GPU everything is compiled at the first
    call of a size (about half a minute for Wan2.1-1.3B), unless TORCH_COMPILE_DISABLE=1 is set.
    """

    def __init__(self, vae: AutoencoderKLWan, transformer: WanTransformer3DModel, prompt: Prompt,
                 tap: Tap, digest: str = "unsaved", encoder: TinyEncoder | None = None):
        """encoder: encodes frames in the place of `vae`, for `Tap.vae`."""
        check_block(tap.block, len(transformer.blocks))
        self.vae = vae.eval().requires_grad_(False)
        self.encoder: FrameEncoder | TinyEncoder = encoder or FrameEncoder(vae)
        self._encode_frames: nn.Module = self.encoder
        self.transformer = transformer.eval().requires_grad_(False)
        self.transformer.blocks = self.transformer.blocks[: tap.block + 1]
        fuse_blocks(self.transformer)
        if tap.precision == "fp8":
            round_products(self.transformer)
        self.prompt, self.tap = prompt, tap
        self.chunk: int | None = None
        self.compiled = False
        self._noise = NoiseBank()
        self._text = precompute_text_kv(transformer, prompt)      # [1,1,text_dim]
        self.dim = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        self.spec = {"tower": "wan", "weights": digest, "dim": self.dim, "grid": GRID,
                     **tap.spec(self._dtype)}
        if encoder is not None:
            self.spec["vae"] = encoder.spec

    def to(self, device: torch.device | str) -> "WanTower":
        if self.tap.precision == "fp8":
            check_device(torch.device(device))
        if isinstance(self.encoder, FrameEncoder):
            self.vae.to(device)
        self.encoder.to(device)
        self.transformer.to(device)
        self.prompt = self.prompt.to(device)
        self._text = precompute_text_kv(self.transformer, self.prompt)
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu and self._dtype == torch.bfloat16 and not self.compiled:
            self.compile()
        return self

    def compile(self, backend: str = "inductor") -> None:
        """Compiles the one-frame encoder and the blocks, at their first calls."""
        self._encode_frames = CompiledModule(self.encoder, backend)
        compile_blocks(self.transformer, backend)
        self.compiled = True

    def features(self, frames: Tensor) -> Tensor:
        """[B,T,3,H,W] in [0,1] -> [B,T,D,14,14] at the tap."""
        return self.block_features(frames, [self.tap.block])[0]

    @torch.inference_mode()
    def block_features(self, frames: Tensor, blocks: Sequence[int],
                       latents: Tensor | None = None) -> Tensor:
        """After each of several blocks at or below the tap, from one pass, [L,B,T,D,14,14].
        latents: the frames' `latents`, if they are already computed."""
        b, t = frames.shape[:2]
        if self.tap.frames == "image":
            videos = self.resize(frames.flatten(0, 1)).unsqueeze(1)
            tokens = self._tapped(videos, blocks, t, latents)      # [L,B*T,1,D,14,14]
            return tokens.reshape(len(blocks), b, t, -1, GRID, GRID)
        if t % 4 != 1:
            if self.tap.tail == "refuse":
                raise ValueError(
                    f"wan: video mode got {t} frames, expected 4n+1 (1, 5, 9, 17 …): the VAE "
                    "silently drops the rest; set tap.tail to pad to repeat the last frame")
            frames = torch.cat([frames, frames[:, -1:].expand(-1, -(t - 1) % 4, -1, -1, -1)], 1)
        videos = self.resize(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        tokens = self._tapped(videos, blocks, 1, latents)  # [L,B,F,D,14,14], F = 1 + (T-1)/4
        latent = torch.arange(t, device=frames.device).add(3) // 4  # of each frame: 0 1111 2222
        return tokens[:, :, latent]

    def resize(self, frames: Tensor) -> Tensor:
        """[N,3,H,W] -> [N,3,H',W'] by the tap's geometry, sides that fill tokens."""
        if self.tap.geometry == "paper":
            return resize_paper(frames, self.tap.side)
        return resize_registered(frames, self.tap.side, self.pixels_per_token)

    @property
    def pixels_per_token(self) -> int:
        """VAE strides x VAE patch x transformer patch: 16 for Wan2.1, 32 for Wan2.2's 5B."""
        vae = self.vae.config
        halvings = len(vae.dim_mult) - 1
        return 2**halvings * (vae.patch_size or 1) * self.transformer.config.patch_size[1]

    def latents(self, frames: Tensor) -> Tensor:
        """[N,T,3,H,W] in [0,1] -> normalised VAE mean [N,C,F,H/8,W/8] float32."""
        n, t, _, h, w = frames.shape
        # memory: copies of the first convolution's output, the middle block's pairs of positions
        area = h * w // (self.vae.config.patch_size or 1) ** 2
        copies = 4 if self.compiled else 8
        if isinstance(self.encoder, TinyEncoder):
            each = copies * area * WIDTH
        else:
            positions = h * w // (self.pixels_per_token // 2) ** 2
            each = copies * area * self.vae.config.base_dim * min(t, 4) + 2 * positions**2
        fits = chunk_size(each * self._dtype.itemsize, frames.device)
        return in_chunks(lambda part: self._encode(frames[part]), n,
                         self.chunk or min(FRAMES_AT_ONCE, fits), 0, _OOM_ADVICE)

    def _encode(self, frames: Tensor) -> Tensor:
        with fast_kernels(self.compiled and frames.is_cuda):
            if frames.shape[1] == 1 or isinstance(self.encoder, TinyEncoder):
                return self._encode_frames(frames.squeeze(1)).unsqueeze(2)
            z = self.vae.encode((frames * 2 - 1).transpose(1, 2).to(self._dtype)).latent_dist.mode()
        return (z.float() - self.encoder.mean.unsqueeze(2)) / self.encoder.std.unsqueeze(2)

    def _tapped(self, frames: Tensor, blocks: Sequence[int], videos: int,
                latents: Tensor | None) -> Tensor:
        """[N,T,3,H,W], `videos` to a clip -> [L,N,F,D,14,14]."""
        z = self.latents(frames) if latents is None else latents
        width = 12 * self.dim + 2 * self.transformer.config.ffn_dim
        each = z[0, 0].numel() // 4 * (width * self._dtype.itemsize + 8 * len(blocks) * self.dim)
        # which draw each video gets: all one, or by its place in its clip
        numbers = [i % videos if self.tap.noise == "fresh" else 0 for i in range(len(z))]
        return in_chunks(lambda part: self._averaged(z[part], blocks, numbers[part]), len(z),
                         self.chunk or chunk_size(each, z.device), 1, _OOM_ADVICE)

    def _averaged(self, z: Tensor, blocks: Sequence[int], numbers: list[int]) -> Tensor:
        seeds = range(self.tap.seed, self.tap.seed + self.tap.seeds)
        return self._noise.average(lambda noise: self._noised_tokens(z, noise, blocks), seeds,
                                   numbers, z)                      # [L,N,F,D,14,14]

    def _noised_tokens(self, z: Tensor, noise: Tensor, blocks: Sequence[int]) -> Tensor:
        timestep, sigma = self.tap.time
        inputs = {"hidden_states": ((1 - sigma) * z + sigma * noise).to(self._dtype),
                  # one row for the whole batch, as of the text
                  "timestep": torch.full((1,), timestep, device=z.device),
                  "encoder_hidden_states": self._text.to(self._dtype), **self._control(z)}
        f, h, w = z.shape[2], z.shape[3] // 2, z.shape[4] // 2      # patch (1,2,2)
        with fast_kernels(self.compiled and z.is_cuda):
            tokens = torch.stack(capture_blocks(self.transformer, blocks, inputs))
        grid = tokens.float().reshape(-1, h, w, self.dim).permute(0, 3, 1, 2)
        grid = F.adaptive_avg_pool2d(grid, (GRID, GRID))
        return grid.unflatten(0, (len(blocks), len(z), f))          # [L,N,F,D,14,14]

    def _control(self, z: Tensor) -> dict[str, Tensor]:
        """VACE's control: grey inactive frames, clean ones as reactive frames, a mask of ones."""
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
