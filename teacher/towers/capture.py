"""Reading activations inside a forward, which ends once the last of them is known."""
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn


def capture_blocks(transformer: Any, blocks: Sequence[int], inputs: dict[str, Any]) -> list[Tensor]:
    """The outputs of the given blocks, in that order; nothing runs after the deepest of them."""
    outputs: dict[int, Tensor] = {}

    def store(i: int, output: Tensor) -> None:
        outputs[i] = output
        if len(outputs) == len(set(blocks)):
            raise _StopForward

    hooks = [transformer.blocks[i].register_forward_hook(lambda _m, _i, out, i=i: store(i, out))
             for i in set(blocks)]
    try:
        transformer(return_dict=False, **inputs)
    except _StopForward:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return [outputs[i] for i in blocks]


def capture_activation(module: nn.Module, after: bool, run: Callable[[], object]) -> Tensor:
    """The input of `module` (after: its first output) in `run()`, which stops there."""
    activations: list[Tensor] = []

    def stop(value: Any) -> None:
        activations.append(value[0] if isinstance(value, tuple) else value)
        raise _StopForward

    if after:
        hook = module.register_forward_hook(lambda _m, _args, output: stop(output))
    else:
        hook = module.register_forward_pre_hook(
            lambda _m, args, named: stop(args or named["hidden_states"]), with_kwargs=True)
    try:
        run()
    except _StopForward:
        pass
    finally:
        hook.remove()
    return activations[0]


class _StopForward(Exception):
    """Ends a forward whose rest is not needed."""
