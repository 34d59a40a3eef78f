"""Rows that are summed over stay in registers: read once and written once, instead of once a pass.

By itself Inductor does so up to 1024 elements a row. Wan's tokens have 1536, the attention of its
VAE 4800 and more; such rows it reads again after every sum, and it takes their variance in one
numerically careful, slow pass.
"""
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

WIDEST = 8192  # elements: 32 a thread


def persistent_reductions(widest: int | None = None) -> AbstractContextManager:
    """What is compiled inside, in this thread, treats contiguous rows of up to `widest` (None:
    WIDEST) elements so.

    The choice is no public part of PyTorch: without it, or with `widest` 0, the compiler does as it
    always does.
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

    class WideRows(InductorChoices):
        @staticmethod
        def should_use_persistent_reduction(features: Any, cooperative_reduction: bool) -> bool:
            return InductorChoices.should_use_persistent_reduction(
                features, cooperative_reduction) or (
                    config.triton.persistent_reductions and not cooperative_reduction
                    # DEFAULT: beside
                    and
                    features.get_reduction_hint() in (ReductionHint.INNER, ReductionHint.DEFAULT)
                    # a permuted read
                    and not V.graph.sizevars.statically_known_leq(features.reduction_numel, 1024)
                    and V.graph.sizevars.statically_known_leq(features.reduction_numel, widest))

    return WideRows()
