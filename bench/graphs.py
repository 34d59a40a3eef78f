"""A call on the GPU as one CUDA graph: its kernels without the host's work of launching each."""
from collections.abc import Callable

import torch
from torch import Tensor

WARM_CALLS = 3  # compile, choose kernels, fill the allocator: none of it may happen in the capture


def captured(call: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """(replay, the output it overwrites). Raises RuntimeError if the call cannot be captured (it reads from the host).

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
