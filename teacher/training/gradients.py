"""Gradients of a batch, of one process or of several that share it; on a GPU as a CUDA graph."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from teacher.training.processes import Processes


class Gradients:
    """Forward and backward of `loss`, whose forward returns the total, or it and values to log.

    On a GPU both are one CUDA graph, in bfloat16. With several processes, gradients and logged
    values are sums over the processes, each weighted by its share of the batch, in one reduction.
    """

    def __init__(self, loss: nn.Module, processes: Processes):
        self.loss, self.processes = loss, processes
        cuda = processes.device.type == "cuda"
        self.run = GraphPerShape(loss) if cuda else self._forward_backward
        self.parameters = [p for p in loss.parameters() if p.requires_grad]

    def __call__(self, *inputs: Tensor, share: float) -> Tensor:
        """share: of the batch that `inputs` are, in (0,1]. Returns the logged values."""
        logged = self.run(*inputs)[-1]
        if self.processes.count > 1:
            grads = [p.grad for p in self.parameters if p.grad is not None]
            self.processes.add_up([*grads, logged], share)
        return logged

    def _forward_backward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.loss.zero_grad(set_to_none=True)
        return _backward(self.loss(*inputs))


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
    """`loss(*inputs)` and backward, for inputs of one set of shapes; gradients are in `.grad`. The
    next call overwrites the returned tensors."""

    def __init__(self, loss: nn.Module, inputs: Sequence[Tensor]):
        self.loss, self.static = loss, [x.clone() for x in inputs]
        buffers = [(b, b.clone()) for b in loss.buffers()]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # compilation, cuDNN's choices and allocations must not happen during the capture
            for _ in range(3):
                loss.zero_grad(set_to_none=True)
                self._forward_backward()
        torch.cuda.current_stream().wait_stream(side)
        for buffer, before in buffers:  # running statistics
            buffer.copy_(before)
        loss.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: NCCL's watchdog and threads that pin memory may call CUDA meanwhile
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.out = self._forward_backward()
        self.grads = [(p, p.grad) for p in loss.parameters() if p.requires_grad]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for static, x in zip(self.static, inputs, strict=True):
            static.copy_(x)
        self.graph.replay()
        for parameter, grad in self.grads:
            parameter.grad = grad
        return self.out

    def _forward_backward(self) -> tuple[Tensor, ...]:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            out = self.loss(*self.static)
        return _backward(out)


def _backward(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Backward of the first value; all, detached."""
    out = out if isinstance(out, tuple) else (out,)
    out[0].backward()
    return tuple(o.detach() for o in out)
