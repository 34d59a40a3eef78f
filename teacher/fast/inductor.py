"""torch.compile for frozen modules: one program a size, long rows reduced in registers.

By itself Inductor keeps rows of up to 1024 elements in registers and reads longer ones again after
every sum. Wan's tokens have 1536, the attention of its VAE 4800 and more.
"""
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

WIDEST = 8192  # elements a row: 32 a thread
FASTEST_FIRST = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION,
                 SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class CompiledModule(nn.Module):
    """`module`, compiled at the first call of each size of its first argument's items, of any
    number. Calls raise ValueError if the compiler fails."""

    def __init__(self, module: nn.Module, backend: str = "inductor"):
        super().__init__()
        self.module = module
        self.program: Any = torch.compile(module.forward, fullgraph=True, backend=backend)

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(x, 0)
        torch._dynamo.mark_static(x, [*range(1, x.ndim)])
        try:
            with persistent_reductions():
                return self.program(x, *rest, **named)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
            raise ValueError(
                f"torch.compile failed here ({reason}); it needs Triton and a C compiler: set "
                "TORCH_COMPILE_DISABLE=1 to do without") from error


@contextmanager
def fast_kernels(enabled: bool) -> Iterator[None]:
    """On a GPU: cuDNN times its convolutions, and attention takes the first of FASTEST_FIRST."""
    if not enabled:
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with sdpa_kernel(FASTEST_FIRST, set_priority=True):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def persistent_reductions(widest: int | None = None) -> AbstractContextManager:
    """Inside, code compiled in this thread keeps contiguous rows of up to `widest` in registers.

    None: WIDEST; 0: the compiler's own choice, as for a PyTorch without this private hook.
    """
    widest = WIDEST if widest is None else widest
    try:
        from torch._inductor.virtualized import V
        return V.set_choices_handler(_choices(widest)) if widest else nullcontext()
    except (ImportError, AttributeError):
        return nullcontext()


@cache
def _choices(widest: int) -> Any:
    from torch._inductor import config
    from torch._inductor.choices import InductorChoices
    from torch._inductor.runtime.hints import ReductionHint
    from torch._inductor.virtualized import V

    # DEFAULT: a row reduced beside a permuted read
    contiguous = (ReductionHint.INNER, ReductionHint.DEFAULT)

    class WideRows(InductorChoices):
        @staticmethod
        def should_use_persistent_reduction(features: Any, cooperative_reduction: bool) -> bool:
            if InductorChoices.should_use_persistent_reduction(features, cooperative_reduction):
                return True
            at_most = V.graph.sizevars.statically_known_leq
            return (config.triton.persistent_reductions and not cooperative_reduction
                    and features.get_reduction_hint() in contiguous
                    and not at_most(features.reduction_numel, 1024)
                    and at_most(features.reduction_numel, widest))

    return WideRows()
