"""`--via torch-tensorrt` on a fake package: same gate, same sidecar.

The real package's signatures are checked where it can be imported.
"""
import importlib
import inspect
import json
import shutil
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from export.artefact import sidecar_path
from export.graph.session import TorchModel
from export.parity import GateError
from export.pipeline import Exporter, Options
from export.source import load_trained_run
from export.tensorrt import cuda, engine_report, engines, torch_trt
from export.tensorrt.engines import check_engine
from tests.export.test_engines import ORIN, trt11
from tests.export_run import gate, run, trained_run
from vega3d import main


@pytest.fixture()
def package(monkeypatch) -> ModuleType:
    """A fake torch_tensorrt on a GPU; its `calls` are recorded. `.cuda()` stays on the CPU."""
    fake = ModuleType("torch_tensorrt")
    fake.__version__, fake.calls, fake.error = "2.13.0", [], None
    fake.Input = lambda *shape, **options: SimpleNamespace(shape=shape, options=options)
    module = trt11()

    def convert(program, *, arg_inputs, require_full_compilation):
        fake.calls.append((program, arg_inputs, require_full_compilation))
        if fake.error:
            raise fake.error
        return b"plan by torch-tensorrt"

    fake.dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=convert)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", fake)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(cuda, "first_gpu", lambda: ORIN)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)

    def model(module, plan):
        assert plan == b"plan by torch-tensorrt"
        return FakeEngine(TorchModel(run().student))

    monkeypatch.setattr(engines, "EngineModel", model)
    report = engine_report.LayerReport(3, (), (), (), 1)
    monkeypatch.setattr(engine_report, "inspect_engine", lambda *_: (report, {"Layers": []}))
    return fake


class FakeEngine:
    engine = None

    def __init__(self, call):
        self.call = call

    def __call__(self, frames):
        return self.call(frames)


@pytest.fixture()
def exporter(tmp_path) -> Exporter:
    folder = shutil.copytree(trained_run(), tmp_path / "run")
    exporter = Exporter(load_trained_run(folder), log=lambda _: None)
    exporter.gate = gate()
    return exporter


def test_engine_is_gated_named_and_described_like_any_other(package, exporter):
    engine = engines.build_torch_engine(exporter, lambda _: None)
    assert engine.path.name == f"model.fp16.torch-trt-{trt11().__version__}.sm87.engine"
    facts = json.loads(sidecar_path(engine.path).read_text())
    assert facts["via"] == "torch-tensorrt 2.13.0" and facts["precision"] == "fp16"
    assert facts["parity"]["frames"] == 32
    assert check_engine(engine.path, trt11(), ORIN) == facts
    assert engine_report.report_path(engine.path).is_file()
    assert engines.build_torch_engine(exporter, lambda _: None).reused and len(package.calls) == 1


def test_the_student_is_compiled_in_half_with_float_input_and_output(package, exporter):
    engines.build_torch_engine(exporter, lambda _: None)
    ((program, (spec,), full_compilation),) = package.calls
    assert full_compilation
    assert spec.shape == ((1, 3, 224, 224),) and spec.options["dtype"] == torch.float32
    frames = torch.from_numpy(run().heldout.frames[:1]).float() / 255
    features = program.module()(frames)
    assert features.dtype == torch.float32 and features.shape == (1, 64, 14, 14)
    reference = exporter.run.student(frames)
    assert torch.cosine_similarity(features, reference, dim=1).min() > 0.999
    assert not torch.equal(features, reference)
    # the run's own student is untouched
    assert next(exporter.run.student.parameters()).dtype == torch.float32


def test_open_batch_is_a_profile(package, tmp_path):
    folder = shutil.copytree(trained_run(), tmp_path / "run")
    exporter = Exporter(load_trained_run(folder), Options(batch="dynamic"), lambda _: None)
    exporter.gate = gate()
    engines.build_torch_engine(exporter, lambda _: None)
    ((_, (spec,), _),) = package.calls
    assert [spec.options[name][0] for name in ("min_shape", "opt_shape", "max_shape")] == [1, 8, 32]


def test_wrong_engine_is_not_written(package, exporter, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(engines, "EngineModel",
                        lambda *_: lambda frames: rng.normal(size=(len(frames), 64, 14, 14)))
    with pytest.raises(GateError):
        engines.build_torch_engine(exporter, lambda _: None)
    assert not list(exporter.run.out.glob("*.engine*"))


def test_failed_build_is_one_line_with_its_message(package, exporter):
    package.error = RuntimeError("no converter\nfor aten.foo")
    with pytest.raises(ValueError,
                       match=r"cannot build it: no converter for aten\.foo; leave --via out"):
        engines.build_torch_engine(exporter, lambda _: None)
    assert not list(exporter.run.out.glob("*.engine*"))


def test_without_a_gpu_it_says_so(package, exporter, monkeypatch):
    monkeypatch.setattr(cuda, "first_gpu", lambda: None)
    with pytest.raises(ValueError, match="no GPU here"):
        engines.build_torch_engine(exporter)


@pytest.mark.parametrize("error", [ImportError("No module named 'torch_tensorrt'"),
                                   AssertionError("Torch not compiled with CUDA enabled")])
def test_package_that_cannot_be_imported_is_one_line(monkeypatch, capsys, tmp_path, error):
    def refuse(name):
        raise error

    monkeypatch.setattr(torch_trt, "importlib", SimpleNamespace(import_module=refuse))
    with pytest.raises(SystemExit) as stop:
        main(["export", "trt", "--run", str(tmp_path), "--via", "torch-tensorrt"])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and str(error) in line and "leave --via out" in line


def test_an_sm_or_a_target_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["export", "trt", "--run", str(tmp_path), "--via", "torch-tensorrt", "--sm", "89"])
    assert "leave --sm and --target out" in capsys.readouterr().err


def test_the_real_package_has_the_arguments_that_are_used():
    """Where torch-tensorrt can be imported, which takes a GPU."""
    try:
        real = importlib.import_module("torch_tensorrt")
    except Exception as error:
        pytest.skip(f"torch-tensorrt does not import here: {error}")
    parameters = inspect.signature(
        real.dynamo.convert_exported_program_to_serialized_trt_engine).parameters
    assert {"arg_inputs", "require_full_compilation"} <= set(parameters)
    spec = real.Input(min_shape=(1, 3), opt_shape=(2, 3), max_shape=(4, 3), dtype=torch.float32)
    assert spec.dtype
