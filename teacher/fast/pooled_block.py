"""A Wan block whose output is averaged to 14x14 tokens: its widest product runs on pooled tokens.

The block ends in x + gate (W gelu(h) + b). Averages over windows commute with W, and the gate is
the same for every token, so W runs on fewer rows (832x480: 196 a frame instead of 1560).
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teacher.towers.base import GRID


class PooledBlock(nn.Module):
    """A Wan block, then `average` of each latent frame: x [N,F*h*w,D] -> [N*F,14*14,D] float32."""

    windows: Tensor
    count: Tensor

    def __init__(self, block: Any, height: int, width: int):
        super().__init__()
        self.block, self.height, self.width = block, height, width
        windows = pooling_windows(height, width).to(block.ffn.net[2].weight)
        self.register_buffer("windows", windows)
        self.register_buffer("count", windows.float().sum(1, keepdim=True))  # [14*14,1]

    def forward(self, x: Tensor, text: Tensor, temb: Tensor,
                rotary: tuple[Tensor, Tensor]) -> Tensor:
        block = self.block
        modulation = (block.scale_shift_table + temb.float()).chunk(6, dim=1)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = modulation
        inner = block.attn1((block.norm1(x.float()) * (1 + scale) + shift).type_as(x), None, None,
                            rotary)
        x = (x.float() + inner * gate).type_as(x)
        x = x + block.attn2(block.norm2(x.float()).type_as(x), text, None, None)
        hidden = block.ffn.net[0]((block.norm3(x.float()) * (1 + ff_scale) + ff_shift).type_as(x))
        # one row a latent frame: [N*F,h*w,...]
        x, hidden = (a.reshape(-1, self.height * self.width, a.shape[2]) for a in (x, hidden))
        product = block.ffn.net[2]
        # sums, not averages, enter the product: ones are exact in bf16
        sums = torch.bmm(self.windows.expand(len(hidden), -1, -1), hidden)  # [N*F,14*14,ffn]
        pooled = F.linear(sums, product.weight).float() / self.count + product.bias
        return average(x, self.height, self.width) + ff_gate * pooled


def average(tokens: Tensor, height: int, width: int) -> Tensor:
    """[M,h*w,D] -> [M,14*14,D] float32: adaptive average pooling."""
    grid = tokens.float().unflatten(1, (height, width)).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(grid, (GRID, GRID)).flatten(2).transpose(1, 2)


def pooling_windows(height: int, width: int) -> Tensor:
    """[14*14,h*w]: 1 where `average` reads a token for a cell, else 0."""
    rows, columns = ((F.adaptive_avg_pool1d(torch.eye(n), GRID) > 0).T.float()
                     for n in (height, width))  # [14,h], [14,w]
    return torch.kron(rows, columns)
