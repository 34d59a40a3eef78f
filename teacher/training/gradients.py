"""The gradients of a batch, of one process or of several that share it."""
from torch import Tensor, nn

from teacher.training.cuda_graphs import GraphPerShape
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
        for p in self.parameters:
            p.grad = None
        out = self.loss(*inputs)
        out = out if isinstance(out, tuple) else (out,)
        out[0].backward()
        return tuple(o.detach() for o in out)
