"""The environment block of a result, plus what decides speed: clocks, power limits, load."""
import os
import subprocess
from pathlib import Path
from typing import Any

from records.environment import environment

NVIDIA = ("driver_version", "power.limit", "clocks.sm", "clocks.max.sm", "temperature.gpu",
          "persistence_mode")


def device_facts() -> dict[str, Any]:
    """`environment` plus memory, load, governor, clocks; of a GPU or Jetson also the power mode."""
    facts = {**environment(), "memory_gb": _memory_gb(), "load_1m": round(os.getloadavg()[0], 2),
             "cpu_governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
             "cpu_mhz": _cpu_mhz(), **_nvidia(), **_jetson()}
    return {key: value for key, value in facts.items() if value is not None}


def busy(env: dict[str, Any]) -> bool:
    """Whether other programs (the load average less our thread) took more than half the cores."""
    return max(env.get("load_1m", 0), env.get("load_1m_after", 0)) - 1 > 0.5 * env.get("cores", 1)


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError):
        return None


def _cpu_mhz() -> int | None:
    lines = (_read("/proc/cpuinfo") or "").splitlines()
    clocks = [float(line.split(":", 1)[1]) for line in lines if line.startswith("cpu MHz")]
    return round(max(clocks)) if clocks else None


def _nvidia() -> dict[str, str]:
    output = _run(["nvidia-smi", f"--query-gpu={','.join(NVIDIA)}", "--format=csv,noheader",
                   "--id=0"])
    pairs = zip(NVIDIA, () if output is None else output.split(","), strict=False)
    return {f"gpu_{name.replace('.', '_')}": value.strip() for name, value in pairs}


def _jetson() -> dict[str, str]:
    release = _read("/etc/nv_tegra_release")
    if release is None:
        return {}
    mode = _run(["nvpmodel", "-q"]) or "unknown"
    return {"l4t": release.splitlines()[0].lstrip("# "), "power_mode": " ".join(mode.split())}


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _run(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
