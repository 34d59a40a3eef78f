"""TensorRT-RTX: engines for GeForce RTX and workstation cards, built ahead of time on a machine
that has none."""
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

PACKAGE = "tensorrt_rtx"
INSTALL = "pip install 'vega3d-edge[rtx]'"
DEFAULT_SMS = (86, 89, 120)  # RTX 30, RTX 40, RTX 50
AHEAD_OF_TIME = "ahead of time: no such GPU here, gated on the ONNX only"


def load() -> ModuleType:
    """The tensorrt_rtx package. Raises ValueError, saying what to install, if it is missing."""
    try:
        return importlib.import_module(PACKAGE)
    except ImportError as error:
        raise ValueError(
            f"export trt: TensorRT-RTX is not installed ({error}); {INSTALL}") from error


def buildable(trt: ModuleType) -> list[int]:
    """The compute capabilities this version compiles for, e.g. 89 for SM 8.9."""
    return sorted(
        int(name[2:]) for name in dir(trt.ComputeCapability)
        if name[:2] == "SM" and name[2:].isdigit())


def for_sm(trt: ModuleType, sm: int) -> Callable[[Any], None]:
    """A builder setting that compiles for one compute capability, present or not. Raises ValueError
    if unknown."""
    known = buildable(trt)
    if sm not in known:
        raise ValueError(
            f"export trt: got --sm {sm}, expected some of {', '.join(map(str, known))} "
            f"(TensorRT-RTX {trt.__version__}); other GPUs, H100 and Jetson among them, need "
            "--target trt"
        )

    def configure(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), 0)

    return configure
