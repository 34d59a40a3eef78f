"""What a training of the full teacher needs of every GPU, before anybody rents eight: nothing is
allocated.

The model is made on PyTorch's meta device in its true shape, and its forward pass is run there (one
layer for all, as they are alike); what autograd would keep is counted, not estimated. Weights,
gradients and Adam's moments are shared out over the GPUs (FSDP, ZeRO-3).
"""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teacher.language.lm import RANK, Tune, tune
from teacher.language.model import (
    IGNORED,
    SPECIALS,
    LanguageShape,
    LanguageTeacher,
    QuestionBatch,
    VisualInputs,
)

GB = 1e9
QWEN2_7B: dict[str, Any] = {  # LLaVA-Video's too
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768}
# SigLIP so400m, Wan2.1 1.3B
PAPER = LanguageShape(semantic_dim=1152, generative_dim=1536, grid=14, query="ground")
# of Wan2.1 1.3B, weights of the blocks up to the tap, all else and the VAE; bf16
WAN_TAPPED = 1.0e9


@dataclass(frozen=True)
class Plan:
    """Bytes of one GPU of `world`."""
    world: int
    parameters: int       # all of the teacher's
    trained: int
    weights: float        # its share, float32 where trained, else bf16
    gradients: float
    moments: float        # Adam's two
    gathered: float       # two layers, and the words, in bf16 while they are used
    activations: float    # kept from forward to backward
    layer: float          # one layer again, where layers are recomputed
    logits: float
    towers: float         # the frozen generator

    @property
    def total(self) -> float:
        return sum((self.weights, self.gradients, self.moments, self.gathered, self.activations,
                    self.layer, self.logits, self.towers))

    def lines(self) -> list[str]:
        """One row a kind, in GB, for printing."""
        kinds = ("weights", "gradients", "moments", "gathered", "activations", "layer", "logits",
                 "towers", "total")
        return [
            f"{self.parameters / 1e9:.2f} G parameters, {self.trained / 1e9:.2f} G trained, "
            f"{self.world} GPU(s)",
            *(f"  {kind:12} {getattr(self, kind) / GB:7.2f} GB" for kind in kinds)
        ]


def plan(how: Tune = "full", world: int = 8, frames: int = 32, words: int = 128, answer: int = 16,
         clips: int = 1, shape: LanguageShape = PAPER, lm: dict[str, Any] | None = None,
         again: bool = True, rank: int = RANK) -> Plan:
    """Memory of one training step of `clips` clips a GPU, a question each of `words` tokens with
    `answer` of them the answer. lm: a Qwen2's sizes (None: the 7B's); again: layers are recomputed
    (FinetuneConfig.recompute).

    One GPU holds everything in bf16, gradients and moments too: float32 copies of 7 G weights would
    not fit.
    """
    model = meta_teacher(how, shape, lm or QWEN2_7B, rank)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in model.parameters())
    exact = 4 if world > 1 else 2
    largest = max(
        sum(p.numel() for p in layer.parameters()) for layer in model.lm.get_decoder().layers)
    table = model.words * model.newline.shape[0]
    kept, layer = _activations(model, frames, words, clips, again)
    return Plan(world, every, trained, ((every - trained) * 2 + trained * exact) / world,
                trained * exact / world, 2 * trained * exact / world,
                0 if world == 1 else 2 * (2 * largest + 2 * table), kept, layer,
                clips * answer * model.words * (4 + 4 + 2), 2 * WAN_TAPPED)


def processes(launch: Path) -> int:
    """How many GPUs an accelerate configuration shares the model over. Raises ValueError if it
    would not share it."""
    from accelerate.commands.config.config_args import load_config_from_file

    if not launch.is_file():
        raise ValueError(f"{launch}: no such file; expected an accelerate configuration")
    try:
        read = load_config_from_file(str(launch))
    except Exception as error:  # accelerate raises whatever its YAML reader and its own checks do
        raise ValueError(
            f"{launch}: accelerate cannot read it ({' '.join(str(error).split())[:200]})"
        ) from error
    sharding = getattr(read, "fsdp_config", None) or {}
    if str(getattr(read, "distributed_type", "")).rpartition(".")[2] != "FSDP" or not sharding:
        raise ValueError(
            f"{launch}: distributed_type is {getattr(read, 'distributed_type', None)}, expected "
            "FSDP with an fsdp_config: a 7B model does not fit on one GPU with float32 moments")
    if str(sharding.get("fsdp_version")) != "2":
        raise ValueError(f"{launch}: fsdp_version is {sharding.get('fsdp_version')}, expected 2")
    return int(read.num_processes)


def meta_teacher(how: Tune, shape: LanguageShape, lm: dict[str, Any],
                 rank: int = RANK) -> LanguageTeacher:
    """The teacher in its true shape, without a byte of weights; bf16."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    with torch.device("meta"):
        inner: Any = Qwen2ForCausalLM(Qwen2Config(**lm, tie_word_embeddings=False))
        tune(inner, how, rank)
        return LanguageTeacher(inner, shape, [0] * 24).to(torch.bfloat16).train()


def dummy_batch(model: LanguageTeacher, frames: int, words: int, clips: int,
                  device: torch.device | str) -> tuple[VisualInputs, QuestionBatch]:
    """A batch of the right shapes: one grounding question a clip, about 32 boxes."""
    shape, boxes = model.shape, 32
    with torch.device(device):
        sight = VisualInputs(torch.zeros(clips, frames, shape.semantic_dim, 14, 14, dtype=torch.half),
                      torch.zeros(clips, frames, shape.generative_dim, 14, 14, dtype=torch.half),
                      torch.zeros(clips, frames, 14, 14, 3), torch.ones(clips, boxes, 7),
                      torch.zeros(clips, boxes, frames * 196, dtype=torch.half))
        ids = torch.full((clips, 1, words), model.words + SPECIALS.index("<ground>"))
        one = torch.full((clips, 1), -1)
        candidates = torch.zeros(clips, 1, boxes, dtype=torch.long)
        return sight, QuestionBatch(ids, one + words, one + words, torch.full((clips, 1, 1), IGNORED), one,
                            candidates, candidates.bool())


def _activations(model: LanguageTeacher, frames: int, words: int, clips: int,
                 again: bool) -> tuple[float, float]:
    """Bytes kept from forward to backward, and those of one layer when it is computed again."""
    decoder = model.lm.get_decoder()
    seen: list[Tensor] = []

    def listen(inputs_embeds: Tensor, **_: Any) -> SimpleNamespace:
        seen.append(inputs_embeds)
        return SimpleNamespace(last_hidden_state=decoder.norm(inputs_embeds))

    model.lm.get_decoder = lambda: listen  # the layers are all alike: one is counted below
    rest = _kept(lambda: model(*dummy_batch(model, frames, words, clips, "meta")))
    x = seen[0].detach().requires_grad_()  # [C,S,W]
    place = decoder.rotary_emb(x, torch.arange(x.shape[1], device="meta")[None])
    with _flash():
        layer = _kept(lambda: decoder.layers[0](x, attention_mask=None, position_embeddings=place))
    size = x.numel() * x.element_size()
    return (rest + len(decoder.layers) * (size if again else layer), layer if again else 0.0)


class _Attention(torch.autograd.Function):
    """What a fused attention keeps: its inputs and its output."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out


@contextmanager
def _flash() -> Iterator[None]:
    """On the meta device PyTorch would count the whole attention matrix, which no GPU kernel of
    today writes down."""
    real = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, **_: _Attention.apply(
        q, k, v)  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real


def _kept(call: Callable[[], Any]) -> float:
    with _counting() as sizes:
        call()
    return float(sum(sizes.values()))


@contextmanager
def _counting() -> Iterator[dict[int, int]]:
    """Bytes of every distinct storage that autograd saves, weights apart."""
    sizes: dict[int, int] = {}
    alive = []  # so that no id is used twice

    def save(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter) and not (x.is_leaf and x.requires_grad):
            storage = x.untyped_storage()
            alive.append(storage)
            sizes[storage._cdata] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
        yield sizes
