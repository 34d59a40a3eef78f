"""What a result was measured on: versions, processor, accelerator, commit."""
from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "diffusers", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf",
            "tensorrt", "tensorrt-rtx-cu13", "numpy", "moderngl")


def environment() -> dict[str, object]:
    """A flat dictionary of facts; `packages` maps each installed one to its version."""
    import torch  # not in the core install, which reads the rest of this module

    affinity = getattr(os, "sched_getaffinity", None)
    facts: dict[str, object] = {
        "python": platform.python_version(), "platform": platform.platform(), "cpu": processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(), "commit": commit(), "packages": versions(PACKAGES)
    }
    if torch.cuda.is_available():
        facts |= {
            "gpu": torch.cuda.get_device_name(), "gpu_count": torch.cuda.device_count(),
            "sm": "".join(map(str, torch.cuda.get_device_capability())), "cuda": torch.version.cuda
        }
    return facts


def commit() -> str:
    """The checkout's commit, with "+" if tracked files differ from it.

    Outside a checkout: the environment variable VEGA3D_COMMIT, or "unknown".
    """
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return os.environ.get("VEGA3D_COMMIT", "unknown")
    return head + ("+" if _git("status", "--porcelain", "-uno") else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True,
                              text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
