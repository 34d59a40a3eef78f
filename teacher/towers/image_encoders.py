"""Vision transformers as towers: DINOv2, DINOv3, V-JEPA2, and SigLIP as the semantic stream.

Each frame alone, from transformers checkpoints. The first three see the generator's pixels (224 by
default; the paper's towers saw 196 to 1280), normalised as trained; patch tokens, last norm.
"""
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, PreTrainedModel, SiglipVisionModel

from records.files import folder_digest, read_json
from teacher.towers.base import GRID, chunk_size, in_chunks, resize_registered
from teacher.towers.checkpoints import (
    cached_file,
    load_complete,
    published,
    reading_parts,
    split_revision,
)

ENCODERS = {"dinov2": ("dinov2", "dinov2_with_registers"), "dinov3": ("dinov3_vit",),
            "vjepa2": ("vjepa2",)}  # kind -> model types
SIGLIPS = {"siglip-so400m": "google/siglip-so400m-patch14-384",
           "siglip2-so400m": "google/siglip2-so400m-patch14-384"}
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_SIGLIP_LAYER = -2


def load_encoder(kind: str, folder: Path, side: int = 224) -> "ImageTower":
    """kind: one of ENCODERS. ValueError if the folder is not a complete checkpoint of that kind."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; expected a transformers folder of {kind}")
    found = _config(folder / "config.json").get("model_type")
    if found not in ENCODERS[kind]:
        raise ValueError(f"{folder}: is a {found}, expected {kind}")
    with reading_parts(folder, f"not a complete {kind} checkpoint"):
        model = load_complete(AutoModel, folder, dtype=torch.float32, local_files_only=True)
    path = folder / "preprocessor_config.json"
    config = _config(path) if path.is_file() else {}
    mean, std = config.get("image_mean") or IMAGENET[0], config.get("image_std") or IMAGENET[1]
    return ImageTower(model, mean, std, folder_digest(folder), side)


class _FrameTower:
    """frames [B,T,3,H,W] in [0,1] -> [B,T,D,14,14], each frame alone."""
    dim: int

    def __init__(self, model: Any):
        self.model, self.config = model.eval().requires_grad_(False), model.config

    def to(self, device: torch.device | str) -> Self:
        self.model.to(device)
        return self

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        x = frames.flatten(0, 1)
        cells = self.pixels(x[:1])[0, 0].numel() // self.config.patch_size ** 2
        tokens = in_chunks(lambda part: self.tokens(self.pixels(x[part])), len(x),
                           chunk_size(cells * 80 * self.dim, x.device), 0, "use a smaller encoder")
        return tokens.unflatten(0, frames.shape[:2])

    def pixels(self, frames: Tensor) -> Tensor:
        """[N,3,H,W] in [0,1] -> the model's input [N,3,h,w]."""
        raise NotImplementedError

    def tokens(self, x: Tensor) -> Tensor:
        """What `pixels` gave -> [N,D,14,14]."""
        raise NotImplementedError


class ImageTower(_FrameTower):
    """Patch tokens; other grids than 14x14 are averaged to it."""

    def __init__(self, model: PreTrainedModel, mean: list[float], std: list[float],
                 digest: str = "unsaved", side: int = 224):
        super().__init__(model)
        self.dim, self.side = self.config.hidden_size, side
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
        self.spec = {"tower": self.config.model_type, "weights": digest, "dim": self.dim,
                     "grid": GRID, "side": side, "mean": mean, "std": std}

    def pixels(self, frames: Tensor) -> Tensor:
        x = resize_registered(frames, self.side, self.config.patch_size)
        return (x - self.mean.to(x)) / self.std.to(x)

    def tokens(self, x: Tensor) -> Tensor:
        height, width = (n // self.config.patch_size for n in x.shape[-2:])
        if self.config.model_type == "vjepa2":  # a still: one tubelet of equal frames
            still = x.unsqueeze(1).expand(-1, self.config.tubelet_size, -1, -1, -1)
            tokens = self.model(pixel_values_videos=still, skip_predictor=True).last_hidden_state
        else:
            tokens = self.model(pixel_values=x).last_hidden_state
        patches = tokens[:, -height * width:]  # class and registers come first
        grid = patches.transpose(1, 2).unflatten(2, (height, width))
        return F.adaptive_avg_pool2d(grid.float(), (GRID, GRID))


def _config(path: Path) -> dict[str, Any]:
    return read_json(path, "copy the checkpoint again", kind=dict)


def load_siglip(name: str) -> "SiglipEncoder":
    """One of SIGLIPS, a hub id or a local transformers folder. ValueError if it is no SigLIP."""
    where = published(name, SIGLIPS)
    with reading_parts(where, "no SigLIP vision tower could be read"):
        if (config := Path(where) / "config.json").is_file():
            kind = _config(config).get("model_type", "")
            if not kind.startswith("siglip"):
                raise ValueError(f"is a {kind or 'model without a type'}, expected a siglip or "
                                 "siglip2")
        model = load_complete(SiglipVisionModel, where, optional=r"(^|\.)head\.",
                              dtype=torch.float32)
    if Path(where).is_dir():
        return SiglipEncoder(model, folder_digest(Path(where)))
    commit = cached_file(where, "config.json").parent.name
    return SiglipEncoder(model, f"{split_revision(where)[0]}@{commit}")


class SiglipEncoder(_FrameTower):
    """The paper's semantic stream, as LLaVA-Video's: select layer -2.

    Frames are squashed to a square, 27x27 tokens pooled bilinearly with stride 2.
    """

    def __init__(self, model: Any, digest: str):
        super().__init__(model)
        self.dim, self.side = self.config.hidden_size, self.config.image_size
        self.spec = {"tower": self.config.model_type, "dim": self.dim, "side": self.side,
                     "layer": _SIGLIP_LAYER, "grid": GRID, "weights": digest}

    def pixels(self, frames: Tensor) -> Tensor:
        x = F.interpolate(frames, (self.side, self.side), mode="bicubic", antialias=True,
                          align_corners=False).clamp(0, 1)
        return (x * 2 - 1).to(self.model.dtype)

    def tokens(self, x: Tensor) -> Tensor:
        out = self.model(pixel_values=x, output_hidden_states=True)
        cells = (self.side // self.config.patch_size, ) * 2
        grid = out.hidden_states[_SIGLIP_LAYER].transpose(1, 2).unflatten(2, cells)  # [N,D,27,27]
        return F.interpolate(grid.float(), (GRID, GRID), mode="bilinear", align_corners=False)
