"""ONNX files on disk: the graph, and the data files beside it that may hold its weights."""
import hashlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from records.outputs import printable

FOUR_BITS = (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)
INLINE_ELEMENTS = 1024  # larger initializers are left out by `without_weights`


def read_onnx(path: Path) -> onnx.ModelProto:
    """The graph, without the weights in data files, which are checked to be there."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected an ONNX model")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not an ONNX model ({printable(error, 100)})") from error
    if not model.graph.node:
        raise ValueError(f"{path}: not an ONNX model (it holds no node)")
    data_files(model, path)
    return model


def data_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """The data files of the model at `path`. Raises ValueError as read_onnx."""
    found = set()
    for tensor in _tensors([model.graph, *model.functions]):
        if tensor.data_location == TensorProto.EXTERNAL:
            try:
                found.add(_located(tensor, path)[0])
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
    return sorted(found)


def file_digest(path: Path, data: Iterable[Path]) -> str:
    """SHA-256 of the graph's bytes, followed by its data files'; without any, of the file."""
    digest = hashlib.sha256()
    for part in (path, *data):
        with part.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def tensor_value(tensor: TensorProto, path: Path | None = None) -> np.ndarray:
    """Its value, mapped from its data file where it has one; path: of the model."""
    try:
        if tensor.data_location != TensorProto.EXTERNAL or path is None:
            return numpy_helper.to_array(tensor)
        file, offset, size = _located(tensor, path)
        raw = np.memmap(file, np.uint8, "r", offset, size) if size else np.empty(0, np.uint8)
        if tensor.data_type in FOUR_BITS:
            return numpy_helper.to_array(TensorProto(
                data_type=tensor.data_type, dims=tensor.dims, raw_data=raw.tobytes()))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return raw.view(dtype).reshape(tuple(tensor.dims))
    except Exception as error:  # numpy's, ml_dtypes' and onnx's own
        raise ValueError(f"{printable(tensor.name, 60)}: {printable(error)}") from error


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A small copy whose large initializers are inputs, for onnx's checker and shape inference."""
    light = onnx.ModelProto(ir_version=model.ir_version, functions=model.functions,
                            opset_import=model.opset_import)
    graph = model.graph
    light.graph.MergeFrom(onnx.GraphProto(
        name=graph.name, node=graph.node, input=graph.input, output=graph.output,
        sparse_initializer=graph.sparse_initializer))
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        external = tensor.data_location == TensorProto.EXTERNAL
        if not external and math.prod(tensor.dims) <= INLINE_ELEMENTS:
            light.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            light.graph.input.append(onnx.helper.make_tensor_value_info(
                tensor.name, tensor.data_type, tensor.dims))
    return light


def _located(tensor: TensorProto, path: Path) -> tuple[Path, int, int]:
    """(file, offset, bytes) of a tensor in a data file. Raises ValueError for anything odd."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    shown = printable(location, 100) or "without a name"
    file = path.parent / location
    folders = {path.parent.resolve(), path.resolve().parent}  # two where links lead to a cache
    if (Path(location).is_absolute() or ".." in Path(location).parts or "\0" in location
            or folders.isdisjoint(file.resolve().parents)):
        raise ValueError(f"its data file {shown} is not in the model's folder; put it there and "
                         "save the model again")
    if not file.is_file():
        why = "is not a regular file" if file.exists() else "is missing"
        raise ValueError(f"its data file {shown} {why}; put it beside the model")
    try:
        offset, size = int(entries.get("offset") or 0), _bytes(tensor)
        length = int(entries.get("length") or size)
    except (ValueError, KeyError, TypeError):
        offset = size = length = -1
    if offset < 0 or size < 0 or length != size or offset + size > file.stat().st_size:
        raise ValueError(f"its data file {shown} does not hold {printable(tensor.name, 60)} as the "
                         "graph says; save the model again")
    return file, offset, size


def _bytes(tensor: TensorProto) -> int:
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    bits = 4 if tensor.data_type in FOUR_BITS else 8 * itemsize
    return -1 if min(tensor.dims, default=0) < 0 else -(-math.prod(tensor.dims) * bits // 8)


def _tensors(graphs: Iterable) -> Iterator[TensorProto]:
    """Every tensor stored in graphs, functions and their subgraphs."""
    for graph in graphs:
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for entry in node.attribute:
                yield from (entry.t, *entry.tensors)
                yield from _tensors([entry.g, *entry.graphs])
