"""What a result was measured on: versions, processor, accelerator, commit."""
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "diffusers", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf",
            "tensorrt", "tensorrt-rtx-cu13", "numpy", "moderngl")


def environment() -> dict[str, object]:
    """A flat dictionary of facts; `packages` maps each installed one to its version."""
    facts: dict[str, object] = {
        "python": platform.python_version(), "platform": platform.platform(), "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
                 if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(), "commit": commit(), "packages": _versions()
    }
    if torch.cuda.is_available():
        facts |= {
            "gpu": torch.cuda.get_device_name(), "gpu_count": torch.cuda.device_count(),
            "sm": "".join(map(str, torch.cuda.get_device_capability())), "cuda": torch.version.cuda
        }
    return facts


def commit() -> str:
    """The checkout's commit, with "+" if tracked files differ from it; outside a checkout what
    VEGA3D_COMMIT says, or "unknown"."""
    outside = os.environ.get("VEGA3D_COMMIT", "unknown")
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here,
                              capture_output=True, text=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here,
                               capture_output=True, text=True)
    except OSError:
        return outside
    return (head.stdout.strip() + ("+" if dirty.stdout.strip() else "")) or outside


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
