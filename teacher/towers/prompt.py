"""The empty prompt: embedding exported once, cross-attention keys and values computed once a tower.

The text encoder (UMT5-XXL: 5.7 B parameters) only yields a constant here; extraction loads none.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from records import manifest
from records.files import atomic_write
from teacher.fast.wan_blocks import plain_blocks

PADDED_TO = 512  # Wan's pipelines pad every prompt with zero vectors, and do not mask them


@dataclass(frozen=True)
class Prompt:
    """embedding [1,L,text_dim] without padding; the generator expects `length` >= L vectors."""
    embedding: Tensor
    length: int

    def to(self, device: torch.device | str) -> "Prompt":
        return Prompt(self.embedding.to(device), self.length)

    def padded(self) -> Tensor:
        """[1,length,text_dim]: what the published pipelines pass."""
        return F.pad(self.embedding, (0, 0, 0, self.length - self.embedding.shape[1]))


def export_prompt(generator: str, out: Path, **options: Any) -> Path:
    """Runs the checkpoint's text encoder on "" and saves the embedding; ValueError if it has none.

    Without padding for Wan's UMT5; Stable Diffusion's CLIP and CogVideoX's T5 read their padding.
    options: of from_pretrained.
    """
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    kinds: dict[str, Any] = {"umt5": transformers.UMT5EncoderModel,
                             "t5": transformers.T5EncoderModel,
                             "clip_text_model": transformers.CLIPTextModel}
    try:
        kind = AutoConfig.from_pretrained(generator, subfolder="text_encoder",
                                          **options).model_type
        if kind not in kinds:
            raise ValueError(f"a {kind}, expected {', '.join(kinds)}")
        tokenizer = AutoTokenizer.from_pretrained(generator, subfolder="tokenizer", **options)
        encoder = kinds[kind].from_pretrained(generator, subfolder="text_encoder",
                                              dtype=torch.bfloat16, **options).eval()
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{generator}: no tokenizer/ and text_encoder/ to export the prompt from "
                         f"({str(error).splitlines()[0]})") from error
    tokens = tokenizer("", return_tensors="pt",
                       padding="longest" if kind == "umt5" else "max_length")
    mask = tokens.attention_mask if kind == "umt5" else None
    with torch.inference_mode():
        embedding = encoder(tokens.input_ids, mask).last_hidden_state  # [1,L,text_dim]
    return save_prompt(Prompt(embedding, PADDED_TO if kind == "umt5" else embedding.shape[1]), out)


def save_prompt(prompt: Prompt, out: Path) -> Path:
    with atomic_write(out) as scratch:
        save_file({"prompt": prompt.embedding.contiguous(), "length": torch.tensor(prompt.length)},
                  scratch)
    return out


def load_prompt(path: Path) -> Prompt:
    """A file without `length` (wan-nano's) needs no padding. ValueError if it is not a prompt."""
    manifest.check(path, "export it again with: vega3d teacher prompt")
    try:
        tensors = load_file(path)
        embedding = tensors["prompt"].float()
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"{path}: not a prompt embedding ({error}); export it with: "
                         "vega3d teacher prompt") from error
    length = int(tensors["length"]) if "length" in tensors else embedding.shape[1]
    if embedding.ndim != 3 or embedding.shape[0] != 1 or length < embedding.shape[1]:
        raise ValueError(f"{path}: prompt is {list(embedding.shape)} padded to {length}, expected "
                         "[1,L,text_dim] with L <= length")
    return Prompt(embedding, length)


@torch.no_grad()
def precompute_text_kv(transformer: Any, prompt: Prompt) -> Tensor:
    """Fixes one prompt's keys and values in every cross-attention of a Wan transformer, in place.

    Padding vectors are all alike, so one stands for all of them, with the logarithm of their number
    added to its score: exact, with 2 keys instead of 512. Each value is stored after the output
    projection. Returns the [1,1,text_dim] to pass from now on; it is not read.
    """
    embedder = transformer.condition_embedder.text_embedder
    like = embedder.linear_1.weight
    zeros = prompt.length - prompt.embedding.shape[1]
    text = embedder(F.pad(prompt.embedding, (0, 0, 0, min(zeros, 1))).to(like))  # [1,L or L+1,dim]
    bias = torch.zeros(text.shape[1], device=like.device)
    if zeros > 1:
        bias[-1] = torch.tensor(float(zeros)).log()
    for block in plain_blocks(transformer):
        attention = block.attn2
        if attention.add_k_proj is not None:
            raise ValueError("wan: this checkpoint also reads an image (image-to-video); use a "
                             "text-to-video one")
        heads = (attention.heads, -1)
        key = attention.norm_k(attention.to_k(text))[0].unflatten(1, heads)    # [L,heads,d]
        value = attention.to_v(text)[0].unflatten(1, heads).float()            # [L,heads,d]
        out = attention.to_out[0].weight.float().unflatten(1, heads)           # [dim,heads,d]
        projected = torch.einsum("lhd,ohd->hlo", value, out).flatten(0, 1)     # [heads*L,dim]
        # block-diagonal [dim,heads*L]: query @ it scores each head's keys
        by_head = torch.block_diag(*(key.float() / key.shape[2]**0.5).permute(1, 2, 0))
        scores = attention.norm_q.weight.float()[:, None] * by_head
        attention.set_processor(FixedTextProcessor(scores.to(like), projected.to(like), bias))
    return prompt.embedding[:, :1]


class FixedTextProcessor:
    """A diffusers attention processor for a text that never changes.

    scores [dim,heads*L]: query @ scores are its scores for every head's keys, up to the query's
    RMS. values [heads*L,dim]: after the output projection. bias [L]: added to the scores.
    """

    def __init__(self, scores: Tensor, values: Tensor, bias: Tensor):
        self.scores, self.values, self.bias = scores, values, bias

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor,
                 attention_mask: Tensor | None = None, rotary_emb: Tensor | None = None) -> Tensor:
        keys = len(self.bias)
        if keys == 1:  # a softmax over one key is 1, whatever the query
            return (self.values.sum(0) + attn.to_out[0].bias).expand(*hidden_states.shape[:2], -1)
        query = attn.to_q(hidden_states)
        # norm_q's division, applied to the scores
        scale = (query.float().square().mean(-1, keepdim=True) + attn.norm_q.eps).rsqrt()
        score = ((query @ self.scores).float() * scale).unflatten(2, (attn.heads, keys))
        weights = (score + self.bias).softmax(-1).flatten(2).type_as(hidden_states)  # [B,N,heads*L]
        return weights @ self.values + attn.to_out[0].bias
