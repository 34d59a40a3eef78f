"""The student as one ONNX file: opset 20, clean graph, nodes and weights named for the module they
come from.

Input `frames` [B,3,224,224] float in [0,1]; output `features` [B,D,14,14] standardised teacher
features.
"""
import ast
import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import onnx
import torch
from onnx import numpy_helper

from export.artefact import Facts
from export.graph.index import rename
from student.vit import Student

# LayerNormalization (17), fp16 scales (19) and Gelu (20) are single ops; TensorRT 10.0 reads up to
# 20
OPSET = 20
Batch = int | Literal["dynamic"]


def export_onnx(student: Student, batch: Batch = 1,
                translations: Mapping[Callable, Callable] | None = None) -> onnx.ModelProto:
    """FP32 ONNX of the student, checked, with neither local paths nor stack traces in it.

    batch: a fixed number (TensorRT and browsers run those fastest) or "dynamic".
    translations: {torch operator: onnxscript function} for operators of our own.
    Raises ValueError for a batch below 1.
    """
    if batch != "dynamic" and batch < 1:
        raise ValueError(f"export_onnx: got batch {batch}, expected >= 1 or 'dynamic'")
    px = student.config.image_size
    return traced(student, (3, px, px), "frames", ("features",), batch, translations)


def traced(module: torch.nn.Module, shape: tuple[int, ...], name: str, outputs: Sequence[str],
           batch: Batch = 1,
           translations: Mapping[Callable, Callable] | None = None) -> onnx.ModelProto:
    """The graph of any module of ours that takes one tensor [batch,*shape], called `name` here and
    in its forward."""
    example = torch.zeros(2 if batch == "dynamic" else batch, *shape)
    shapes = {name: {0: torch.export.Dim("batch", min=1, max=256)}} if batch == "dynamic" else None
    with _quiet():
        program = torch.onnx.export(module.eval(), (example, ), dynamo=True, opset_version=OPSET,
                                    dynamic_shapes=shapes, input_names=[name],
                                    output_names=list(outputs), verbose=False,
                                    custom_translation_table=dict(translations or {}))
    assert program is not None
    model = program.model_proto
    _name_by_module(model)
    _strip(model)
    _plain_reshapes(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def interface(student: Student, batch: Batch = 1) -> Facts:
    """What a user of the file must know, for its metadata: layout, range, grid, units."""
    config = student.config
    return {
        "input": {
            "name": "frames", "shape": [batch, 3, config.image_size, config.image_size],
            "layout": "NCHW", "colour": "RGB", "range": [0, 1], "normalisation": "inside the graph",
            "mean": student.pixel_mean.flatten().tolist(),
            "std": student.pixel_std.flatten().tolist()
        }, "output": {
            "name": "features", "shape": [batch, config.out_dim, config.grid,
                                          config.grid], "layout": "NCHW",
            "meaning": "teacher features standardised per channel; times target_std plus "
                       "target_mean undoes it",
            "patch_px": config.patch, "grid": [config.grid, config.grid],
            "target_mean": student.target_mean.tolist(), "target_std": student.target_std.tolist()
        },
    }


def _name_by_module(model: onnx.ModelProto) -> None:
    """Nodes become blocks.0.attn.qkv/MatMul and their outputs likewise: what a report names, a
    reader can find."""
    names: dict[str, str] = {}
    taken: Counter[str] = Counter()
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    module = ""
    for node in model.graph.node:
        module = _module(node, module)
        stem = f"{module}/{node.op_type}".lstrip("/")
        taken[stem] += 1
        node.name = stem if taken[stem] == 1 else f"{stem}_{taken[stem]}"
        for i, output in enumerate(node.output):
            names[
                output] = output if output in ends else f"{node.name}.{i}" if i else f"{node.name}.out"
        if node.op_type == "MatMul" and node.input[1].startswith("val_"):
            # [in,out]: the exporter transposes a Linear's weight
            names[node.input[1]] = f"{module}.weight_t"
    rename(model.graph, names)


def _module(node: onnx.NodeProto, before: str) -> str:
    """The dotted path of the module that a node came from; a node the optimiser added belongs to
    the one before it."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            return ast.literal_eval(entry.value)[-2]
    return before


def _strip(model: onnx.ModelProto) -> None:
    """Drops the exporter's metadata: local file paths, source lines, a third of a megabyte of
    traces."""
    graph = model.graph
    for owner in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del owner.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    del graph.value_info[:]  # names have changed; shape inference restores them
    graph.name = "student"


def _plain_reshapes(model: onnx.ModelProto) -> None:
    """Drops allowzero where no size is zero: it then says nothing, and old parsers stumble over
    it."""
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
              if tensor.data_type == onnx.TensorProto.INT64}
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] in shapes and shapes[node.input[1]].all():
            for entry in [entry for entry in node.attribute if entry.name == "allowzero"]:
                node.attribute.remove(entry)


@contextlib.contextmanager
def _quiet():
    """The exporter prints torchvision warnings and progress that concern nobody; an error still
    raises."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(sink), contextlib.redirect_stdout(
            sink):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
