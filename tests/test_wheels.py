"""Wheels of the core for every Python and platform that it names: pip resolves them, cached.

`python -m pytest -m registry tests/test_wheels.py`. pip takes markers on the Python's version from
the interpreter that it runs on, so each version's own is used where it is found.
"""
import json
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
PLATFORMS = {  # a Jetson's JetPack 6 has glibc 2.35, a Raspberry Pi 2.36
    "linux x86-64": ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64"),
    "linux aarch64": ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64"),
    "macos arm64": ("macosx_14_0_arm64", "macosx_13_0_arm64", "macosx_11_0_arm64"),
    "macos x86-64": ("macosx_13_0_x86_64", "macosx_11_0_x86_64", "macosx_10_13_x86_64"),
    "windows x86-64": ("win_amd64",)
}
CORE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def interpreter(version: str) -> str:
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))
    return str(found[-1]) if found else sys.executable


def resolve(version: str, platform: str, folder: Path) -> dict[str, str]:
    """Versions by package."""
    command = [interpreter(version), "-m", "pip", "install", "--dry-run", "--quiet", "--report",
               str(folder / "report.json"), "--only-binary", ":all:", "--target", str(folder),
               "--python-version", version, "--implementation", "cp"]
    for tag in PLATFORMS[platform]:
        command += ["--platform", tag]
    done = subprocess.run([*command, *CORE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    chosen = json.loads((folder / "report.json").read_text())["install"]
    return {each["metadata"]["name"].lower(): each["metadata"]["version"] for each in chosen}


@cache
def index_error() -> str:
    """Why pip finds no package at all here; "" if it finds one."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet",
               "--ignore-installed", "tyro"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr.strip()[-200:] if done.returncode else ""


@pytest.mark.registry
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_package_of_the_core_has_a_wheel(version, platform, request, tmp_path):
    key = f"wheels/{version} {platform}"
    cached = request.config.cache.get(key, {})
    if cached.get("core") != CORE:
        if index_error():
            pytest.skip(f"pip reaches no package index here: {index_error()}")
        cached = {"core": CORE, "found": resolve(version, platform, tmp_path)}
        request.config.cache.set(key, cached)
    found = cached["found"]
    assert {"numpy", "onnxruntime", "pillow", "tyro", "typeguard"} <= set(found)
    assert ("eval-type-backport" in {name.replace("_", "-") for name in found}) == (
        version == "3.9") or interpreter(version) == sys.executable
