"""What `vega3d infer` costs where nothing else is installed: megabytes of its packages, and seconds
from a cold start.

    python -m bench.recipes.infer_core MODEL.onnx [--python PYTHON] [--out
    bench/results/infer_core.json]

Makes a new environment with the core packages alone (pip, so a network), unless PYTHON names one. A
start is a whole
process: Python, imports, model, a 12-megapixel photo, every file written.
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
from records.results import Results, Row, save

ROOT = Path(__file__).resolve().parents[2]
STARTS, MOST_MB, MOST_SECONDS = 10, 200.0, 1.5
NOT_OURS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth",
            "wheel")
LEFT_BEHIND = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "runs", "build",
                                     "*.egg-info")


def environment_of_core(folder: Path) -> Path:
    """A new environment with this checkout and its core dependencies; its Python. Raises ValueError
    if pip fails."""
    # setuptools would build inside the checkout
    source = shutil.copytree(ROOT, folder / "source", ignore=LEFT_BEHIND)
    _run([sys.executable, "-m", "venv", str(folder / "core")])
    python = folder / "core" / "bin" / "python"
    _run([
        str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        str(source)
    ])
    return python


def installed_mb(site_packages: Path) -> float:
    """Megabytes (1e6) of disk blocks under it, bytecode included; without what every environment
    holds."""
    parts = [path for path in site_packages.iterdir() if path.name.partition("-")[0] not in NOT_OURS
             and path.name not in NOT_OURS]
    files = [file for part in parts for file in (part, *part.rglob("*")) if file.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files) / 1e6


def seconds(command: Sequence[str], starts: int = STARTS) -> list[tuple[float, float]]:
    """(by the clock, of processors) for each whole process. Raises ValueError if one fails."""
    took = []
    for _ in range(starts):
        began, worked = time.perf_counter(), _children_s()
        _run(command)
        took.append((time.perf_counter() - began, _children_s() - worked))
    return took


def rows(mb: float, took: Sequence[tuple[float, float]]) -> list[Row]:
    """The first start reads its files from disk if nobody has; the others find them in memory. On a
    machine full of other work the clock tells of that work, the processors' time hardly."""
    wall, worked = ([pair[i] for pair in took] for i in range(2))
    return [{
        "what": "packages of the core install, this one included", "value": mb, "unit": "MB",
        "limit": MOST_MB
    }, {
        "what": f"vega3d infer, process start to files written, median of {len(took)}",
        "value": statistics.median(wall), "unit": "s", "limit": MOST_SECONDS, "worst": max(wall)
    }, {"what": "the same, first start", "value": wall[0], "unit": "s", "limit": None}, {
        "what": "processor time of a start, all threads, median",
        "value": statistics.median(worked), "unit": "s", "limit": None
    }]


def measure(python: Path, model: Path, scratch: Path) -> tuple[list[Row], dict[str, str]]:
    """The rows, and the packages found in that environment by version."""
    photo = scratch / "photo.jpg"
    coarse = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    Image.fromarray(coarse).resize((4032, 3024), Image.Resampling.BICUBIC).save(photo, quality=92)
    found = _run([str(python), "-c",
                  "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    listed = json.loads(
        _run([str(python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]))
    took = seconds([str(python.parent / "vega3d"), "infer", str(model.resolve()), str(photo), "-o",
                    str(scratch / "out")])
    return rows(installed_mb(Path(found)),
                took), {package["name"]: package["version"]
                        for package in listed}


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"{' '.join(command[:4])} …: exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="an ONNX file of vega3d export onnx --preset web")
    parser.add_argument("--python", type=Path,
                        help="of an environment that has vega3d-edge without extras")
    parser.add_argument("--out", type=Path,
                        default=Path(__file__).parents[1] / "results" / "infer_core.json")
    options = parser.parse_args()
    env = device_facts()
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        measured, packages = measure(options.python or environment_of_core(scratch), options.model,
                                     scratch)
    env |= {"load_1m_after": device_facts()["load_1m"], "core_packages": packages}
    save(
        Results("infer_core", " ".join(["python", "-m", "bench.recipes.infer_core", *sys.argv[1:]]),
                str(env["commit"]), env, measured), options.out)
    for row in measured:
        at_most = f" (at most {row['limit']})" if row["limit"] else ""
        print(f"{row['what']}: {row['value']:.2f} {row['unit']}{at_most}")


if __name__ == "__main__":
    main()
