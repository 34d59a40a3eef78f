"""The cost of `vega3d infer` where only the core is installed: megabytes, and seconds of a start.

    python -m bench.recipes.infer_core MODEL.onnx [--pythons PYTHON …] [--out OUT.json]

Makes an environment with the core packages of each Python (pip, so a network). A start is a
complete process: Python, imports, model, a 12-megapixel photo, every file written.
"""
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
from tyro.conf import Positional

from bench.device import device_facts
from records.results import ROOT, Row, measured, save
from vega3d import run_recipe

STARTS, MAX_MB, MAX_SECONDS = 10, 200.0, 1.5
NOT_OURS = {"pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth",
            "wheel", "__pycache__"}
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "runs", "build",
                                    "*.egg-info")
NOT_IMPORTED = ("sympy", "mpmath")  # onnxruntime before 1.24 asks for them; inference does not


def environment_of_core(python: str, folder: Path) -> Path:
    """The Python of a new environment with this checkout and its core. ValueError if pip fails."""
    # setuptools would build inside the checkout
    source = shutil.copytree(ROOT, folder / "source", ignore=NOT_COPIED)
    _run([python, "-m", "venv", str(folder / "core")])
    installed = folder / "core" / "bin" / "python"
    _pip(installed, "install", str(source))
    return installed


def installed_mb(site_packages: Path) -> float:
    """Megabytes (1e6) of disk blocks, bytecode included, without what every environment has."""
    ours = [part for part in site_packages.iterdir()
            if not {part.name, part.name.partition("-")[0]} & NOT_OURS]
    files = [file for part in ours for file in (part, *part.rglob("*")) if file.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files) / 1e6


def seconds(command: Sequence[str], starts: int = STARTS) -> list[tuple[float, float]]:
    """(wall clock, CPU time) of each process. Raises ValueError if one fails."""
    times = []
    for _ in range(starts):
        began, cpu = time.perf_counter(), _children_s()
        _run(command)
        times.append((time.perf_counter() - began, _children_s() - cpu))
    return times


def timed(times: Sequence[tuple[float, float]]) -> Row:
    """The first start may read its files from disk. On a busy machine the wall clock measures other
    programs too, the CPU time hardly."""
    wall, cpu = zip(*times, strict=True)
    return {"start_s": statistics.median(wall), "max_start_s": MAX_SECONDS, "worst_s": max(wall),
            "first_s": wall[0], "cpu_s": statistics.median(cpu), "starts": len(wall)}


def measure(python: Path, model: Path, photo: Path, out: Path) -> Row:
    """The row of one environment; those of NOT_IMPORTED are uninstalled from it."""
    command = [str(python.parent / "vega3d"), "infer", str(model.resolve()), str(photo), "-o",
               str(out)]
    row = timed(seconds(command))
    version, folder = _run([str(python), "-c", "import platform, sysconfig; print(platform."
                            "python_version(), sysconfig.get_path('purelib'))"]).split()
    packages = {each["name"]: each["version"]
                for each in json.loads(_pip(python, "list", "--format", "json"))}
    size = installed_mb(Path(folder))
    unused = [name for name in NOT_IMPORTED if name in packages]
    if unused:
        _pip(python, "uninstall", "--yes", *unused)
        _run(command)
    return {"python": version, "onnxruntime": packages["onnxruntime"], "numpy": packages["numpy"],
            "pillow": packages["pillow"], "size_mb": size, "max_mb": MAX_MB,
            "without_sympy_mb": installed_mb(Path(folder)), **row}


def _photo(path: Path) -> Path:
    coarse = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    Image.fromarray(coarse).resize((4032, 3024), Image.Resampling.BICUBIC).save(path, quality=92)
    return path


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _pip(python: Path, command: str, *arguments: str) -> str:
    return _run([str(python), "-m", "pip", "--disable-pip-version-check", command,
                 *arguments])


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command[:4])} …: exit code {done.returncode}: "
                         f"{done.stderr.strip()[-300:]}")
    return done.stdout


def main(model: Positional[Path], pythons: tuple[str, ...] = (sys.executable,),
         out: Path = ROOT / "bench" / "results" / "infer_core.json") -> None:
    """model: an ONNX file of vega3d export onnx --preset web."""
    env, rows = device_facts(), []
    for python in pythons:
        with TemporaryDirectory() as made:
            folder = Path(made)
            core = environment_of_core(python, folder)
            row = measure(core, model, _photo(folder / "photo.jpg"), folder / "out")
        print(f"Python {row['python']}: {row['size_mb']:.0f} MB ({row['without_sympy_mb']:.0f} "
              f"without sympy), a start {row['start_s']:.2f} s")
        rows.append(row)
    env["load_1m_after"] = device_facts()["load_1m"]
    save(measured("infer_core", rows, env), out)


if __name__ == "__main__":
    run_recipe(main)
