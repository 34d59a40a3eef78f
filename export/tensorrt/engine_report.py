"""Which layers of an engine run INT8 kernels, and whether attention is fused, from its inspector.

Q/DQ nodes are a hint: the builder may choose half-precision kernels, and only the engine tells.
TensorRT-RTX makes its kernels on the GPU at first run, so its engines have no report without one.
"""
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from export.artefact import Facts
from records.files import write_json

NEEDS_GPU = "layer report: needs the GPU, where TensorRT-RTX makes its kernels"
FUSED_ATTENTION = re.compile(r"f?mha", re.IGNORECASE)  # _gemm_mha_v2, fmha_v2_flash_...


@dataclass(frozen=True)
class LayerReport:
    engine_layers: int
    int8: tuple[str, ...]
    other: tuple[str, ...]
    hidden: tuple[str, ...]  # in no engine layer that names them: inside a compiled block
    fused_attention: int     # kernels

    def __str__(self) -> str:
        parts = [f"{self.engine_layers} engine layers"]
        if quantised := len(self.int8) + len(self.other) + len(self.hidden):
            parts.append(f"INT8 kernels run {len(self.int8)} of {quantised} quantised layers"
                         + _list("not", self.other)
                         + _list("unknown, inside a compiled block:", self.hidden))
        parts.append(f"attention fused in {self.fused_attention} kernels"
                     if self.fused_attention else "no fused attention kernel seen")
        return "; ".join(parts)


def inspect_engine(trt: ModuleType, engine: Any, quantised: list[str]) -> tuple[LayerReport, Facts]:
    """(report, the inspector's JSON). quantised: the ONNX nodes that have Q/DQ."""
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        inspected = json.loads(text, strict=False)  # 8.6 leaves control characters in names
    except ValueError:
        inspected = {"Layers": text.splitlines()}  # a good engine is not lost over a report
    return layer_report(inspected, quantised), inspected


def layer_report(inspected: Facts, quantised: list[str]) -> LayerReport:
    """The report of the inspector's {"Layers": [...]}: each a dict, or a bare name."""
    layers = [layer if isinstance(layer, dict) else {"Name": str(layer)}
              for layer in inspected.get("Layers", [])]
    names: dict[str, tuple[str, ...]] = {"int8": (), "other": (), "hidden": ()}
    for name in quantised:
        run_by = [layer for layer in layers if _mentions(layer, name)]
        kind = "hidden" if not run_by else "int8" if any(map(_reads_int8, run_by)) else "other"
        names[kind] += (name,)
    return LayerReport(len(layers), **names, fused_attention=sum(map(_is_fused_attention, layers)))


def write_report(report: LayerReport, inspected: Facts, engine: Path) -> None:
    """Writes ENGINE.layers.json: the report and the inspector's JSON."""
    write_json({"schema": 1, "engine": engine.name, "summary": str(report), **asdict(report),
                "inspector": inspected}, report_path(engine))


def report_path(engine: Path) -> Path:
    return engine.with_name(f"{engine.name}.layers.json")


def _mentions(layer: Facts, name: str) -> bool:
    """Whether the layer was made from the ONNX node `name` (blocks.1.fc1 is not blocks.11.fc1)."""
    text = f"{layer.get('Name', '')} {layer.get('Metadata', '')}"
    return re.search(rf"(?<![\w.]){re.escape(name)}(?![\w./])", text) is not None


def _reads_int8(layer: Facts) -> bool:
    """By the format of its inputs, such as "Row major Int8 format"."""
    tensors = [tensor for tensor in layer.get("Inputs", []) if isinstance(tensor, dict)]
    formats = [tensor.get("Format/Datatype") or tensor.get("Format") or "" for tensor in tensors]
    return any("int8" in str(text).lower() for text in formats)


def _is_fused_attention(layer: Facts) -> bool:
    text = " ".join(str(layer.get(key, "")) for key in ("Name", "TacticName", "LayerType"))
    return FUSED_ATTENTION.search(text) is not None


def _list(label: str, names: tuple[str, ...], limit: int = 3) -> str:
    if not names:
        return ""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f" ({label} {', '.join(names[:limit])}{more})"
