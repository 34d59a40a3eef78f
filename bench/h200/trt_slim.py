"""Empties, in a CUDA library, the kernels that one GPU would never load, so that the file packs to a fraction.

    python3 bench/h200/trt_slim.py 90 libonnxruntime_providers_cuda.so ...     (in place)

Every fat binary keeps its headers and its place; what the driver would pass over on that compute capability becomes
zeros: machine code of other architectures, and PTX where machine code for this one is present. onnxruntime's CUDA
provider ran so on an H200 (255 MB -> 63 MB); TensorRT refuses: it checks a digest of its kernels.
"""
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

MAGIC = struct.pack("<I", 0xBA55ED50)  # then version 1 and header size 16 (uint16 each), bytes of content (uint64)
PTX, SASS = 1, 2


def entries(content: bytearray, start: int) -> Iterator[tuple[int, int, int, int]]:
    """(kind, architecture such as 90, first byte of the payload, its length) of each entry of the fat binary there."""
    at, end = start + 16, start + 16 + struct.unpack_from("<Q", content, start + 8)[0]
    while at < min(end, len(content) - 64):
        kind, _, header, size = struct.unpack_from("<HHIQ", content, at)
        if kind not in (PTX, SASS) or not 32 <= header <= 4096:
            return
        yield kind, struct.unpack_from("<I", content, at + 28)[0], at + header, size
        at += header + size


def slim(content: bytearray, sm: int) -> int:
    """Bytes emptied, in place."""
    emptied, at = 0, 0
    while (at := content.find(MAGIC, at)) >= 0:
        if struct.unpack_from("<HH", content, at + 4) == (1, 16):
            found = list(entries(content, at))
            compiled = any(kind == SASS and arch == sm for kind, arch, _, _ in found)
            for kind, arch, first, size in found:
                if arch != sm if kind == SASS else compiled or arch > sm:
                    content[first:first + size] = bytes(size)
                    emptied += size
        at += 4
    return emptied


if __name__ == "__main__":
    for path in map(Path, sys.argv[2:]):
        held = bytearray(path.read_bytes())
        gone = slim(held, int(sys.argv[1]))
        path.write_bytes(held)
        print(f"{path.name}: emptied {gone / 1e6:.0f} of {len(held) / 1e6:.0f} MB")
