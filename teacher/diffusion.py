"""Other diffusion generators as geometry towers: Stable Diffusion's UNet and CogVideoX, from local diffusers folders.

z_k = sqrt(a_k) z + sqrt(1 - a_k) eps with the checkpoint's own schedule, empty prompt, each frame alone. The UNet is
read where the paper reads it: what enters the middle block; CogVideoX after a block. Nothing above the tap runs.
"""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    CogVideoXTransformer3DModel,
    DDPMScheduler,
    UNet2DConditionModel,
)
from safetensors import SafetensorError
from torch import Tensor, nn

from teacher.backbones import GRID
from teacher.chunks import chunk_size, in_chunks
from teacher.encoders import folder_digest
from teacher.geometry import registered
from teacher.prompt import Prompt, load_prompt

K = {"unet": 250, "cogvideox": 300}  # the paper's noise level for Stable Diffusion; Wan's for the other


class DiffusionTower:
    """frames [B,T,3,H,W] in [0,1] -> [B,T,D,14,14]. Noise depends on (seed, frame of the clip) alone.

    block: of CogVideoX, 0-based (None: two thirds up, as Wan's 20 of 30). side: 224 as every tower; the paper gave
    the UNet 896 px, where its middle block is 14x14 (at 224 it is 4x4, spread over the grid).
    """

    def __init__(self, vae: Any, net: Any, prompt: Prompt, k: int, block: int | None = None, seeds: int = 1,
                 seed: int = 0, side: int = 224, digest: str = "unsaved", schedule: DDPMScheduler | None = None):
        self.video = isinstance(net, CogVideoXTransformer3DModel)
        self.vae, self.net = (m.eval().requires_grad_(False) for m in (vae, net))
        self.prompt, self.k, self.seeds, self.seed, self.side = prompt, k, seeds, seed, side
        self.kept = float((schedule or DDPMScheduler()).alphas_cumprod[min(k, 999)])
        if self.video:
            count = len(net.transformer_blocks)
            block = 2 * count // 3 if block is None else block
            if not 0 <= block < count:
                raise ValueError(f"block is {block}, expected 0 to {count - 1}: the generator has {count} blocks")
            self.dim = net.config.num_attention_heads * net.config.attention_head_dim
        else:
            self.dim = net.config.block_out_channels[-1]
        self.block = block
        self.spec = {"tower": "cogvideox" if self.video else "unet", "weights": digest, "dim": self.dim, "grid": GRID,
                     "k": k, "block": block, "seeds": seeds, "seed": seed, "side": side}

    def to(self, device: torch.device | str) -> "DiffusionTower":
        self.vae.to(device)
        self.net.to(device)
        self.prompt = self.prompt.to(device)
        return self

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        b, t = frames.shape[:2]
        x = registered(frames.flatten(0, 1), self.side, 16 if self.video else 8) * 2 - 1
        each = x[0].numel() * 4 * 6 * 128 // 3  # the VAE's first layers: 128 channels at full resolution
        out = in_chunks(lambda part: self._averaged(x[part], [i % t for i in range(b * t)[part]]), b * t,
                        chunk_size(each, x.device), 0, "use a smaller side")
        return out.unflatten(0, (b, t))

    def _averaged(self, x: Tensor, numbers: list[int]) -> Tensor:
        z = self.vae.encode(x.unsqueeze(2) if self.video else x).latent_dist.mode() * self.vae.config.scaling_factor
        total = torch.zeros((), device=z.device)
        for s in range(self.seeds):
            noise = torch.stack([torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(
                (self.seed + s) * 1009 + i)) for i in numbers]).to(z)
            total = total + self._grid(self.kept ** 0.5 * z + (1 - self.kept) ** 0.5 * noise)
        return F.adaptive_avg_pool2d(total / self.seeds, (GRID, GRID))

    def _grid(self, z: Tensor) -> Tensor:
        k = torch.full((len(z),), min(self.k, 999), device=z.device)
        text = self.prompt.padded().expand(len(z), -1, -1).to(z)
        if not self.video:
            return _until(self.net.mid_block, False, lambda: self.net(z, k, text)).float()
        frames = z.transpose(1, 2)                                          # [N,1,C,h,w]
        tokens = _until(self.net.transformer_blocks[self.block], True, lambda: self.net(frames, text, k,
                        image_rotary_emb=self._rotary(z)))
        patch = self.net.config.patch_size
        return tokens.transpose(1, 2).unflatten(2, (z.shape[3] // patch, z.shape[4] // patch)).float()

    def _rotary(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        if not self.net.config.use_rotary_positional_embeddings:  # the 2B model adds learned positions instead
            return None
        from diffusers.models.embeddings import get_3d_rotary_pos_embed

        patch = self.net.config.patch_size
        high, wide = z.shape[3] // patch, z.shape[4] // patch
        return get_3d_rotary_pos_embed(self.net.config.attention_head_dim, ((0, 0), (high, wide)), (high, wide), 1,
                                       device=z.device)


def load_diffusion(kind: str, folder: Path, k: int | None = None, **knobs: Any) -> DiffusionTower:
    """kind: unet or cogvideox; knobs as DiffusionTower's. Raises ValueError naming what the folder lacks."""
    vae_kind, net_kind, part = {"unet": (AutoencoderKL, UNet2DConditionModel, "unet"),
                                "cogvideox": (AutoencoderKLCogVideoX, CogVideoXTransformer3DModel, "transformer")}[kind]
    wanted = ("vae/config.json", f"{part}/config.json", "scheduler/scheduler_config.json", "prompt.safetensors")
    if missing := [p for p in wanted if not (folder / p).is_file()]:
        raise ValueError(f"{folder}: no {', '.join(missing)}; expected a diffusers folder of {kind} with its prompt "
                         f"(vega3d teacher prompt {folder})")
    try:
        schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        vae, net = (c.from_pretrained(folder, subfolder=p, torch_dtype=torch.float32, use_safetensors=True)
                    for c, p in ((vae_kind, "vae"), (net_kind, part)))
    except (OSError, KeyError, TypeError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: not a whole {kind} checkpoint ({str(error).strip().splitlines()[0]})") from error
    return DiffusionTower(vae, net, load_prompt(folder / "prompt.safetensors"), K[kind] if k is None else k,
                          digest=folder_digest(folder), schedule=schedule, **knobs)


class _Enough(Exception):
    """Carries the tapped tensor out of a forward whose rest is not needed."""


def _until(module: nn.Module, after: bool, run: Callable[[], object]) -> Tensor:
    """What enters `module` (or leaves it, its first output), from a run that stops there."""
    taken: list[Tensor] = []

    def stop(value: Any) -> None:
        taken.append(value[0] if isinstance(value, tuple) else value)
        raise _Enough

    hook = (module.register_forward_hook(lambda _m, _a, out: stop(out)) if after
            else module.register_forward_pre_hook(lambda _m, args: stop(args)))
    try:
        run()
    except _Enough:
        pass
    finally:
        hook.remove()
    return taken[0]
