"""Early exit: a forward ends once what is wanted of it has been read."""
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn


class _Enough(Exception):
    """Ends a forward whose rest is not needed."""


def capture_blocks(transformer: Any, blocks: Sequence[int], inputs: dict[str, Any]) -> list[Tensor]:
    """What leaves each of the blocks asked for, in that order; nothing runs after the last of
    them."""
    taken: dict[int, Tensor] = {}

    def take(i: int, out: Tensor) -> None:
        taken[i] = out
        if len(taken) == len(set(blocks)):
            raise _Enough

    hooks = [
        transformer.blocks[i].register_forward_hook(lambda _m, _i, out, i=i: take(i, out))
        for i in set(blocks)
    ]
    try:
        transformer(return_dict=False, **inputs)
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return [taken[i] for i in blocks]


def capture_activation(module: nn.Module, after: bool, run: Callable[[], object]) -> Tensor:
    """What enters `module` (or leaves it, its first output), from a run that stops there."""
    taken: list[Tensor] = []

    def stop(value: Any) -> None:
        taken.append(value[0] if isinstance(value, tuple) else value)
        raise _Enough

    hook = (module.register_forward_hook(lambda _m, _a, out: stop(out))
            if after else module.register_forward_pre_hook(
                lambda _m, args, named: stop(args or named["hidden_states"]), with_kwargs=True))
    try:
        run()
    except _Enough:
        pass
    finally:
        hook.remove()
    return taken[0]
