"""The cost of `vega3d infer` where only the core is installed: megabytes, and seconds of a start.

    python -m bench.recipes.infer_core MODEL.onnx [--python PYTHON] [--out OUT.json]

Makes a new environment with the core packages (pip, so a network), unless PYTHON names one. A start
is a complete process: Python, imports, model, a 12-megapixel photo, every file written.
"""
import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from bench.device import device_facts
from records.results import ROOT, Row, measured, save

STARTS, MAX_MB, MAX_SECONDS = 10, 200.0, 1.5
NOT_OURS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth",
            "wheel")
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "runs", "build",
                                    "*.egg-info")


def environment_of_core(folder: Path) -> Path:
    """The Python of a new environment with this checkout and its core. ValueError if pip fails."""
    # setuptools would build inside the checkout
    source = shutil.copytree(ROOT, folder / "source", ignore=NOT_COPIED)
    _run([sys.executable, "-m", "venv", str(folder / "core")])
    python = folder / "core" / "bin" / "python"
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
          str(source)])
    return python


def installed_mb(site_packages: Path) -> float:
    """Megabytes (1e6) of disk blocks, bytecode included, without what every environment has."""
    size = 0
    for part in site_packages.iterdir():
        if part.name.partition("-")[0] not in NOT_OURS and part.name not in NOT_OURS:
            size += sum(file.stat().st_blocks * 512
                        for file in (part, *part.rglob("*")) if file.is_file())
    return size / 1e6


def seconds(command: Sequence[str], starts: int = STARTS) -> list[tuple[float, float]]:
    """(wall clock, CPU time) of each process. Raises ValueError if one fails."""
    times = []
    for _ in range(starts):
        began, cpu = time.perf_counter(), _children_s()
        _run(command)
        times.append((time.perf_counter() - began, _children_s() - cpu))
    return times


def rows(mb: float, times: Sequence[tuple[float, float]]) -> list[Row]:
    """The first start may read its files from disk, the others find them cached.

    On a busy machine the wall clock measures other programs too, the CPU time hardly.
    """
    wall, cpu = zip(*times, strict=True)
    return [
        {"what": "packages of the core install, this one included", "value": mb, "unit": "MB",
         "limit": MAX_MB},
        {"what": f"vega3d infer, process start to files written, median of {len(times)}",
         "value": statistics.median(wall), "unit": "s", "limit": MAX_SECONDS, "worst": max(wall)},
        {"what": "the same, first start", "value": wall[0], "unit": "s", "limit": None},
        {"what": "processor time of a start, all threads, median",
         "value": statistics.median(cpu), "unit": "s", "limit": None}
    ]


def measure(python: Path, model: Path, scratch: Path) -> tuple[list[Row], dict[str, str]]:
    """The rows, and the versions of the packages in that environment."""
    photo = scratch / "photo.jpg"
    coarse = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    Image.fromarray(coarse).resize((4032, 3024), Image.Resampling.BICUBIC).save(photo, quality=92)
    site_packages = _run([str(python), "-c",
                          "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    packages = json.loads(_run([str(python), "-m", "pip", "list", "--format", "json",
                                "--disable-pip-version-check"]))
    times = seconds([str(python.parent / "vega3d"), "infer", str(model.resolve()), str(photo),
                     "-o", str(scratch / "out")])
    return (rows(installed_mb(Path(site_packages)), times),
            {package["name"]: package["version"] for package in packages})


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command[:4])} …: exit code {done.returncode}: "
                         f"{done.stderr.strip()[-300:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="an ONNX file of vega3d export onnx --preset web")
    parser.add_argument("--python", type=Path,
                        help="of an environment that has vega3d-edge without extras")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "infer_core.json")
    options = parser.parse_args()
    env = device_facts()
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        python = options.python or environment_of_core(scratch)
        found, packages = measure(python, options.model, scratch)
    env |= {"load_1m_after": device_facts()["load_1m"], "core_packages": packages}
    save(measured("infer_core", found, env, "python -m bench.recipes.infer_core"), options.out)
    for row in found:
        limit = f" (at most {row['limit']})" if row["limit"] else ""
        print(f"{row['what']}: {row['value']:.2f} {row['unit']}{limit}")


if __name__ == "__main__":
    main()
