"""The last block of a pooled tap: its widest product is taken of the pooled tokens, not of every
token.

The block ends x + gate (W gelu(h) + b), and what follows averages tokens over windows. An average
is linear and the gate the same for every token, so both commute with W, which then meets fewer rows
(832x480: 196 a frame, not 1560).
"""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teacher.towers.base import GRID


def average(tokens: Tensor, high: int, wide: int) -> Tensor:
    """[M,h*w,D] -> [M,14*14,D] float32: adaptive average pooling."""
    picture = tokens.float().unflatten(1, (high, wide)).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(picture, (GRID, GRID)).flatten(2).transpose(1, 2)


def windows(high: int, wide: int) -> Tensor:
    """[14*14,h*w]: 1 where `average` reads a token for a cell, else 0."""
    rows, columns = (
        (F.adaptive_avg_pool1d(torch.eye(n), GRID) > 0).T for n in (high, wide))  # [14,h], [14,w]
    return torch.kron(rows.float(), columns.float())


class PooledBlock(nn.Module):
    """A Wan block followed by `average` of every latent frame: x [N,F*h*w,D] -> [N*F,14*14,D]
    float32."""

    seen: Tensor
    count: Tensor

    def __init__(self, block: Any, high: int, wide: int):
        super().__init__()
        self.block, self.high, self.wide = block, high, wide
        seen = windows(high, wide).to(block.ffn.net[2].weight)
        self.register_buffer("seen", seen)
        self.register_buffer("count", seen.float().sum(1, keepdim=True))  # [14*14,1]

    def forward(self, x: Tensor, text: Tensor, temb: Tensor, rotary: tuple[Tensor,
                                                                           Tensor]) -> Tensor:
        block = self.block
        shift, scale, gate, ff_shift, ff_scale, ff_gate = (block.scale_shift_table +
                                                           temb.float()).chunk(6, dim=1)
        inner = block.attn1((block.norm1(x.float()) * (1 + scale) + shift).type_as(x), None, None,
                            rotary)
        x = (x.float() + inner * gate).type_as(x)
        x = x + block.attn2(block.norm2(x.float()).type_as(x), text, None, None)
        hidden = block.ffn.net[0]((block.norm3(x.float()) * (1 + ff_scale) + ff_shift).type_as(x))
        # a latent frame each
        x, hidden = (a.reshape(-1, self.high * self.wide, a.shape[2]) for a in (x, hidden))
        product = block.ffn.net[2]
        # sums, not averages, meet the product: ones are exact in bf16
        sums = torch.bmm(self.seen.expand(len(hidden), -1, -1), hidden)  # [N*F,14*14,ffn]
        said = F.linear(sums, product.weight).float() / self.count + product.bias
        return average(x, self.high, self.wide) + ff_gate * said


@contextmanager
def swapped_block(blocks: nn.ModuleList, i: int, other: nn.Module) -> Iterator[None]:
    """Inside, block i is the other one."""
    own, blocks[i] = blocks[i], other
    try:
        yield
    finally:
        blocks[i] = own
