"""A tiny autoencoder's encoder (TAEHV) in the place of Wan2.1's, on single frames.

As published at github.com/madebyollin/taehv (MIT): pixels in [0,1]; the end of a clip is filled
with copies of its last frame up to a multiple of four; each block also reads its input of the step
before, zeros at first; two steps are pooled into one, twice. taew2_1 gives the normalised latents
that the transformer reads; lighttaew2_1 (huggingface.co/lightx2v/Autoencoders, Apache-2.0) raw ones
on the scale of Wan's VAE.
"""
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from safetensors.torch import safe_open
from torch import Tensor, nn

from records.files import files_digest
from teacher.fast.frame_encoder import FirstConv
from teacher.towers.checkpoints import DAMAGE, first_line, hub_answers, reading_parts
from teacher.towers.tap import TINY_VAES

HUB = "lightx2v/Autoencoders"
WIDTH, CHANNELS = 64, 16  # channels of the layers, of the latents
_STAGES = ((2, 2), (7, 2), (12, 1))  # in the published list: a stage's first layer; steps it pools


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the encoder's weights in a published file."""
    shapes: dict[str, tuple[int, ...]] = {
        "0.weight": (WIDTH, 3, 3, 3), "0.bias": (WIDTH,),
        "17.weight": (CHANNELS, WIDTH, 3, 3), "17.bias": (CHANNELS,)}
    for start, steps in _STAGES:
        shapes[f"{start}.conv.weight"] = (WIDTH, steps * WIDTH, 1, 1)
        shapes[f"{start + 1}.weight"] = (WIDTH, WIDTH, 3, 3)
        for block in range(start + 2, start + 5):
            for layer in (0, 2, 4):
                shapes[f"{block}.conv.{layer}.weight"] = (WIDTH, (1 + (layer == 0)) * WIDTH, 3, 3)
                shapes[f"{block}.conv.{layer}.bias"] = (WIDTH,)
    return {f"encoder.{name}": shape for name, shape in shapes.items()}


def load_tiny_vae(name: str, vae: AutoencoderKLWan) -> "TinyEncoder":
    """The encoder of TINY_VAES (from the hub) or of a file, in the dtype of `vae`, in whose place
    it stands. ValueError if that is not Wan2.1's, or the file cannot be read."""
    defaults = inspect.signature(AutoencoderKLWan.__init__).parameters  # those of Wan2.1
    for field in ("z_dim", "latents_mean", "latents_std"):
        if vae.config[field] != defaults[field].default:
            raise ValueError(f"tap.vae {name}: stands for the VAE of Wan2.1 (also Wan2.2's A14B), "
                             "this generator has another; set it to wan")
    path = _from_hub(name) if name in TINY_VAES else Path(name)
    if not path.is_file():
        raise ValueError(f"tap.vae: {path}: no such file")
    digest = files_digest({Path("encoder"): path})
    with reading_parts(path, "not a TAEHV of 16 latent channels"), safe_open(path, "pt") as file:
        shapes = published_shapes()
        weights = {key: file.get_tensor(key) for key in shapes}
        for key, shape in shapes.items():
            if weights[key].shape != shape:
                raise ValueError(f"{key} is {[*weights[key].shape]}, expected {[*shape]}")
    if path.stem == "lighttaew2_1":
        mean, std = (torch.tensor(vae.config[f"latents_{part}"]) for part in ("mean", "std"))
        weight, bias = (f"encoder.17.{part}" for part in ("weight", "bias"))
        weights[weight] = weights[weight].float() / std.view(-1, 1, 1, 1)
        weights[bias] = (weights[bias].float() - mean) / std
    encoder = TinyEncoder(weights).to(vae.dtype)
    encoder.spec = f"{path.stem}-{digest}"
    return encoder


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB, f"{name}.safetensors",
                                    local_files_only=not hub_answers()))
    except DAMAGE as error:
        reason = first_line(error).partition(". ")[0][:200]
        raise ValueError(
            f"tap.vae {name}: cannot be read from the hub or its cache ({reason}); go online once, "
            f"or give a local {name}.safetensors, as in safetensors/ of "
            "github.com/madebyollin/taehv") from error


class TinyEncoder(nn.Module):
    """frames [N,3,H,W] in [0,1] -> normalised latents [N,16,H/8,W/8] float32.

    The four equal frames of a one-frame clip are one up to the first blocks, which see two steps;
    from the second pooling on there is one. A pooling and the convolution after it are one product.
    """
    spec = "unsaved"

    def __init__(self, weights: Mapping[str, Tensor]):
        """weights: named as in `published_shapes`, of an encoder that gives normalised latents."""
        super().__init__()
        layers = {key.removeprefix("encoder."): value.float() for key, value in weights.items()}
        self.first = FirstConv(layers["0.weight"], layers["0.bias"])
        self.last = _conv(layers["17.weight"], layers["17.bias"])
        self.down: Any = nn.ModuleList()
        self.blocks: Any = nn.ModuleList()
        for start, _ in _STAGES:
            pool = layers[f"{start}.conv.weight"][:, :, 0, 0]
            if start == _STAGES[0][0]:  # two equal steps
                pool = pool[:, :WIDTH] + pool[:, WIDTH:]
            joined = torch.einsum("omhw,mi->oihw", layers[f"{start + 1}.weight"], pool)
            self.down.append(_conv(joined, stride=2))
            self.blocks.append(nn.ModuleList(
                MemoryBlock(layers, f"{block}.conv") for block in range(start + 2, start + 5)))

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.to(self.last.weight.dtype).unsqueeze(2)          # [N,3,1,H,W]
        x = self.down[0](F.relu(self.first(x).squeeze(2)))          # [N,64,H/2,W/2]
        before, now = x, x                                          # the two steps
        for block in self.blocks[0]:
            before, now = block(before), block(now, before)
        x = self.down[1](torch.cat([before, now], 1))               # [N,64,H/4,W/4]
        for block in self.blocks[1]:
            x = block(x)
        x = self.down[2](x)                                         # [N,64,H/8,W/8]
        for block in self.blocks[2]:
            x = block(x)
        return self.last(x).float()


class MemoryBlock(nn.Module):
    """x [N,64,h,w] and `past`, its value of the step before (None: zeros) -> [N,64,h,w]."""

    def __init__(self, layers: Mapping[str, Tensor], name: str):
        super().__init__()
        weight, bias = layers[f"{name}.0.weight"], layers[f"{name}.0.bias"]
        self.both, self.alone = _conv(weight, bias), _conv(weight[:, :WIDTH], bias)
        self.second, self.third = (
            _conv(layers[f"{name}.{i}.weight"], layers[f"{name}.{i}.bias"]) for i in (2, 4))

    def forward(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        y = self.alone(x) if past is None else self.both(torch.cat([x, past], 1))
        return F.relu(x + self.third(F.relu(self.second(F.relu(y)))))


def _conv(weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> nn.Conv2d:
    # on meta: the constructor's own random weights are not needed
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, stride, 1, bias=bias is not None,
                     device="meta")
    conv.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last),
                               requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return conv
