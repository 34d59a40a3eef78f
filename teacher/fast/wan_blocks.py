"""A Wan transformer's blocks in fewer, larger kernels: the same numbers to rounding, a third of the
time.

One product for queries, keys and values; the rotation as one pointwise expression; GELU in its
product's epilogue; cuDNN's attention where it has one; each block compiled, once for all of them,
its rows held in registers.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from teacher.fast.inductor import persistent_reductions

FASTEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH
]


def fuse(transformer: Any) -> Any:
    """In place; returns it. Do it once, before the weights are used."""
    transformer.patch_embedding = Patches(transformer.patch_embedding)
    for block in [*transformer.blocks, *getattr(transformer, "vace_blocks", [])]:
        block.attn1.fuse_projections()
        del block.attn1.to_q, block.attn1.to_k, block.attn1.to_v
        block.attn1.set_processor(SelfAttention())
        block.ffn.net[0] = Gelu(block.ffn.net[0].proj)
    return transformer


def compile_blocks(transformer: Any, backend: str = "inductor") -> None:
    """Replaces each block's forward by a compiled one; they share their code, so that it is
    compiled once a size."""
    for block in [*transformer.blocks, *getattr(transformer, "vace_blocks", [])]:
        compile_forward(block, backend)


def compile_forward(module: Any, backend: str = "inductor") -> None:
    """One program a size of the first argument's items, for any number of them. ValueError if it
    cannot be made."""
    compiled = torch.compile(module.forward, fullgraph=True, backend=backend)

    def forward(x: Tensor, *rest: Any, **named: Any) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(x, 0)
        torch._dynamo.mark_static(x, [*range(1, x.ndim)])
        try:
            with persistent_reductions():
                return compiled(x, *rest, **named)
        except torch._dynamo.exc.TorchDynamoException as error:
            said = next((line for line in str(error).splitlines() if line.strip()),
                        type(error).__name__)
            raise ValueError(
                f"torch.compile failed here ({said[:150]}); it needs Triton and a C compiler: set "
                "TORCH_COMPILE_DISABLE=1 to do without") from error

    module.forward = forward


@contextmanager
def fast_kernels(wanted: bool) -> Iterator[None]:
    """On a GPU, cuDNN picks its convolutions by trying them, and attention its kernel by
    FASTEST_FIRST."""
    if not wanted:
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with sdpa_kernel(FASTEST_FIRST, set_priority=True):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


class Patches(nn.Module):
    """The patch embedding [N,C,F,H,W] -> [N,D,F,h,w], channels last in memory: a product, not a 3D
    convolution."""

    def __init__(self, conv: nn.Conv3d):
        super().__init__()
        self.size = conv.kernel_size[1]  # (1,p,p), and the stride alike
        self.weight = nn.Parameter(conv.weight.data.flatten(1), requires_grad=False)  # [D,C*p*p]
        self.bias = nn.Parameter(conv.bias.data, requires_grad=False)  # type: ignore[union-attr]

    def forward(self, z: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(z.transpose(1, 2), self.size)  # [N,F,C*p*p,h,w]
        tokens = patches.movedim(2, -1)  # [N,F,h,w,C*p*p]
        # of a matrix alone it adds the bias by itself
        rows = F.linear(tokens.flatten(0, 3), self.weight, self.bias)
        return rows.unflatten(0, tokens.shape[:4]).movedim(-1, 1)


class SelfAttention:
    """A diffusers attention processor: to_qkv, norms, rotation, attention, to_out."""

    def __call__(self, attn: Any, hidden_states: Tensor,
                 encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None,
                 rotary_emb: tuple[Tensor, Tensor] | None = None) -> Tensor:
        query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)  # [N,L,D]
        heads = [
            x.unflatten(2, (attn.heads, -1)) for x in (attn.norm_q(query), attn.norm_k(key), value)
        ]
        if rotary_emb is not None:
            heads[:2] = (rotate(x, *rotary_emb) for x in heads[:2])
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in heads))  # [N,heads,L,d]
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [N,L,heads,d], cos and sin [1,L,1,d] with equal neighbours: each pair (a, b) -> (ac - bs,
    as + bc)."""
    sign = 2 * (torch.arange(x.shape[-1], device=x.device) % 2) - 1
    return (x * cos + x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) * (sin * sign)).type_as(x)


class Gelu(nn.Module):
    """x [N,L,D] -> gelu(proj(x)), the tanh form, in one kernel where cuBLAS has it."""

    def __init__(self, proj: nn.Linear):
        super().__init__()
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and x.dtype == torch.bfloat16:
            out = torch._addmm_activation(self.proj.bias, x.flatten(0, -2), self.proj.weight.t(),
                                          use_gelu=True)
            return out.unflatten(0, x.shape[:-1])
        return F.gelu(self.proj(x), approximate="tanh")


class QuickSelfAttention:
    """[B,L,D] -> [B,L,D]; rotary_emb: (cos, sin), each [1,L,1,head] with every angle twice."""

    def __call__(self, attn: Any, hidden_states: Tensor,
                 encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None,
                 rotary_emb: tuple[Tensor, Tensor] | None = None) -> Tensor:
        weight = torch.cat([attn.to_q.weight, attn.to_k.weight, attn.to_v.weight])
        bias = torch.cat([attn.to_q.bias, attn.to_k.bias, attn.to_v.bias])
        query, key, value = F.linear(hidden_states, weight, bias).chunk(3, -1)      # each [B,L,D]
        query, key = attn.norm_q(query).to(value), attn.norm_k(key).to(value)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        if rotary_emb is not None:
            query, key = (_rotate(x, *rotary_emb) for x in (query, key))
        out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2),
                                             value.transpose(1, 2))
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


class OneTokenAttention:
    """[B,L,D], prompt [B,1,D] -> [B,1,D], which broadcasts over the L tokens."""

    def __call__(self, attn: Any, hidden_states: Tensor,
                 encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None,
                 rotary_emb: tuple[Tensor, Tensor] | None = None) -> Tensor:
        if encoder_hidden_states is None or encoder_hidden_states.shape[1] != 1:
            raise ValueError("one-token attention: expected a prompt of one token")
        return attn.to_out[0](attn.to_v(encoder_hidden_states))


def set_training_processors(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """Gives every block the two processors, in place, and returns it. What only scores the prompt's
    one token against itself is frozen as it is."""
    for block in transformer.blocks:
        for unread in (block.norm2, block.attn2.to_q, block.attn2.to_k, block.attn2.norm_q,
                       block.attn2.norm_k):
            unread.requires_grad_(False)
        block.attn1.set_processor(QuickSelfAttention())
        block.attn2.set_processor(OneTokenAttention())
    return transformer


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B,L,heads,head], neighbouring channels turned as pairs."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(-2).to(x)
