"""What a geometry tower is, and the controls every claim stands beside.

A tower turns a clip's frames into one D-vector a token of a 14x14 grid. `spec` names every knob
that changes those
numbers: it keys the feature store. The controls carry no learned 3D knowledge; a gain that survives
them is not ours.
"""
from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 14


class Tower(Protocol):
    """A frozen source of geometric features."""
    dim: int

    @property
    def spec(self) -> dict: ...

    def features(self, frames: Tensor) -> Tensor:
        """frames [B,T,3,H,W] in [0,1] -> [B,T,D,14,14] float32."""
        ...


class Zeros:
    """No information at all: what the extra parameters alone buy."""
    dim = 256  # as wan-nano: the same number of parameters read them
    spec: ClassVar[dict] = {"tower": "zeros", "dim": dim}

    def features(self, frames: Tensor) -> Tensor:
        return frames.new_zeros(*frames.shape[:2], self.dim, GRID, GRID)


class FixedNoise:
    """One Gaussian vector a grid cell, the same in every frame: a position code and nothing
    else."""
    dim = 64

    def __init__(self, seed: int = 0):
        self.spec = {"tower": "noise", "dim": self.dim, "seed": seed}
        self.noise = torch.randn(1, 1, self.dim, GRID, GRID,
                                 generator=torch.Generator().manual_seed(seed))

    def features(self, frames: Tensor) -> Tensor:
        return self.noise.to(frames).expand(*frames.shape[:2], -1, -1, -1)


class RGBPatches:
    """The raw pixels under each cell: [3,16,16] unrolled to 768."""
    dim = 3 * 16 * 16
    spec: ClassVar[dict] = {"tower": "rgb", "dim": dim, "side": 16 * GRID}

    def features(self, frames: Tensor) -> Tensor:
        # [B*T,3,224,224]
        small = F.interpolate(frames.flatten(0, 1), (16 * GRID, 16 * GRID), mode="area")
        return F.pixel_unshuffle(small, 16).unflatten(0, frames.shape[:2])  # [B,T,768,14,14]


class NoiseBank:
    """Every video's own Gaussian draw by (seed, its number), made once and kept where it is
    used."""

    def __init__(self) -> None:
        self._drawn: dict[tuple[int, int], Tensor] = {}
        self._like: tuple = ()

    def draw(self, seed: int, numbers: Sequence[int], z: Tensor) -> Tensor:
        """Noise like z [N,C,F,h,w], one number a row. The i-th video's does not depend on how many
        follow."""
        if self._like != (like := (z.shape[1:], z.device, z.dtype)):
            self._drawn, self._like = {}, like
        for i in {*numbers} - {n for s, n in self._drawn if s == seed}:
            # on the CPU, so that every device sees the same draw
            drawn = torch.randn(*z.shape[1:],
                                generator=torch.Generator().manual_seed(seed * 1009 + i))
            self._drawn[seed, i] = drawn.to(z)
        return torch.stack([self._drawn[seed, i] for i in numbers])
