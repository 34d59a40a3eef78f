"""The kernels that an engine launches, by CUPTI through ctypes: TensorRT names one layer for all that Myelin fused.

CUPTI comes with torch's CUDA (libcupti.so.13). Only three fields of its kernel record are read; they have kept their
places in the versions that came with CUDA 11 to 13 (cupti_activity.h, CUpti_ActivityKernel4 to 10).
"""
import ctypes
import struct

CONCURRENT_KERNEL = 10       # CUPTI_ACTIVITY_KIND_
BUFFER = 8 << 20             # bytes
START, END, NAME = 16, 24, 104  # offsets in the record: uint64 ns, uint64 ns, const char *

_REQUESTED = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_size_t),
                              ctypes.POINTER(ctypes.c_size_t))
_COMPLETED = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)


class Tracer:
    """While it is on, notes (start in ns, name, milliseconds) of every kernel of this process. One a process."""

    def __init__(self, names=("libcupti.so.13", "libcupti.so.12", "libcupti.so")):
        self.lib, self.seen, self._buffers = _first(names), [], {}
        self._held = _REQUESTED(self._requested), _COMPLETED(self._completed)  # CUPTI keeps the bare pointers
        self._call("cuptiActivityRegisterCallbacks", *self._held)

    def __enter__(self):
        self.seen.clear()
        self._call("cuptiActivityEnable", ctypes.c_int(CONCURRENT_KERNEL))
        return self

    def __exit__(self, *_):
        self._call("cuptiActivityFlushAll", ctypes.c_uint32(1))
        self._call("cuptiActivityDisable", ctypes.c_int(CONCURRENT_KERNEL))

    def _requested(self, buffer, size, most_records):
        held = (ctypes.c_uint64 * (BUFFER // 8))()  # aligned to 8, as CUPTI asks
        address = ctypes.addressof(held)
        self._buffers[address] = held
        buffer[0], size[0], most_records[0] = address, BUFFER, 0

    def _completed(self, context, stream, buffer, size, valid):
        record = ctypes.c_void_p()
        while valid and not self.lib.cuptiActivityGetNextRecord(ctypes.c_void_p(buffer), ctypes.c_size_t(valid),
                                                                ctypes.byref(record)):
            if kernel := read(record.value):
                self.seen.append(kernel)
        self._buffers.pop(buffer, None)

    def _call(self, name, *args):
        status = getattr(self.lib, name)(*args)
        if status:
            raise ValueError(f"{name} failed with CUPTI error {status}")


def read(address):
    """(start, name, milliseconds) of the record there; None if it is no kernel's."""
    record = ctypes.string_at(address, NAME + 8)
    if struct.unpack_from("<I", record)[0] != CONCURRENT_KERNEL:
        return None
    start, end = struct.unpack_from("<QQ", record, START)
    name = struct.unpack_from("<Q", record, NAME)[0]
    return start, ctypes.string_at(name).decode(errors="replace") if name else "", (end - start) / 1e6


_tracer = None


def traced(engine, runs=20):
    """[{name, count, ms}] of one pass, in the order of each kernel's first launch; an average over `runs` passes."""
    global _tracer
    _tracer = _tracer or Tracer()
    for _ in range(3):
        engine.run()
    with _tracer:
        for _ in range(runs):
            engine.run()
    return summed(_tracer.seen, runs)


def summed(seen, runs):
    rows: dict[str, dict] = {}
    for _, name, ms in sorted(seen):
        row = rows.setdefault(name, {"name": name[:300], "count": 0, "ms": 0.0})
        row["count"] += 1 / runs
        row["ms"] += ms / runs
    return list(rows.values())


def _first(names):
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ValueError("no CUPTI here (libcupti.so)")
