"""How a frame meets the generator's size: the whole frame, so that grid cells match; or the
released squash and crop.

Frames of any size are resized, never silently cut: the generator would drop what does not fill a
token.
"""
import torch.nn.functional as F
from torch import Tensor

from teacher.towers.tap import PAPER_SIZES

PAPER_SQUASH = 384  # px: what their semantic encoder sees, and hands on


def registered_size(height: int, width: int, side: int | None, multiple: int) -> tuple[int, int]:
    """(H, W) with the short side near `side` px (None: as it is), the aspect kept, both multiples
    of `multiple`."""
    scale = 1 if side is None else side / min(height, width)
    high, wide = (max(multiple, round(n * scale / multiple) * multiple) for n in (height, width))
    return high, wide


def registered(frames: Tensor, side: int | None, multiple: int) -> Tensor:
    """frames [N,3,H,W] in [0,1] -> the whole of each at `registered_size`; those that fit already
    are untouched."""
    size = registered_size(frames.shape[-2], frames.shape[-1], side, multiple)
    if frames.shape[-2:] == size:
        return frames
    return F.interpolate(frames, size, mode="bilinear", antialias=True,
                         align_corners=False).clamp(0, 1)


def paper(frames: Tensor, side: int | None) -> Tensor:
    """frames [N,3,H,W] in [0,1] -> [N,3,720,1280] or [N,3,480,832]: what the released VEGA-3D code
    feeds Wan.

    Squashed to 384x384 (bicubic, as SigLIP's processor), enlarged until it covers (bilinear, no
    antialias), cropped at the centre: of a frame's rows the middle 56 % are left, and the 14x14
    grid spans only those.
    """
    height, width = PAPER_SIZES[side or 720]
    square = F.interpolate(frames, (PAPER_SQUASH, PAPER_SQUASH), mode="bicubic", antialias=True,
                           align_corners=False).clamp(0, 1)
    cover = max(height, width)
    large = F.interpolate(square, (cover, cover), mode="bilinear", align_corners=False)
    top, left = (cover - height) // 2, (cover - width) // 2
    return large[..., top:top + height, left:left + width]
