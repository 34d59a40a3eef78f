"""The environment block of a result, plus what decides speed: clocks, power limits, load."""
import os
import re
from typing import Any

from records.environment import environment, output_of, text_of

NVIDIA = ("driver_version", "power.limit", "clocks.sm", "clocks.max.sm", "temperature.gpu",
          "persistence_mode")


def device_facts() -> dict[str, Any]:
    """`environment` plus memory, load, governor, clocks; of a GPU or Jetson also the power mode."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    governor = text_of("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    facts = {**environment(), "memory_gb": round(memory / 1e9, 1),
             "load_1m": round(os.getloadavg()[0], 2), "cpu_governor": governor or None,
             "cpu_mhz": cpu_mhz(), **_nvidia(), **_jetson()}
    return {key: value for key, value in facts.items() if value is not None}


def busy(env: dict[str, Any]) -> bool:
    """Whether other programs (the load average less our thread) took more than half the cores."""
    return max(env.get("load_1m", 0), env.get("load_1m_after", 0)) - 1 > 0.5 * env.get("cores", 1)


def cpu_mhz() -> int | None:
    """Of the fastest core now; None where Linux does not tell."""
    clocks = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text_of("/proc/cpuinfo"), re.MULTILINE)
    return round(max(map(float, clocks))) if clocks else None


def _nvidia() -> dict[str, str]:
    output = output_of(["nvidia-smi", f"--query-gpu={','.join(NVIDIA)}", "--format=csv,noheader",
                        "--id=0"])
    pairs = zip(NVIDIA, output.split(",") if output else (), strict=False)
    return {f"gpu_{name.replace('.', '_')}": value.strip() for name, value in pairs}


def _jetson() -> dict[str, str]:
    release = text_of("/etc/nv_tegra_release")
    if not release:
        return {}
    mode = output_of(["nvpmodel", "-q"]) or "unknown"
    return {"l4t": release.splitlines()[0].lstrip("# "), "power_mode": " ".join(mode.split())}
