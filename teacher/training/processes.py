"""The processes of one `accelerate launch`; a plain run is one process and needs no launcher."""
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
# the others wait while the first process renders or trains a head; a dead one ends them by the
# launcher, not by this
WAIT = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """This process's number, and how many there are. Collectives are no-ops for one process."""
    device: torch.device
    index: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.index == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            with _peers():
                dist.barrier()

    def main_first(self, call: Callable[[], T]) -> T:
        """call() in the first process, then in the others: what it prepares they find."""
        if not self.main:
            self.wait()
        result = call()
        if self.main:
            self.wait()
        return result

    def leave(self) -> None:
        """Waits for the others, and ends the communication."""
        self.wait()
        if self.count > 1:
            dist.destroy_process_group()

    def text_of_main(self, text: str) -> str:
        """The first process's text, in all."""
        length = torch.tensor(len(text.encode()), device=self.device)
        self._broadcast(length)
        content = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.main:
            content.copy_(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))
        self._broadcast(content)
        return bytes(content.tolist()).decode()

    def all_agree(self, condition: bool) -> bool:
        """Whether the condition holds in every process."""
        holds = torch.tensor(int(condition), device=self.device)
        if self.count > 1:
            with _peers():
                dist.all_reduce(holds, dist.ReduceOp.MIN)
        return bool(holds)

    def copy_of_main(self, module: nn.Module) -> None:
        """Gives the module the first process's weights and buffers."""
        with torch.no_grad():
            for value in module.state_dict(keep_vars=True).values():
                self._broadcast(value.data)

    def part(self, length: int) -> slice:
        """This process's part of a batch; parts differ by one at most. ValueError for none."""
        if length < self.count:
            raise ValueError(f"a batch of {length} cannot be divided between {self.count} "
                             "processes; use a larger batch or fewer processes")
        return slice(length * self.index // self.count, length * (self.index + 1) // self.count)

    def add_up(self, tensors: list[Tensor], weight: float) -> None:
        """Replaces the tensors by the weighted sums of all processes' ones, in one reduction."""
        flat = torch.cat([t.flatten() for t in tensors]) * weight
        with _peers():
            dist.all_reduce(flat)
        parts = flat.split([t.numel() for t in tensors])
        torch._foreach_copy_(tensors, [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])

    def _broadcast(self, value: Tensor) -> None:
        if self.count > 1:
            with _peers():
                dist.broadcast(value, 0)


@contextmanager
def _peers() -> Iterator[None]:
    """Raises OSError if a process that takes part has ended; by CPUs it is noticed at once."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise OSError(f"another process of this launch ended ({reason})") from error


def is_main() -> bool:
    """Whether this process is the first of its launch, or the only one."""
    return int(os.environ.get("RANK") or 0) == 0


def first_to_fail() -> bool:
    """Whether no other process of the launch has failed before: one reports for all."""
    if not _launched():
        return True
    try:
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]),
                              is_master=False, timeout=timedelta(seconds=10))
        return store.add("vega3d/failed", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # started without a launcher that keeps a store
        return True


def resolve_device(name: str) -> torch.device:
    """auto: cuda if there is one. Raises ValueError for cuda without a GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU; use --device auto")
    return torch.device(name)


def join_processes(device: torch.device) -> Processes:
    """Joins the others of the launch; the device becomes this process's own GPU. ValueError if
    there are more processes on this machine than GPUs."""
    if not _launched():
        return Processes(device)
    from accelerate import PartialState

    local, cuda = int(os.environ.get("LOCAL_RANK") or 0), device.type == "cuda"
    if cuda and local >= torch.cuda.device_count():
        raise ValueError(f"process {local + 1} of this machine has no GPU: there are "
                         f"{torch.cuda.device_count()}; use --num_processes of as many as there "
                         "are, or --device cpu")
    state = PartialState(cpu=not cuda, timeout=WAIT)
    return Processes(state.device, state.process_index, state.num_processes)


def _launched() -> bool:
    return int(os.environ.get("WORLD_SIZE") or 1) > 1
