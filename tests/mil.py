"""Computes an ML program in torch: what Core ML would compute, where there is no macOS."""
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def outputs(model: Any, frames: np.ndarray) -> list[np.ndarray]:
    """model: coremltools'; frames [N,3,H,W] in [0,1], as 8-bit images -> every output [N,...]."""
    program = model._mil_program.functions["main"]
    images = torch.from_numpy(np.rint(frames * 255).astype(np.float32))
    results = [_run(program, image[None]) for image in images]
    return [torch.cat([each[i] for each in results]).numpy() for i in range(len(results[0]))]


def _run(program: Any, image: Tensor) -> list[Tensor]:
    (name,) = program.inputs
    values: dict[str, Tensor] = {program.inputs[name].name: image}

    def value(var: Any) -> Any:
        if isinstance(var, list | tuple):
            return [value(each) for each in var]
        if var.name in values:
            return values[var.name]
        floating = isinstance(var.val, np.ndarray | np.floating) and var.val.dtype.kind == "f"
        return torch.from_numpy(np.asarray(var.val, np.float32)) if floating else var.val

    for operation in program.operations:
        if operation.op_type != "const":
            inputs = {key: value(var) for key, var in operation.inputs.items() if var is not None}
            values[operation.outputs[0].name] = OPERATORS[operation.op_type](inputs)
            assert values[operation.outputs[0].name].shape == operation.outputs[0].shape
    return [values[output.name] for output in program.outputs]


def _conv(x: dict[str, Any]) -> Tensor:
    pad = [int(n) for n in x.get("pad", [0, 0, 0, 0])]  # top, bottom, left, right
    if str(x["pad_type"]) == "valid":
        pad = [0, 0, 0, 0]
    assert str(x["pad_type"]) in ("valid", "custom"), x["pad_type"]
    padded = F.pad(x["x"], (pad[2], pad[3], pad[0], pad[1]))
    return F.conv2d(padded, x["weight"], x.get("bias"), [int(n) for n in x["strides"]], 0,
                    [int(n) for n in x["dilations"]], int(x["groups"]))


OPERATORS: dict[str, Any] = {
    "cast": lambda x: x["x"], "add": lambda x: x["x"] + x["y"], "sub": lambda x: x["x"] - x["y"],
    "mul": lambda x: x["x"] * x["y"], "real_div": lambda x: x["x"] / x["y"],
    "exp": lambda x: x["x"].exp(), "sqrt": lambda x: x["x"].sqrt(), "conv": _conv,
    "clip": lambda x: x["x"].clamp(float(x["alpha"]), float(x["beta"])),
    "gelu": lambda x: F.gelu(x["x"]), "softmax": lambda x: x["x"].softmax(int(x["axis"])),
    "linear": lambda x: F.linear(x["x"], x["weight"], x.get("bias")),
    "matmul": lambda x: (x["x"].mT if x["transpose_x"] else x["x"]) @ (
        x["y"].mT if x["transpose_y"] else x["y"]),
    "reshape": lambda x: x["x"].reshape([int(n) for n in x["shape"]]),
    "transpose": lambda x: x["x"].permute([int(n) for n in x["perm"]]),
    "reduce_sum": lambda x: x["x"].sum([int(n) for n in x["axes"]], bool(x["keep_dims"])),
    "reduce_mean": lambda x: x["x"].mean([int(n) for n in x["axes"]], bool(x["keep_dims"])),
    "relu": lambda x: x["x"].relu(), "sigmoid": lambda x: x["x"].sigmoid(),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x["x"], int(x["upscale_factor"])),
    "layer_norm": lambda x: F.layer_norm(x["x"], x["gamma"].shape, x["gamma"], x["beta"],
                                         float(x["epsilon"]))}
