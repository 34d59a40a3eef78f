"""Diffusion generators besides Wan, from local diffusers folders: one class each, in GENERATORS."""
from collections.abc import Mapping
from math import log
from pathlib import Path
from shlex import quote
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLTemporalDecoder,
    CogVideoXTransformer3DModel,
    LTXVideoTransformer3DModel,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor, nn

from records.files import folder_digest, read_json
from teacher.towers.capture import capture_activation
from teacher.towers.checkpoints import DAMAGE, first_line, load_complete, reading_parts
from teacher.towers.diffusion import DiffusionTower, ScheduledTower, TransformerTower
from teacher.towers.image_encoders import ENCODERS, ImageTower, load_encoder
from teacher.towers.prompt import load_prompt

# what SVD is told of a clip: its defaults, but for noise on the still
FPS, MOTION, AUGMENTED = 6.0, 127.0, 0.0


class UNetTower(ScheduledTower):
    """Stable Diffusion's UNet with the empty prompt, where it enters the middle block."""
    kind, part, vae_class, net_class = "unet", "unet", AutoencoderKL, UNet2DConditionModel
    multiple, level = 8, 250

    def latents(self, x: Tensor) -> Tensor:
        return self.vae.encode(x).latent_dist.mode() * self.vae.config.scaling_factor

    def grid(self, z: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        k, text = self._inputs(z)
        return capture_activation(self.net.mid_block, False, lambda: self.net(z, k, text))

    def _tap(self, block: int | None) -> tuple[int, int | None]:
        return self.net.config.block_out_channels[-1], None


class SVDTower(UNetTower):
    """Stable Video Diffusion's UNet on one-frame clips, given their CLIP embedding and latents;
    the timestep is ln(noise / signal) / 4, by the checkpoint's schedule at k."""
    kind, vae_class = "svd", AutoencoderKLTemporalDecoder
    net_class = UNetSpatioTemporalConditionModel
    files = ("image_encoder/config.json", "feature_extractor/preprocessor_config.json",
             "scheduler/scheduler_config.json")

    def __init__(self, *args: Any, image_encoder: Any, mean: list[float], std: list[float],
                 **options: Any):
        super().__init__(*args, **options)
        self.image_encoder = image_encoder.eval().requires_grad_(False)
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))

    @classmethod
    def load_extras(cls, folder: Path) -> dict[str, Any]:
        from transformers import CLIPVisionModelWithProjection

        config = read_json(folder / "feature_extractor/preprocessor_config.json",
                           "copy the checkpoint again", kind=dict)
        encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder",
                                                                dtype=torch.float32)
        return super().load_extras(folder) | {
            "image_encoder": encoder, "mean": config["image_mean"], "std": config["image_std"]}

    def condition(self, x: Tensor) -> Mapping[str, Tensor]:
        size = self.image_encoder.config.image_size
        image = F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        image = (image - self.mean.to(x)) / self.std.to(x)
        return {"embedding": self.image_encoder(image).image_embeds[:, None],  # [N,1,D']
                # unscaled, as SVD was trained
                "still": self.vae.encode(x * 2 - 1).latent_dist.mode()}

    def grid(self, z: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        signal, sigma = self.shares()
        timestep = torch.full((len(z),), 0.25 * log(sigma / signal), device=z.device)
        added = z.new_tensor([FPS, MOTION, AUGMENTED]).expand(len(z), -1)
        frames = torch.cat([z, condition["still"]], 1)[:, None]  # [N,1,2C,h,w]
        return capture_activation(self.net.mid_block, False, lambda: self.net(
            frames, timestep, condition["embedding"], added))

    def _modules(self) -> list[nn.Module]:
        return [*super()._modules(), self.image_encoder]


class CogVideoXTower(TransformerTower, ScheduledTower):
    """CogVideoX with its own schedule and the empty prompt."""
    kind, vae_class, net_class = "cogvideox", AutoencoderKLCogVideoX, CogVideoXTransformer3DModel

    def latents(self, x: Tensor) -> Tensor:
        return self.vae.encode(x.unsqueeze(2)).latent_dist.mode() * self.vae.config.scaling_factor

    def grid(self, z: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        k, text = self._inputs(z)
        config, frames = self.net.config, z.transpose(1, 2)  # [N,1,C,h,w]
        grid = z.shape[3] // config.patch_size, z.shape[4] // config.patch_size
        rotary = None                                        # the 2B model adds learned positions
        if config.use_rotary_positional_embeddings:
            rotary = get_3d_rotary_pos_embed(config.attention_head_dim, ((0, 0), grid), grid, 1,
                                             device=z.device)
        tokens = capture_activation(self.net.transformer_blocks[self.block], True, lambda: self.net(
            frames, text, k, image_rotary_emb=rotary))
        return tokens.transpose(1, 2).unflatten(2, grid)


class LTXTower(TransformerTower):
    """Flow matching: z_k = (1 - t) z + t eps with t = k/1000; a token is a latent of 32x32 px."""
    kind, vae_class, net_class = "ltx", AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
    multiple = 32

    def shares(self) -> tuple[float, float]:
        return 1 - self.k / 1000, self.k / 1000

    def latents(self, x: Tensor) -> Tensor:
        z = self.vae.encode(x.unsqueeze(2)).latent_dist.mode()  # [N,C,1,h,w]
        mean, std = (v.view(1, -1, 1, 1, 1).to(z)
                     for v in (self.vae.latents_mean, self.vae.latents_std))
        return ((z - mean) * self.vae.config.scaling_factor / std).squeeze(2)

    def grid(self, z: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        assert self.prompt is not None
        n, _, height, width = z.shape
        # its padding is masked: "" is one vector, </s>
        text = self.prompt.embedding[:, :1].expand(n, -1, -1).to(z)
        pixels = self.vae.spatial_compression_ratio
        tokens = capture_activation(
            self.net.transformer_blocks[self.block], True, lambda: self.net(
                z.flatten(2).transpose(1, 2), text, torch.full((n,), self.k, device=z.device),
                torch.ones(n, 1, device=z.device), num_frames=1, height=height, width=width,
                rope_interpolation_scale=(1, pixels, pixels)))
        return tokens.transpose(1, 2).unflatten(2, (height, width))


GENERATORS: dict[str, type[DiffusionTower]] = {
    tower.kind: tower for tower in (UNetTower, SVDTower, CogVideoXTower, LTXTower)}


def load_generator(kind: str, folder: Path, **options: Any) -> DiffusionTower:
    """kind: one of GENERATORS; options: its constructor's. ValueError if files lack."""
    tower = GENERATORS[kind]
    has_prompt = "prompt.safetensors" in tower.files
    needed = ("vae/config.json", f"{tower.part}/config.json", *tower.files)
    if missing := [name for name in needed if not (folder / name).is_file()]:
        make = f" with its prompt (vega3d teacher prompt {quote(str(folder))})"
        hint = make if has_prompt else ""
        raise ValueError(
            f"{folder}: no {', '.join(missing)}; expected a diffusers folder of {kind}{hint}")
    with reading_parts(folder, f"not a complete {kind} checkpoint"):
        vae = _load_part(tower.vae_class, folder, "vae")
        net = _load_part(tower.net_class, folder, tower.part)
        extras = tower.load_extras(folder)
    prompt = load_prompt(folder / "prompt.safetensors") if has_prompt else None
    return tower(vae, net, prompt, digest=folder_digest(folder), **extras, **options)


def load_tower(name: str) -> ImageTower | DiffusionTower:
    """KIND:FOLDER -> that tower with its defaults; KIND: one of ENCODERS and GENERATORS."""
    kind, _, folder = name.partition(":")
    if kind in ENCODERS and folder:
        return load_encoder(kind, Path(folder))
    if kind in GENERATORS and folder:
        return load_generator(kind, Path(folder))
    raise ValueError(f"{name}: not a tower; expected KIND:FOLDER with KIND one of "
                     f"{', '.join([*ENCODERS, *GENERATORS])}")


def _load_part(model_class: Any, folder: Path, part: str) -> Any:
    found = model_class.load_config(folder, subfolder=part).get("_class_name")
    if found != model_class.__name__:
        raise ValueError(f"{part}/ is a {found}, expected {model_class.__name__}")
    try:
        return load_complete(model_class, folder, subfolder=part, torch_dtype=torch.float32)
    except DAMAGE as error:
        raise ValueError(f"{part}/: {first_line(error)}") from error
