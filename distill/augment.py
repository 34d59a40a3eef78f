"""Augmentation of the student's input. Its targets stay the teacher's, of the clean frame.

Every number is drawn from (seed, step) for the batch as a whole, so that a resumed run, or one that
shares its batches among processes, sees the same frames.
"""
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PHOTOMETRIC_DRAWS = 36  # uniform numbers a frame
_LIGHT = 4              # grid of the uneven light
_BLUR = 7               # px, side of the blur's kernel
_BLOCK = 8              # px, side of the compression's blocks


class Augmentation:
    """names: those of distill.config.StudentTraining.augment."""

    def __init__(self, names: Sequence[str], seed: int, device: torch.device):
        self.names, self.seed = names, seed
        self._photometric = torch.compile(photometric) if device.type == "cuda" else photometric

    def __call__(self, frames: Tensor, step: int, rows: slice = slice(None),
                 total: int | None = None) -> Tensor:
        """frames uint8 [B,3,H,W] -> frames in [0,1].

        rows: which of the step's `total` examples these are; by default all.
        """
        frames = frames.float() / 255
        if "photometric" not in self.names:
            return frames
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        count = total or len(frames)
        draws = torch.rand(count, PHOTOMETRIC_DRAWS, generator=generator)
        return self._photometric(frames, on(frames.device, draws[rows]))


def on(device: torch.device, x: Tensor) -> Tensor:
    """Copied without waiting for the device's work, as a copy of pageable memory would."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def photometric(frames: Tensor, draws: Tensor) -> Tensor:
    """Exposure, gamma, colour, light, blur, noise and compression of a camera.

    frames [B,3,H,W] in [0,1] -> the same.

    draws: uniform in [0,1), [B,PHOTOMETRIC_DRAWS].
    """
    draws = draws[:, :, None, None, None]
    light, draws = draws[:, :_LIGHT**2], draws[:, _LIGHT**2:]

    def uniform(index: int, low: float, high: float) -> Tensor:
        return low + (high - low) * draws[:, index]                          # [B,1,1,1]

    x = _blurred(frames, uniform(0, 0, math.pi), uniform(1, -6, 6).clamp(min=0))
    x = x.clamp_min(1e-4) ** uniform(2, -0.35, 0.35).exp()                   # gamma
    gains = torch.cat([uniform(i, -0.2, 0.2) for i in (3, 4, 5)], 1).exp()   # white balance
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x * gains - mean) * uniform(6, 0.7, 1.3) + mean                     # contrast
    # a quarter of the frames gets any hue
    hue = torch.where(draws[:, 8] < 0.25, uniform(7, -math.pi, math.pi), uniform(7, -0.4, 0.4))
    x = _recoloured(x, hue, uniform(9, 0.2, 1.5))
    x = x * _uneven_light(light, uniform(10, -0.5, 0.5).clamp(min=0), frames.shape[-2:])
    row, column = _coordinates(frames)
    x = x * (1 - uniform(11, -0.6, 0.6).clamp(min=0) * (row.square() + column.square()) / 2)
    x = x * uniform(12, math.log(0.5), math.log(1.7)).exp()                  # exposure
    distance = (row - uniform(13, -1, 1)).square() + (column - uniform(14, -1, 1)).square()
    glare = uniform(15, -4, 2).clamp(min=0) * (-distance / uniform(16, 0.05, 0.4).square()).exp()
    x = (x + glare).clamp(0, 1)
    x = x + uniform(18, -0.04, 0.04).clamp(min=0) * (x + 0.03).sqrt() * _noise(x, draws[:, 17])
    return _compressed(x, uniform(19, -2, 2).clamp(min=0)).clamp(0, 1)


def sampled(x: Tensor, windows: Tensor, side: int, mode: str) -> Tensor:
    """The windows of x [B,C,W,W], resized to [B,C,side,side] float32; windows [B,3]: side, left and
    top edge as shares of W."""
    theta = windows.new_zeros(len(windows), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = windows[:, 0]
    theta[:, :, 2] = 2 * windows[:, 1:] + windows[:, :1] - 1
    grid = F.affine_grid(theta, [len(x), 1, side, side], align_corners=False)
    return F.grid_sample(x.float(), grid, mode, "border", align_corners=False)


def _coordinates(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [H,1] and columns [1,W] from -1 to 1."""
    height, width = frames.shape[-2:]
    return (torch.linspace(-1, 1, height, device=frames.device)[:, None],
            torch.linspace(-1, 1, width, device=frames.device)[None])


def _noise(x: Tensor, draw: Tensor) -> Tensor:
    """Noise of deviation 1 like x [B,3,H,W], of each pixel's place and the frame's draw [B,1,1,1].

    The sum of the four bytes of a hash; no random state, so that a batch can be shared.
    """
    place = torch.arange(x[0].numel(), device=x.device).view(x[0].shape)
    # the draw before the product: as a multiple of an index, Triton would compute it in 32 bits
    number = ((place + (draw * 2**31).long()) * 0x9E3779B1) & 0xFFFFFFFF
    for factor in (0x7FEB352D, 0x846CA68B):
        number = ((number ^ (number >> 16)) * factor) & 0xFFFFFFFF
    number = number ^ (number >> 16)
    total = torch.zeros_like(x[:1])
    for shift in (0, 8, 16, 24):
        total = total + ((number >> shift) & 255)
    return (total / 255 - 2) * math.sqrt(3)


def _compressed(x: Tensor, strength: Tensor) -> Tensor:
    """x with the cosine coefficients of its 8x8 blocks rounded as JPEG does; strength [B,1,1,1].

    0 changes nothing, 1 is about quality 50.
    """
    b, c, h, w = x.shape
    padded = F.pad(x, (0, -w % _BLOCK, 0, -h % _BLOCK), mode="replicate") - 0.5
    rows, columns = (n // _BLOCK for n in padded.shape[-2:])
    blocks = padded.view(b, c, rows, _BLOCK, columns, _BLOCK).transpose(3, 4).flatten(4)
    place = torch.arange(_BLOCK, device=x.device, dtype=x.dtype)
    basis = (math.pi / _BLOCK * (place + 0.5) * place[:, None]).cos() / 2
    basis = torch.cat([basis[:1] / math.sqrt(2), basis[1:]])                 # [8,8], orthonormal
    basis = torch.kron(basis, basis)  # of blocks [B,3,rows,columns,64]: one large product each way
    step = ((place + place[:, None]) * (7 / 255) + 12 / 255).flatten()
    step = (strength[..., None] * step).clamp_min(1e-4)
    blocks = ((blocks @ basis.T / step).round() * step) @ basis
    blocks = blocks.unflatten(4, (_BLOCK, _BLOCK)).transpose(3, 4)
    return blocks.reshape(padded.shape)[..., :h, :w] + 0.5


def _recoloured(x: Tensor, angle: Tensor, saturation: Tensor) -> Tensor:
    """Turns colours about the grey axis, scales their distance to it; angle, saturation [B,1,1,1].
    """
    grey = x.mean(1, keepdim=True)
    chroma = (x - grey) * saturation
    # the cross product with the grey axis, (1,1,1)/sqrt(3)
    turned = (chroma.roll(1, 1) - chroma.roll(-1, 1)) / math.sqrt(3)
    return grey + chroma * angle.cos() + turned * angle.sin()


def _uneven_light(draws: Tensor, strength: Tensor, size: torch.Size) -> Tensor:
    """Smooth gains [B,1,H,W]; draws [B,16,1,1,1]."""
    grid = draws.reshape(-1, 1, _LIGHT, _LIGHT) * 4 - 2
    field = F.interpolate(grid, size=tuple(size), mode="bicubic", align_corners=False)
    return (strength * field).exp()


def _blurred(x: Tensor, angle: Tensor, length: Tensor) -> Tensor:
    """Motion blur along a line of `length` px (0: none); angle, length [B,1,1,1]."""
    offset = torch.arange(_BLUR, device=x.device) - _BLUR // 2
    down, across = offset[:, None], offset[None]
    along = across * angle.cos() + down * angle.sin()                        # [B,1,7,7]
    beside = down * angle.cos() - across * angle.sin()
    kernel = (-(beside.square() + (along.abs() - length / 2).clamp(min=0).square()) / 0.15).exp()
    kernel = kernel / kernel.sum((2, 3), keepdim=True)
    b, c = x.shape[:2]
    rows = x.reshape(1, b * c, *x.shape[2:])
    kernels = kernel.repeat_interleave(c, 0)                                 # [B*C,1,7,7]
    padded = F.pad(rows, [_BLUR // 2] * 4, mode="replicate")
    return F.conv2d(padded, kernels, groups=b * c).reshape(x.shape)
