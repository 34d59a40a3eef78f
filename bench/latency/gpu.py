"""A torch model on the GPU as bench cases: launched kernel by kernel or as one CUDA graph."""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.artefacts import absent
from bench.latency.timing import BenchCase, Cases
from records.results import Row

LAUNCHES = ("eager", "graph")
WARM_CALLS = 3  # before a capture: compilation, choice of kernels, allocations


def gpu_cases(model: Callable[[Tensor], Tensor], inputs: Tensor, info: Row,
              weights_mb: float = 0.0, launches: Sequence[str] = LAUNCHES) -> Cases:
    """One case for each way to launch, whose call returns the output, or an `absent` row where it
    fails. inputs: on the host, in the model's dtype. memory_mb of a row is weights_mb plus the peak
    of torch's allocator during a call."""
    cases, missing = [], []
    for launch in launches:
        row = {**info, "device": "cuda", "launch": launch}
        try:
            cases.append(_case(model, inputs, row, launch, weights_mb))
        except (RuntimeError, ValueError) as error:
            torch.cuda.synchronize()
            what = (f"{info['artefact']} {info['stage']} {info['precision']} "
                    f"batch {info['batch']}, {launch}")
            missing.append(absent(what, " ".join(str(error).split())[:200], "use its eager row"))
    return cases, missing


def capture_graph(call: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """(replay, the output it overwrites). To change the inputs, write into the same tensors. Raises
    RuntimeError if the call cannot be captured (it synchronises with the host)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(WARM_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        output = call()
    return graph.replay, output


def _case(model: Callable[[Tensor], Tensor], inputs: Tensor, info: Row, launch: str,
          weights_mb: float) -> BenchCase:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pinned, on_device = inputs.pin_memory(), inputs.cuda()
    forward = torch.inference_mode()(lambda: model(on_device))
    call, output = forward, forward()
    result = torch.empty(output.shape, dtype=output.dtype).pin_memory()
    if launch == "graph":
        replay, output = capture_graph(forward)

        def call() -> Tensor:
            replay()
            return output

    @torch.inference_mode()
    def host_to_host() -> None:
        on_device.copy_(pinned, non_blocking=True)
        result.copy_(call(), non_blocking=True)
        torch.cuda.current_stream().synchronize()

    host_to_host()
    info["memory_mb"] = weights_mb + (torch.cuda.max_memory_allocated() - before) / 1e6
    return BenchCase(info, call, "cuda", host=host_to_host)
