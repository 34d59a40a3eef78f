"""What each runtime accepts of a quantised graph, for the rules of check.py: one row a target."""
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Target:
    what: str
    opset: tuple[int, int]    # lowest and highest that it parses
    # type and zero point (None: any)
    activations: tuple[Literal["int8", "uint8"], int | None] = ("int8", 0)
    float_weights: bool = False  # quantised weights as Q and DQ over a float initializer only
    half_scales: bool = True  # reads float16 scales
    layernorm: bool = True    # has LayerNormalization
    functions: bool = True    # reads local functions
    runs_all: bool = False    # any valid graph; the rules are then advice
    fp8: bool = False         # also reads float8 (E4M3) Q/DQ, on GPUs that have it
    dialect: str = "model.int8.onnx"  # the file of an export that suits it


_TENSORRT_8_6 = Target("TensorRT 8.6", (9, 17), float_weights=True, half_scales=False,
                       functions=False, dialect="model.int8.flagged.onnx")
TARGETS: dict[str, Target] = {
    "trt10": Target("TensorRT 10.0 to 10.16", (9, 20), fp8=True),
    "trt11": Target("TensorRT 11", (9, 24), fp8=True),
    "rtx": Target("TensorRT-RTX 1.x (GeForce RTX, workstations)", (9, 24), fp8=True),
    "trt8.6": _TENSORRT_8_6,
    "jetson-orin-jp5": replace(_TENSORRT_8_6, what="Jetson Orin, JetPack 5.1 (TensorRT 8.5)",
                               layernorm=False, dialect="jetson/model.int8.jp5.onnx"),
    "jetson-orin-jp6": replace(_TENSORRT_8_6, what="Jetson Orin, JetPack 6.0 (TensorRT 8.6)"),
    "jetson-orin-jp62": Target("Jetson Orin, JetPack 6.1 and 6.2 (TensorRT 10.3)", (9, 20)),
    "jetson-orin-jp72": Target(
        "Jetson Orin, JetPack 7.2 (TensorRT 10.16, or 11.4 from 7.2.2)", (9, 24)),
    "jetson-thor": Target("Jetson Thor, JetPack 7 (TensorRT 10.13 and later)", (9, 24), fp8=True),
    "cpu": Target("onnxruntime on CPU, native or WebAssembly", (1, 99), runs_all=True,
                  activations=("uint8", None), dialect="model.int8.cpu.onnx"),
}


def get_target(name: str) -> Target:
    """Raises ValueError, with the names there are, for an unknown one."""
    if name not in TARGETS:
        raise ValueError(f"target: got {name!r}, expected one of: {', '.join(TARGETS)}")
    return TARGETS[name]
