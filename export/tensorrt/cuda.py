"""A TensorRT engine as a function, and the CUDA driver's calls for it, by ctypes.

libcuda comes with every driver, unlike torch with CUDA. Python 3.8, numpy and the standard library
only, because `export trt --target jetson` copies this file to the device.
"""
from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True)
class Gpu:
    name: str
    sm: int  # 89 for compute capability 8.9


class CudaError(OSError):
    """A call of the CUDA driver failed."""


def first_gpu() -> Gpu | None:
    try:
        handle = _context()
    except CudaError:
        return None
    name = ctypes.create_string_buffer(128)
    _call("cuDeviceGetName", name, 128, handle)
    return Gpu(name.value.decode(), 10 * _attribute(_MAJOR, handle) + _attribute(_MINOR, handle))


class EngineModel:
    """frames [N,3,H,W] float32 in [0,1] -> features [N,D,h,w]; the last chunk is padded.

    batch: frames a call, where the engine leaves that open.
    """

    def __init__(self, trt: Any, plan: bytes, batch: int = 8, logger: Any = None):
        self.runtime = trt.Runtime(logger or trt.Logger(trt.Logger.ERROR))
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise ValueError("engine: TensorRT cannot read it (truncated, or of another version or "
                             "GPU); build it again")
        self.context = self.engine.create_execution_context()
        frames, features = (self.engine.get_tensor_name(i) for i in range(2))
        static_batch, *frame_shape = tuple(self.engine.get_tensor_shape(frames))
        self.batch = batch if static_batch == -1 else static_batch
        shape = (self.batch, *frame_shape)
        self.context.set_input_shape(frames, shape)
        self.input = Buffer(shape)
        self.output = Buffer(tuple(self.context.get_tensor_shape(features)))
        self.context.set_tensor_address(frames, self.input.address)
        self.context.set_tensor_address(features, self.output.address)
        self.stream = _created("cuStreamCreate")
        self.events = [_created("cuEventCreate") for _ in range(2)]

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        outputs = []
        for start in range(0, len(frames), self.batch):
            chunk = frames[start:start + self.batch]
            padding = np.repeat(chunk[-1:], self.batch - len(chunk), 0)
            self.input.upload(np.concatenate([chunk, padding]))
            self.run()
            outputs.append(self.output.download()[:len(chunk)])
        return np.concatenate(outputs)

    def run(self) -> float:
        """Milliseconds of one pass over the input buffer, between two CUDA events."""
        begin, end = self.events
        _call("cuEventRecord", begin, self.stream)
        if not self.context.execute_async_v3(self.stream.value):
            raise ValueError("engine: TensorRT could not run it; build it again on this machine")
        _call("cuEventRecord", end, self.stream)
        _call("cuEventSynchronize", end)
        milliseconds = ctypes.c_float()
        _call("cuEventElapsedTime", ctypes.byref(milliseconds), begin, end)
        return milliseconds.value


class Buffer:
    """Device memory for one float32 array, freed with the object."""

    def __init__(self, shape: tuple[int, ...]):
        _context()
        self.host = np.zeros(shape, np.float32)
        self.pointer = ctypes.c_uint64()
        _call("cuMemAlloc_v2", ctypes.byref(self.pointer),
              ctypes.c_size_t(max(self.host.nbytes, 1)))

    @property
    def address(self) -> int:
        return int(self.pointer.value)

    def upload(self, array: np.ndarray) -> None:
        """Copies `array` to the device. Raises ValueError if its shape is not the buffer's."""
        if array.shape != self.host.shape:
            raise ValueError(f"Buffer.upload: got {list(array.shape)}, "
                             f"expected {list(self.host.shape)}")
        self.host[...] = array
        _call("cuMemcpyHtoD_v2", self.pointer, self.host.ctypes.data_as(ctypes.c_void_p),
              ctypes.c_size_t(self.host.nbytes))

    def download(self) -> np.ndarray:
        _call("cuMemcpyDtoH_v2", self.host.ctypes.data_as(ctypes.c_void_p), self.pointer,
              ctypes.c_size_t(self.host.nbytes))
        return self.host.copy()

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            _driver().cuMemFree_v2(self.pointer)


@lru_cache(maxsize=None)
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise CudaError(f"no CUDA driver here ({error})") from error


@lru_cache(maxsize=None)
def _context() -> int:
    """Makes the first GPU's primary context current. Returns the device handle."""
    _call("cuInit", 0)
    handle = ctypes.c_int()
    _call("cuDeviceGet", ctypes.byref(handle), 0)
    context = ctypes.c_void_p()
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
    _call("cuCtxSetCurrent", context)
    return handle.value


def _attribute(attribute: int, handle: int) -> int:
    value = ctypes.c_int()
    _call("cuDeviceGetAttribute", ctypes.byref(value), attribute, handle)
    return value.value


def _created(name: str) -> ctypes.c_void_p:
    """A stream or an event with default flags; both live as long as the process."""
    handle = ctypes.c_void_p()
    _call(name, ctypes.byref(handle), 0)
    return handle


def _call(name: str, *args: object) -> None:
    status = getattr(_driver(), name)(*args)
    if status:
        raise CudaError(f"{name} failed with CUDA error {status}")
