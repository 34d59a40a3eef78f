"""A training step's forward and backward as one CUDA graph: small models are bound by kernel
launches, not by work."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GraphPerShape:
    """A GraphedLoss for each set of input shapes, made when they first come."""

    def __init__(self, loss: nn.Module):
        self.loss = loss
        self.graphs: dict[tuple, GraphedLoss] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self.graphs:
            self.graphs[shapes] = GraphedLoss(self.loss, inputs)
        return self.graphs[shapes](*inputs)


class GraphedLoss:
    """Calls like `loss(*inputs)` followed by backward, for inputs of one set of shapes; gradients
    land in `.grad`.

    Everything in the module must be capturable: no host reads, fixed shapes. Returned tensors are
    overwritten by the next call.
    """

    def __init__(self, loss: nn.Module, inputs: Sequence[Tensor]):
        self.loss, self.static = loss, [x.clone() for x in inputs]
        self.parameters = [p for p in loss.parameters() if p.requires_grad]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            # compiles, lets cuDNN choose, fills the allocator: none of it may happen in the capture
            for _ in range(3):
                self._forward_backward()
        torch.cuda.current_stream().wait_stream(aside)
        self._forget()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = self._forward_backward(forget=False)
        self.grads = [p.grad for p in self.parameters]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for static, x in zip(self.static, inputs, strict=True):
            static.copy_(x)
        self.graph.replay()
        for p, grad in zip(self.parameters, self.grads, strict=True):
            p.grad = grad
        return self.out

    def _forward_backward(self, forget: bool = True) -> tuple[Tensor, ...]:
        if forget:
            self._forget()
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            out = self.loss(*self.static)
        out = out if isinstance(out, tuple) else (out,)
        out[0].backward()
        return tuple(o.detach() for o in out)

    def _forget(self) -> None:
        for p in self.parameters:
            p.grad = None
