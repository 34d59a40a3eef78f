"""Loading a causal language model by name, and choosing what of it is trained."""
from pathlib import Path
from typing import Any

import torch
from torch import nn

from teacher.language.config import RANK, Tune
from teacher.language.smollm import SMOLLM, language_folder
from teacher.towers.checkpoints import (
    is_hub_id,
    load_complete,
    published,
    reading_parts,
    split_revision,
)

PUBLISHED = {
    "llava-video-7b": "lmms-lab/LLaVA-Video-7B-Qwen2", "qwen2-7b": "Qwen/Qwen2-7B-Instruct",
    "qwen2-0.5b": "Qwen/Qwen2-0.5B-Instruct", "smollm2-360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
}
LLAVA_QWEN = "llava_qwen"
_FAULT = "no causal language model and tokenizer could be read"


def load_lm(name: str, dtype: torch.dtype = torch.float32,
            layers: int | None = None) -> tuple[Any, Any]:
    """(model, tokenizer) of `smollm2-135m`, one of PUBLISHED, a hub id or a local folder.

    layers: keeps the first ones; None: all. Raises ValueError for a missing or incomplete model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

    # transformers lacks LLaVA-Video's class; its language model has Qwen2's weight names
    is_llava = lm_config(name, layers).get("model_type") == LLAVA_QWEN
    found = _where(name)
    where, options = split_revision(found)
    with reading_parts(found, _FAULT):
        model_class: Any = Qwen2ForCausalLM if is_llava else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        model = load_complete(model_class, found, optional="lm_head", dtype=dtype,
                              attn_implementation="sdpa")
    decoder = model.get_decoder()
    if layers is not None:
        decoder.layers = decoder.layers[:layers]
        model.config.num_hidden_layers = layers
    return model, tokenizer


def lm_config(name: str, layers: int | None = None) -> dict[str, Any]:
    """config.json of what `load_lm` loads. Raises ValueError without one, or with fewer layers."""
    from transformers import PretrainedConfig

    where, options = split_revision(found := _where(name))
    with reading_parts(found, _FAULT):
        config = PretrainedConfig.get_config_dict(where, **options)[0]
        if not config:
            raise ValueError("no config.json")
    most: Any = config.get("num_hidden_layers", layers)
    if layers is not None and not 1 <= layers <= most:
        raise ValueError(f"language model: got {layers} layers, expected 1 to {most}")
    return config


def tune(lm: nn.Module, how: Tune, rank: int = RANK) -> None:
    """Sets what is trained, in place: nothing, peft's adapters on every linear layer, or all."""
    lm.requires_grad_(how == "full")
    if how == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        names = sorted({n.rpartition(".")[2] for n, m in lm.named_modules()
                        if isinstance(m, nn.Linear) and "lm_head" not in n})
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
        inject_adapter_in_model(config, lm)


def recompute(lm: Any) -> None:
    """Enables activation checkpointing of every layer, in place."""
    new_name = getattr(lm, "activation_checkpointing_enable", None)  # of a later transformers
    (new_name or lm.gradient_checkpointing_enable)({"use_reentrant": False})


def _where(name: str) -> str:
    if name == SMOLLM:
        folder = language_folder()
        if not (folder / "model.safetensors").is_file():
            raise ValueError(f"{SMOLLM}: not converted yet; run once: vega3d teacher fetch")
        return str(folder)
    name = published(name, PUBLISHED)
    if not Path(name).exists() and not is_hub_id(name):
        raise ValueError(f"{name}: no such language model; give {SMOLLM}, {', '.join(PUBLISHED)}, "
                         "a hub id (OWNER/NAME) or a transformers folder")
    return name
