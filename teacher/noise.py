"""The generator's noise: every video's own, the same on every device."""
from collections.abc import Sequence

import torch
from torch import Tensor


class NoiseBank:
    """Every video's own Gaussian draw by (seed, its number), made once and kept where it is used."""

    def __init__(self) -> None:
        self._drawn: dict[tuple[int, int], Tensor] = {}
        self._like: tuple = ()

    def draw(self, seed: int, numbers: Sequence[int], z: Tensor) -> Tensor:
        """Noise like z [N,C,F,h,w], one number a row. The i-th video's does not depend on how many follow."""
        if self._like != (like := (z.shape[1:], z.device, z.dtype)):
            self._drawn, self._like = {}, like
        for i in {*numbers} - {n for s, n in self._drawn if s == seed}:
            # on the CPU, so that every device sees the same draw
            drawn = torch.randn(*z.shape[1:], generator=torch.Generator().manual_seed(seed * 1009 + i))
            self._drawn[seed, i] = drawn.to(z)
        return torch.stack([self._drawn[seed, i] for i in numbers])
