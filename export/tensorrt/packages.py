"""TensorRT builds on the GPU that runs the engine; TensorRT-RTX ahead of time, without a GPU."""
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from export.jetson.device_engine import release
from records.files import cache_folder


@dataclass(frozen=True)
class Package:
    name: str
    module: str
    install: str

    def load(self) -> ModuleType:
        """The imported module. Raises ValueError with the install command if it is missing."""
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            raise ValueError(f"export trt: {self.name} is not installed ({error}); "
                             f"{self.install}") from error

    def installed(self) -> bool:
        try:
            self.load()
        except ValueError:
            return False
        return True


RTX = Package("TensorRT-RTX", "tensorrt_rtx", "pip install 'vega3d-edge[rtx]'")
TENSORRT = Package("TensorRT", "tensorrt",
                   "pip install 'vega3d-edge[tensorrt]' (on a Jetson it comes with JetPack), or "
                   f"build for GeForce RTX cards without a GPU: {RTX.install}")
RTX_SMS = (86, 89, 120)  # built by default: RTX 30, RTX 40, RTX 50
AHEAD_OF_TIME = "ahead of time: no such GPU here, gated on the ONNX only"  # `device` in a sidecar

# TensorRT releases reported wrong on graphs like ours. Every engine is gated; these also warn.
KNOWN_BAD = {
    (10, 3): "silently wrong on several ViTs (TensorRT issues 4419, 4558, 4723); fixed in 10.5",
    (10, 4): "silently wrong on several ViTs, FP16 NaN (TensorRT issue 4742); fixed in 10.5",
    (10, 7): "wrong in scaled dot-product attention even in FP32 (TensorRT issues 4328, 4333); "
             "our graph avoids it",
}


def known_bad_warning(version: str) -> str | None:
    """The warning for a TensorRT version reported wrong on ViTs, or None."""
    reason = KNOWN_BAD.get(release(version))
    return f"TensorRT {version} is {reason}. The parity gate decides." if reason else None


def timing_cache_path(version: str, sm: int) -> Path:
    """The user's timing cache of kernels; valid for one TensorRT version and compute capability."""
    return cache_folder() / f"timing-trt-{version}-sm{sm}.cache"


def rtx_sms(rtx: ModuleType) -> list[int]:
    """The compute capabilities that this TensorRT-RTX compiles for, e.g. 89 for SM 8.9."""
    names = [name[2:] for name in dir(rtx.ComputeCapability) if name[:2] == "SM"]
    return sorted(int(name) for name in names if name.isdigit())


def rtx_compile_for(rtx: ModuleType, sm: int) -> Callable[[Any], None]:
    """Sets a builder config to compile for `sm`, present or not. Raises ValueError if unknown."""
    supported = rtx_sms(rtx)
    if sm not in supported:
        raise ValueError(
            f"export trt: got --sm {sm}, expected some of {', '.join(map(str, supported))} "
            f"(TensorRT-RTX {rtx.__version__}); other GPUs, H100 and Jetson among them, need "
            "--target trt")

    def configure(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(rtx.ComputeCapability, f"SM{sm}"), 0)

    return configure
