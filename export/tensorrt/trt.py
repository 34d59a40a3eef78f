"""TensorRT proper: it builds on the GPU it will run on, and some of its versions are wrong without
saying so."""
import importlib
import os
from pathlib import Path
from types import ModuleType

PACKAGE = "tensorrt"
INSTALL = "pip install 'vega3d-edge[tensorrt]'  (on a Jetson it comes with JetPack)"

# What users reported, on graphs like ours; every engine is gated, these also warn.
KNOWN_BAD = {
    (10, 3): "silently wrong on several ViTs (TensorRT issues 4419, 4558, 4723); fixed in 10.5",
    (10, 4): "silently wrong on several ViTs, fp16 NaN (TensorRT issue 4742); fixed in 10.5",
    (10, 7): "scaled dot-product attention wrong even in fp32 (TensorRT issues 4328, 4333); our "
             "graph avoids it",
}


def load() -> ModuleType:
    """The tensorrt package. Raises ValueError, saying what to install, if it is missing."""
    try:
        return importlib.import_module(PACKAGE)
    except ImportError as error:
        raise ValueError(
            f"export trt: TensorRT is not installed ({error}); {INSTALL}, or build for GeForce RTX "
            "cards without a GPU: pip install 'vega3d-edge[rtx]'") from error


def warning(version: str) -> str | None:
    """Why this TensorRT version is not to be trusted with a ViT, or None."""
    reason = KNOWN_BAD.get(release(version))
    return f"TensorRT {version} is {reason}. The parity gate decides." if reason else None


def release(version: str) -> tuple[int, int]:
    """(major, minor) of a version such as 10.3.0.30."""
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def timing_cache(version: str, sm: int) -> Path:
    """Where this machine keeps its kernel timings: they hold for one version on one kind of GPU."""
    home = os.environ.get("VEGA3D_CACHE") or os.environ.get(
        "XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "vega3d-edge" / f"timing-trt-{version}-sm{sm}.cache"
