"""A third-party ONNX file cannot hang, fill or crash the process that reads it."""
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from records import runtime
from records.runtime import TRUST, try_model
from tests.hostile.corpus_onnx import INFER, endless
from tests.onnx_graphs import infer_model, model_of, save_external, value

make = helper.make_node


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(runtime, "SECONDS", 2)


def saved(model, path):
    path.write_bytes(model.SerializeToString())
    return path


def test_a_loop_without_end_is_stopped_and_leaves_no_process(tmp_path, quick):
    with pytest.raises(ValueError, match=r"loop\.onnx: did not finish its first run within 2 s"):
        try_model(saved(endless(), tmp_path / "loop.onnx"))
    commands = [_command(process) for process in Path("/proc").glob("[0-9]*")]
    assert not any(str(tmp_path / "loop.onnx") in command for command in commands)


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace")
    except OSError:  # it has ended meanwhile
        return ""


def test_a_constant_that_fills_the_memory_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"m\.onnx: needs more than 1\.5 GB of memory"):
        try_model(saved(INFER["an outer product"](), tmp_path / "m.onnx"))


def test_large_weights_raise_the_limit(tmp_path, monkeypatch):
    """40 MB of weights under a limit of 20 MB: four times the files is what they get."""
    monkeypatch.setattr(runtime, "MEMORY_MB", 20)
    weights = np.ones((10, 1_000_000), np.float32)
    path = save_external(model_of([make("MatMul", ["x", "W"], ["y"])], {"W": weights},
                                  [value("x", [1, 10])], [value("y", [1, 1_000_000])]),
                         tmp_path / "m.onnx")
    try_model(path, data=(path.with_name("m.onnx.data"),))
    with pytest.raises(ValueError, match="of memory"):
        try_model(path)


def test_a_file_of_ours_is_not_tried_and_a_changed_one_is(tmp_path, quick):
    path = saved(endless(), tmp_path / "m.onnx")
    facts = {"cache_key": "k", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (tmp_path / "m.onnx.json").write_text(json.dumps(facts))
    try_model(path)
    path.write_bytes(path.read_bytes() + b"\x12\x00")
    with pytest.raises(ValueError, match="did not finish"):
        try_model(path)


def test_the_user_may_vouch_for_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv(TRUST, "1")
    try_model(saved(endless(), tmp_path / "m.onnx"))


def test_inputs_of_every_type_and_open_size_are_fed(tmp_path):
    kinds = [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32,
             TensorProto.BOOL, TensorProto.UINT8]
    inputs = [value(f"x{i}", ["n", 3] if i else [], kind) for i, kind in enumerate(kinds)]
    nodes = [make("Identity", [given.name], [f"y{i}"]) for i, given in enumerate(inputs)]
    outputs = [onnx.ValueInfoProto(name=f"y{i}") for i in range(len(kinds))]
    try_model(saved(model_of(nodes, None, inputs, outputs), tmp_path / "m.onnx"))


def test_a_graph_with_open_sizes_need_only_load_where_that_is_asked(tmp_path):
    model = model_of([make("Reshape", ["x", "s"], ["y"])], {"s": np.array([7, 5])},
                     [value("x", ["n", "m"])])
    path = saved(model, tmp_path / "m.onnx")
    try_model(path, must_run=False)
    with pytest.raises(ValueError, match="onnxruntime cannot run it"):
        try_model(path)
    fixed = model_of([make("Reshape", ["x", "s"], ["y"])], {"s": np.array([7, 5])})
    with pytest.raises(ValueError, match="onnxruntime cannot"):
        try_model(saved(fixed, path), must_run=False)


def test_a_module_beside_the_user_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    try_model(saved(infer_model([make("Relu", ["frames"], ["features"])]), tmp_path / "m.onnx"))
