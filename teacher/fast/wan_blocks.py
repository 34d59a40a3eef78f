"""Wan's transformer blocks with fewer, larger kernels; equal to diffusers' up to rounding."""
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from teacher.fast.inductor import CompiledModule

Rotary = tuple[Tensor, Tensor]  # cos, sin: [1,L,1,d] with every angle twice


def fuse_blocks(transformer: Any) -> None:
    """Fuses a transformer's products in place; call it once, on loaded weights."""
    transformer.patch_embedding = LinearPatchEmbed(transformer.patch_embedding)
    for block in plain_blocks(transformer):
        block.attn1.fuse_projections()
        del block.attn1.to_q, block.attn1.to_k, block.attn1.to_v
        block.attn1.set_processor(SelfAttentionProcessor())
        block.ffn.net[0] = FusedGELU(block.ffn.net[0].proj)


def compile_blocks(transformer: Any, backend: str = "inductor") -> None:
    """Puts a CompiledModule around every block, in place."""
    for blocks in (transformer.blocks, getattr(transformer, "vace_blocks", [])):
        for i, block in enumerate([*blocks]):
            blocks[i] = CompiledModule(block, backend)


def plain_blocks(transformer: Any) -> list[Any]:
    """A transformer's blocks, then VACE's, without the CompiledModule around them."""
    blocks = [*transformer.blocks, *getattr(transformer, "vace_blocks", [])]
    return [block.module if isinstance(block, CompiledModule) else block for block in blocks]


def set_training_processors(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """Sets both processors in every block, in place; freezes what scores the prompt's one token."""
    for block in transformer.blocks:
        for unused in (block.norm2, block.attn2.to_q, block.attn2.to_k, block.attn2.norm_q,
                       block.attn2.norm_k):
            unused.requires_grad_(False)
        block.attn1.set_processor(SelfAttentionProcessor())
        block.attn2.set_processor(OneTokenProcessor())
    return transformer


class LinearPatchEmbed(nn.Module):
    """The patch embedding [N,C,F,H,W] -> [N,D,F,h,w], channels last, as one product."""

    def __init__(self, conv: nn.Conv3d):
        super().__init__()
        self.size = conv.kernel_size[1]  # (1,p,p), and the stride alike
        self.weight = nn.Parameter(conv.weight.data.flatten(1), requires_grad=False)  # [D,C*p*p]
        self.bias = nn.Parameter(conv.bias.data, requires_grad=False)  # type: ignore[union-attr]

    def forward(self, z: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(z.transpose(1, 2), self.size)  # [N,F,C*p*p,h,w]
        tokens = patches.movedim(2, -1)                            # [N,F,h,w,C*p*p]
        # flattened to a matrix, so that the product adds the bias itself
        rows = F.linear(tokens.flatten(0, 3), self.weight, self.bias)
        return rows.unflatten(0, tokens.shape[:4]).movedim(-1, 1)


class FusedGELU(nn.Module):
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


class SelfAttentionProcessor:
    """Self-attention [N,L,D] -> same by one product: `to_qkv`, or in training three weights."""

    def __call__(self, attn: Any, hidden_states: Tensor,
                 encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None,
                 rotary_emb: Rotary | None = None) -> Tensor:
        if attn.fused_projections:
            qkv = attn.to_qkv(hidden_states)
        else:
            layers = attn.to_q, attn.to_k, attn.to_v
            qkv = F.linear(hidden_states, torch.cat([layer.weight for layer in layers]),
                           torch.cat([layer.bias for layer in layers]))
        query, key, value = qkv.chunk(3, dim=-1)  # each [N,L,D]
        query, key = attn.norm_q(query).to(value), attn.norm_k(key).to(value)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        if rotary_emb is not None:
            query, key = (apply_rotary_emb(x, *rotary_emb) for x in (query, key))
        out = F.scaled_dot_product_attention(  # [N,heads,L,d]
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


class OneTokenProcessor:
    """Cross-attention [N,L,D] to a prompt [N,1,D] -> [N,1,D], to be broadcast over L tokens."""

    def __call__(self, attn: Any, hidden_states: Tensor,
                 encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None,
                 rotary_emb: Rotary | None = None) -> Tensor:
        if encoder_hidden_states is None or encoder_hidden_states.shape[1] != 1:
            raise ValueError("one-token attention: expected a prompt of one token")
        return attn.to_out[0](attn.to_v(encoder_hidden_states))


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [N,L,heads,d]: rotates pairs of neighbours, (a, b) -> (ac - bs, as + bc), in float32."""
    x_float = x.float()
    swapped = x_float.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    sign = 2 * (torch.arange(x.shape[-1], device=x.device) % 2) - 1
    return (x_float * cos + swapped * (sin * sign)).type_as(x)
