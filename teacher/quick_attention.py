"""Wan's two attentions for a one-token prompt, as few kernels as they need: same weights, same results.

diffusers' processor writes the rotary embedding into strided halves of a fresh tensor, in float32 under autocast, and
attends to the prompt through queries; with a single key the softmax is 1, so the prompt's attention is its value.
"""
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor


class QuickSelfAttention:
    """[B,L,D] -> [B,L,D]; rotary_emb: (cos, sin), each [1,L,1,head] with every angle twice."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, rotary_emb: tuple[Tensor, Tensor] | None = None) -> Tensor:
        weight = torch.cat([attn.to_q.weight, attn.to_k.weight, attn.to_v.weight])
        bias = torch.cat([attn.to_q.bias, attn.to_k.bias, attn.to_v.bias])
        query, key, value = F.linear(hidden_states, weight, bias).chunk(3, -1)      # each [B,L,D]
        query, key = attn.norm_q(query).to(value), attn.norm_k(key).to(value)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        if rotary_emb is not None:
            query, key = (_rotate(x, *rotary_emb) for x in (query, key))
        out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


class OneTokenAttention:
    """[B,L,D], prompt [B,1,D] -> [B,1,D], which broadcasts over the L tokens."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, rotary_emb: tuple[Tensor, Tensor] | None = None) -> Tensor:
        if encoder_hidden_states is None or encoder_hidden_states.shape[1] != 1:
            raise ValueError("one-token attention: expected a prompt of one token")
        return attn.to_out[0](attn.to_v(encoder_hidden_states))


def use_quick_attention(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """Gives every block the two processors, in place, and returns it. What only scores the prompt's one token against
    itself is frozen as it is."""
    for block in transformer.blocks:
        for unread in (block.norm2, block.attn2.to_q, block.attn2.to_k, block.attn2.norm_q, block.attn2.norm_k):
            unread.requires_grad_(False)
        block.attn1.set_processor(QuickSelfAttention())
        block.attn2.set_processor(OneTokenAttention())
    return transformer


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B,L,heads,head], neighbouring channels turned as pairs."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(-2).to(x)
