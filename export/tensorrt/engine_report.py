"""What an engine really runs, as its own inspector tells: which layers got INT8 kernels, and is
attention fused.

A Q/DQ graph is a wish: a builder may still take half-precision kernels, and only the engine knows.
TensorRT-RTX makes its kernels on the GPU at first run (its engine holds one compiled block, and
cannot even be opened without a GPU).
"""
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from export.artefact import Facts
from records.files import write_json

# _gemm_mha_v2, fmha_v2_flash_..., as TensorRT names them
FUSED_ATTENTION = re.compile(r"f?mha", re.IGNORECASE)
NEEDS_GPU = "layer report: needs the GPU, where TensorRT-RTX makes its kernels"


@dataclass(frozen=True)
class Kernels:
    """int8, other: names of the ONNX layers with Q/DQ, by what runs them; hidden: inside a block
    that does not say."""
    engine_layers: int
    int8: tuple[str, ...]
    other: tuple[str, ...]
    hidden: tuple[str, ...]
    fused_attention: int  # kernels

    def __str__(self) -> str:
        wanted = len(self.int8) + len(self.other) + len(self.hidden)
        said = [f"{self.engine_layers} engine layers"]
        if wanted:
            said.append(f"INT8 kernels run {len(self.int8)} of {wanted} quantised layers" +
                        _named("not", self.other) +
                        _named("unknown, inside a compiled block:", self.hidden))
        said.append(f"attention fused in {self.fused_attention} kernels" if self.
                    fused_attention else "no fused attention kernel seen")
        return "; ".join(said)


def inspect(trt: ModuleType, engine: Any, quantised: list[str]) -> tuple[Kernels, Facts]:
    """(summary, the inspector's own JSON) of a deserialised engine built with detailed profiling.

    quantised: the ONNX nodes that carry Q/DQ.
    """
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        told = json.loads(text, strict=False)  # TensorRT 8.6 leaves control characters in names
    except ValueError:
        told = {"Layers": text.splitlines()}  # a good engine is not lost over a report
    return kernels(told, quantised), told


def kernels(told: Facts, quantised: list[str]) -> Kernels:
    """Reads what TensorRT's engine inspector says: {"Layers": [...]}, each a dict, or a bare name
    without details."""
    layers = [
        layer if isinstance(layer, dict) else {"Name": str(layer)}
        for layer in told.get("Layers", [])
    ]
    found: dict[str, list[str]] = {"int8": [], "other": [], "hidden": []}
    for name in quantised:
        around = [layer for layer in layers if _mentions(layer, name)]
        found["hidden" if not around else "int8" if any(map(_reads_int8, around)
                                                        ) else "other"].append(name)
    fused = sum(
        bool(
            FUSED_ATTENTION.search(f"{layer.get('Name', '')} {layer.get('TacticName', '')} "
                                   f"{layer.get('LayerType', '')}")) for layer in layers)
    return Kernels(len(layers), tuple(found["int8"]), tuple(found["other"]), tuple(found["hidden"]),
                   fused)


def write_report(found: Kernels, told: Facts, engine: Path) -> Path:
    """ENGINE.layers.json: the summary, and all that the inspector said."""
    path = report_path(engine)
    write_json(
        {
            "schema": 1, "engine": engine.name, "summary": str(found),
            **asdict(found), "inspector": told
        }, path)
    return path


def report_path(engine: Path) -> Path:
    return engine.with_name(f"{engine.name}.layers.json")


def _mentions(layer: Facts, name: str) -> bool:
    """Whether `name` is one of the ONNX nodes a layer was made from: blocks.1.fc1 is not
    blocks.11.fc1."""
    text = f"{layer.get('Name', '')} {layer.get('Metadata', '')}"
    return re.search(rf"(?<![\w.]){re.escape(name)}(?![\w./])", text) is not None


def _reads_int8(layer: Facts) -> bool:
    """By the format of its inputs, such as "Row major Int8 format"."""
    formats = [
        str(tensor.get("Format/Datatype") or tensor.get("Format") or "")
        for tensor in layer.get("Inputs", []) if isinstance(tensor, dict)
    ]
    return any("int8" in text.lower() for text in formats)


def _named(why: str, names: tuple[str, ...], most: int = 3) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f" ({why} {', '.join(names[:most])}{more})"
