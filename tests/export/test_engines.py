"""Engines: real TensorRT-RTX builds without a GPU, and every TensorRT version on fake modules.

No engine whose build was killed or refused, or whose features are wrong, gets its final name.
"""
import json
import shutil
import sys
import time
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from export.artefact import discard, sidecar_path
from export.graph.session import OnnxModel, TorchModel
from export.parity import GateError
from export.pipeline import Exporter, Options
from export.source import load_trained_run
from export.tensorrt import builder, cuda, engine_report, engines, packages
from export.tensorrt.builder import network_flags, precision_flags, tensorrt_api
from export.tensorrt.engines import check_engine
from records.files import sha256
from tests.export_run import EXPORTED, exported_run, gate, run
from vega3d import main

ORIN = cuda.Gpu("Orin", 87)
needs_rtx = pytest.mark.skipif(not packages.RTX.installed(), reason=packages.RTX.install)


# --- fakes of TensorRT 8.6, 10.3, 11 and 12


def fake_tensorrt(version: str, network: tuple[str, ...], flags: tuple[str, ...],
               name: str = "tensorrt") -> ModuleType:
    """A module with the API of one TensorRT version; its `calls` lists what was called."""
    module = ModuleType(name)
    calls: list[tuple] = []

    class Log:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)
        ERROR = 1

        def __init__(self, *_):
            pass

    class Config:
        def set_flag(self, flag):
            calls.append(("flag", flag.name))

        def set_memory_pool_limit(self, pool, size):
            calls.append(("pool", size))

        def create_timing_cache(self, stored):
            return SimpleNamespace(serialize=lambda: stored + b"+timed")

        def set_timing_cache(self, handle, ignore_mismatch):
            self.handle = handle
            return True

        def get_timing_cache(self):
            return self.handle

    class Builder:
        def __init__(self, log):
            pass

        def create_network(self, bits):
            calls.append(("network", bits))
            return SimpleNamespace(
                get_input=lambda i: SimpleNamespace(name="frames", shape=(1, 3, 224, 224)))

        create_builder_config = staticmethod(Config)

        def build_serialized_network(self, net, config):
            return module.plan() if callable(module.plan) else module.plan

    class Parser:
        num_errors = 1

        def __init__(self, net, log):
            pass

        def parse(self, content):
            calls.append(("parsed", len(content)))
            return module.readable

        def get_error(self, i):
            return SimpleNamespace(desc=lambda: "Non-zero zero point")

    module.__dict__.update(
        __version__=version, calls=calls, plan=b"plan", readable=True, ILogger=Log, Logger=Log,
        Builder=Builder, OnnxParser=Parser,
        NetworkDefinitionCreationFlag=IntEnum("Network", network, start=0) if network else object,
        BuilderFlag=IntEnum("Flag", flags, start=0), MemoryPoolType=SimpleNamespace(WORKSPACE=0),
        ProfilingVerbosity=SimpleNamespace(DETAILED=2),
        LayerInformationFormat=SimpleNamespace(JSON=1))
    return module


def trt86():
    return fake_tensorrt("8.6.1", ("EXPLICIT_BATCH",), ("FP16", "INT8", "TF32"))


def trt103():
    return fake_tensorrt("10.3.0.30", ("EXPLICIT_BATCH", "STRONGLY_TYPED"),
                         ("FP16", "INT8", "TF32"))


def trt11():
    return fake_tensorrt("11.4.0", ("STRONGLY_TYPED",), ("TF32",))


def trt12():
    """Strong typing always, its flag gone: what 11's migration guide announces."""
    return fake_tensorrt("12.0.0", (), ("TF32",))


@pytest.mark.parametrize(("fake", "dialect", "bits", "flags", "target"), [
    (trt86, "flagged", 1 << 0, ["INT8", "FP16"], "trt8.6"),
    (trt103, "typed", 1 << 1, [], "trt10"),
    (trt11, "typed", 1 << 0, [], "trt11"),
    (trt12, "typed", 0, [], "trt11"),
])
def test_each_version_gets_its_dialect_and_flags(fake, dialect, bits, flags, target):
    module = fake()
    assert tensorrt_api(module).dialect == dialect and tensorrt_api(module).target == target
    assert tensorrt_api(module).strongly_typed == (dialect == "typed")
    assert network_flags(module) == bits
    assert precision_flags(module, "int8") == flags


def test_a_tensorrt_without_int8_is_refused():
    with pytest.raises(ValueError, match=r"expected TensorRT >= 8\.6"):
        tensorrt_api(fake_tensorrt("7.0", ("EXPLICIT_BATCH",), ("FP16",)))


@pytest.mark.parametrize(("version", "issue"), [
    ("10.3.0.30", "4419"), ("10.4.0", "4742"), ("10.7.0.23", "4333"),
    ("8.6.1", None), ("10.13.3", None), ("11.4.0", None)])
def test_known_bad_versions_warn_with_the_reason(version, issue):
    warning = packages.known_bad_warning(version)
    assert (issue in warning) if issue else warning is None


# --- the complete path, on a fake Orin

@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return shutil.copytree(exported_run(), tmp_path_factory.mktemp("engines") / "run")


def _exporter(folder: Path) -> Exporter:
    return Exporter(load_trained_run(folder), EXPORTED, log=lambda _: None)


class _Engine(TorchModel):
    """Runs the FP32 student; by its inspector, fc2 of block 1 has no INT8 kernel."""

    def __init__(self):
        super().__init__(run().student)
        int8, fp16 = "Row major Int8 format", "Row major linear FP16 format"
        layers = [_layer("blocks.0.fc1/MatMul", int8, "sm80_xmma_gemm_i8i8"),
                  _layer("blocks.1.fc2/MatMul", fp16, "sm80_xmma_gemm_f16f16"),
                  _layer("_gemm_mha_v2_1", fp16, "_gemm_mha_v2")]
        text = json.dumps({"Layers": layers})
        inspector = SimpleNamespace(get_engine_information=lambda form: text)
        self.engine = SimpleNamespace(create_engine_inspector=lambda: inspector)


def _layer(name: str, form: str, tactic: str) -> dict:
    return {
        "Name": name, "LayerType": "gemm", "Inputs": [{"Name": "x", "Format/Datatype": form}],
        "TacticName": tactic
    }


@pytest.fixture
def orin(exported, tmp_path, monkeypatch):
    """(exporter, target_of(module)): engines run the FP32 student; timing caches in tmp_path."""
    folder = shutil.copytree(exported, tmp_path / "run")
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cuda, "first_gpu", lambda: ORIN)
    monkeypatch.setattr(engines, "EngineModel", lambda module, plan: _Engine())

    def target_of(module, log=lambda _: None):
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        return engines.choose_build_target("trt", (), log)

    exporter = _exporter(folder)
    exporter.gate = gate()  # the same student and frames
    return exporter, target_of


def _engines(exporter: Exporter) -> list[str]:
    return sorted(path.name for path in exporter.run.out.glob("*.engine"))


@pytest.mark.parametrize(("fake", "precision", "source"), [
    (trt86, "int8", "model.int8.flagged.onnx"), (trt86, "fp16", "model.flagged.onnx"),
    (trt103, "int8", "model.int8.onnx"), (trt11, "int8", "model.int8.onnx"),
    (trt11, "fp16", "model.fp16.onnx")])
def test_engine_is_built_gated_named_and_described(orin, fake, precision, source):
    exporter, target_of = orin
    module = fake()
    (engine,) = engines.build_engines(exporter, target_of(module), precision)
    assert engine.path.name == f"model.{precision}.trt-{module.__version__}.sm87.engine"
    facts = json.loads(sidecar_path(engine.path).read_text())
    assert facts["onnx"] == source and facts["onnx_sha256"] == sha256(exporter.run.out / source)
    assert facts["device"] == "Orin" and facts["sm"] == 87
    assert facts["parity"]["cosine_mean"] > 0.999
    assert facts["build_seconds"] >= 0 and facts["flags"] == precision_flags(module, precision)
    assert [flag for what, flag in module.calls if what == "flag"] == facts["flags"]


def test_layer_report_lists_int8_layers_and_fused_attention(orin):
    exporter, target_of = orin
    (engine,) = engines.build_engines(exporter, target_of(trt11()), "int8")
    report = json.loads(engine_report.report_path(engine.path).read_text())
    assert report["int8"] == ["blocks.0.fc1/MatMul"] and report["other"] == ["blocks.1.fc2/MatMul"]
    assert len(report["hidden"]) == 6 and report["fused_attention"] == 1
    assert len(report["inspector"]["Layers"]) == 3
    assert report["summary"] == engine.facts["layers"]
    assert "INT8 kernels run 1 of 8 quantised layers (not blocks.1.fc2/MatMul)" in report["summary"]
    assert "attention fused in 1 kernels" in report["summary"]


def test_layer_report_is_discarded_with_its_engine(orin):
    exporter, target_of = orin
    (engine,) = engines.build_engines(exporter, target_of(trt11()), "int8")
    assert engine_report.report_path(engine.path).is_file()
    discard(engine.path)
    assert not list(exporter.run.out.glob("*.engine*"))


def test_a_layer_is_found_by_its_complete_name_among_those_fused_with_it():
    metadata = "[ONNX Layer: blocks.11.fc1/MatMul]\x1e[ONNX Layer: blocks.11.fc1/Add]"
    layer = {"Name": "__myl_Fc", "Metadata": metadata,
             "Inputs": [{"Format": "Row major Int8 format"}]}
    report = engine_report.layer_report({"Layers": [layer, "a bare name"]},
                                        ["blocks.11.fc1/MatMul", "blocks.1.fc1/MatMul"])
    assert report.int8 == ("blocks.11.fc1/MatMul",) and report.hidden == ("blocks.1.fc1/MatMul",)
    assert report.engine_layers == 2 and "no fused attention kernel seen" in str(report)


def test_an_inspector_that_leaves_control_characters_in_its_json_is_read():
    # as 8.6 does
    name = "[ONNX Layer: blocks.1.fc1/MatMul]\x1e[ONNX Layer: x]"
    text = '{"Layers": [{"Name": "' + name + '", "Inputs": []}]}'
    inspector = SimpleNamespace(get_engine_information=lambda _: text)
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    report, inspected = engine_report.inspect_engine(trt86(), engine, ["blocks.1.fc1/MatMul"])
    assert inspected["Layers"][0]["Name"] == name and report.other == ("blocks.1.fc1/MatMul",)


def test_version_10_3_warns_before_it_builds(orin):
    _, target_of = orin
    lines: list[str] = []
    target_of(trt103(), lines.append)
    assert len(lines) == 1 and "silently wrong" in lines[0] and "parity gate decides" in lines[0]


def test_up_to_date_engine_is_reused_and_another_version_gets_its_own(orin):
    exporter, target_of = orin
    assert not engines.build_engines(exporter, target_of(trt103()), "int8")[0].reused
    assert engines.build_engines(exporter, target_of(trt103()), "int8")[0].reused
    assert not engines.build_engines(exporter, target_of(trt11()), "int8")[0].reused
    assert len(_engines(exporter)) == 2


def test_timing_cache_is_reused_between_builds(orin, tmp_path):
    exporter, target_of = orin
    target = target_of(trt103())
    engines.build_engines(exporter, target, "int8")
    engines.build_engines(exporter, target, "fp16")
    (cache,) = (tmp_path / "cache").rglob("*.cache")
    assert cache.read_bytes() == b"+timed+timed" and "10.3.0.30-sm87" in cache.name


def test_killed_build_leaves_no_engine_and_the_timing_cache_intact(orin, tmp_path):
    exporter, target_of = orin
    module = trt103()
    engines.build_engines(exporter, target_of(module), "fp16")

    def killed():
        raise KeyboardInterrupt

    module.plan = killed
    with pytest.raises(KeyboardInterrupt):
        engines.build_engines(exporter, target_of(module), "int8")
    assert _engines(exporter) == ["model.fp16.trt-10.3.0.30.sm87.engine"]
    (cache,) = (tmp_path / "cache").rglob("*.cache")
    assert cache.read_bytes() == b"+timed"
    assert not [path for path in exporter.run.out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("changes", "message"), [
    ({"plan": None}, "cannot build it"),
    ({"readable": False}, "Non-zero zero point; see why with: vega3d export")])
def test_refused_build_is_one_error_and_no_file(orin, changes, message):
    exporter, target_of = orin
    module = trt11()
    module.__dict__.update(changes)
    with pytest.raises(ValueError, match=message):
        engines.build_engines(exporter, target_of(module), "int8")
    assert _engines(exporter) == []


def test_silently_wrong_engine_is_removed_with_exit_3(orin, monkeypatch):
    """As with 10.3: it builds and runs, and its features are wrong."""
    exporter, target_of = orin
    rng = np.random.default_rng(0)


    def wrong_features(frames):
        return rng.normal(size=(len(frames), 64, 14, 14))

    monkeypatch.setattr(engines, "EngineModel", lambda module, plan: wrong_features)
    with pytest.raises(GateError) as failure:
        engines.build_engines(exporter, target_of(trt103()), "int8")
    assert failure.value.exit_code == 3 and _engines(exporter) == []


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip_a_byte(path: Path) -> None:
    path.write_bytes(b"x" + path.read_bytes()[1:])


def _edit(**facts):
    def edit(path: Path) -> None:
        sidecar = json.loads(sidecar_path(path).read_text())
        sidecar_path(path).write_text(json.dumps({**sidecar, **facts}))
    return edit


def _no_sidecar(path: Path) -> None:
    sidecar_path(path).unlink()


@pytest.mark.parametrize(("damage", "message"), [
    (_truncate, "truncated or altered"), (_flip_a_byte, "truncated or altered"),
    (_no_sidecar, "no engine with a sidecar"),
    (_edit(sm=89), r"built for SM 89, this is SM 87 \(Orin\)"),
    (_edit(builder="trt-10.13.0"), "runs only under"),
    (lambda path: sidecar_path(path).write_text("{"), "not JSON"),
])
def test_engine_that_may_not_run_here_is_refused(orin, damage, message):
    exporter, target_of = orin
    target = target_of(trt103())
    (engine,) = engines.build_engines(exporter, target, "int8")
    assert check_engine(engine.path, target.module, ORIN)["sm"] == 87
    damage(engine.path)
    with pytest.raises(ValueError, match=message):
        check_engine(engine.path, target.module, ORIN)


def test_engines_of_an_onnx_are_discarded_when_it_is_exported_again(orin):
    exporter, target_of = orin
    engines.build_engines(exporter, target_of(trt103()), "int8")
    engines.build_engines(exporter, target_of(trt103()), "fp16")
    again = Exporter(exporter.run, Options(batch=2), log=lambda _: None)
    again.gate = gate()
    again.export("fp16")
    assert _engines(exporter) == ["model.int8.trt-10.3.0.30.sm87.engine"]


def test_truncated_engine_is_built_again(orin):
    exporter, target_of = orin
    target = target_of(trt103())
    (engine,) = engines.build_engines(exporter, target, "int8")
    _truncate(engine.path)
    assert not engines.build_engines(exporter, target, "int8")[0].reused


def test_another_sm_than_the_gpu_present_is_refused_for_tensorrt(orin, monkeypatch):
    _, target_of = orin
    target_of(trt103())
    with pytest.raises(ValueError, match=r"got --sm 89, expected 87 \(Orin\)"):
        engines.choose_build_target("trt", (89,))


def test_tensorrt_without_a_gpu_points_to_rtx(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", trt103())
    monkeypatch.setattr(cuda, "first_gpu", lambda: None)
    with pytest.raises(ValueError, match="there is none here; use --target rtx"):
        engines.choose_build_target("trt", ())


@pytest.mark.parametrize(("target", "extra"), [
    ("rtx", "[rtx]"), ("trt", "[tensorrt]"), ("auto", "[rtx]")])
def test_missing_package_is_one_line_that_says_what_to_install(
        monkeypatch, capsys, tmp_path, target, extra):
    monkeypatch.setattr(cuda, "first_gpu", lambda: None)
    for package in (packages.RTX, packages.TENSORRT):
        monkeypatch.setitem(sys.modules, package.module, None)
    with pytest.raises(SystemExit) as stop:
        main(["export", "trt", "--run", str(tmp_path), "--target", target])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and f"pip install 'vega3d-edge{extra}'" in line


# --- the real TensorRT-RTX

@needs_rtx
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_rtx_builds_for_three_generations_with_no_gpu(exported, precision):
    exporter = _exporter(exported)
    began = time.perf_counter()
    built = engines.build_engines(exporter, engines.choose_build_target("rtx", ()), precision)
    assert [engine.facts["sm"] for engine in built] == [86, 89, 120]
    label = f"rtx-{packages.RTX.load().__version__}"
    for engine in built:
        assert engine.path.name == f"model.{precision}.{label}.sm{engine.facts['sm']}.engine"
        assert engine.path.stat().st_size > 1e6
        if engine.facts["device"] == packages.AHEAD_OF_TIME:
            assert engine.facts["parity"] is None
            assert engine.facts["onnx_parity"]["cosine_mean"] > 0.99
    assert time.perf_counter() - began < 60


@needs_rtx
def test_rtx_refuses_an_sm_it_cannot_compile_for():
    with pytest.raises(ValueError, match=r"got --sm 90, expected some of 75, 80, 86, 89, 120, 121"):
        engines.choose_build_target("rtx", (90,))


@needs_rtx
def test_rtx_parser_refusal_names_the_file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"model\.onnx: rtx-.* cannot read it"):
        builder.build(packages.RTX.load(), path, "fp16")


@needs_rtx
def test_command_builds_and_reports(exported, capsys):
    main(["export", "trt", "--run", str(exported), "--no-int8", "--target", "rtx", "--sm", "75"])
    assert "sm75.engine" in capsys.readouterr().out
    (engine,) = exported.glob("export/model.fp16.*.sm75.engine")
    assert json.loads(sidecar_path(engine).read_text())["layers"] == engine_report.NEEDS_GPU
    assert json.loads(sidecar_path(engine).read_text())["flags"] == []


def test_onnx_runtime_reads_what_the_engine_was_built_from(exported):
    frames = run().heldout.frames[:1].astype(np.float32) / 255
    assert OnnxModel(exported / "export" / "model.int8.onnx")(frames).shape == (1, 64, 14, 14)
