"""Power, clocks and temperature of this machine (NVML, tegrastats, sysfs), and energy per call."""
import atexit
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pynvml
import torch

from bench.device import cpu_mhz
from records.environment import text_of
from records.results import Row

CHECK_SECONDS = 0.004  # of calls between two reads of the energy counter
TEGRASTATS_MS = 100    # between two lines of tegrastats
THROTTLE_REASONS = {   # bits of nvmlDeviceGetCurrentClocksThrottleReasons
    pynvml.nvmlClocksThrottleReasonSwPowerCap: "power cap",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "thermal limit",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "hardware thermal slowdown",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "power brake"
}
# the rail that feeds the whole module, by Jetson generation
_POWER = re.compile(r"\b(VDD_IN|POM_5V_IN|VIN_SYS_5V0) (\d+)(?:mW)?/")
_TEMPERATURE = re.compile(r"\b(?:tj|CPU|cpu|GPU|gpu)@(-?[\d.]+)C")


class Meter(Protocol):
    def joules(self) -> float | None:
        """A counter that only grows; None where there is none."""

    def state(self) -> dict[str, Any]:
        """Clocks, temperature and power now, as a flat row."""


def find_meter() -> Meter | None:
    """NVML of the GPU that torch computes on, tegrastats on a Jetson, or None."""
    if torch.cuda.is_available():
        try:
            uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
            gpu = NvmlMeter(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
            if gpu.joules() is not None:
                return gpu
        except (pynvml.NVMLError, AttributeError):  # no NVML; or a torch without uuid
            pass
    return Tegrastats() if shutil.which("tegrastats") else None


class NvmlMeter:
    """One GPU by UUID. Values that the driver does not support (energy on a MIG slice) are None."""

    def __init__(self, uuid: str):
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)

    def joules(self) -> float | None:
        """Since the driver was loaded; the counter moves about ten times a second."""
        millijoules = self._read(pynvml.nvmlDeviceGetTotalEnergyConsumption)
        return None if millijoules is None else millijoules / 1000

    def state(self) -> dict[str, Any]:
        milliwatts = self._read(pynvml.nvmlDeviceGetPowerUsage)
        bits = self._read(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        reasons = [reason for bit, reason in THROTTLE_REASONS.items() if (bits or 0) & bit]
        return {
            "sm_mhz": self._read(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
            "temperature_c": self._read(pynvml.nvmlDeviceGetTemperature,
                                        pynvml.NVML_TEMPERATURE_GPU),
            "power_w": None if milliwatts is None else milliwatts / 1000,
            "slowed_by": None if bits is None else ", ".join(reasons) or "nothing"
        }

    def _read(self, query: Callable[..., int], *which: int) -> int | None:
        try:
            return query(self._handle, *which)
        except pynvml.NVMLError:
            return None


class Tegrastats:
    """Integrates the power of the module's input rail until `close`."""

    def __init__(self) -> None:
        self._joules = 0.0
        self._watts: float | None = None
        self._temperature: float | None = None
        command = ["tegrastats", "--interval", str(TEGRASTATS_MS)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        atexit.register(self.close)

    def joules(self) -> float | None:
        return self._joules

    def state(self) -> dict[str, Any]:
        return {"power_w": self._watts, "temperature_c": self._temperature}

    def close(self) -> None:
        self._process.terminate()
        self._reader.join()

    def _read(self) -> None:
        before = time.monotonic()
        for line in self._process.stdout or ():
            now = time.monotonic()
            if power := _POWER.search(line):
                self._watts = int(power[2]) / 1000
                self._joules += self._watts * (now - before)
            if temperatures := _TEMPERATURE.findall(line):
                self._temperature = max(map(float, temperatures))
            before = now


def cpu_state() -> dict[str, Any]:
    """Clock and temperature of the processor; None for what sysfs does not have."""
    temperatures = _numbers("/sys/class/thermal", "thermal_zone*/temp")
    throttles = _numbers("/sys/devices/system/cpu", "cpu*/thermal_throttle/core_throttle_count")
    return {"temperature_c": max(temperatures) / 1000 if temperatures else None,
            "cpu_mhz": cpu_mhz(), "load_1m": os.getloadavg()[0],
            "throttle_count": sum(throttles) if throttles else None}


def _numbers(folder: str, pattern: str) -> list[int]:
    texts = [text_of(path) for path in Path(folder).glob(pattern)]
    return [int(text) for text in texts if text.lstrip("-").isdigit()]


def energy_per_call(call: Callable[[], object], joules: Callable[[], float | None],
                    wait: Callable[[], object], seconds: float = 1.0) -> Row:
    """{energy_mj: millijoules a call, power_w: mean}: the whole device's draw, idle share included;
    {} without a counter. joules: the counter; it moves in steps, so both ends are read just after a
    step. wait: returns when all calls are done."""
    if joules() is None:
        return {}
    block = _calls_in(CHECK_SECONDS, call, wait)
    began: tuple[float, float] | None = None  # (seconds, joules) at the first step
    count, last, deadline = 0, joules(), time.perf_counter() + 3 * seconds
    while time.perf_counter() < deadline:
        for _ in range(block):
            call()
        wait()
        count += block
        now, counter = time.perf_counter(), joules()
        if counter is None or last is None or counter == last:
            continue
        last = counter
        if began is None:
            began, count = (now, counter), 0
        elif now - began[0] >= seconds:
            used = counter - began[1]
            return {"energy_mj": 1000 * used / count, "power_w": used / (now - began[0])}
    return {}


def _calls_in(seconds: float, call: Callable[[], object], wait: Callable[[], object]) -> int:
    for _ in range(2):  # the first one warms up
        start = time.perf_counter()
        call()
        wait()
    return max(1, round(seconds / max(time.perf_counter() - start, 1e-6)))
