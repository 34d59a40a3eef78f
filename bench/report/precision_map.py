"""Precision of every layer of an exported file, read from its graph, and its map in the report."""
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import onnx
from markupsafe import Markup
from onnx import TensorProto

from bench.artefacts import Artefact
from bench.report.axes import WIDTH, chart, rect, text
from records.results import Results, Row

# of a block, in data order
SLOTS = ("norm1", "qkv", "attention", "proj", "norm2", "fc1", "gelu", "fc2")
_INSIDE = {  # node of a block -> slot
    "norm1/LayerNormalization": "norm1", "attn.qkv/MatMul": "qkv", "attn/Softmax": "attention",
    "attn.proj/MatMul": "proj", "norm2/LayerNormalization": "norm2", "fc1/MatMul": "fc1",
    "fc2/MatMul": "fc2"
}
_BLOCK = re.compile(r"blocks\.(\d+)\.?(.*)")
_PRECISIONS: dict[int, str] = {
    TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"
}
# chart units: width of the block numbers, height of the layer names and of a grid row
LEFT, TOP, HEIGHT = 40, 34, 17
BITS = {"fp32": "32", "fp16": "16", "bf16": "16", "int8": "8"}
CLASS = {"int8": "int8", "fp16": "half", "bf16": "half", "fp32": "full"}
# layers outside the blocks: (first column, columns)
SPANS = {"patch_embed": (0, len(SLOTS)), "head": (1, len(SLOTS) - 1)}


def layer_rows(files: Sequence[Artefact]) -> list[Row]:
    """Rows of kind `layer`: artefact, sha256, block (0-based; -1 before the first, the depth after
    the last), slot, precision. Files whose nodes do not bear the student's names have none."""
    rows: list[Row] = []
    for file in (file for file in files if file.kind == "onnx"):
        facts = {"kind": "layer", "artefact": file.path.name, "sha256": file.sha256}
        model = onnx.load(file.path, load_external_data=False)
        rows += [{**facts, "block": block, "slot": slot, "precision": precision}
                 for block, slot, precision in layers(model)]
    return rows


def layers(model: onnx.ModelProto) -> Iterator[tuple[int, str, str]]:
    """(block, slot, precision) of every layer that has a slot, in the graph's order. A product
    counts as int8 where both its operands come from DequantizeLinear."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type
             for value in (*graph.value_info, *graph.output)}
    producers = {output: node for node in model.graph.node for output in node.output}
    blocks = [int(found[1]) for node in model.graph.node if (found := _BLOCK.match(node.name))]
    if not blocks:
        return
    for node in model.graph.node:
        place = _place(node, depth=1 + max(blocks))
        if place:
            sources = [producers[name].op_type for name in node.input[:2] if name in producers]
            product = node.op_type in ("MatMul", "Conv", "Gemm")
            quantized = product and sources == ["DequantizeLinear"] * 2
            precision = _PRECISIONS.get(types.get(node.output[0], 0), "unknown")
            yield *place, "int8" if quantized else precision


def precision_maps(results: Results) -> list[tuple[str, Markup]]:
    """(artefact, its map) for each file whose layers have more than one precision."""
    rows = results.of("layer")
    by_artefact: dict[str, list[Row]] = {}
    for row in rows:
        by_artefact.setdefault(row["artefact"], []).append(row)
    return [(artefact, _map(its)) for artefact, its in by_artefact.items()
            if len({row["precision"] for row in its}) > 1]


def _place(node: onnx.NodeProto, depth: int) -> tuple[int, str] | None:
    found = _BLOCK.match(node.name)
    if found is None:
        outside = {
            "patch_embed/Conv": (-1, "patch_embed"), "norm/LayerNormalization": (depth, "norm1"),
            "head/MatMul": (depth, "head")
        }
        return outside.get(node.name)
    slot = "gelu" if node.op_type == "Gelu" else _INSIDE.get(found[2].removeprefix("/"))
    return (int(found[1]), slot) if slot else None


def _map(rows: Sequence[Row]) -> Markup:
    blocks = sorted({row["block"] for row in rows})
    width = (WIDTH - LEFT - 6) / len(SLOTS)
    parts = [text(LEFT + (i + 0.5) * width, TOP - 8, slot, "small", "middle")
             for i, slot in enumerate(SLOTS)]
    for i, block in enumerate(blocks):
        y = TOP + i * HEIGHT
        name = "patch" if block < 0 else "head" if block == blocks[-1] else f"{block}"
        parts.append(text(LEFT - 6, y + 12, name, "small", "end"))
        for row in rows:
            if row["block"] == block:
                parts += _cell(row, y, width)
    return chart("Precision of every layer", _description(rows), TOP + len(blocks) * HEIGHT + 4,
                 parts)


def _cell(row: Row, y: float, width: float) -> list[Markup]:
    column, span = SPANS.get(row["slot"]) or (SLOTS.index(row["slot"]), 1)
    kind = CLASS.get(row["precision"], "full")
    return [
        rect(LEFT + column * width + 1, y + 1, span * width - 2, HEIGHT - 2, 3, f"cell {kind}"),
        text(LEFT + (column + span / 2) * width, y + 12.5, BITS.get(row["precision"], "?"),
             "cellmark", "middle")
    ]


def _description(rows: Sequence[Row]) -> str:
    """The grid in words, for a screen reader."""
    parts = []
    for slot in dict.fromkeys(row["slot"] for row in rows):
        counts = Counter(row["precision"] for row in rows if row["slot"] == slot)
        listed = ", ".join(f"{precision} in {count}" for precision, count in counts.items())
        parts.append(f"{slot}: {listed}")
    return "; ".join(parts)
