"""Weights of the full teacher: building, saving and loading it, also sharded (FSDP)."""
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from records.files import parse_json, reading, to_json
from teacher.language.config import FinetuneConfig, LanguageTeacherConfig
from teacher.language.encode import PromptEncoder
from teacher.language.lm import load_lm, recompute, tune
from teacher.language.model import SAVED_NAMES, LanguageShape, LanguageTeacher
from teacher.training.checkpoint import save_finite

WEIGHTS = "teacher.safetensors"


def build(config: FinetuneConfig, shape: LanguageShape,
          device: torch.device) -> tuple[LanguageTeacher, PromptEncoder]:
    """Trained weights are float32; a frozen or adapted language model is bf16 on a GPU."""
    half = config.tune != "full" and uses_bf16(config, device)
    lm, tokenizer = load_lm(config.lm, torch.bfloat16 if half else torch.float32, config.layers)
    torch.manual_seed(config.seed)  # before tune(): adapters start at random values
    tune(lm, config.tune, config.lora_rank)
    if config.recompute:
        recompute(lm)
    encoder = PromptEncoder(tokenizer, lm.get_input_embeddings().weight.shape[0],
                            shape.pointers and shape.inputs != "text", shape.numbers == "head",
                            shape.choices == "head")
    model = LanguageTeacher(lm, shape, encoder.prefix).to(device)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model, encoder


def uses_bf16(config: FinetuneConfig, device: torch.device) -> bool:
    return config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")


def save_language_teacher(trained: dict[str, Tensor], model: LanguageTeacher,
                          config: LanguageTeacherConfig, path: Path) -> None:
    """Writes the trained weights and how to load the rest: the published model is not copied."""
    metadata = {"shape": to_json(asdict(model.shape)),
                "tuning": to_json(asdict(config.tuning))}
    save_finite(trained, path, metadata)


def load_language_teacher(path: Path, device: torch.device
                          ) -> tuple[LanguageTeacher, PromptEncoder, FinetuneConfig]:
    """A saved teacher in eval mode. Raises ValueError for a missing or incomplete file."""
    state, config, shape = _read_teacher(path)
    model, encoder = build(config, shape, device)
    load_trainable(model, state)
    return model.eval(), encoder, config


@torch.no_grad()
def trainable_state_dict(model: LanguageTeacher) -> dict[str, Tensor]:
    """Trained weights and statistics by saved name. Every process of a sharded model calls it."""
    return {name: gather(value) for name, value in _trainable(model).items()}


@torch.no_grad()
def load_trainable(model: LanguageTeacher, state: dict[str, Tensor]) -> None:
    """Copies a `trainable_state_dict` into a model. Raises ValueError if it is of another model."""
    tensors = _trainable(model)
    wrong = sorted(set(tensors) ^ set(state))
    wrong = wrong or [n for n in tensors if tensors[n].shape != state[n].shape]
    if wrong:
        raise ValueError(f"teacher: file and model differ in {len(wrong)} weights, {wrong[0]} "
                         "first; give the language model and features that it was trained with")
    for name, value in tensors.items():
        value.copy_(scatter(state[name], value))


class TrainedState:
    """A model's trained weights and statistics, for Checkpoint."""

    def __init__(self, model: LanguageTeacher):
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        return trainable_state_dict(self.model)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        load_trainable(self.model, state)


def gather(value: Tensor) -> Tensor:
    """The complete tensor on every process; each must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def scatter(value: Tensor, like: Tensor) -> Tensor:
    """A complete tensor sharded as `like`, if that is sharded and of its shape (unlike a step)."""
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


class GatheredOptimizer:
    """An optimiser's state dict in complete tensors, for teacher.training.checkpoint."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        sharded = self.optimizer.state_dict()
        state = {}
        for index, entry in sharded["state"].items():
            state[index] = {k: gather(torch.as_tensor(v)) for k, v in entry.items()}
        return {"state": state, "param_groups": sharded["param_groups"]}

    def load_state_dict(self, gathered: dict[str, Any]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = {}
        for index, entry in gathered["state"].items():
            state[index] = {k: scatter(v, parameters[index]) for k, v in entry.items()}
        self.optimizer.load_state_dict(gathered | {"state": state})


def _read_teacher(path: Path) -> tuple[dict[str, Tensor], FinetuneConfig, LanguageShape]:
    if not path.is_file():
        raise ValueError(f"{path}: no such teacher; train it with: vega3d teacher train")
    with reading(path, "a complete teacher", "train it with: vega3d teacher train"):
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        names = {f.name for f in fields(FinetuneConfig)}
        tuning = {k: v for k, v in parse_json(metadata["tuning"]).items() if k in names}
        shape = LanguageShape(**parse_json(metadata["shape"]))
        return load_file(path), FinetuneConfig(**tuning), shape


def _trainable(model: LanguageTeacher) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    tensors |= {n: b for n, b in model.named_buffers()
                if n.endswith(("_mean", "_std")) or n == "scale"}
    for prefix, saved in SAVED_NAMES.items():
        tensors = {saved + name.removeprefix(prefix) if name.startswith(prefix) else name: value
                   for name, value in tensors.items()}
    return tensors
