"""Reading a GGUF file: its facts, and its tensors as float32. Knows the kinds one packaged language model uses.

Layout: github.com/ggml-org/ggml, docs/gguf.md (version 2 and 3, little-endian).
"""
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(facts, tensors): tensors float32, shaped as PyTorch would [out, in].

    Raises ValueError naming the file if it is no GGUF, is cut short, or holds another kind of quantisation.
    """
    data = path.read_bytes()
    if data[:4] != b"GGUF":
        raise ValueError(f"{path}: not a GGUF file; reinstall the package it came from")
    try:
        return _parse(data)
    except (struct.error, IndexError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: not a GGUF file this reader knows ({error!r}); it reads F32, F16, Q8_0 and "
                         "Q4_1") from error


def _parse(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    cursor = _Cursor(data, 4)
    _, count, entries = cursor.read("IQQ")
    facts = {cursor.text(): cursor.value(cursor.read("I")[0]) for _ in range(entries)}
    found = []
    for _ in range(count):
        name, axes = cursor.text(), cursor.read("I")[0]
        shape = cursor.read("Q" * axes)[::-1]  # GGUF names the fastest axis first
        found.append((name, shape, *cursor.read("IQ")))
    align = facts.get("general.alignment", 32)
    start = -(-cursor.at // align) * align
    return facts, {name: _tensor(data, start + offset, shape, kind) for name, shape, kind, offset in found}


class _Cursor:
    def __init__(self, data: bytes, at: int):
        self.data, self.at = data, at

    def read(self, form: str) -> tuple:
        values = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return values

    def text(self) -> str:
        size = self.read("Q")[0]
        self.at += size
        return self.data[self.at - size:self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.read("IQ")
            return [self.value(inner) for _ in range(count)]
        return self.read(_SCALARS[kind])[0]


def _tensor(data: bytes, start: int, shape: tuple[int, ...], kind: int) -> np.ndarray:
    per_block, block_bytes, decode = _KINDS[kind]
    blocks = int(np.prod(shape)) // per_block
    raw = np.frombuffer(data, np.uint8, blocks * block_bytes, start).reshape(blocks, block_bytes)
    return decode(raw).reshape(shape)


def _half(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)  # [blocks,1]


def _q4_1(raw: np.ndarray) -> np.ndarray:
    nibbles = np.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4], 1).astype(np.float32)  # [blocks,32]
    return nibbles * _half(raw[:, :2]) + _half(raw[:, 2:4])


def _q8_0(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(raw[:, 2:]).view(np.int8).astype(np.float32) * _half(raw[:, :2])


_KINDS: dict[int, tuple[int, int, Callable[[np.ndarray], np.ndarray]]] = {  # values and bytes a block, decoder
    0: (1, 4, lambda raw: raw.view(np.float32).copy()),
    1: (1, 2, _half),
    3: (32, 20, _q4_1),
    8: (32, 34, _q8_0),
}
