"""What a geometry tower is, and what all towers share: noise, bounded memory, frame sizes.

A tower turns a clip's frames into one D-vector a token of a 14x14 grid. Its `spec` names every
setting that changes those numbers: it keys the feature store.
"""
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from teacher.towers.tap import PAPER_SIZES

GRID = 14
CPU_BUDGET = 2 * 2**30  # bytes of activations without a GPU
GPU_BUDGET = 8 * 2**30  # and with one: beyond a few dozen frames a larger batch is no faster
PAPER_SQUASH = 384      # px: what the paper's semantic encoder sees, and hands on


class Tower(Protocol):
    """A frozen source of geometric features."""
    dim: int

    @property
    def spec(self) -> dict: ...

    def features(self, frames: Tensor) -> Tensor:
        """frames [B,T,3,H,W] in [0,1] -> [B,T,D,14,14] float32."""
        ...


class NoiseBank:
    """The Gaussian noise of each video by (seed, the video's number), drawn once and cached."""

    def __init__(self) -> None:
        self._drawn: dict[tuple[int, int], Tensor] = {}
        self._like: tuple = ()

    def draw(self, seed: int, numbers: Sequence[int], z: Tensor) -> Tensor:
        """Noise like z [N,C,...], one number a row; equal numbers get equal noise."""
        if self._like != (like := (z.shape[1:], z.device, z.dtype)):
            self._drawn, self._like = {}, like
        for i in {*numbers} - {n for s, n in self._drawn if s == seed}:
            # on the CPU, so that every device sees the same draw
            generator = torch.Generator().manual_seed(seed * 1009 + i)
            self._drawn[seed, i] = torch.randn(*z.shape[1:], generator=generator).to(z)
        return torch.stack([self._drawn[seed, i] for i in numbers])

    def average(self, call: Callable[[Tensor], Tensor], seeds: range, numbers: Sequence[int],
                z: Tensor) -> Tensor:
        """The float32 mean of call(noise) over the draws of `seeds`."""
        total = torch.zeros((), device=z.device)
        for seed in seeds:
            total = total + call(self.draw(seed, numbers, z)).float()
        return total / len(seeds)


def chunk_size(bytes_each: int, device: torch.device) -> int:
    """How many items fit in the budget and in 60 % of the GPU's free memory: estimates run low."""
    budget = CPU_BUDGET if device.type != "cuda" else min(GPU_BUDGET, int(0.6 * _free(device)))
    return max(1, budget // max(1, bytes_each))


def in_chunks(call: Callable[[slice], Tensor], count: int, chunk: int, dim: int,
              advice: str) -> Tensor:
    """torch.cat of call(slice) over `count` items along `dim`, at most `chunk` at a time.

    Out of GPU memory, the chunk is halved; ValueError with `advice` if a single item does not fit.
    """
    parts: list[Tensor] = []
    start = 0
    # equal sizes: every new size is compiled and timed anew
    chunk = -(-count // -(-count // chunk)) if count else chunk
    while start < count:
        step = slice(start, min(start + chunk, count))
        try:
            parts.append(call(step))
        except torch.OutOfMemoryError:
            tried = step.stop - step.start
            if tried == 1:
                raise ValueError(f"out of GPU memory with one at a time; {advice}") from None
            chunk = tried // 2
        else:
            start = step.stop
            continue
        # outside the handler: there the exception still references the frames' memory
        torch.cuda.empty_cache()
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def resize_registered(frames: Tensor, side: int | None, multiple: int) -> Tensor:
    """frames [N,3,H,W] in [0,1] -> the complete frames at `registered_size`; untouched if equal."""
    size = registered_size(frames.shape[-2], frames.shape[-1], side, multiple)
    if frames.shape[-2:] == size:
        return frames
    return F.interpolate(frames, size, mode="bilinear", antialias=True,
                         align_corners=False).clamp(0, 1)


def registered_size(height: int, width: int, side: int | None, multiple: int) -> tuple[int, int]:
    """(H, W) near `side` px on the short side (None: as it is), in multiples of `multiple`."""
    scale = 1 if side is None else side / min(height, width)
    high, wide = (max(multiple, round(n * scale / multiple) * multiple) for n in (height, width))
    return high, wide


def resize_paper(frames: Tensor, side: int | None) -> Tensor:
    """frames [N,3,H,W] in [0,1] -> [N,3,720,1280] or [N,3,480,832], as the released VEGA-3D code.

    Squashed to 384x384, enlarged until it covers, cropped at the centre: the 14x14 grid spans only
    the middle 56 % of a frame's rows.
    """
    height, width = PAPER_SIZES[side or 720]
    square = F.interpolate(frames, (PAPER_SQUASH, PAPER_SQUASH), mode="bicubic", antialias=True,
                           align_corners=False).clamp(0, 1)
    cover = max(height, width)
    large = F.interpolate(square, (cover, cover), mode="bilinear", align_corners=False)
    top, left = (cover - height) // 2, (cover - width) // 2
    return large[..., top:top + height, left:left + width]


def _free(device: torch.device) -> int:
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
