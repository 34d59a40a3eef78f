"""Vision transformers as geometry towers: DINOv2, DINOv3 and V-JEPA2, from local transformers
folders.

They see the pixels the generator sees (224 px by default: the paper's towers saw 196 to 1280, so
its table compares sizes as much as models), each frame alone, with their own normalisation; patch
tokens after the last norm.
"""
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from records.files import folder_digest
from teacher.towers.base import GRID
from teacher.towers.chunking import chunk_size, in_chunks
from teacher.towers.resize import registered

ENCODERS = {
    "dinov2": ("dinov2", "dinov2_with_registers"), "dinov3": ("dinov3_vit", ), "vjepa2": ("vjepa2",
                                                                                          )
}
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class ImageTower:
    """frames [B,T,3,H,W] in [0,1] -> [B,T,D,14,14]; other grids are averaged to it."""

    def __init__(self, model: PreTrainedModel, mean: list[float], std: list[float],
                 digest: str = "unsaved", side: int = 224):
        self.model = model.eval().requires_grad_(False)
        self.config: Any = model.config
        self.dim, self.side = self.config.hidden_size, side
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
        self.spec = {
            "tower": self.config.model_type, "weights": digest, "dim": self.dim, "grid": GRID,
            "side": side, "mean": mean, "std": std
        }

    def to(self, device: torch.device | str) -> "ImageTower":
        self.model.to(device)  # type: ignore[arg-type]
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        b, t = frames.shape[:2]
        x = (registered(frames.flatten(0, 1), self.side, self.config.patch_size) -
             self.mean) / self.std
        cells = x.shape[-2] * x.shape[-1] // self.config.patch_size ** 2
        tokens = in_chunks(lambda part: self._tokens(x[part]), b * t,
                           chunk_size(cells * 80 * self.dim, x.device), 0, "use a smaller encoder")
        return tokens.unflatten(0, (b, t))

    def _tokens(self, x: Tensor) -> Tensor:
        high, wide = (n // self.config.patch_size for n in x.shape[-2:])
        if self.config.model_type == "vjepa2":  # a still: one tubelet of equal frames
            still = x.unsqueeze(1).expand(-1, self.config.tubelet_size, -1, -1, -1)
            tokens = self.model(pixel_values_videos=still, skip_predictor=True).last_hidden_state
        else:
            tokens = self.model(pixel_values=x).last_hidden_state
        # class and registers come first
        grid = tokens[:, -high * wide:].transpose(1, 2).unflatten(2, (high, wide))
        return F.adaptive_avg_pool2d(grid.float(), (GRID, GRID))


def load_encoder(kind: str, folder: Path, side: int = 224) -> ImageTower:
    """kind: dinov2, dinov3 or vjepa2. Raises ValueError if the folder is not a whole checkpoint of
    that kind."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; expected a transformers folder of {kind}")
    found = json.loads((folder / "config.json").read_text()).get("model_type")
    if found not in ENCODERS[kind]:
        raise ValueError(f"{folder}: is a {found}, expected {kind}")
    try:
        model, info = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True,
                                                use_safetensors=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: not a whole {kind} checkpoint ({str(error).splitlines()[0]})") from error
    if lost := sorted(info["missing_keys"]):
        raise ValueError(
            f"{folder}: not a whole {kind} checkpoint (lacks {len(lost)} weights, {lost[0]} first)")
    pre = folder / "preprocessor_config.json"
    said = json.loads(pre.read_text()) if pre.is_file() else {}
    mean, std = said.get("image_mean") or IMAGENET[0], said.get("image_std") or IMAGENET[1]
    return ImageTower(model, mean, std, folder_digest(folder), side)
