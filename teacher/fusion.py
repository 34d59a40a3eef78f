"""Fusing the semantic and the generative stream: the token gate, and its comparison variants.

Each takes semantic [B,Ds,H,W] and generative [B,Dg,H,W] (standardised) and returns (fused
[B,W,H,W], the semantic share of each token [B,1,H,W] or None where a variant has none). Sequence
concatenation alone returns twice the height. Source: arXiv 2603.19235, eq. 7-8 and table 5, in the
released code's form: normalised streams are blended.
"""
import math

import torch
from torch import Tensor, nn

HEADS, DROPOUT = 8, 0.1    # of the released cross-attention
RESIDUAL_SHARE = 0.2       # initial weight of the blend in the residual gate
# semantic share of a gate warm-started from a semantic-only teacher; at 0.9 it stayed there
WARM_START_SHARE = 0.5


def fusion(name: str, semantic_dim: int, generative_dim: int, width: int) -> nn.Module:
    """One of FUSIONS. Raises ValueError listing them."""
    if name not in FUSIONS:
        raise ValueError(f"fusion: no variant {name!r}; there are: {', '.join(FUSIONS)}")
    return FUSIONS[name](semantic_dim, generative_dim, width)


class _TwoStreams(nn.Module):
    """Both streams projected and normalised, [B,H,W,D]; a subclass combines them."""

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__()
        self.project_semantic = _projector(semantic_dim, width)
        self.project_generative = _projector(generative_dim, width)
        self.norm_semantic, self.norm_generative = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, semantic: Tensor, generative: Tensor | None) -> tuple[Tensor, Tensor | None]:
        sem = self.norm_semantic(self.project_semantic(_channels_last(semantic)))
        gen = self.norm_generative(self.project_generative(_channels_last(_required(generative))))
        return _channels_first(self.combine(sem, gen)), None

    def combine(self, sem: Tensor, gen: Tensor) -> Tensor:
        raise NotImplementedError


class TokenGate(_TwoStreams):
    """g = sigmoid(w . [LN(sem); LN(gen)] + b), one scalar a token; out = g LN(sem) + (1-g) LN(gen).

    The gate is the semantic share: 1 = semantic only. `None` for the generative stream gives the
    semantic-only baseline: the same projection and norm, no second stream.
    """
    gates = 1  # scalars a token

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__(semantic_dim, generative_dim, width)
        self.gate = nn.Linear(2 * width, self.gates)

    def forward(self, semantic: Tensor, generative: Tensor | None) -> tuple[Tensor, Tensor]:
        raw_sem = self.project_semantic(_channels_last(semantic))                  # [B,H,W,D]
        sem = self.norm_semantic(raw_sem)
        if generative is None:
            return _channels_first(sem), torch.ones_like(_channels_first(sem[..., :1]))
        raw_gen = self.project_generative(_channels_last(generative))
        gen = self.norm_generative(raw_gen)
        g = self.gate(torch.cat([sem, gen], -1)).sigmoid()                         # [B,H,W,1 or D]
        fused = self.blend(g, sem, gen, raw_sem, raw_gen)
        return _channels_first(fused), _channels_first(g.mean(-1, keepdim=True))

    def blend(self, g: Tensor, sem: Tensor, gen: Tensor, raw_sem: Tensor,
              raw_gen: Tensor) -> Tensor:
        return g * sem + (1 - g) * gen

    @torch.no_grad()
    def warm_start(self, semantic: "SemanticOnly") -> None:
        """Starts as that baseline: equal outputs while the second stream is still zero.

        Exact only where normalised streams are blended, as the baseline's is.
        """
        self.project_semantic.load_state_dict(semantic.project.state_dict())
        for name, value in semantic.norm.state_dict().items():
            getattr(self.norm_semantic, name).copy_(value / WARM_START_SHARE)
            getattr(self.norm_generative, name).zero_()
        self.gate.weight.zero_()
        self.gate.bias.fill_(math.log(WARM_START_SHARE / (1 - WARM_START_SHARE)))


class ChannelGate(TokenGate):
    """As TokenGate, with a gate a channel."""

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        self.gates = width
        super().__init__(semantic_dim, generative_dim, width)


class PaperGate(TokenGate):
    """Equation 8 as printed: the gate reads normalised streams and blends the raw ones."""

    def blend(self, g: Tensor, sem: Tensor, gen: Tensor, raw_sem: Tensor,
              raw_gen: Tensor) -> Tensor:
        return g * raw_sem + (1 - g) * raw_gen


class ResidualGate(TokenGate):
    """sem + s (g sem + (1-g) gen - sem), raw streams, s learned (the released VSI-Bench model)."""

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__(semantic_dim, generative_dim, width)
        self.share = nn.Parameter(torch.tensor(RESIDUAL_SHARE))

    def blend(self, g: Tensor, sem: Tensor, gen: Tensor, raw_sem: Tensor,
              raw_gen: Tensor) -> Tensor:
        return raw_sem + self.share * (1 - g) * (raw_gen - raw_sem)


class SemanticOnly(nn.Module):
    """LN(sem): the baseline, normalised as the gate's streams are, so that scale gains nothing."""

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__()
        self.project, self.norm = _projector(semantic_dim, width), nn.LayerNorm(width)

    def forward(self, semantic: Tensor, generative: Tensor | None) -> tuple[Tensor, None]:
        return _channels_first(self.norm(self.project(_channels_last(semantic)))), None


class GenerativeOnly(nn.Module):
    """LN(gen): the generative stream without semantics."""

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__()
        self.project, self.norm = _projector(generative_dim, width), nn.LayerNorm(width)

    def forward(self, semantic: Tensor, generative: Tensor | None) -> tuple[Tensor, None]:
        projected = self.project(_channels_last(_required(generative)))
        return _channels_first(self.norm(projected)), None


class Add(_TwoStreams):
    """sem + gen."""

    def combine(self, sem: Tensor, gen: Tensor) -> Tensor:
        return sem + gen


class Weighted(_TwoStreams):
    """a sem + b gen, two learned scalars that start at a half."""

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__(semantic_dim, generative_dim, width)
        self.weights = nn.Parameter(torch.tensor([0.5, 0.5]))

    def combine(self, sem: Tensor, gen: Tensor) -> Tensor:
        return self.weights[0] * sem + self.weights[1] * gen


class ChannelConcat(_TwoStreams):
    """Linear([sem; gen])."""

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__(semantic_dim, generative_dim, width)
        self.mix = nn.Linear(2 * width, width)

    def combine(self, sem: Tensor, gen: Tensor) -> Tensor:
        return self.mix(torch.cat([sem, gen], -1))


class SequenceConcat(_TwoStreams):
    """The generative tokens as further rows below the semantic ones: [B,W,2H,W]."""

    def combine(self, sem: Tensor, gen: Tensor) -> Tensor:
        return torch.cat([sem, gen], 1)


class CrossAttention(_TwoStreams):
    """Semantic queries, generative keys of the same frame; `layers` times, each with an MLP."""
    layers = 1

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__(semantic_dim, generative_dim, width)
        self.asks = nn.ModuleList(_CrossAttentionLayer(width) for _ in range(self.layers))

    def combine(self, sem: Tensor, gen: Tensor) -> Tensor:
        _, h, w, d = sem.shape
        position = grid_position(h, w, d, sem.device).to(sem.dtype)  # [H*W,D]
        x, keys = sem.flatten(1, 2), gen.flatten(1, 2) + position    # [B,H*W,D]
        for layer in self.asks:
            x = layer(x, position, keys)
        return x.unflatten(1, (h, w))


class CrossAttention3(CrossAttention):
    layers = 3


class _CrossAttentionLayer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        heads = math.gcd(HEADS, width)
        self.attend = nn.MultiheadAttention(width, heads, DROPOUT, batch_first=True)
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(),
                                 nn.Linear(2 * width, width))

    def forward(self, x: Tensor, position: Tensor, keys: Tensor) -> Tensor:
        x = x + self.attend(self.norm(x) + position, keys, keys, need_weights=False)[0]
        return x + self.mlp(self.norm_mlp(x))


FUSIONS: dict[str, type[nn.Module]] = {
    "token_gate": TokenGate, "paper_gate": PaperGate, "channel_gate": ChannelGate,
    "residual_gate": ResidualGate, "add": Add, "weighted": Weighted,
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
