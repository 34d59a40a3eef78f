"""The empty prompt: its embedding exported once, then its cross-attention keys and values computed once a tower.

Text encoders of this size (UMT5-XXL, 5.7 B parameters) say one constant here; no extraction ever loads one.
"""
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

PADDED_TO = 512  # Wan's pipelines fill every prompt up with zero vectors, and do not mask them


@dataclass(frozen=True)
class Prompt:
    """embedding [1,L,text_dim] at its true length; the generator was trained to see `length` >= L vectors, the rest
    of them zero."""
    embedding: Tensor
    length: int

    def to(self, device: torch.device | str) -> "Prompt":
        return Prompt(self.embedding.to(device), self.length)

    def padded(self) -> Tensor:
        """[1,length,text_dim]: what the published pipelines pass."""
        return F.pad(self.embedding, (0, 0, 0, self.length - self.embedding.shape[1]))


def export_prompt(generator: str, out: Path) -> Path:
    """Runs the checkpoint's own text encoder on "" and keeps the result, at its true length for Wan's UMT5.

    Stable Diffusion's CLIP and CogVideoX's T5 read their padding too: for them it is part of the embedding.
    Raises ValueError if there is no such encoder.
    """
    from transformers import AutoConfig, AutoTokenizer, CLIPTextModel, T5EncoderModel, UMT5EncoderModel

    kinds: dict[str, Any] = {"umt5": UMT5EncoderModel, "t5": T5EncoderModel, "clip_text_model": CLIPTextModel}
    try:
        kind = AutoConfig.from_pretrained(generator, subfolder="text_encoder").model_type
        if kind not in kinds:
            raise ValueError(f"a {kind}, expected {', '.join(kinds)}")
        tokenizer = AutoTokenizer.from_pretrained(generator, subfolder="tokenizer")
        encoder = kinds[kind].from_pretrained(generator, subfolder="text_encoder", dtype=torch.bfloat16).eval()
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{generator}: no tokenizer/ and text_encoder/ to export the prompt from "
                         f"({str(error).splitlines()[0]})") from error
    tokens = tokenizer("", return_tensors="pt", padding="longest" if kind == "umt5" else "max_length")
    mask = tokens.attention_mask if kind == "umt5" else None
    with torch.inference_mode():
        embedding = encoder(tokens.input_ids, mask).last_hidden_state                   # [1,L,text_dim]
    return save_prompt(Prompt(embedding, PADDED_TO if kind == "umt5" else embedding.shape[1]), out)


def save_prompt(prompt: Prompt, out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        save_file({"prompt": prompt.embedding.contiguous(), "length": torch.tensor(prompt.length)}, beside)
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    return out


def load_prompt(path: Path) -> Prompt:
    """A file without `length` (wan-nano's) is not padded. Raises ValueError if it is not a prompt."""
    try:
        tensors = load_file(path)
        embedding = tensors["prompt"].float()
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"{path}: not a prompt embedding ({error}); export it with: vega3d teacher prompt") from error
    length = int(tensors["length"]) if "length" in tensors else embedding.shape[1]
    if embedding.ndim != 3 or embedding.shape[0] != 1 or length < embedding.shape[1]:
        raise ValueError(f"{path}: prompt is {list(embedding.shape)} padded to {length}, expected [1,L,text_dim] with "
                         "L <= length")
    return Prompt(embedding, length)


@torch.inference_mode()
def fix_prompt(transformer: Any, prompt: Prompt) -> Tensor:
    """Gives every cross-attention of a Wan transformer its keys and values of this one prompt, in place.

    The padding's vectors are all alike, so one stands for all of them, with the logarithm of their number added to its
    score: exact, and 2 keys instead of 512. Returns the [1,1,text_dim] to pass from now on; it is not read.
    """
    embedder = transformer.condition_embedder.text_embedder
    like = embedder.linear_1.weight
    zeros = prompt.length - prompt.embedding.shape[1]
    text = embedder(F.pad(prompt.embedding, (0, 0, 0, min(zeros, 1))).to(like))          # [1,L or L+1,dim]
    bias = torch.zeros(text.shape[1], device=like.device, dtype=like.dtype)
    if zeros > 1:
        bias[-1] = torch.tensor(float(zeros)).log()
    for block in [*transformer.blocks, *getattr(transformer, "vace_blocks", [])]:
        attention = block.attn2
        if attention.add_k_proj is not None:
            raise ValueError("wan: this checkpoint also reads an image (image-to-video); use a text-to-video one")
        key = attention.norm_k(attention.to_k(text)).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        value = attention.to_v(text).unflatten(2, (attention.heads, -1)).transpose(1, 2)  # [1,heads,L,d]
        attention.set_processor(_FixedText(key, value, bias))
    return prompt.embedding[:, :1]


class _FixedText:
    """A diffusers attention processor with constant keys and values [1,heads,L,d]; bias [L] is added to the scores."""

    def __init__(self, key: Tensor, value: Tensor, bias: Tensor):
        self.key, self.value, self.bias = key, value, bias

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor,
                 attention_mask: Tensor | None = None, rotary_emb: Tensor | None = None) -> Tensor:
        b, n, _ = hidden_states.shape
        if self.key.shape[2] == 1:  # a softmax over one key is 1, whatever the query
            said = self.value.transpose(1, 2).flatten(2)                                  # [1,1,dim]
            return attn.to_out[0](said).expand(b, n, -1)
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(query, self.key.expand(b, -1, -1, -1), self.value.expand(b, -1, -1, -1),
                                             self.bias.expand(b, 1, n, -1))
        return attn.to_out[0](out.transpose(1, 2).flatten(2))
