"""Bounded memory: a long batch goes through in chunks sized by what is free, in smaller ones if
that was wrong."""
from collections.abc import Callable

import torch
from torch import Tensor

CPU_BUDGET = 2 * 2**30  # bytes of activations without a GPU
# and with one, however much is free: beyond a few dozen frames a larger batch is no faster
GPU_BUDGET = 8 * 2**30


def chunk_size(bytes_each: int, device: torch.device) -> int:
    """How many items fit in the budget, and in 60 % of the GPU's free memory (the estimate forgets
    some)."""
    free = CPU_BUDGET if device.type != "cuda" else min(GPU_BUDGET, int(0.6 * _free(device)))
    return max(1, free // max(1, bytes_each))


def in_chunks(call: Callable[[slice], Tensor], count: int, chunk: int, dim: int,
              advice: str) -> Tensor:
    """torch.cat of call(slice) over `count` items, at most `chunk` at a time and about equally
    many, along `dim`.

    Out of GPU memory, the chunk is halved and tried again; ValueError with `advice` once a single
    item does not fit.
    """
    parts: list[Tensor] = []
    start = 0
    # equal sizes: every new one is compiled for and tried
    chunk = -(-count // -(-count // chunk)) if count else chunk
    while start < count:
        step = slice(start, min(start + chunk, count))
        try:
            parts.append(call(step))
        except torch.OutOfMemoryError:
            tried = step.stop - step.start
            if tried == 1:
                raise ValueError(f"out of GPU memory with one at a time; {advice}") from None
            chunk = tried // 2
        else:
            start = step.stop
            continue
        # outside the handler: the exception holds the frames, and they hold the memory
        torch.cuda.empty_cache()
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _free(device: torch.device) -> int:
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
