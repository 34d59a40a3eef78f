"""Gated fusion of the semantic and the generative stream, token by token (arXiv 2603.19235, eq. 7; released form).

g = sigmoid(w . [LN(sem); LN(gen)] + b), one scalar a token; out = g LN(sem) + (1-g) LN(gen).
"""
import torch
from torch import Tensor, nn


class TokenGate(nn.Module):
    """semantic [B,Ds,14,14], generative [B,Dg,14,14] (standardised) -> fused [B,W,14,14] and gate [B,1,14,14].

    The gate is the semantic share: 1 = semantic only. `None` for the generative stream gives the semantic-only
    baseline: the same projection and norm, no second stream.
    """

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__()
        self.project_semantic = _projector(semantic_dim, width)
        self.project_generative = _projector(generative_dim, width)
        self.norm_semantic, self.norm_generative = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate = nn.Linear(2 * width, 1)

    def forward(self, semantic: Tensor, generative: Tensor | None) -> tuple[Tensor, Tensor]:
        sem = self.norm_semantic(self.project_semantic(semantic.permute(0, 2, 3, 1)))          # [B,14,14,W]
        if generative is None:
            return sem.permute(0, 3, 1, 2), torch.ones_like(sem[..., :1]).permute(0, 3, 1, 2)
        gen = self.norm_generative(self.project_generative(generative.permute(0, 2, 3, 1)))    # [B,14,14,W]
        g = self.gate(torch.cat([sem, gen], -1)).sigmoid()                                     # [B,14,14,1]
        return (g * sem + (1 - g) * gen).permute(0, 3, 1, 2), g.permute(0, 3, 1, 2)


def _projector(dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))
