"""`vega3d env`: what an issue should say about a machine. No host name; the home folder is ~."""
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from records.environment import commit, processor
from records.files import cache_folder

# instructions that decide which kernels run
FLAGS = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni",
         "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve")
# settings that change what runs or where files go
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE",
             "VEGA3D_CACHE", "XDG_CACHE_HOME", "TORCH_COMPILE_DISABLE", "RANK", "WORLD_SIZE")
GPU = ("name", "driver_version", "compute_cap", "memory.total", "memory.free")


def env() -> None:
    """Versions, processor, GPUs, caches, free disk and memory, to paste into an issue."""
    print(report())


def report() -> str:
    """Lines `name: value`, without the facts that this machine does not tell."""
    found = [("vega3d-edge", f"{_version('vega3d-edge')}, commit {commit()}"),
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
    lines = _read("/proc/cpuinfo").splitlines()
    found = {flag for line in lines if line.lower().startswith(("flags", "features"))
             for flag in line.partition(":")[2].split()}
    return [flag for flag in FLAGS if flag in found]


def _memory() -> str:
    values = {}
    for line in _read("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        values[name] = int(value.split()[0]) * 1024 / 1e9
    if "MemTotal" not in values:
        return ""
    limit = _read("/sys/fs/cgroup/memory.max")
    limited = f", this group at most {int(limit) / 1e9:.1f} GB" if limit.isdigit() else ""
    return f"{values['MemAvailable']:.1f} of {values['MemTotal']:.1f} GB free{limited}"


def _gpus() -> Iterator[tuple[str, str]]:
    output = _run(["nvidia-smi", f"--query-gpu={','.join(GPU)}", "--format=csv,noheader"])
    for line in output.splitlines():
        name, driver, sm, total, free = (field.strip() for field in line.split(","))
        yield "gpu", f"{name}, SM {sm}, {free} of {total} free, driver {driver}"
    if not output:
        yield "gpu", "no NVIDIA GPU (nvidia-smi)"
    if tegra := _read("/etc/nv_tegra_release").partition("\n")[0]:
        yield "jetson", f"{tegra.lstrip('# ')}; {' '.join(_run(['nvpmodel', '-q']).split())}"


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
    try:
        required = metadata.requires("vega3d-edge") or []
    except metadata.PackageNotFoundError:
        required = []
    names = sorted({re.split(r"[^\w.-]", line)[0] for line in required})
    return " ".join(f"{name} {found}" for name in names if (found := _version(name)))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


VERBS = {"": env}
