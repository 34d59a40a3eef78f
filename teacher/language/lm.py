"""Which language model: the embedded SmolLM2, a published one by name, or a local transformers
folder; and what of it is trained."""
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from teacher.language.smollm import SMOLLM, language_folder

PUBLISHED = {
    "llava-video-7b": "lmms-lab/LLaVA-Video-7B-Qwen2", "qwen2-7b": "Qwen/Qwen2-7B-Instruct",
    "qwen2-0.5b": "Qwen/Qwen2-0.5B-Instruct", "smollm2-360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct"
}
LLAVA_QWEN = "llava_qwen"
Tune = Literal["frozen", "lora", "full"]
RANK = 16


def load_lm(name: str, dtype: torch.dtype = torch.float32,
            layers: int | None = None) -> tuple[Any, Any]:
    """(model, tokenizer) of `smollm2-135m`, one of PUBLISHED, a hub id or a local folder.

    layers: how many are kept, from the first; None: all. Of LLaVA-Video only the language model is
    read. Raises ValueError if it cannot be had, or is no causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, Qwen2ForCausalLM

    where = _where(name)
    try:
        about = PretrainedConfig.get_config_dict(where)[0]
        # LLaVA-Video's own class is not in transformers, but its language model is a Qwen2 under
        # the same names
        kinds: Any = Qwen2ForCausalLM if about.get(
            "model_type") == LLAVA_QWEN else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(where)
        model, info = kinds.from_pretrained(where, dtype=dtype, attn_implementation="sdpa",
                                            use_safetensors=True, output_loading_info=True)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        line = next((line for line in str(error).splitlines() if line.strip()),
                    type(error).__name__)
        raise ValueError(
            f"{where}: no causal language model and tokenizer could be read ({line[:200]})"
        ) from error
    lost = sorted(k for k in info["missing_keys"] if "lm_head" not in k)
    if lost:
        raise ValueError(
            f"{where}: not a whole checkpoint (lacks {len(lost)} weights, {lost[0]} first)")
    if layers is not None:
        _cut(model, layers)
    return model, tokenizer


def _cut(model: Any, layers: int) -> None:
    decoder = model.get_decoder()
    if not 1 <= layers <= len(decoder.layers):
        raise ValueError(
            f"language model: asked for {layers} layers, expected 1 to {len(decoder.layers)}")
    decoder.layers = decoder.layers[:layers]
    model.config.num_hidden_layers = layers


def _where(name: str) -> str:
    if name == SMOLLM:
        folder = language_folder()
        if not (folder / "model.safetensors").is_file():
            raise ValueError(f"{SMOLLM}: not converted yet; run once: vega3d teacher fetch")
        return str(folder)
    if name in PUBLISHED:
        return PUBLISHED[name]
    if not Path(name).exists() and (name.count("/") != 1 or name[0] in "./~"):
        raise ValueError(
            f"{name}: no such language model; give {SMOLLM}, {', '.join(PUBLISHED)}, a hub id "
            "(OWNER/NAME) or a transformers folder")
    return name


def tune(lm: nn.Module, how: Tune, rank: int = RANK) -> None:
    """Sets what is trained, in place: nothing, low-rank adapters on every linear layer (peft), or
    all of it."""
    lm.requires_grad_(how == "full")
    if how == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        names = sorted({n.rpartition(".")[2] for n, m in lm.named_modules()
                        if isinstance(m, nn.Linear) and "lm_head" not in n})
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
        inject_adapter_in_model(config, lm)


def recompute(lm: Any) -> None:
    """Makes every layer keep only its input for the backward pass, in place."""
    # transformers is renaming it
    enable = getattr(lm, "activation_checkpointing_enable",
                     None) or lm.gradient_checkpointing_enable
    enable({"use_reentrant": False})
