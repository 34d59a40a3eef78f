"""What trt.py measures: variants (a spelling of the graph, and the builder's flags) and the jobs that time them."""
from dataclasses import dataclass, field

from bench.h200.trt_vit import LINEARS, Spelling


@dataclass(frozen=True)
class Variant:
    """implicit: INT8 by per-tensor ranges, no Q/DQ: the builder takes INT8 where it times faster (TensorRT 8 only)."""
    precision: str                       # fp32, fp16 or int8
    spelling: Spelling = field(default_factory=Spelling)
    implicit: bool = False
    half: bool = False                   # the graph itself in float16 (onnxruntime)
    level: int = 3                       # builder optimisation level


def int8(tokens: str = "3d", quantised: tuple[str, ...] = LINEARS, **more: object) -> Variant:
    return Variant("int8", Spelling(tokens=tokens, quantised=quantised, **more))  # type: ignore[arg-type]


VARIANTS = {
    "fp32": Variant("fp32"), "fp16": Variant("fp16"), "int8": int8(),
    "fp16-2d": Variant("fp16", Spelling("2d")), "fp16-conv": Variant("fp16", Spelling("conv")),
    "fp16-tanh": Variant("fp16", Spelling(gelu="tanh")), "fp16-level5": Variant("fp16", level=5),
    "int8-2d": int8("2d"), "int8-conv": int8("conv"),
    "int8-mlp": int8(quantised=("fc1", "fc2")), "int8-qkv-mlp": int8(quantised=("attn.qkv", "fc1", "fc2")),
    "int8-fc2": int8(quantised=("fc2",)), "int8-2d-mlp": int8("2d", ("fc1", "fc2")),
    "int8-attention": int8(attention=True), "int8-2d-attention": int8("2d", attention=True),
    "int8-tanh": int8(gelu="tanh"), "int8-norm": int8(norm="decomposed"), "int8-2d-tanh": int8("2d", gelu="tanh"),
    "int8-level5": Variant("int8", Spelling(quantised=LINEARS), level=5),
    "implicit": Variant("int8", implicit=True), "implicit-2d": Variant("int8", Spelling("2d"), implicit=True),
    "implicit-conv": Variant("int8", Spelling("conv"), implicit=True),
    "ort-fp32": Variant("fp32", Spelling(gelu="op")), "ort-fp16": Variant("fp16", Spelling(gelu="op"), half=True),
    "ort-int8": int8(),
}


@dataclass(frozen=True)
class Job:
    """One process: engines of one student at one batch, built in this order, then timed against each other."""
    worker: str                          # engines, torch or ort
    size: str
    batch: int
    variants: tuple[str, ...]

    @property
    def graphs(self) -> tuple[str, ...]:
        """The variants that are ONNX files."""
        return () if self.worker == "torch" else self.variants

    @property
    def name(self) -> str:
        return f"{self.worker}-{self.size}-b{self.batch}-{self.variants[0]}"


BASE = ("fp16", "int8", "fp32")        # what the bar asks of every student and batch; INT8 as the product places it
TORCH = ("fp16-compiled", "fp32-compiled")
ORT = ("ort-fp16", "ort-fp32", "ort-int8")
PLACES = (("s", 32), ("ti", 32), ("s", 1), ("s", 8), ("ti", 1), ("ti", 8), ("b", 32), ("b", 1), ("b", 8))
JOBS = (  # most important first; trt.py lets torch and onnxruntime, which hardly use the GPU to build, run beside
    *(Job("engines", size, batch, BASE) for size, batch in PLACES),
    *(Job("torch", size, batch, TORCH) for size, batch in PLACES),
    *(Job("ort", size, batch, ORT) for size, batch in PLACES),
    Job("engines", "s", 32, ("int8-mlp", "implicit", "int8-fc2")),  # where INT8 goes, once the table is whole
    Job("engines", "s", 32, ("int8-2d", "fp16-2d", "int8-2d-mlp", "int8-2d-tanh")),
    Job("engines", "s", 32, ("int8-conv", "implicit-conv", "fp16-conv")),
    Job("engines", "s", 32, ("implicit-2d", "int8-tanh", "int8-norm", "int8-qkv-mlp")),
    Job("engines", "s", 32, ("int8-attention", "int8-2d-attention")),
    Job("engines", "s", 32, ("fp16-level5", "int8-level5", "fp16-tanh")),
)
