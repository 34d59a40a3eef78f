"""files.jsonl of a feature store: what it lists of each clip, in 68 bytes of memory."""
import json
import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice
from threading import Lock
from typing import IO, Any

import numpy as np

LINES = 1024  # that are parsed, or rows that are added, at once
_ROW = struct.Struct("=q32sqq")
# of a file, as it was written: SHA-256, bytes, mtime in ns (-1: not listed by older versions)
Listed = tuple[bytes, int, int]


class FileList:
    """By the hash of the clip's id. Two ids with one hash would read as damage."""

    def __init__(self) -> None:
        self._rows = bytearray()                     # _ROW: the hash, and what is listed
        self._sorted = array("q"), array("I")        # hashes in order, and the places of their rows
        self._added: dict[int, int] = {}             # those since
        self._lock = Lock()

    def get(self, clip_id: str) -> Listed | None:
        key = hash(clip_id)
        if (row := self._added.get(key)) is None:
            hashes, rows = self._sorted
            place = bisect_right(hashes, key) - 1    # of two rows of a clip the later one counts
            if place < 0 or hashes[place] != key:
                return None
            row = rows[place]
        return _ROW.unpack_from(self._rows, row * _ROW.size)[1:]  # type: ignore[return-value]

    def add(self, clip_id: str, listed: Listed) -> None:
        with self._lock:
            self._rows += _ROW.pack(hash(clip_id), *listed)
            self._index(1)

    def read(self, file: IO[bytes]) -> int:
        """Adds the rows of a file's complete lines; returns how many bytes those have."""
        size = 0
        with self._lock:
            while lines := [line for line in islice(file, LINES) if line.endswith(b"\n")]:
                size += sum(map(len, lines))
                before = len(self._rows)
                for row in _parsed(lines):
                    try:
                        self._rows += _ROW.pack(hash(row["clip"]), bytes.fromhex(row["sha256"]),
                                                row["bytes"], row.get("mtime_ns") or -1)
                    except (ValueError, KeyError, TypeError, struct.error):
                        continue
                self._index((len(self._rows) - before) // _ROW.size)
        return size

    def _index(self, count: int) -> None:
        """Indexes the last `count` rows."""
        end = len(self._rows) // _ROW.size
        hashes = np.frombuffer(self._rows, np.int64)[::_ROW.size // 8]
        self._added |= zip(hashes[end - count:].tolist(), range(end - count, end), strict=True)
        if len(self._added) > max(LINES, len(self._sorted[0]) // 8):
            order = hashes.argsort(kind="stable")
            self._sorted = (array("q", hashes[order].tobytes()),
                            array("I", order.astype(np.uint32).tobytes()))
            self._added = {}


def _parsed(lines: Sequence[bytes]) -> list[Any]:
    """The JSON values of complete lines, without those that a killed process left broken."""
    try:
        return json.loads(b"[" + b",".join(lines) + b"]")  # strict JSON takes five times as long
    except (ValueError, RecursionError):
        if len(lines) == 1:
            return []
        return [value for line in lines for value in _parsed([line])]
