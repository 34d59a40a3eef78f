"""Forward and backward of a training step as one CUDA graph, a single launch for small models."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GraphPerShape:
    """A GraphedLoss for each set of input shapes, captured at their first use."""

    def __init__(self, loss: nn.Module):
        self.loss = loss
        self.graphs: dict[tuple, GraphedLoss] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self.graphs:
            self.graphs[shapes] = GraphedLoss(self.loss, inputs)
        return self.graphs[shapes](*inputs)


class GraphedLoss:
    """`loss(*inputs)` and backward, for inputs of one set of shapes; gradients are in `.grad`.

    The module must not read on the host. The next call overwrites the returned tensors.
    """

    def __init__(self, loss: nn.Module, inputs: Sequence[Tensor]):
        self.loss, self.static = loss, [x.clone() for x in inputs]
        self.parameters = [p for p in loss.parameters() if p.requires_grad]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # compilation, cuDNN's choices and allocations must not happen during the capture
            for _ in range(3):
                self._drop_gradients()
                self._forward_backward()
        torch.cuda.current_stream().wait_stream(side)
        self._drop_gradients()
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: NCCL's watchdog and threads that pin memory may call CUDA meanwhile
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.out = self._forward_backward()
        self.grads = [p.grad for p in self.parameters]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for static, x in zip(self.static, inputs, strict=True):
            static.copy_(x)
        self.graph.replay()
        for p, grad in zip(self.parameters, self.grads, strict=True):
            p.grad = grad
        return self.out

    def _forward_backward(self) -> tuple[Tensor, ...]:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            out = self.loss(*self.static)
        out = out if isinstance(out, tuple) else (out,)
        out[0].backward()
        return tuple(o.detach() for o in out)

    def _drop_gradients(self) -> None:
        for p in self.parameters:
            p.grad = None
