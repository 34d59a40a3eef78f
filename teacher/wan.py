"""The latent world simulator: a frozen Wan video diffusion transformer, tapped mid-way (arXiv 2603.19235, eq. 4-5).

z = per-channel normalised VAE mean; z_t = (1-t) z + t eps with t = k/1000; one forward with the empty prompt; the
residual stream after block l (0-based), no norm. Blocks above the tap are dropped: their output is never read.
"""
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor

from teacher.backbones import GRID
from teacher.causal import use_single_frame_convolutions

NANO = Path(__file__).parent / "weights" / "wan-nano"


@dataclass(frozen=True)
class Tap:
    """Where and how the generator is read. The defaults are the measured best for wan-nano (docs: probe table)."""
    block: int = 6                                # 0-based
    k: int = 200                                  # noise level, 0 (clean) .. 1000 (pure noise); t = k/1000
    frames: Literal["image", "video"] = "image"   # each frame its own one-frame video, or the clip together
    seeds: int = 4                                # noise draws that are averaged
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.k <= 1000:
            raise ValueError(f"tap.k is {self.k}, expected 0 (clean) to 1000 (pure noise)")
        if self.seeds < 1:
            raise ValueError(f"tap.seeds is {self.seeds}, expected at least 1")


class WanTower:
    """frames [B,T,3,H,W] in [0,1] -> [B,T,D,14,14]; H and W multiples of 16.

    In video mode T must be 4n+1 (the VAE would silently drop the rest); a latent stands for up to four frames, and
    each of them gets that latent's features. Noise depends on (seed, frame of the clip) alone: every frame has its own
    draw, as in the paper, yet a clip's features never depend on its batch.
    """

    def __init__(self, vae: AutoencoderKLWan, transformer: WanTransformer3DModel, prompt: Tensor, tap: Tap,
                 digest: str = "unsaved"):
        count = len(transformer.blocks)
        if not 0 <= tap.block < count:
            raise ValueError(f"tap.block is {tap.block}, expected 0 to {count - 1}: the generator has {count} blocks")
        self.vae = use_single_frame_convolutions(vae.eval().requires_grad_(False))
        self.transformer = transformer.eval().requires_grad_(False)
        self.transformer.blocks = self.transformer.blocks[: tap.block + 1]
        self.prompt, self.tap = prompt, tap  # prompt [1,L,text_dim]
        self.dim = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        self.spec = {"tower": "wan", "weights": digest, "dim": self.dim, "grid": GRID, **asdict(tap)}

    def to(self, device: torch.device | str) -> "WanTower":
        self.vae.to(device)
        self.transformer.to(device)
        self.prompt = self.prompt.to(device)
        return self

    def features(self, frames: Tensor) -> Tensor:
        """[B,T,3,H,W] in [0,1] -> [B,T,D,14,14] at the tap."""
        return self.block_features(frames, [self.tap.block])[0]

    @torch.inference_mode()
    def block_features(self, frames: Tensor, blocks: Sequence[int]) -> Tensor:
        """The same after each of several blocks at or below the tap, from one pass -> [L,B,T,D,14,14]."""
        b, t, _, h, w = frames.shape
        if h % 16 or w % 16:
            raise ValueError(f"wan: frames are {h}x{w} px, expected sides that are multiples of 16; resize them")
        if self.tap.frames == "image":
            tokens = self._tapped(frames.reshape(b * t, 1, 3, h, w), blocks, t)  # [L,B*T,1,D,14,14]
            return tokens.reshape(len(blocks), b, t, -1, GRID, GRID)
        if t % 4 != 1:
            raise ValueError(f"wan: video mode got {t} frames, expected 4n+1 (1, 5, 9, 17 …): "
                             "the VAE silently drops the rest")
        tokens = self._tapped(frames, blocks, 1)                    # [L,B,F,D,14,14], F = 1 + (T-1)/4
        owner = torch.arange(t, device=frames.device).add(3) // 4   # frame -> latent: 0 1111 2222
        return tokens[:, :, owner]

    def latents(self, frames: Tensor) -> Tensor:
        """[N,T,3,H,W] in [0,1] -> normalised VAE mean [N,C,F,H/8,W/8]."""
        dtype = next(self.vae.parameters()).dtype
        z = self.vae.encode((frames * 2 - 1).transpose(1, 2).to(dtype)).latent_dist.mode()
        return normalise(z, self.vae)

    def _tapped(self, frames: Tensor, blocks: Sequence[int], videos: int) -> Tensor:
        z = self.latents(frames)
        total = torch.zeros((), device=z.device)
        for s in range(self.tap.seeds):
            noise = _noise(self.tap.seed + s, videos, z.shape[1:]).to(z).repeat(len(z) // videos, 1, 1, 1, 1)
            total = total + self._noised_tokens(z, noise, blocks).float()
        return total / self.tap.seeds                               # [L,N,F,D,14,14]

    def _noised_tokens(self, z: Tensor, noise: Tensor, blocks: Sequence[int]) -> Tensor:
        sigma = self.tap.k / 1000
        taken: list[Tensor] = []
        hooks = [self.transformer.blocks[i].register_forward_hook(lambda _m, _i, out: taken.append(out))
                 for i in blocks]
        try:
            self.transformer(hidden_states=(1 - sigma) * z + sigma * noise,
                             timestep=torch.full((len(z),), 1000 * sigma, device=z.device),
                             encoder_hidden_states=self.prompt.expand(len(z), -1, -1), return_dict=False)
        finally:
            for hook in hooks:
                hook.remove()
        f, h, w = z.shape[2], z.shape[3] // 2, z.shape[4] // 2      # patch (1,2,2)
        grid = torch.stack(taken).unflatten(2, (f, h, w)).permute(0, 1, 2, 5, 3, 4)  # [L,N,F,D,h,w]
        if (h, w) == (GRID, GRID):
            return grid
        return F.adaptive_avg_pool2d(grid.flatten(0, 2), (GRID, GRID)).unflatten(0, grid.shape[:3])


class VAELatents:
    """Control: the generator's own VAE latents, 2x2 per cell, without its transformer."""

    def __init__(self, tower: WanTower):
        self.tower = WanTower(tower.vae, tower.transformer, tower.prompt, replace(tower.tap, frames="image"))
        self.dim = 4 * tower.vae.config.z_dim
        self.spec = {"tower": "vae", "weights": tower.spec["weights"], "dim": self.dim}

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        z = self.tower.latents(frames.flatten(0, 1).unsqueeze(1)).squeeze(2).float()   # [N,C,h,w]
        return F.adaptive_avg_pool2d(F.pixel_unshuffle(z, 2), (GRID, GRID)).unflatten(0, frames.shape[:2])


def _noise(seed: int, videos: int, shape: Sequence[int]) -> Tensor:
    # on the CPU, so that every device sees the same draw; the i-th video's does not depend on how many follow
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(seed * 1009 + i))
                        for i in range(videos)])


def normalise(z: Tensor, vae: AutoencoderKLWan) -> Tensor:
    """Raw latents [N,C,...] -> zero mean, unit deviation per channel, by the VAE's own statistics."""
    shape = (1, -1, *[1] * (z.ndim - 2))
    mean, std = (torch.tensor(v).to(z).view(shape) for v in (vae.config.latents_mean, vae.config.latents_std))
    return (z - mean) / std


def load_wan(folder: Path | str = NANO, tap: Tap | None = None, random_weights: bool = False) -> WanTower:
    """A tower from a local folder in the diffusers layout: vae/, transformer/, prompt.safetensors.

    random_weights keeps the VAE and re-draws the transformer: the control for what training put there.
    Raises ValueError naming what the folder lacks.
    """
    folder = Path(folder)
    parts = {"vae/config.json", "transformer/config.json", "prompt.safetensors"}
    if missing := sorted(p for p in parts if not (folder / p).is_file()):
        raise ValueError(f"{folder}: no {', '.join(missing)}; expected a diffusers Wan folder with vae/, transformer/ "
                         "and prompt.safetensors (the empty-prompt embedding)")
    try:
        vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32)
        transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
        prompt = load_file(folder / "prompt.safetensors")["prompt"].float()
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder}: not a whole Wan checkpoint ({error})") from error
    digest = weights_digest(folder)
    if random_weights:
        torch.manual_seed(0)
        transformer = WanTransformer3DModel.from_config(transformer.config)
        digest += "-random"
    return WanTower(vae, transformer, prompt, tap or Tap(), digest)


def generator_folder(name: str) -> Path:
    """Where a generator called by name lives: the shipped wan-nano, or a local folder in the diffusers layout."""
    return NANO if name == "wan-nano" else Path(name)


def weights_digest(folder: Path) -> str:
    """First 16 hex digits over the weights and configs of a checkpoint: vae/, transformer/, prompt.safetensors."""
    total = sha256()
    files = [p for part in ("vae", "transformer") for p in (folder / part).iterdir()]
    for file in sorted([p for p in files if p.suffix in (".safetensors", ".json")] + [folder / "prompt.safetensors"]):
        total.update(str(file.relative_to(folder)).encode() + sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


def spec_digest(spec: dict) -> str:
    """A tower's spec as 16 hex digits: the key of everything made from it."""
    return sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
