"""Training state of a model whose weights are spread over several GPUs (FSDP), gathered to be saved
and spread again.

Without sharding every function here hands back what it was given.
"""
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def gather(value: Tensor) -> Tensor:
    """All of a tensor, on every process; each must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def scatter(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is spread; as it is, if `like` is not, or is of another shape
    (Adam's step counter)."""
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


class GatheredOptimizer:
    """An optimiser's state_dict and load_state_dict in whole tensors, as teacher.checkpoint takes
    them."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        about = self.optimizer.state_dict()
        state = {i: {k: gather(torch.as_tensor(v)) for k, v in one.items()}
                 for i, one in about["state"].items()}
        return {"state": state, "param_groups": about["param_groups"]}

    def load_state_dict(self, about: dict[str, Any]) -> None:
        every = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = {
            i: {k: scatter(v, every[i])
                for k, v in one.items()}
            for i, one in about["state"].items()
        }
        self.optimizer.load_state_dict(
            {"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


class StateDictHolder:
    """A state already gathered, in the shape that teacher.checkpoint saves; or one just read, to be
    used later."""

    def __init__(self, state: dict[str, Any] | None = None):
        self.state = state or {}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = dict(state)
