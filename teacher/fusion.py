"""Fusing the semantic and the generative stream: the token gate, and its comparison variants.

Each takes semantic [B,Ds,H,W] and generative [B,Dg,H,W] (standardised) and returns (fused
[B,W,H,W], the semantic share of each token [B,1,H,W] or None where a variant has none). Sequence
concatenation alone returns twice the height. Source: arXiv 2603.19235, eq. 7-8 and table 5, each by
the released code's formula; paper_gate is equation 8 as printed, semantic_only our baseline.
context [B,W] is read by context_gated only.
"""
import math

import torch
from torch import Tensor, nn

HEADS, DROPOUT = 8, 0.1    # of the released cross-attention
RESIDUAL_SHARE = 0.2       # initial weight of the blend in the residual gate


def fusion(name: str, semantic_dim: int, generative_dim: int, width: int) -> nn.Module:
    """One of FUSIONS. Raises ValueError listing them."""
    if name not in FUSIONS:
        raise ValueError(f"fusion: no variant {name!r}; there are: {', '.join(FUSIONS)}")
    return FUSIONS[name](semantic_dim, generative_dim, width)


class _TwoStreams(nn.Module):
    """Both streams projected, [B,H,W,D]; a subclass combines them."""
    normalised = False  # whether there is a LayerNorm of each stream

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__()
        self.project_semantic = _projector(semantic_dim, width)
        self.project_generative = _projector(generative_dim, width)
        if self.normalised:
            self.norm_semantic, self.norm_generative = nn.LayerNorm(width), nn.LayerNorm(width)
        self.build(width)

    def build(self, width: int) -> None:
        """Adds the variant's own layers."""

    def forward(self, semantic: Tensor, generative: Tensor | None,
                context: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        sem = self.project_semantic(_channels_last(semantic))
        gen = self.project_generative(_channels_last(_required(generative)))
        return _channels_first(self.combine(sem, gen)), None

    def combine(self, sem: Tensor, gen: Tensor) -> Tensor:
        raise NotImplementedError


class TokenGate(_TwoStreams):
    """g = sigmoid(w . [LN(sem); LN(gen)] + b), one scalar a token; out = g LN(sem) + (1-g) LN(gen).

    The gate is the semantic share: 1 = semantic only. `None` for the generative stream gives the
    semantic-only baseline: the same projection and norm, no second stream.
    """
    normalised = True

    def build(self, width: int) -> None:
        self.gate = nn.Linear(2 * width, 1)

    def forward(self, semantic: Tensor, generative: Tensor | None,
                context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raw_sem = self.project_semantic(_channels_last(semantic))                  # [B,H,W,D]
        sem = self.norm_semantic(raw_sem)
        if generative is None:
            return _channels_first(sem), torch.ones_like(_channels_first(sem[..., :1]))
        raw_gen = self.project_generative(_channels_last(generative))
        gen = self.norm_generative(raw_gen)
        logits = self.gate(torch.cat([sem, gen], -1)) + self.context_logits(context)
        g = logits.sigmoid()                                                       # [B,H,W,1 or D]
        fused = self.blend(g, sem, gen, raw_sem, raw_gen)
        return _channels_first(fused), _channels_first(g.mean(-1, keepdim=True))

    def blend(self, g: Tensor, sem: Tensor, gen: Tensor, raw_sem: Tensor,
              raw_gen: Tensor) -> Tensor:
        return g * sem + (1 - g) * gen

    def context_logits(self, context: Tensor | None) -> Tensor | float:
        return 0.0


class ContextGate(TokenGate):
    """As TokenGate, with a learned bias and a logit of the instruction: context [B,D], the mean
    embedding of the question's words."""

    def build(self, width: int) -> None:
        super().build(width)
        self.norm_context = nn.LayerNorm(width)
        self.project_context = nn.Sequential(nn.Linear(width, width // 2), nn.SiLU(),
                                             nn.Linear(width // 2, 1))
        self.context_scale = nn.Parameter(torch.tensor(1.0))
        self.gate_bias = nn.Parameter(torch.tensor(-0.5))

    def context_logits(self, context: Tensor | None) -> Tensor | float:
        if context is None:
            return self.gate_bias
        logits = self.project_context(self.norm_context(context))                  # [B,1]
        return self.gate_bias + self.context_scale * logits[:, None, None]


class ChannelGate(TokenGate):
    """As TokenGate, with a gate a channel."""

    def build(self, width: int) -> None:
        self.gate = nn.Linear(2 * width, width)


class PaperGate(TokenGate):
    """Equation 8 as printed: the gate reads normalised streams and blends the raw ones."""

    def blend(self, g: Tensor, sem: Tensor, gen: Tensor, raw_sem: Tensor,
              raw_gen: Tensor) -> Tensor:
        return g * raw_sem + (1 - g) * raw_gen


class ResidualGate(TokenGate):
    """sem + s (g sem + (1-g) gen - sem), raw streams, s learned (the released VSI-Bench model)."""

    def build(self, width: int) -> None:
        super().build(width)
        self.share = nn.Parameter(torch.tensor(RESIDUAL_SHARE))

    def blend(self, g: Tensor, sem: Tensor, gen: Tensor, raw_sem: Tensor,
              raw_gen: Tensor) -> Tensor:
        return raw_sem + self.share * (1 - g) * (raw_gen - raw_sem)


class SemanticOnly(nn.Module):
    """LN(sem): the baseline, normalised as the gate's streams are, so that scale gains nothing."""

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__()
        self.project, self.norm = _projector(semantic_dim, width), nn.LayerNorm(width)

    def forward(self, semantic: Tensor, generative: Tensor | None,
                context: Tensor | None = None) -> tuple[Tensor, None]:
        return _channels_first(self.norm(self.project(_channels_last(semantic)))), None


class GenerativeOnly(nn.Module):
    """gen: the generative stream without semantics."""

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__()
        self.project = _projector(generative_dim, width)

    def forward(self, semantic: Tensor, generative: Tensor | None,
                context: Tensor | None = None) -> tuple[Tensor, None]:
        return _channels_first(self.project(_channels_last(_required(generative)))), None


class Add(_TwoStreams):
    """sem + gen."""

    def combine(self, sem: Tensor, gen: Tensor) -> Tensor:
        return sem + gen


class Weighted(_TwoStreams):
    """(a sem + b gen) / (a + b), two learned scalars that start at a half."""

    def build(self, width: int) -> None:
        self.weights = nn.Parameter(torch.tensor([0.5, 0.5]))

    def combine(self, sem: Tensor, gen: Tensor) -> Tensor:
        a, b = self.weights / self.weights.sum()
        return a * sem + b * gen


class SequenceConcat(_TwoStreams):
    """The generative tokens as further rows below the semantic ones: [B,W,2H,W]."""
    normalised = True

    def combine(self, sem: Tensor, gen: Tensor) -> Tensor:
        return torch.cat([self.norm_semantic(sem), self.norm_generative(gen)], 1)


class ChannelConcat(_TwoStreams):
    """Linear([LN(sem); LN(gen)])."""
    normalised = True

    def build(self, width: int) -> None:
        self.mix = nn.Linear(2 * width, width)

    def combine(self, sem: Tensor, gen: Tensor) -> Tensor:
        return self.mix(torch.cat([self.norm_semantic(sem), self.norm_generative(gen)], -1))


class CrossAttention(_TwoStreams):
    """Semantic queries, generative keys of the same frame; `layers` times, each with an MLP."""
    layers = 1

    def build(self, width: int) -> None:
        self.blocks = nn.ModuleList(_CrossAttentionBlock(width) for _ in range(self.layers))

    def combine(self, sem: Tensor, gen: Tensor) -> Tensor:
        _, h, w, d = sem.shape
        position = grid_position(h, w, d, sem.device).to(sem.dtype)  # [H*W,D]
        x, gen = sem.flatten(1, 2), gen.flatten(1, 2)                # [B,H*W,D]
        for block in self.blocks:
            x = block(x, gen, position)
        return x.unflatten(1, (h, w))


class CrossAttention3(CrossAttention):
    layers = 3


class _CrossAttentionBlock(nn.Module):
    """x + attention(LN(x) + position, LN(gen) + position, LN(gen)), then an MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.attend = nn.MultiheadAttention(width, math.gcd(HEADS, width), DROPOUT,
                                            batch_first=True)
        self.norm_query, self.norm_key = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_value, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(DROPOUT),
                                 nn.Linear(4 * width, width), nn.Dropout(DROPOUT))

    def forward(self, x: Tensor, gen: Tensor, position: Tensor) -> Tensor:
        query, key = self.norm_query(x) + position, self.norm_key(gen) + position
        x = x + self.attend(query, key, self.norm_value(gen), need_weights=False)[0]
        return x + self.mlp(self.norm_mlp(x))


FUSIONS: dict[str, type[nn.Module]] = {
    "token_gate": TokenGate, "paper_gate": PaperGate, "channel_gate": ChannelGate,
    "residual_gate": ResidualGate, "context_gated": ContextGate, "add": Add, "weighted": Weighted,
    "channel_concat": ChannelConcat, "sequence_concat": SequenceConcat,
    "cross_attention": CrossAttention, "cross_attention_3": CrossAttention3,
    "semantic_only": SemanticOnly, "generative_only": GenerativeOnly
}


def grid_position(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Sine and cosine of row and column, [height*width,dim]: a quarter of the channels each."""
    quarter = dim // 4
    rate = 10000.0 ** (-torch.arange(quarter, device=device) / max(quarter, 1))
    row, column = torch.meshgrid(torch.arange(height, device=device),
                                 torch.arange(width, device=device), indexing="ij")
    row, column = (axis.flatten()[:, None] * rate for axis in (row, column))  # [N,dim/4]
    code = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], 1)
    return nn.functional.pad(code, (0, dim - code.shape[1]))


def _projector(dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))


def _required(generative: Tensor | None) -> Tensor:
    if generative is None:
        raise ValueError(
            "fusion: this variant needs a generative stream, got none; use semantic_only")
    return generative


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)
