"""The Wan VAE's encoder on single frames: exact 2D convolutions, channels last.

A causal 3D convolution pads the past with zeros, so on a one-frame video only its last temporal
slice reads data: as a 2D convolution the same result costs a third of the arithmetic.
"""
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanRMS_norm,
    patchify,
)
from torch import Tensor, nn

ALIGNED = 8  # channels: tensor cores read bf16 in groups of eight
NEIGHBOURHOOD = 32  # inputs of one output of the first convolution: 3 channels x 3x3, five zeros


class FrameEncoder(nn.Module):
    """frames [N,3,H,W] in [0,1] -> normalised mean of `vae.encode`, [N,z_dim,h,w] float32."""
    mean: Tensor
    std: Tensor

    def __init__(self, vae: AutoencoderKLWan):
        super().__init__()
        self.z_dim, self.patch = vae.config.z_dim, vae.config.patch_size
        self.encoder: Any = _to_2d(deepcopy(vae.encoder))
        self.quantise = FrameConv(vae.quant_conv)
        device = vae.quant_conv.weight.device
        for name, values in (("mean", vae.config.latents_mean), ("std", vae.config.latents_std)):
            self.register_buffer(name, torch.tensor(values, device=device).view(1, -1, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        x = (frames * 2 - 1).to(self.quantise.weight.dtype).unsqueeze(2)  # [N,3,1,H,W]
        if self.patch is not None:
            x = patchify(x, self.patch)
        z = self.quantise(self.encoder(x))[:, :self.z_dim, 0].float()  # rest: variance
        return (z - self.mean) / self.std


class FirstConv(nn.Module):
    """[N,C,1,H,W] -> [N,C',1,H,W]: a 3x3 convolution with few input channels, as a product."""

    def __init__(self, weight: Tensor, bias: Tensor):
        """weight [C',C,3,3], bias [C']."""
        super().__init__()
        self.spare = NEIGHBOURHOOD - weight[0].numel()
        self.weight = nn.Parameter(F.pad(weight.flatten(1), (0, self.spare)), requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    @staticmethod
    def fits(conv: WanCausalConv3d) -> bool:
        shape = conv.kernel_size[1:], conv.stride[1:], (conv._padding[2], conv._padding[0])
        return shape == ((3, 3), (1, 1), (1, 1)) and conv.in_channels * 9 <= NEIGHBOURHOOD

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x.squeeze(2), (1, 1, 1, 1))
        near = padded.unfold(2, 3, 1).unfold(3, 3, 1)  # [N,C,H,W,3,3], a view
        near = F.pad(near.permute(0, 2, 3, 1, 4, 5).flatten(3), (0, self.spare))  # [N,H,W,32]
        return F.linear(near, self.weight, self.bias).permute(0, 3, 1, 2).unsqueeze(2)


class FrameConv(nn.Conv2d):
    """[N,C,1,H,W] -> [N,C',1,H',W']: the slice of a causal convolution that reads a single frame;
    input channels are padded to groups of ALIGNED."""

    def __init__(self, conv: WanCausalConv3d):
        kernel, stride, padding = conv.kernel_size[1:], conv.stride[1:], conv._padding[2::-2]
        # on meta: the constructor's own random weights are not needed
        super().__init__(conv.in_channels, conv.out_channels, kernel, stride,  # type: ignore
                         padding, device="meta")
        self.spare = -conv.in_channels % ALIGNED
        weight = F.pad(conv.weight.data[:, :, -1], (0, 0, 0, 0, 0, self.spare))
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last),
                                   requires_grad=False)
        self.bias = nn.Parameter(conv.bias.data, requires_grad=False)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        image = F.pad(x.squeeze(2), (0, 0, 0, 0, 0, self.spare)) if self.spare else x.squeeze(2)
        return super().forward(image.contiguous(memory_format=torch.channels_last)).unsqueeze(2)


class FrameNorm(nn.Module):
    """x [N,C,...] over its length across channels, times sqrt(C) and gamma; then SiLU if `active`.

    In float32 with one division a position: compiled kernels of this width are bound by arithmetic.
    """
    gain: Tensor

    def __init__(self, norm: WanRMS_norm, active: bool):
        super().__init__()
        if not norm.channel_first or isinstance(norm.bias, Tensor):
            raise ValueError("wan: unsupported VAE: its norms are channels last or have a bias")
        self.active = active
        self.register_buffer("gain", norm.gamma.data.float() * norm.scale)  # [C,1,1] or [C,1,1,1]

    def forward(self, x: Tensor) -> Tensor:
        x_float = x.float()
        length = x_float.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
        out = x_float * length.reciprocal() * self.gain
        return (out * out.sigmoid() if self.active else out).to(x.dtype)


class FrameAttention(nn.Module):
    """The middle block's attention [N,C,1,h,w] -> same, one head too wide (384) to be fused."""

    def __init__(self, block: Any):
        super().__init__()
        self.norm, self.to_qkv, self.proj = block.norm, block.to_qkv, block.proj

    def forward(self, x: Tensor) -> Tensor:
        image = x.squeeze(2)
        q, k, v = self.to_qkv(self.norm(image)).flatten(2).transpose(1, 2).chunk(3, -1)   # [N,hw,C]
        out = ((q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)).softmax(-1) @ v
        return x + self.proj(out.transpose(1, 2).unflatten(2, image.shape[2:])).unsqueeze(2)


def _first(conv: WanCausalConv3d) -> FirstConv:
    return FirstConv(conv.weight.data[:, :, -1], conv.bias.data)  # type: ignore[union-attr]


def _to_2d(module: nn.Module) -> nn.Module:
    # FrameNorm takes over the SiLU that the encoder and its residual blocks apply after each norm
    active = isinstance(getattr(module, "nonlinearity", None), nn.SiLU)
    if active:
        module.nonlinearity = nn.Identity()
    for name, child in module.named_children():
        if isinstance(child, WanCausalConv3d):
            setattr(module, name, _first(child) if FirstConv.fits(child) else FrameConv(child))
        elif isinstance(child, WanRMS_norm):
            setattr(module, name, FrameNorm(child, active))
        elif isinstance(child, WanAttentionBlock):
            setattr(module, name, FrameAttention(_to_2d(child)))
        elif isinstance(child, nn.Conv2d):
            child.weight.data = child.weight.data.contiguous(memory_format=torch.channels_last)
        else:
            _to_2d(child)
    return module
