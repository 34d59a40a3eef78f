"""A torch call on the GPU as something to time: launched call by call or as one CUDA graph; there,
or host to host."""
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from bench.artefacts import absent
from bench.latency.timing import Subject
from records.results import Row

Launch = Literal["eager", "graph"]
LAUNCHES: tuple[Launch, ...] = ("eager", "graph")


def gpu_subjects(model: Callable[[Tensor], Tensor], inputs: Tensor, about: Row,
                 launches: Sequence[Launch] = LAUNCHES,
                 held_mb: float = 0.0) -> tuple[list[Subject], list[Row]]:
    """One subject a way of launching, or an `absent` row where it cannot be had.

    inputs: on the host, in the model's dtype. held_mb: what the weights already take; memory_mb is
    that and what the call itself needs at its largest (torch's allocator; the CUDA context comes on
    top).
    """
    found, missing = [], []
    for launch in launches:
        row = {**about, "device": "cuda", "launch": launch}
        try:
            found.append(_subject(model, inputs, row, launch, held_mb))
        except (RuntimeError, ValueError) as error:
            torch.cuda.synchronize()
            what = f"{about['artefact']} {about['stage']} {about['precision']} batch {about['batch']}, {launch}"
            missing.append(
                absent(what, " ".join(str(error).split())[:200],
                       "launch it call by call: --launch eager"))
    return found, missing


def _subject(model: Callable[[Tensor], Tensor], inputs: Tensor, about: Row, launch: Launch,
             held_mb: float) -> Subject:
    before = _start_peak()
    pinned, here = inputs.pin_memory(), inputs.cuda()
    once = torch.inference_mode()(lambda: model(here))
    out = once()
    there = torch.empty(out.shape, dtype=out.dtype).pin_memory()
    replay, out = captured(once) if launch == "graph" else (None, out)

    @torch.inference_mode()
    def host_to_host() -> None:
        here.copy_(pinned, non_blocking=True)
        if replay:
            replay()
        there.copy_(out if replay else once(), non_blocking=True)
        torch.cuda.current_stream().synchronize()

    host_to_host()
    about["memory_mb"] = held_mb + (torch.cuda.max_memory_allocated() - before) / 1e6
    return Subject(about, replay or once, "cuda", host=host_to_host)


def _start_peak() -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


WARM_CALLS = 3  # compile, choose kernels, fill the allocator: none of it may happen in the capture


def captured(call: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """(replay, the output it overwrites). Raises RuntimeError if the call cannot be captured (it
    reads from the host).

    What `call` reads stays where it is: write new inputs into the same tensors.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(aside):
        for _ in range(WARM_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        out = call()
    return graph.replay, out
