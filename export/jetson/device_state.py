"""Power mode, clocks, temperatures and power of a Jetson, for run_on_jetson.py. Python 3.8."""
from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

SENSORS = "/sys/bus/i2c/drivers/ina3221*/*/hwmon/hwmon*"
INPUTS = ("VDD_IN", "VIN", "POM_5V_IN")                  # each feeds the whole module
PARTS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")     # of AGX Orin, which has none of INPUTS
SAMPLE_SECONDS, START_SECONDS = 0.05, 5.0


def device_state():
    """Power mode, clocks and temperatures from the device's tools; "" for a tool not installed.

    clocks_locked: None if jetson_clocks does not tell, which it only does as root.
    """
    latest = _output(["tegrastats", "--interval", "300"], seconds=1).rpartition("\n")[2]
    temperatures = {name: float(c) for name, c in re.findall(r"(\w+)@(-?[\d.]+)C", latest)}
    clocks = _output(["jetson_clocks", "--show"])
    moving = moving_clocks(clocks)
    return {"power_mode": " ".join(_output(["nvpmodel", "-q"]).split()), "clocks": clocks,
            "clocks_locked": None if moving is None else not moving,
            "clocks_moving": ", ".join(moving or ()), "tegrastats": latest,
            "temperature_c": temperatures}


def notes(state):
    """What makes the times of this device mean little."""
    if not state["power_mode"]:
        yield "no nvpmodel here: power mode and clocks are unknown, times mean little"
    elif state["clocks_locked"] is None:
        yield ("whether the clocks are locked is unknown; run: sudo jetson_clocks, and this script "
               "with sudo too, which may read them")
    elif not state["clocks_locked"]:
        yield (f"the clocks are not locked ({state['clocks_moving']}): the times are the "
               "governor's too; run: sudo jetson_clocks")


def moving_clocks(shown):
    """The clocks of `jetson_clocks --show` that are not fixed, with their MHz; None: unknown."""
    moving, shows_gpu = [], False
    pattern = r"^(cpu\d+|GPU|EMC)\b(.*?)MinFreq=(\d+) +MaxFreq=(\d+)(.*)$"
    for name, before, low, high, after in re.findall(pattern, shown, re.MULTILINE):
        shows_gpu = shows_gpu or name == "GPU"
        to_mhz = 1e-3 if name.startswith("cpu") else 1e-6  # of kHz and of Hz
        if low != high and "Online=0" not in before and "FreqOverride=1" not in after:
            moving.append(f"{name} {int(low) * to_mhz:.0f} to {int(high) * to_mhz:.0f} MHz")
    return moving if shows_gpu else None


def energy(call, frames, seconds):
    """{"energy_mj_per_frame", "power_w", "power_rail"} of calling for `seconds`; {}: no sensor.

    Of the module, the processor's share and the idle power included.
    """
    sensors, samples, calls = _sensors(), [], 0
    with tempfile.TemporaryFile() as log:
        tool = None
        if not sensors and shutil.which("tegrastats"):
            tool = subprocess.Popen(["tegrastats", "--interval", "100"], stdout=log,
                                    stderr=subprocess.DEVNULL)
        began = sampled = time.perf_counter()
        elapsed = 0.0
        while elapsed < seconds or (
                tool and elapsed < START_SECONDS and not os.fstat(log.fileno()).st_size):
            call()
            calls += 1
            elapsed = time.perf_counter() - began
            if sensors and time.perf_counter() - sampled >= SAMPLE_SECONDS:
                sampled = time.perf_counter()
                samples.append({rail: int(mv.read_text()) * int(ma.read_text()) / 1000
                                for rail, (mv, ma) in sensors.items()})
        if tool:
            tool.kill()
            tool.wait()
            log.seek(0)
            samples = [rails(line) for line in log.read().decode(errors="replace").splitlines()]
    samples = [module_power(sample) for sample in samples]
    powers = [power for power, _ in samples if power]
    if not powers:
        return {}
    mean = sum(powers) / len(powers)
    return {"energy_mj_per_frame": mean * elapsed / (calls * frames), "power_w": mean / 1000,
            "power_rail": samples[-1][1]}


def rails(line):
    """Milliwatts by rail of a line of tegrastats: "VDD_IN 4940mW/4940mW", or without mW."""
    return {name: int(mw) for name, mw in re.findall(r"\b([A-Z][A-Z0-9_]+) (\d+)(?:mW)?/\d+", line)}


def module_power(milliwatts):
    """(milliwatts, their rail or rails) of the whole module; (0, ""): not known."""
    for name in INPUTS:
        if name in milliwatts:
            return milliwatts[name], name
    parts = [name for name in PARTS if name in milliwatts]
    return sum(milliwatts[name] for name in parts), " + ".join(parts)


def _sensors():
    """The files of INA3221 channels, millivolts and milliamperes, by rail."""
    found = {}
    for label in map(Path, glob.glob(f"{SENSORS}/in*_label")):
        name = label.name.replace("_label", "_input")
        current = label.with_name(name.replace("in", "curr", 1))
        if current.is_file():
            found[label.read_text().strip()] = label.with_name(name), current
    return found if module_power(dict.fromkeys(found, 1))[0] else {}


def _output(command, seconds=10):
    """What a tool prints within `seconds`; "" if it is not installed."""
    try:
        completed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   timeout=seconds)
        return completed.stdout.decode(errors="replace").strip()
    except subprocess.TimeoutExpired as stopped:  # tegrastats never ends by itself
        return (stopped.stdout or b"").decode(errors="replace").strip()
    except OSError:
        return ""
