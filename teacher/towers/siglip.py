"""The paper's semantic stream: a SigLIP vision tower, its last layer but one, averaged to the 14x14
grid.

Source: LLaVA-Video's `siglip-so400m-patch14-384`, select layer -2, 27x27 tokens pooled bilinearly
with stride 2.
"""
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from records.files import folder_digest
from teacher.towers.base import GRID
from teacher.towers.chunking import chunk_size, in_chunks

PUBLISHED = {"siglip-so400m": "google/siglip-so400m-patch14-384",
             "siglip2-so400m": "google/siglip2-so400m-patch14-384"}
_LAYER = -2


class SiglipEncoder:
    """frames [B,T,3,H,W] in [0,1] -> [B,T,D,14,14]. The whole frame is squashed to the tower's
    square, as released."""

    def __init__(self, model: Any, digest: str):
        self.model = model.eval().requires_grad_(False)
        config = model.config
        self.dim, self.side, self.cells = config.hidden_size, config.image_size, config.image_size // config.patch_size
        self.spec = {
            "tower": config.model_type, "dim": self.dim, "side": self.side, "layer": _LAYER,
            "grid": GRID, "weights": digest
        }

    def to(self, device: torch.device | str) -> "SiglipEncoder":
        self.model.to(device)
        return self

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        flat = frames.flatten(0, 1)
        each = self.cells**2 * 80 * self.dim
        tokens = in_chunks(lambda part: self._tokens(flat[part]), len(flat),
                           chunk_size(each, flat.device), 0, "use a smaller semantic encoder")
        return tokens.unflatten(0, frames.shape[:2])

    def _tokens(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True,
                          align_corners=False).clamp(0, 1)
        out = self.model(pixel_values=(x * 2 - 1).to(self.model.dtype), output_hidden_states=True)
        grid = out.hidden_states[_LAYER].transpose(1, 2).unflatten(
            2, (self.cells, self.cells))  # [N,D,27,27]
        return F.interpolate(grid.float(), (GRID, GRID), mode="bilinear", align_corners=False)


def load_siglip(name: str) -> SiglipEncoder:
    """siglip-so400m, siglip2-so400m, a hub id or a local transformers folder. Raises ValueError if
    it is no SigLIP."""
    from transformers import SiglipVisionModel

    where = PUBLISHED.get(name, name)
    kinds: Any = SiglipVisionModel
    try:
        if (card := Path(where) / "config.json").is_file():
            kind = json.loads(card.read_text()).get("model_type", "")
            if not kind.startswith("siglip"):
                raise ValueError(
                    f"is a {kind or 'model without a type'}, expected a siglip or siglip2")
        model, info = kinds.from_pretrained(where, dtype=torch.float32, use_safetensors=True,
                                            output_loading_info=True)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        line = next((line for line in str(error).splitlines() if line.strip()),
                    type(error).__name__)
        raise ValueError(f"{where}: no SigLIP vision tower could be read ({line[:200]})") from error
    if lost := sorted(k for k in info["missing_keys"]
                      if ".head." not in k and not k.startswith("head.")):
        raise ValueError(
            f"{where}: not a whole SigLIP (lacks {len(lost)} weights, {lost[0]} first)")
    local = Path(where)
    return SiglipEncoder(
        model,
        folder_digest(local) if local.is_dir() else f"{where}@{model.config._commit_hash}")
