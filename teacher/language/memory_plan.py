"""GPU memory of a training of the full teacher, counted without a GPU.

The model and its forward pass are on PyTorch's meta device (one decoder layer stands for all), and
what autograd saves is counted. Weights, gradients and moments are sharded (FSDP, ZeRO-3).
"""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from teacher.language.config import RANK, Tune
from teacher.language.lm import tune
from teacher.language.model import (
    IGNORED,
    SPECIALS,
    LanguageShape,
    LanguageTeacher,
    QuestionBatch,
    VisualInputs,
)

GB = 1e9
PARTS = ("weights", "gradients", "moments", "gathered", "activations", "layer", "logits", "towers")
QWEN2_7B: dict[str, Any] = {  # LLaVA-Video's language model
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768}
# SigLIP so400m, Wan2.1 1.3B
PAPER = LanguageShape(semantic_dim=1152, generative_dim=1536, position="depth_pose", query="ground",
                      pointers=False, numbers="text")
WAN_TAPPED = 1.0e9  # weights of Wan2.1 1.3B up to the tap, with its VAE


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each of `world` GPUs."""
    world: int
    parameters: int       # of the whole teacher, a count
    trained: int          # a count
    weights: float        # this GPU's shard: float32 if trained, else bf16
    gradients: float
    moments: float        # Adam's two
    gathered: float       # two layers and the embeddings, in bf16 while they are used
    activations: float    # saved from forward to backward
    layer: float          # one layer's activations, with recomputation
    logits: float
    towers: float         # the frozen generator

    @property
    def total(self) -> float:
        return sum(getattr(self, part) for part in PARTS)

    def lines(self) -> list[str]:
        parts = (*PARTS, "total")
        counts = (f"{self.parameters / 1e9:.2f} G parameters, {self.trained / 1e9:.2f} G trained, "
                  f"{self.world} GPU(s)")
        return [counts, *(f"  {part:12} {getattr(self, part) / GB:7.2f} GB" for part in parts)]


def plan(how: Tune = "full", world: int = 8, frames: int = 32, words: int = 128, answer: int = 16,
         clips: int = 1, shape: LanguageShape = PAPER, lm: dict[str, Any] | None = None,
         recompute: bool = True, rank: int = RANK) -> MemoryPlan:
    """Memory of a training step with `clips` clips a GPU and one question a clip.

    words: tokens of a question, of which `answer` are the answer. lm: sizes of a Qwen2; None: the
    7B's. A single GPU has everything in bf16: float32 copies of 7 G weights do not fit.
    """
    model = _meta_teacher(how, shape, lm or QWEN2_7B, rank)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in model.parameters())
    size = 4 if world > 1 else 2  # bytes a trained weight
    layers = model.lm.get_decoder().layers
    largest = max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    embeddings = model.vocab_size * model.newline.shape[0]
    activations, layer = _activations(model, frames, words, clips, recompute)
    return MemoryPlan(
        world, every, trained, weights=((every - trained) * 2 + trained * size) / world,
        gradients=trained * size / world, moments=2 * trained * size / world,
        gathered=0 if world == 1 else 2 * (2 * largest + 2 * embeddings), activations=activations,
        layer=layer, logits=clips * answer * model.vocab_size * (4 + 4 + 2),
        towers=2 * WAN_TAPPED)


def processes(launch: Path) -> int:
    """GPUs that an accelerate configuration shards over. Raises ValueError without sharding."""
    from accelerate.commands.config.config_args import load_config_from_file

    if not launch.is_file():
        raise ValueError(f"{launch}: no such file; expected an accelerate configuration")
    try:
        config = load_config_from_file(str(launch))
    except Exception as error:  # whatever accelerate's YAML reader and its checks raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{launch}: accelerate cannot read it ({reason})") from error
    sharding = getattr(config, "fsdp_config", None) or {}
    kind = getattr(config, "distributed_type", None)
    if str(kind or "").rpartition(".")[2] != "FSDP" or not sharding:
        raise ValueError(f"{launch}: distributed_type is {kind}, expected FSDP with fsdp_config: "
                         "a 7B model does not fit on one GPU with float32 moments")
    if str(version := sharding.get("fsdp_version")) != "2":
        raise ValueError(f"{launch}: fsdp_version is {version}, expected 2")
    return int(config.num_processes)


def dummy_batch(model: LanguageTeacher, frames: int, words: int, clips: int,
                device: torch.device | str) -> tuple[VisualInputs, QuestionBatch]:
    """A batch of typical shapes: one grounding question a clip, 32 boxes."""
    shape, boxes = model.shape, 32
    with torch.device(device):
        visual = VisualInputs(
            torch.zeros(clips, frames, shape.semantic_dim, 14, 14, dtype=torch.half),
            torch.zeros(clips, frames, shape.generative_dim, 14, 14, dtype=torch.half),
            torch.zeros(clips, frames, 14, 14, 3), torch.zeros(clips, frames, 14, 14, 3),
            torch.zeros(clips), torch.ones(clips, boxes, 7),
            torch.zeros(clips, boxes, frames * 196, dtype=torch.half))
        ids = torch.full((clips, 1, words), model.vocab_size + SPECIALS.index("<ground>"))
        none = torch.full((clips, 1), -1)
        candidates = torch.zeros(clips, 1, boxes, dtype=torch.long)
        labels = torch.full((clips, 1, 1), IGNORED)
        return visual, QuestionBatch(ids, none + words, none + words, labels, none.float(),
                                     none[..., None], candidates, candidates.bool(),
                                     candidates[..., :0], none)


def saved_bytes(call: Callable[[], Any]) -> int:
    """Bytes of all distinct storages that autograd saves during the call, without weights."""
    sizes: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def save(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter) and not (x.is_leaf and x.requires_grad):
            storage = x.untyped_storage()
            alive.append(storage)
            sizes[storage._cdata] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
        call()
    return sum(sizes.values())


class _WithoutLayers(LanguageTeacher):
    """A teacher whose language model is only its last norm; keeps the layers' input."""
    embeds: Tensor

    def run_layers(self, embeds: Tensor, position_ids: Tensor,
                   mask: Tensor | None) -> tuple[Tensor, None]:
        self.embeds = embeds
        return self.lm.get_decoder().norm(embeds), None


def _meta_teacher(how: Tune, shape: LanguageShape, lm: dict[str, Any], rank: int) -> _WithoutLayers:
    from transformers import Qwen2Config, Qwen2ForCausalLM
    with torch.device("meta"):
        inner: Any = Qwen2ForCausalLM(Qwen2Config(**lm, tie_word_embeddings=False))
        tune(inner, how, rank)
        return _WithoutLayers(inner, shape, [0] * 24).to(torch.bfloat16).train()


def _activations(model: _WithoutLayers, frames: int, words: int, clips: int,
                 recompute: bool) -> tuple[float, float]:
    """Bytes saved from forward to backward, and those of one layer when it is recomputed."""
    rest = saved_bytes(lambda: model(*dummy_batch(model, frames, words, clips, "meta")))
    decoder = model.lm.get_decoder()
    x = model.embeds.detach().requires_grad_()  # [C,S,W]
    rotary = decoder.rotary_emb(x, torch.arange(x.shape[1], device="meta")[None])
    with _FusedAttention():
        layer = saved_bytes(
            lambda: decoder.layers[0](x, attention_mask=None, position_embeddings=rotary))
    size = x.numel() * x.element_size()
    activations = rest + len(decoder.layers) * (size if recompute else layer)
    return float(activations), float(layer if recompute else 0)


class _FusedAttention(TorchFunctionMode):
    """Attention as GPU kernels save it: the meta device would save the whole attention matrix."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return _SavedAttention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _SavedAttention(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out
