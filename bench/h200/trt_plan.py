"""What trt.py measures: variants (a spelling of the graph, and the builder's flags) and the jobs for them."""
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
    prefer: bool = False                 # FP16 asked for layer by layer, all but the quantised products


def int8(tokens: str = "3d", quantised: tuple[str, ...] = LINEARS, **more: object) -> Variant:
    return Variant("int8", Spelling(tokens=tokens, quantised=quantised, **more))  # type: ignore[arg-type]


VARIANTS = {
    "fp32": Variant("fp32"), "fp16": Variant("fp16"), "int8": int8(),
    "fp16-2d": Variant("fp16", Spelling("2d")), "fp16-conv": Variant("fp16", Spelling("conv")),
    "fp16-tanh": Variant("fp16", Spelling(gelu="tanh")), "fp16-level5": Variant("fp16", level=5),
    "int8-2d": int8("2d"), "int8-conv": int8("conv"),
    "int8-mlp": int8(quantised=("fc1", "fc2")), "int8-qkv-mlp": int8(quantised=("attn.qkv", "fc1", "fc2")),
    "int8-fc2": int8(quantised=("fc2",)), "int8-2d-mlp": int8("2d", ("fc1", "fc2")),
    "int8-half": int8(half="attention"), "int8-body": int8(half="body"),
    "int8-prefer": Variant("int8", Spelling(quantised=LINEARS), prefer=True),
    "int8-half-mlp": int8(quantised=("fc1", "fc2"), half="attention"),
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
    """One process: builds one engine; or times all there are of one student at one batch, against each other."""
    worker: str                          # build, time, torch, ort or jetson
    size: str
    batch: int
    variants: tuple[str, ...]

    @property
    def graphs(self) -> tuple[str, ...]:
        """The variants that it needs as ONNX files."""
        return self.variants if self.worker in ("build", "ort") else ()

    @property
    def name(self) -> str:
        return f"{self.worker}-{self.size}-b{self.batch}" + (f"-{self.variants[0]}" if self.worker == "build" else "")


BASE = ("int8", "fp16", "fp32")        # what the bar asks of every student and batch; the longest build first
TORCH = ("fp16-compiled", "fp32-compiled")
ORT = ("ort-fp16", "ort-fp32", "ort-int8")
PLACES = (("s", 32), ("ti", 32), ("s", 1), ("s", 8), ("ti", 1), ("ti", 8), ("b", 32), ("b", 1), ("b", 8))
_CLOSEST = ("int8-half", "int8-body", "int8-prefer", "int8-mlp")  # attention and what is between products kept in half
MORE = {  # where INT8 goes and how it is spelt: no experiment is built before the table
    ("s", 32): (*_CLOSEST, "implicit", "int8-half-mlp", "int8-2d", "int8-conv", "int8-attention", "int8-fc2",
                "implicit-conv", "int8-norm", "int8-tanh", "fp16-2d", "fp16-conv", "implicit-2d", "int8-2d-mlp",
                "int8-qkv-mlp", "int8-2d-attention", "int8-2d-tanh", "fp16-tanh", "int8-level5", "fp16-level5"),
    ("ti", 32): (*_CLOSEST, "implicit", "int8-half-mlp", "int8-2d", "int8-conv", "int8-fc2", "implicit-conv"),
    ("b", 32): _CLOSEST,
}
BUILDS = (  # most important first
    *(Job("build", size, batch, (name,)) for size, batch in PLACES for name in BASE),
    *(Job("build", *place, (name,)) for first in (True, False) for place, names in MORE.items() for name in names
      if (name in _CLOSEST) == first),
)
JOBS = (  # in the order of their turns at being timed
    *(Job("time", size, batch, (*BASE, *MORE.get((size, batch), ()))) for size, batch in PLACES),
    *(Job("torch", size, batch, TORCH) for size, batch in PLACES),
    *(Job("ort", size, batch, ORT) for size, batch in PLACES),
    Job("jetson", "ti", 1, ("fp16", "int8")),
)
