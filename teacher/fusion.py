"""How the semantic and the generative stream become one: the token gate, and every variant it is
compared with.

Each takes semantic [B,Ds,H,W] and generative [B,Dg,H,W] (standardised) and gives (fused [B,W,H,W],
the semantic share of each token [B,1,H,W] or None where a variant has no such thing). Sequence
concatenation alone is twice as high. Source: arXiv 2603.19235, eq. 7-8 and table 5, in the released
code's form: normalised streams are blended.
"""
import math

import torch
from torch import Tensor, nn

HEADS, DROPOUT = 8, 0.1    # of the released cross-attention
RESIDUAL_SHARE = 0.2       # how much of the blend the residual gate starts with
# semantic share of a gate that goes on from a semantic-only teacher; at 0.9 it stayed there
WARM_START_SHARE = 0.5


class TokenGate(nn.Module):
    """g = sigmoid(w . [LN(sem); LN(gen)] + b), one scalar a token; out = g LN(sem) + (1-g) LN(gen).

    The gate is the semantic share: 1 = semantic only. `None` for the generative stream gives the
    semantic-only
    baseline: the same projection and norm, no second stream.
    """
    gates = 1  # scalars a token

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__()
        self.project_semantic = _projector(semantic_dim, width)
        self.project_generative = _projector(generative_dim, width)
        self.norm_semantic, self.norm_generative = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate = nn.Linear(2 * width, self.gates)

    def forward(self, semantic: Tensor, generative: Tensor | None) -> tuple[Tensor, Tensor]:
        raw = self.project_semantic(_last(semantic))  # [B,H,W,D]
        sem = self.norm_semantic(raw)
        if generative is None:
            return _first(sem), torch.ones_like(_first(sem[..., :1]))
        raw_gen = self.project_generative(_last(generative))
        gen = self.norm_generative(raw_gen)  # [B,H,W,D]
        g = self.gate(torch.cat([sem, gen], -1)).sigmoid()  # [B,H,W,1 or D]
        return _first(self.blend(g, sem, gen, raw, raw_gen)), _first(g.mean(-1, keepdim=True))

    def blend(self, g: Tensor, sem: Tensor, gen: Tensor, raw_sem: Tensor,
              raw_gen: Tensor) -> Tensor:
        return g * sem + (1 - g) * gen

    @torch.no_grad()
    def warm_start(self, semantic: "SemanticOnly") -> None:
        """Starts as that baseline: what comes out is the same until the second stream, silent at
        first, has learnt. Only where normalised streams are blended, as the baseline's is."""
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
    """sem + s (g sem + (1-g) gen - sem) on raw streams, s learned (the released VSI-Bench
    model)."""

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__(semantic_dim, generative_dim, width)
        self.share = nn.Parameter(torch.tensor(RESIDUAL_SHARE))

    def blend(self, g: Tensor, sem: Tensor, gen: Tensor, raw_sem: Tensor,
              raw_gen: Tensor) -> Tensor:
        return raw_sem + self.share * (1 - g) * (raw_gen - raw_sem)


class SemanticOnly(nn.Module):
    """LN(sem): the baseline, normalised as the gate's streams are, so that scale alone can gain
    nothing."""

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__()
        self.project, self.norm = _projector(semantic_dim, width), nn.LayerNorm(width)

    def forward(self, semantic: Tensor, generative: Tensor | None) -> tuple[Tensor, None]:
        return _first(self.norm(self.project(_last(semantic)))), None


class GenerativeOnly(nn.Module):
    """LN(gen): what geometry says without semantics."""

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__()
        self.project, self.norm = _projector(generative_dim, width), nn.LayerNorm(width)

    def forward(self, semantic: Tensor, generative: Tensor | None) -> tuple[Tensor, None]:
        return _first(self.norm(self.project(_last(_needed(generative))))), None


class _Pair(nn.Module):
    """Both streams projected and normalised, channels last; a child says what becomes of them."""

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__()
        self.project_semantic = _projector(semantic_dim, width)
        self.project_generative = _projector(generative_dim, width)
        self.norm_semantic, self.norm_generative = nn.LayerNorm(width), nn.LayerNorm(width)

    def streams(self, semantic: Tensor, generative: Tensor | None) -> tuple[Tensor, Tensor]:
        return (self.norm_semantic(self.project_semantic(_last(semantic))),
                self.norm_generative(self.project_generative(_last(_needed(generative)))))


class Add(_Pair):
    """sem + gen."""

    def forward(self, semantic: Tensor, generative: Tensor | None) -> tuple[Tensor, None]:
        sem, gen = self.streams(semantic, generative)
        return _first(sem + gen), None


class Weighted(_Pair):
    """a sem + b gen, two learned scalars that start at a half."""

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__(semantic_dim, generative_dim, width)
        self.weights = nn.Parameter(torch.tensor([0.5, 0.5]))

    def forward(self, semantic: Tensor, generative: Tensor | None) -> tuple[Tensor, None]:
        sem, gen = self.streams(semantic, generative)
        return _first(self.weights[0] * sem + self.weights[1] * gen), None


class ChannelConcat(_Pair):
    """Linear([sem; gen])."""

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__(semantic_dim, generative_dim, width)
        self.mix = nn.Linear(2 * width, width)

    def forward(self, semantic: Tensor, generative: Tensor | None) -> tuple[Tensor, None]:
        sem, gen = self.streams(semantic, generative)
        return _first(self.mix(torch.cat([sem, gen], -1))), None


class SequenceConcat(_Pair):
    """The generative tokens as further rows below the semantic ones: [B,W,2H,W]."""

    def forward(self, semantic: Tensor, generative: Tensor | None) -> tuple[Tensor, None]:
        sem, gen = self.streams(semantic, generative)
        return _first(torch.cat([sem, gen], 1)), None


class CrossAttention(_Pair):
    """Semantic tokens ask the generative ones of their frame; `layers` times, each with a residual
    MLP."""
    layers = 1

    def __init__(self, semantic_dim: int, generative_dim: int, width: int):
        super().__init__(semantic_dim, generative_dim, width)
        self.asks = nn.ModuleList(_Ask(width) for _ in range(self.layers))

    def forward(self, semantic: Tensor, generative: Tensor | None) -> tuple[Tensor, None]:
        sem, gen = self.streams(semantic, generative)
        _, h, w, d = sem.shape
        place = grid_position(h, w, d, sem.device).to(sem.dtype)  # [H*W,D]
        x, keys = sem.flatten(1, 2), gen.flatten(1, 2) + place  # [B,H*W,D]
        for ask in self.asks:
            x = ask(x, place, keys)
        return _first(x.unflatten(1, (h, w))), None


class CrossAttention3(CrossAttention):
    layers = 3


class _Ask(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        heads = math.gcd(HEADS, width)
        self.attend = nn.MultiheadAttention(width, heads, DROPOUT, batch_first=True)
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(),
                                 nn.Linear(2 * width, width))

    def forward(self, x: Tensor, place: Tensor, keys: Tensor) -> Tensor:
        x = x + self.attend(self.norm(x) + place, keys, keys, need_weights=False)[0]
        return x + self.mlp(self.norm_mlp(x))


FUSIONS: dict[str, type[nn.Module]] = {
    "token_gate": TokenGate, "paper_gate": PaperGate, "channel_gate": ChannelGate,
    "residual_gate": ResidualGate, "add": Add, "weighted": Weighted,
    "channel_concat": ChannelConcat, "sequence_concat": SequenceConcat,
    "cross_attention": CrossAttention, "cross_attention_3": CrossAttention3,
    "semantic_only": SemanticOnly, "generative_only": GenerativeOnly
}


def fusion(name: str, semantic_dim: int, generative_dim: int, width: int) -> nn.Module:
    """One of FUSIONS. Raises ValueError listing them."""
    if name not in FUSIONS:
        raise ValueError(f"fusion: no variant {name!r}; there are: {', '.join(FUSIONS)}")
    return FUSIONS[name](semantic_dim, generative_dim, width)


def grid_position(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Sine and cosine of row and column, [height*width,dim]: a quarter of the channels each, the
    rest zero."""
    quarter = dim // 4
    rate = 10000.0 ** (-torch.arange(quarter, device=device) / max(quarter, 1))
    row, column = torch.meshgrid(torch.arange(height, device=device),
                                 torch.arange(width, device=device), indexing="ij")
    angles = [(axis.flatten()[:, None] * rate) for axis in (row, column)]  # [N,dim/4]
    code = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1)
    return nn.functional.pad(code, (0, dim - code.shape[1]))


def _projector(dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))


def _needed(generative: Tensor | None) -> Tensor:
    if generative is None:
        raise ValueError(
            "fusion: this variant needs a generative stream, got none; use semantic_only")
    return generative


def _last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)
