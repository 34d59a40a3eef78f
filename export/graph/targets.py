"""What each place that runs an INT8 graph will accept. One row a target."""
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Target:
    """activations: the integer type and the zero point a target wants. weights: how quantised
    weights may be stored."""
    what: str
    opset: tuple[int, int]                               # lowest and highest it parses
    activations: tuple[Literal["int8", "uint8"], int] = ("int8", 0)
    weights: Literal["any", "float"] = "any"  # "float": Q and DQ over a float initialiser
    half_scales: bool = True                             # float16 Q/DQ scales
    layernorm: bool = True                               # as one op
    fp8: bool = False  # Q/DQ in float8 (E4M3) too, on GPUs that have it
    dialect: str = "model.int8.onnx"  # the file of an export that is meant for it


TARGETS: dict[str, Target] = {
    "trt10": Target("TensorRT 10.0 to 10.16", (9, 20),
                    fp8=True), "trt11": Target("TensorRT 11", (9, 24), fp8=True),
    "rtx": Target("TensorRT-RTX 1.x (GeForce RTX, workstations)", (9, 24),
                  fp8=True), "trt8.6": Target("TensorRT 8.6", (9, 17), weights="float",
                                              half_scales=False, dialect="model.int8.flagged.onnx"),
    "jetson-orin-jp5": Target("Jetson Orin, JetPack 5.1 (TensorRT 8.5)", (9, 17), weights="float",
                              half_scales=False, layernorm=False,
                              dialect="jetson/model.int8.jp5.onnx"),
    "jetson-orin-jp6": Target("Jetson Orin, JetPack 6.0 (TensorRT 8.6)", (9, 17), weights="float",
                              half_scales=False, dialect="model.int8.flagged.onnx"),
    "jetson-orin-jp62": Target("Jetson Orin, JetPack 6.1 and 6.2 (TensorRT 10.3)", (9, 20)),
    "jetson-orin-jp72": Target("Jetson Orin, JetPack 7.2 (TensorRT 10.16, or 11.4 from 7.2.2)",
                               (9, 24)),
    "jetson-thor": Target("Jetson Thor, JetPack 7 (TensorRT 10.13 and later)", (9, 24),
                          fp8=True), "cpu": Target("onnxruntime on CPU, native or WebAssembly",
                                                   (13, 20), activations=("uint8", 128),
                                                   dialect="model.int8.cpu.onnx"),
}


def target_called(name: str) -> Target:
    """Raises ValueError, with the names there are, for an unknown one."""
    if name not in TARGETS:
        raise ValueError(f"target: got {name!r}, expected one of: {', '.join(TARGETS)}")
    return TARGETS[name]
