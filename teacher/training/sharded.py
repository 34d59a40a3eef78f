"""Training state of a sharded model (FSDP): gathered for a checkpoint, scattered when it is loaded.

Without sharding every function returns its argument.
"""
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


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
        for index, fields in sharded["state"].items():
            state[index] = {k: gather(torch.as_tensor(v)) for k, v in fields.items()}
        return {"state": state, "param_groups": sharded["param_groups"]}

    def load_state_dict(self, gathered: dict[str, Any]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = {}
        for index, fields in gathered["state"].items():
            state[index] = {k: scatter(v, parameters[index]) for k, v in fields.items()}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


class StateDictHolder:
    """A state dict in the place of a module or optimiser, for teacher.training.checkpoint."""

    def __init__(self, state: dict[str, Any] | None = None):
        self.state = state or {}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = dict(state)
