"""Where this machine tells what it draws and how hot it is: NVML on a desktop or server GPU,
tegrastats on a Jetson."""
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from bench.latency.nvml import current_gpu

INTERVAL_MS = 100  # between two lines of tegrastats
# the whole module's rail, by generation
_POWER = re.compile(r"\b(VDD_IN|POM_5V_IN|VIN_SYS_5V0) (\d+)(?:mW)?/")
_HEAT = re.compile(r"\b(?:tj|CPU|cpu|GPU|gpu)@(-?[\d.]+)C")


class Meter(Protocol):
    def joules(self) -> float | None:
        """A counter that only grows, or None where there is none."""

    def state(self) -> dict[str, Any]:
        """Clocks, heat and power now, as a flat row."""


def meter() -> Meter | None:
    """This machine's meter, or None."""
    gpu = current_gpu()
    if gpu is not None and gpu.energy_mj() is not None:
        return Nvml(gpu)
    if shutil.which("tegrastats"):
        return Tegrastats()
    return None


class Nvml:
    def __init__(self, gpu: Any):
        self._gpu = gpu

    def joules(self) -> float | None:
        millijoules = self._gpu.energy_mj()
        return None if millijoules is None else millijoules / 1000

    def state(self) -> dict[str, Any]:
        return self._gpu.state()


class Tegrastats:
    """Sums what the module's input rail draws, line by line, for as long as the object lives."""

    def __init__(self) -> None:
        self._joules = 0.0
        self._watts: float | None = None
        self._heat: float | None = None
        command = ["tegrastats", "--interval", str(INTERVAL_MS)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def joules(self) -> float | None:
        return self._joules

    def state(self) -> dict[str, Any]:
        return {"power_w": self._watts, "temperature_c": self._heat}

    def __del__(self) -> None:
        if getattr(self, "_process", None):
            self._process.terminate()

    def _read(self) -> None:
        before = time.monotonic()
        for line in self._process.stdout or ():
            now = time.monotonic()
            if power := _POWER.search(line):
                self._watts = int(power[2]) / 1000
                self._joules += self._watts * (now - before)
            if heat := _HEAT.findall(line):
                self._heat = max(map(float, heat))
            before = now


def cpu_state() -> dict[str, Any]:
    """Clock and heat of the processor, as far as Linux tells."""
    zones = [int(text) / 1000 for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp")
             if (text := _text(zone)).lstrip("-").isdigit()]
    clocks = [float(line.split(":")[1]) for line in _text(Path("/proc/cpuinfo")).splitlines()
              if line.startswith("cpu MHz")]
    slowed = [
        int(text) for count in Path("/sys/devices/system/cpu").glob(
            "cpu*/thermal_throttle/core_throttle_count") if (text := _text(count)).isdigit()
    ]
    return {"temperature_c": max(zones, default=None), "cpu_mhz": max(clocks, default=None),
            "load_1m": os.getloadavg()[0], "throttle_count": sum(slowed) if slowed else None}


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
