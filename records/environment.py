"""The machine and the code: facts in result files, and `vega3d env`, to paste into an issue."""
from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from records.files import cache_folder

PACKAGES = ("torch", "diffusers", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf",
            "tensorrt", "tensorrt-rtx-cu13", "numpy", "moderngl")
# instructions that decide which kernels run
FLAGS = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni",
         "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve")
# settings that change what runs or where files go
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE",
             "VEGA3D_CACHE", "XDG_CACHE_HOME", "TORCH_COMPILE_DISABLE", "RANK", "WORLD_SIZE")
GPU = ("name", "driver_version", "compute_cap", "memory.total", "memory.free")


def environment() -> dict[str, object]:
    """A flat dictionary of facts; `packages` maps each installed one to its version."""
    import torch  # not in the core install, which reads the rest of this module

    facts: dict[str, object] = {
        "python": platform.python_version(), "platform": platform.platform(), "cpu": processor(),
        "cores": _cores(), "threads": torch.get_num_threads(), "commit": commit(),
        "packages": {name: found for name in PACKAGES if (found := version(name))}
    }
    if torch.cuda.is_available():
        facts |= {
            "gpu": torch.cuda.get_device_name(), "gpu_count": torch.cuda.device_count(),
            "sm": "".join(map(str, torch.cuda.get_device_capability())), "cuda": torch.version.cuda
        }
    return facts


def commit() -> str:
    """The checkout's commit, "+" if tracked files differ; else $VEGA3D_COMMIT, or "unknown"."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = output_of([*git, "rev-parse", "--short=12", "HEAD"])
    if not head:
        return os.environ.get("VEGA3D_COMMIT", "unknown")
    return head + ("+" if output_of([*git, "status", "--porcelain", "-uno"]) else "")


def processor() -> str:
    """The processor's name."""
    models = re.findall(r"^model name\s*:\s*(.+)", text_of("/proc/cpuinfo"), re.MULTILINE)
    return models[0] if models else platform.processor() or platform.machine()


def version(package: str) -> str:
    """"" if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def env() -> None:
    """Versions, processor, GPUs, caches, free disk and memory, to paste into an issue."""
    print(report())


def report() -> str:
    """Lines `name: value` without what this machine does not tell, its name or the home folder."""
    found = [("vega3d-edge", f"{version('vega3d-edge')}, commit {commit()}"),
             ("python", f"{platform.python_version()} ({sys.executable})"),
             ("platform", f"{platform.platform()}, {' '.join(platform.libc_ver())}"),
             ("cpu", f"{processor()}, {_cores()} of {os.cpu_count()} cores"),
             ("cpu flags", " ".join(_flags())), ("memory", _memory()), *_gpus(), *_libraries(),
             *_folders(), ("packages", _packages()),
             ("variables", " ".join(f"{k}={os.environ[k]}" for k in VARIABLES if k in os.environ))]
    home = os.path.expanduser("~")
    lines = [f"{name}: {value}" for name, value in found if value]
    return "\n".join(line.replace(home, "~") if len(home) > 1 else line for line in lines)


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _flags() -> list[str]:
    lines = re.findall(r"^(?:flags|features)\s*:(.*)", text_of("/proc/cpuinfo"), re.M | re.I)
    found = set(" ".join(lines).split())
    return [flag for flag in FLAGS if flag in found]


def _memory() -> str:
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB", text_of("/proc/meminfo"), re.MULTILINE))
    if "MemTotal" not in kilobytes:
        return ""
    free, total = (int(kilobytes[name]) * 1024 / 1e9 for name in ("MemAvailable", "MemTotal"))
    limit = text_of("/sys/fs/cgroup/memory.max")
    limited = f", this group at most {int(limit) / 1e9:.1f} GB" if limit.isdigit() else ""
    return f"{free:.1f} of {total:.1f} GB free{limited}"


def _gpus() -> Iterator[tuple[str, str]]:
    output = output_of(["nvidia-smi", f"--query-gpu={','.join(GPU)}", "--format=csv,noheader"])
    for line in output.splitlines():
        name, driver, sm, total, free = (field.strip() for field in line.split(","))
        yield "gpu", f"{name}, SM {sm}, {free} of {total} free, driver {driver}"
    if not output:
        yield "gpu", "no NVIDIA GPU (nvidia-smi)"
    if tegra := text_of("/etc/nv_tegra_release").partition("\n")[0]:
        yield "jetson", f"{tegra.lstrip('# ')}; {' '.join(output_of(['nvpmodel', '-q']).split())}"


def _libraries() -> Iterator[tuple[str, str]]:
    from records.runtime import ort

    yield "onnxruntime providers", " ".join(ort.get_available_providers())
    try:
        import torch
    except ImportError as error:
        yield "torch", f"cannot be imported ({error})"
    else:
        yield "torch", (f"{torch.__version__}, CUDA {torch.version.cuda}, "
                        f"{torch.cuda.device_count()} GPUs, {torch.get_num_threads()} threads")


def _folders() -> Iterator[tuple[str, str]]:
    """The folders that files go to, what ours and the hub's hold, and the space that is left."""
    hub = os.environ.get("HF_HUB_CACHE") or Path(
        os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub"
    for name, folder in (("cache", cache_folder()), ("hub cache", Path(hub))):
        size = sum(path.stat().st_size for path in folder.rglob("*")
                   if path.is_file() and not path.is_symlink())
        yield name, f"{folder}, {size / 1e6:.0f} MB, {_free(folder)}"
    yield "working folder", _free(Path())


def _free(folder: Path) -> str:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents)
                    if path.exists())
    usage = shutil.disk_usage(existing)
    return f"{usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB free"


def _packages() -> str:
    """Every installed package that vega3d-edge or one of its extras names, by its version."""
    required = metadata.requires("vega3d-edge") or [] if version("vega3d-edge") else []
    names = sorted({re.split(r"[^\w.-]", line)[0] for line in required})
    return " ".join(f"{name} {found}" for name in names if (found := version(name)))


def text_of(path: str | Path) -> str:
    """Without spaces around it; "" if it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def output_of(command: list[str]) -> str:
    """"" if the command is not installed, fails or takes 10 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


VERBS = {"": env}
