"""A student's ViT as ONNX for TensorRT 8.6, spelt in several ways: the same function, other graphs for the builder.

`Spelling()` is what `vega3d export` writes (tests hold the two together); the other values are the hypotheses that
trt.sh times to learn what makes INT8 fast. Weights come as the exporter names them: `blocks.0.attn.qkv.weight_t`
[in,out].
"""
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Arrays = dict[str, np.ndarray]
LINEARS = ("attn.qkv", "attn.proj", "fc1", "fc2")
HEAD_WIDTH = 64


@dataclass(frozen=True)
class Spelling:
    tokens: Literal["3d", "2d", "conv"] = "3d"         # [B,N,C]; [B*N,C]; the latter with Linears as 1x1 Conv
    quantised: tuple[str, ...] = ()                    # of LINEARS, under Q/DQ
    attention: bool = False                            # q k^T and softmax v under Q/DQ too
    half: Literal["", "attention", "body"] = ""        # float16 by Casts: attention; all between the Linears
    gelu: Literal["erf", "tanh", "op"] = "erf"         # op: one node, opset 20
    norm: Literal["op", "decomposed"] = "op"


@dataclass(frozen=True)
class Quantised:
    """INT8 numbers of a student: its smoothed arrays, and the range of what each tensor holds."""
    arrays: Arrays               # smoothed weights, rounded to int8 steps; `blocks.0.fc2.factor` [4C] where one stays
    weight_scales: Arrays        # layer -> [out]
    ranges: dict[str, float]     # layer -> largest magnitude of its input; layer + ".out": of its output


def to_onnx(arrays: Arrays, batch: int, spelling: Spelling, quantised: Quantised | None = None
            ) -> tuple[onnx.ModelProto, dict[str, float]]:
    """(model: frames [batch,3,H,H] -> features [batch,D,h,h], {tensor: largest magnitude} for an implicit INT8 build).

    With `quantised`, its arrays are used instead. Raises ValueError for Q/DQ wanted without numbers.
    """
    if (spelling.quantised or spelling.attention) and quantised is None:
        raise ValueError("to_onnx: got layers to quantise but no scales")
    graph = _Graph(quantised.arrays if quantised else arrays, batch, spelling, quantised)
    graph.vit()
    opset = 20 if spelling.gelu == "op" else 17
    model = helper.make_model(helper.make_graph(
        graph.nodes, "student", [helper.make_tensor_value_info("frames", TensorProto.FLOAT, graph.frames)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, graph.features)],
        [numpy_helper.from_array(value, name) for name, value in graph.constants.items()]),
        opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset == 17 else 10)
    onnx.checker.check_model(model)
    return model, graph.ranges


class _Graph:
    def __init__(self, arrays: Arrays, batch: int, spelling: Spelling, quantised: Quantised | None):
        self.arrays, self.batch, self.spelling, self.numbers = arrays, batch, spelling, quantised
        self.nodes: list[onnx.NodeProto] = []
        self.constants: Arrays = {}
        self.ranges: dict[str, float] = {}
        self.n, self.c = arrays["positions"].shape[1:]
        self.patch = arrays["patch_embed.weight"].shape[-1]
        self.grid, self.out = int(self.n**0.5), arrays["head.weight_t"].shape[1]
        side = self.grid * self.patch
        self.frames, self.features = (batch, 3, side, side), (batch, self.out, self.grid, self.grid)
        self.flat = spelling.tokens != "3d"

    def vit(self) -> None:
        x = self.add("Div", self.add("Sub", "frames", self.array("pixel_mean")), self.array("pixel_std"))
        x = self.add("Conv", x, self.array("patch_embed.weight"), self.array("patch_embed.bias"),
                     kernel_shape=[self.patch] * 2, strides=[self.patch] * 2)                   # [B,C,h,h]
        x = self.add("Transpose", self.reshape(x, self.batch, self.c, self.n), perm=[0, 2, 1])  # [B,N,C]
        x = self.add("Add", x, self.array("positions"))
        if self.flat:
            x = self.reshape(x, self.batch * self.n, self.c)
        x = self.halved(x)
        for i in range(sum(name.endswith("norm1.weight") for name in self.arrays)):
            x = self.block(f"blocks.{i}", x)
        x = self.linear("head", self.norm("norm", x))
        if self.flat:
            x = self.reshape(x, self.batch, self.n, self.out)
        x = self.add("Transpose", x, perm=[0, 2, 1])                                            # [B,D,N]
        self.reshape(x, *self.features, out="features")

    def block(self, at: str, x: str) -> str:
        y = self.linear(f"{at}.attn.qkv", self.norm(f"{at}.norm1", x))
        y = self.linear(f"{at}.attn.proj", self.attention(f"{at}.attn", y))
        x = self.add("Add", x, y, out=f"{at}.middle")
        y = self.gelu(f"{at}.gelu", self.linear(f"{at}.fc1", self.norm(f"{at}.norm2", x)))
        if f"{at}.fc2.factor" in self.arrays:
            y = self.add("Mul", y, self.working(f"{at}.fc2.factor", self.arrays[f"{at}.fc2.factor"]))
        return self.add("Add", x, self.linear(f"{at}.fc2", y), out=f"{at}.out")

    def attention(self, at: str, qkv: str) -> str:
        heads = self.c // HEAD_WIDTH
        parts = [f"{at}.{name}" for name in "qkv"]
        counted = {"num_outputs": 3} if self.spelling.gelu == "op" else {}  # opset 18 asks for it, 17 knows it not
        self.node("Split", [qkv], parts, axis=1 if self.flat else 2, **counted)
        if self.spelling.half == "attention":
            parts = [self.add("Cast", part, to=TensorProto.FLOAT16) for part in parts]
        q, k, v = (self.reshape(part, self.batch, self.n, heads, HEAD_WIDTH) for part in parts)
        q, v = (self.add("Transpose", part, perm=[0, 2, 1, 3]) for part in (q, v))              # [B,h,N,64]
        scale = np.array(HEAD_WIDTH**-0.5, np.float16 if self.spelling.half else np.float32)
        q = self.add("Mul", q, self.constant(f"{at}.scale", scale))
        k = self.add("Transpose", k, perm=[0, 2, 3, 1])                                         # [B,h,64,N]
        if self.spelling.attention:
            q, k, v = (self.qdq(t, f"{at}.{name}") for t, name in ((q, "q"), (k, "k"), (v, "v")))
        weights = self.add("Softmax", self.add("MatMul", q, k), axis=-1)                        # [B,h,N,N]
        if self.spelling.attention:
            weights = self.qdq(weights, f"{at}.softmax")
        y = self.add("Transpose", self.add("MatMul", weights, v), perm=[0, 2, 1, 3])
        if self.spelling.half == "attention":
            y = self.add("Cast", y, to=TensorProto.FLOAT)
        return self.reshape(y, *((self.batch * self.n, self.c) if self.flat else (self.batch, self.n, self.c)))

    def linear(self, layer: str, x: str) -> str:
        """x @ weight + bias in float32; where wanted, both sides under Q/DQ."""
        if self.spelling.half != "body":
            return self.product(layer, x)
        y = self.product(layer, self.add("Cast", x, to=TensorProto.FLOAT))
        return y if layer == "head" else self.halved(y)

    def halved(self, x: str) -> str:
        return self.add("Cast", x, to=TensorProto.FLOAT16) if self.spelling.half == "body" else x

    def product(self, layer: str, x: str) -> str:
        """The linear layer itself. Notes the ranges for an implicit INT8 build."""
        quantise = any(layer.endswith(name) for name in self.spelling.quantised) and layer != "head"
        if self.spelling.tokens == "conv":
            x = self.reshape(x, self.batch * self.n, len(self.arrays[f"{layer}.weight_t"]), 1, 1)
        if self.numbers and layer in self.numbers.ranges:
            self.ranges[x] = self.numbers.ranges[layer]
            self.ranges |= dict.fromkeys((f"{layer}.{name}" for name in ("product", "out", "conv")),
                                         self.numbers.ranges[f"{layer}.out"])
            self.ranges[f"{layer}.weight_t"] = float(np.abs(self.arrays[f"{layer}.weight_t"]).max())
        weight, scale = self.arrays[f"{layer}.weight_t"], None
        if quantise:
            assert self.numbers is not None
            x, scale = self.qdq(x, layer), self.numbers.weight_scales[layer]
        if self.spelling.tokens == "conv":
            kernel = self.weight(layer, np.ascontiguousarray(weight.T)[:, :, None, None], scale, 0)
            y = self.add("Conv", x, kernel, self.array(f"{layer}.bias"), out=f"{layer}.conv", kernel_shape=[1, 1])
            return self.reshape(y, self.batch * self.n, weight.shape[1], out=f"{layer}.out")
        product = self.add("MatMul", x, self.weight(layer, weight, scale, 1), out=f"{layer}.product")
        return self.add("Add", product, self.array(f"{layer}.bias"), out=f"{layer}.out")

    def weight(self, layer: str, value: np.ndarray, scale: np.ndarray | None, axis: int) -> str:
        name = self.constant(f"{layer}.weight_t", value)
        if scale is None:
            return name
        parts = [name, self.constant(f"{layer}.weight_scale", scale.astype(np.float32)),
                 self.constant(f"{layer}.weight_zero", np.zeros(scale.shape, np.int8))]
        return self._qdq(parts, f"{layer}.weight", axis=axis)

    def qdq(self, x: str, layer: str) -> str:
        assert self.numbers is not None
        scale = np.float32(max(self.numbers.ranges[layer], 1e-6) / 127)
        parts = [x, self.constant(f"{layer}.scale8", scale), self.constant("zero8", np.int8(0))]
        return self._qdq(parts, f"{layer}.in")

    def _qdq(self, parts: list[str], name: str, **attributes: object) -> str:
        self.node("QuantizeLinear", parts, [f"{name}.q"], **attributes)
        self.node("DequantizeLinear", [f"{name}.q", *parts[1:]], [f"{name}.dq"], **attributes)
        return f"{name}.dq"

    def norm(self, layer: str, x: str) -> str:
        gamma, beta = (self.working(name, self.arrays[name]) for name in (f"{layer}.weight", f"{layer}.bias"))
        if self.spelling.norm == "op":
            return self.add("LayerNormalization", x, gamma, beta, out=f"{layer}.out", axis=-1, epsilon=1e-6)
        centred = self.add("Sub", x, self.add("ReduceMean", x, axes=[-1], keepdims=1))
        square = self.add("Pow", centred, self.working("two", np.float32(2)))
        variance = self.add("Add", self.add("ReduceMean", square, axes=[-1], keepdims=1),
                            self.working("eps", np.float32(1e-6)))
        y = self.add("Div", centred, self.add("Sqrt", variance))
        return self.add("Add", self.add("Mul", y, gamma), beta, out=f"{layer}.out")

    def gelu(self, at: str, x: str) -> str:
        if self.spelling.gelu == "op":
            return self.add("Gelu", x, out=at)
        half, one = self.working("half", np.float32(0.5)), self.working("one", np.float32(1))
        if self.spelling.gelu == "erf":
            inner = self.add("Erf", self.add("Div", x, self.working("sqrt2", np.float32(2**0.5))))
        else:
            cube = self.add("Mul", self.add("Mul", self.add("Mul", x, x), x), self.working("c3", np.float32(0.044715)))
            inner = self.add("Tanh", self.add("Mul", self.add("Add", x, cube),
                                              self.working("c1", np.float32((2 / np.pi)**0.5))))
        return self.add("Mul", self.add("Mul", x, self.add("Add", inner, one)), half, out=at)

    def working(self, name: str, value: np.ndarray | np.generic) -> str:
        """A constant in the type of what lies between the Linears."""
        return self.constant(name, value.astype(np.float16 if self.spelling.half == "body" else np.float32))

    def array(self, name: str) -> str:
        return self.constant(name, self.arrays[name])

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.constants[name] = np.asarray(value)
        return name

    def reshape(self, x: str, *shape: int, out: str | None = None) -> str:
        name = self.constant("shape." + "x".join(map(str, shape)), np.array(shape, np.int64))
        return self.add("Reshape", x, name, out=out)

    def add(self, op_type: str, *inputs: str, out: str | None = None, **attributes: object) -> str:
        name = out or f"{op_type}.{len(self.nodes)}"
        self.node(op_type, list(inputs), [name], **attributes)
        return name

    def node(self, op_type: str, inputs: list[str], outputs: list[str], **attributes: object) -> None:
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name=f"{outputs[0]}/{op_type}",
                                           **attributes))  # type: ignore[arg-type]
