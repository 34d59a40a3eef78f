"""Attention for Q questions of L tokens after P shared tokens, in one sequence of S = P + Q*L.

A question sees the shared tokens and itself. `question_attention` computes those P*P + Q*L*(P+L)
pairs, instead of masking S*S; the result is the same. It copies shared keys for each question.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

NAME = "vega3d_questions"  # of the implementation


def use_question_attention(lm: Any) -> None:
    """Sets a transformers model's attention to `question_attention` if it is sdpa and can be set.
    Without `question_mask` nothing changes."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, question_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if lm.config._attn_implementation == "sdpa":
        lm.set_attn_implementation(NAME)


def question_mask(decoder: Any, p: int, q: int, l: int, device: torch.device) -> Tensor:
    """The attention mask for a transformers decoder, bool, True is visible: [1,1,L,P+L], that of
    each question, if `question_attention` is set, else [1,1,S,S]."""
    if decoder.config._attn_implementation == NAME and p:
        return torch.ones(1, 1, l, p + l, dtype=torch.bool, device=device).tril(p)
    owner = (torch.arange(-p, q * l, device=device) // l).clamp_min(-1)
    visible = (owner[None] == owner[:, None]) | (owner[None] == -1)
    return visible.tril()[None, None]


def question_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
                       attention_mask: Tensor | None, dropout: float = 0.0,
                       scaling: float | None = None, **kwargs: Any) -> tuple[Tensor, None]:
    """query [C,H,S,D], key and value [C,G,S,D] -> [C,S,H,D]; H is a multiple of G. As transformers'
    sdpa for any mask but [1,1,L,P+L]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    if attention_mask is None or attention_mask.shape[2] == query.shape[2]:
        return sdpa(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    l, seen = attention_mask.shape[2:]
    p = seen - l
    (query, q_own), (key, k_own), (value, v_own) = (_split(x, p, l) for x in (query, key, value))
    first, _ = sdpa(module, query, key, value, None, dropout, scaling, **kwargs)  # [C,P,H,D]
    q = q_own.shape[1]
    q_own = q_own.flatten(0, 1)                                                 # [C*Q,H,L,D]
    keys, values = (torch.cat([shared[:, None].expand(-1, q, -1, -1, -1), own], 3).flatten(0, 1)
                    for shared, own in ((key, k_own), (value, v_own)))          # [C*Q,G,P+L,D]
    if query.dtype == torch.float32 or torch.compiler.is_compiling():
        rest, _ = sdpa(module, q_own, keys, values, attention_mask, dropout, scaling, **kwargs)
    else:  # flash attention: half precision, no mask, grouped heads; torch.compile cannot trace it
        rest = F.scaled_dot_product_attention(q_own, keys, values, causal_lower_right(l, seen),
                                              dropout, scale=scaling, enable_gqa=True)
        rest = rest.transpose(1, 2)                                             # [C*Q,L,H,D]
    return torch.cat([first, rest.unflatten(0, (-1, q)).flatten(1, 2)], 1), None


def _split(x: Tensor, p: int, l: int) -> tuple[Tensor, Tensor]:
    """[C,H,S,D] -> [C,H,P,D] shared, [C,Q,H,L,D] of the questions."""
    return x[:, :, :p], x[:, :, p:].unflatten(2, (-1, l)).transpose(1, 2)
