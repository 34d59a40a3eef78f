"""CUDA driver calls by ctypes: libcuda comes with every driver, unlike torch with CUDA."""
import ctypes
from dataclasses import dataclass
from functools import cache

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


class Buffer:
    """Device memory for one array, freed with the object."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype):
        _context()
        self.host = np.empty(shape, dtype)
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


def synchronize() -> None:
    _call("cuCtxSynchronize")


@cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise CudaError(f"no CUDA driver here ({error})") from error


@cache
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


def _call(name: str, *args: object) -> None:
    status = getattr(_driver(), name)(*args)
    if status:
        raise CudaError(f"{name} failed with CUDA error {status}")
