"""In which precision each layer of an exported file computes, read from its graph: the page's
precision map."""
import re
from collections.abc import Iterator, Sequence

import onnx
from onnx import TensorProto

from bench.artefacts import Artefact
from records.results import Row

# of a block, in the order of the data
SLOTS = ("norm1", "qkv", "attention", "proj", "norm2", "fc1", "gelu", "fc2")
_BLOCK = re.compile(r"blocks\.(\d+)\.?(.*)")
_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"
}


def layer_rows(files: Sequence[Artefact]) -> list[Row]:
    """Rows of kind `layer`: artefact, sha256, block (0-based; -1 before the first, the depth after
    the last), slot and precision. A product counts as int8 where both its operands come from
    DequantizeLinear. Files whose nodes do not bear the student's names have none."""
    return [{
        "kind": "layer", "artefact": file.path.name, "sha256": file.sha256, "block": block,
        "slot": slot, "precision": precision
    } for file in files for block, slot, precision in layers(onnx.load(file.path))]


def layers(model: onnx.ModelProto) -> Iterator[tuple[int, str, str]]:
    """(block, slot, precision) of every layer that has a slot, in the graph's order."""
    types, made = _types(model), {out: node for node in model.graph.node for out in node.output}
    depth = 1 + max(
        (int(found[1])
         for node in model.graph.node if (found := _BLOCK.match(node.name))), default=-1)
    for node in model.graph.node:
        place = _place(node, depth) if depth else None
        if place:
            sources = [made[name].op_type for name in node.input[:2] if name in made]
            whole = node.op_type in ("MatMul", "Conv",
                                     "Gemm") and sources[:2] == ["DequantizeLinear"] * 2
            yield *place, "int8" if whole else _NAMES.get(types.get(node.output[0], 0), "unknown")


def _place(node: onnx.NodeProto, depth: int) -> tuple[int, str] | None:
    found = _BLOCK.match(node.name)
    if found is None:
        outside = {
            "patch_embed/Conv": (-1, "patch_embed"), "norm/LayerNormalization": (depth, "norm1"),
            "head/MatMul": (depth, "head")
        }
        return outside.get(node.name)
    inside = {
        "norm1/LayerNormalization": "norm1", "attn.qkv/MatMul": "qkv", "attn/Softmax": "attention",
        "attn.proj/MatMul": "proj", "norm2/LayerNormalization": "norm2", "fc1/MatMul": "fc1",
        "fc2/MatMul": "fc2"
    }
    rest = found[2].removeprefix("/")
    slot = "gelu" if node.op_type == "Gelu" else inside.get(rest)
    return (int(found[1]), slot) if slot else None


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.output)
    }
