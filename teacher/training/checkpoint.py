"""What training loops share: the learning-rate schedule, the optimiser step, and checkpoints."""
import json
import time
from collections.abc import Iterable, Mapping
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from records import manifest
from records.files import atomic_write
from records.interrupts import check, pending
from teacher.training.processes import is_main

SECONDS = 30.0  # between two checkpoints
DIVERGED = "lower the learning rate, or check the weights of the loss"


def set_lr(optimizer: Optimizer, peak: float, step: int, total: int, warm: int) -> None:
    """Rate of `step` (0-based): a linear rise to `peak` in `warm` steps, then a cosine to 1 %; of
    a parameter group with a `scale`, that multiple."""
    decay = 0.01 + 0.99 * 0.5 * (1 + cos(pi * (step - warm) / max(1, total - warm)))
    share = (step + 1) / warm if step < warm else decay
    for group in optimizer.param_groups:
        group["lr"] = peak * share * group.get("scale", 1.0)


def clip_and_step(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """One optimiser step by the present gradients, clipped to norm 1.

    Raises ValueError if they are not finite; on a GPU, where that would wait for every step, the
    next save does (save_finite).
    """
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    if norm.device.type == "cpu" and not norm.isfinite():
        raise ValueError(f"training: the gradient is {norm.item()}; {DIVERGED}")
    optimizer.step()


def save_finite(tensors: Mapping[str, Tensor], path: Path,
                metadata: dict[str, str] | None = None) -> None:
    """Writes safetensors atomically, or nothing: raises ValueError if a value is not finite."""
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{path.name}: {name} is not finite; {DIVERGED}")
    with atomic_write(path) as scratch:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, scratch,
                  metadata=metadata)
        _sort_metadata(scratch)


def _sort_metadata(path: Path) -> None:
    """In place: safetensors orders the metadata at random, and equal runs write equal bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if header["__metadata__"] and len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


class Checkpoint:
    """The resumable state of a training: `load` it, then call `after_step` within `deferred`.

    One safetensors file with the state dicts of `modules` and of the optimiser. key: identifies the
    configuration: only the same one resumes. seconds: between two saves that are not due (None:
    SECONDS). alone: False of several processes that save their shards together, when due; `main`
    writes.
    """

    def __init__(self, path: Path, modules: Mapping[str, Any], optimizer: Any, key: str,
                 seconds: float | None = None, alone: bool = True, main: bool = True):
        self.path, self.modules, self.optimizer, self.key = path, modules, optimizer, key
        self.seconds = SECONDS if seconds is None else seconds
        self.alone, self.main = alone, main
        self.saved = time.monotonic()

    def after_step(self, step: int, due: bool = False) -> None:
        """Saves if `due`, every `seconds`, and if a signal came; then raises Interrupted."""
        late = pending() or time.monotonic() - self.saved > self.seconds
        if due or (self.alone and late):
            self.save(step)
            self.saved = time.monotonic()
        check()

    def save(self, step: int) -> None:
        tensors: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            tensors |= {f"{name}/{k}": v for k, v in module.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{k}": torch.as_tensor(v) for k, v in state.items()}
        if self.main:
            save_finite(tensors, self.path, {"step": str(step), "key": self.key})

    def load(self) -> int:
        """Restores in place, and says so; the step to resume at, 0 without a file of `key`."""
        if not self.path.is_file():
            return 0
        manifest.check(self.path, "delete it to start again")
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self.key:
                    return 0
                tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 (no dict)
        except SafetensorError as error:
            raise ValueError(f"{self.path}: incomplete checkpoint ({error}); delete it to start "
                             "again") from error
        for name, module in self.modules.items():
            prefix = f"{name}/"
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items()
                                    if k.startswith(prefix)})
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, index, field = name.split("/")
                state.setdefault(int(index), {})[field] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if is_main():
            print(f"resumed after step {metadata['step']}: {self.path}", flush=True)
        return int(metadata["step"])


def remove_checkpoint(path: Path) -> None:
    """After the end of a training."""
    manifest.forget([path])
    path.unlink(missing_ok=True)
