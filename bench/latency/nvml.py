"""What an NVIDIA GPU says of itself: energy, power, clocks, heat and what holds it back; through
NVML, by ctypes.

libnvidia-ml.so.1 comes with every driver. What a GPU or a driver does not tell (energy on a MIG
slice, NVML on a Jetson) is None, never an error.
"""
import ctypes
from functools import cache
from typing import Any

CLOCK_SM, TEMPERATURE_GPU = 1, 0
SLOWED = {  # bits of nvmlDeviceGetCurrentClocksEventReasons that mean slower than asked for
    0x04: "power cap", 0x08: "hardware slowdown", 0x20: "thermal limit",
    0x40: "hardware thermal slowdown", 0x80: "power brake"
}


class Gpu:
    """One GPU, by its UUID ("GPU-…", as torch and nvidia-smi write it) or by index. Raises OSError
    without NVML."""

    def __init__(self, uuid: str | None = None, index: int = 0):
        self._handle = ctypes.c_void_p()
        if uuid is None:
            _call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(self._handle))
        else:
            _call("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(self._handle))

    def energy_mj(self) -> int | None:
        """Millijoules since the driver was loaded; the counter moves about ten times a second."""
        return self._read("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong())

    def power_w(self) -> float | None:
        milliwatts = self._read("nvmlDeviceGetPowerUsage", ctypes.c_uint())
        return None if milliwatts is None else milliwatts / 1000

    def sm_mhz(self) -> int | None:
        return self._read("nvmlDeviceGetClockInfo", ctypes.c_uint(), CLOCK_SM)

    def temperature_c(self) -> int | None:
        return self._read("nvmlDeviceGetTemperature", ctypes.c_uint(), TEMPERATURE_GPU)

    def slowed_by(self) -> list[str] | None:
        """Why the clocks are below what was asked for; an empty list if they are not."""
        bits = self._read("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong())
        return None if bits is None else [why for bit, why in SLOWED.items() if bits & bit]

    def state(self) -> dict[str, Any]:
        """Clock, heat, power and throttling now, as a flat row."""
        slowed = self.slowed_by()
        return {
            "sm_mhz": self.sm_mhz(), "temperature_c": self.temperature_c(),
            "power_w": self.power_w(),
            "slowed_by": None if slowed is None else ", ".join(slowed) or "nothing"
        }

    def _read(self, name: str, value: Any, *which: int) -> Any:
        try:
            _call(name, self._handle, *which, ctypes.byref(value))
        except (OSError, AttributeError):  # not supported here; or a driver without the function
            return None
        return value.value


def current_gpu() -> Gpu | None:
    """The GPU that torch computes on, or None without one or without NVML."""
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        return Gpu(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
    except (OSError, AttributeError):
        return None


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libnvidia-ml.so.1")
    status = library.nvmlInit_v2()
    if status:
        raise OSError(f"NVML does not start (error {status})")
    return library


def _call(name: str, *args: object) -> None:
    status = getattr(_library(), name)(*args)
    if status:
        raise OSError(f"{name}: NVML error {status}")
