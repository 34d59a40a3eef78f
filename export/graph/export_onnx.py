"""The student as one ONNX file: opset 20, nodes and weights named for the modules they come from.

Input `frames` [B,3,224,224] float in [0,1]; output `features` [B,D,14,14] standardised teacher
features.
"""
import ast
import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import onnx
import torch
from onnx import numpy_helper

from export.artefact import Facts
from export.graph.index import remove_attribute, rename
from student.vit import Student

# LayerNormalization (17), fp16 scales (19) and Gelu (20) are single ops; TensorRT 10.0 reads <= 20
OPSET = 20
Batch = int | Literal["dynamic"]


def export_onnx(student: Student, batch: Batch = 1,
                translations: Mapping[Callable, Callable] | None = None) -> onnx.ModelProto:
    """FP32 ONNX of the student, checked. batch: a fixed number is fastest in TensorRT and browsers.

    translations: {torch operator: onnxscript function} for custom operators.
    """
    if batch != "dynamic" and batch < 1:
        raise ValueError(f"export_onnx: got batch {batch}, expected >= 1 or 'dynamic'")
    px = student.config.image_size
    return traced(student, {"frames": (3, px, px)}, ("features",), batch, translations)


def traced(module: torch.nn.Module, inputs: Mapping[str, tuple[int, ...]],
           outputs: Sequence[str], batch: Batch = 1,
           translations: Mapping[Callable, Callable] | None = None) -> onnx.ModelProto:
    """The graph of a module whose forward takes tensors [batch,*shape], by name, in order."""
    examples = tuple(torch.zeros(2 if batch == "dynamic" else batch, *s) for s in inputs.values())
    opened = {0: torch.export.Dim("batch", min=1, max=256)}
    shapes = tuple(opened for _ in inputs) if batch == "dynamic" else None
    with quiet("torch.onnx"):
        program = torch.onnx.export(module.eval(), examples, dynamo=True, opset_version=OPSET,
                                    dynamic_shapes=shapes, input_names=list(inputs),
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
    """The input and output contract, for a file's metadata: layout, range, grid, units."""
    config = student.config
    px, grid = config.image_size, [config.grid, config.grid]
    mean, std = student.pixel_mean.flatten().tolist(), student.pixel_std.flatten().tolist()
    frames = {"name": "frames", "shape": [batch, 3, px, px], "layout": "NCHW", "colour": "RGB",
              "range": [0, 1], "normalisation": "inside the graph", "mean": mean, "std": std}
    features = {"name": "features", "shape": [batch, config.out_dim, *grid], "layout": "NCHW",
                "meaning": "teacher features standardised per channel; times target_std plus "
                           "target_mean undoes it", "patch_px": config.patch, "grid": grid,
                "target_mean": student.target_mean.tolist(),
                "target_std": student.target_std.tolist()}
    return {"input": frames, "output": features}


@contextlib.contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Silences a library's warnings, printed progress and log records below ERROR."""
    log, sink = logging.getLogger(logger), io.StringIO()
    level = log.level
    log.setLevel(logging.ERROR)
    with (warnings.catch_warnings(), contextlib.redirect_stderr(sink),
          contextlib.redirect_stdout(sink)):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            log.setLevel(level)


def _name_by_module(model: onnx.ModelProto) -> None:
    """Names nodes such as blocks.0.attn.qkv/MatMul, and their outputs after them."""
    names: dict[str, str] = {}
    counts: Counter[str] = Counter()
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    module = ""
    for node in model.graph.node:
        module = _module(node, module)
        stem = f"{module}/{node.op_type}".lstrip("/")
        counts[stem] += 1
        node.name = stem if counts[stem] == 1 else f"{stem}_{counts[stem]}"
        for i, output in enumerate(node.output):
            if output not in ends:
                names[output] = f"{node.name}.{i}" if i else f"{node.name}.out"
        if node.op_type == "MatMul" and node.input[1].startswith("val_"):
            names[node.input[1]] = f"{module}.weight_t"  # a Linear's weight, transposed: [in,out]
    rename(model.graph, names)


def _module(node: onnx.NodeProto, previous: str) -> str:
    """The path of the module a node came from; `previous` for one that the optimiser added."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            return ast.literal_eval(entry.value)[-2]
    return previous


def _strip(model: onnx.ModelProto) -> None:
    """Drops the exporter's metadata: local file paths and 0.3 MB of stack traces."""
    graph = model.graph
    for owner in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del owner.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    del graph.value_info[:]  # names have changed; shape inference restores them
    graph.name = "student"


def _plain_reshapes(model: onnx.ModelProto) -> None:
    """Drops allowzero where no size is zero: it means nothing there, and old parsers reject it."""
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
              if tensor.data_type == onnx.TensorProto.INT64}
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] in shapes and shapes[node.input[1]].all():
            remove_attribute(node, "allowzero")
