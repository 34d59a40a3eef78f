"""The Jetson folder: its script is run in a process of its own, with fakes of the device.

The fakes: TensorRT 8.5, 8.6, 10.3 and 11 (an engine is an onnxruntime session), a CUDA driver in
C, and the Jetson's tools.
"""
import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from export.graph.check import check_qdq
from export.graph.files import read_onnx
from export.graph.session import OnnxModel
from export.jetson import device_state, roofline
from export.jetson.bundle import SCRIPTS, write_bundle
from export.pipeline import Exporter
from export.source import load_trained_run
from records.results import load
from student.config import StudentConfig
from tests.export_run import EXPORTED, exported_run, gate, trained_run
from vega3d import main

CUDA = r"""
#include <stdlib.h>
#include <string.h>
#include <time.h>
static double times[2];
static double now(void) {
    struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec*1e3 + t.tv_nsec/1e6;
}
int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Orin", size); return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)8; return 0; }
int cuCtxSetCurrent(void *context) { return context != (void *)8; }
int cuStreamCreate(void **s, unsigned flags) { *s = (void *)16; return 0; }
int cuEventCreate(void **e, unsigned flags) {
    static long created = 0; *e = (void *)(created++ % 2 + 1); return 0;
}
int cuEventRecord(void *e, void *s) {
    if (s != (void *)16) return 1;
    times[(long)e - 1] = now(); return 0;
}
int cuEventSynchronize(void *e) { return 0; }
int cuEventElapsedTime(float *ms, void *a, void *b) {
    *ms = times[(long)b - 1] - times[(long)a - 1]; return 0;
}
int cuMemAlloc_v2(void **p, size_t n) { *p = malloc(n); return 0; }
int cuMemFree_v2(void *p) { free(p); return 0; }
int cuMemcpyHtoD_v2(void *to, const void *from, size_t n) { memcpy(to, from, n); return 0; }
int cuMemcpyDtoH_v2(void *to, const void *from, size_t n) { memcpy(to, from, n); return 0; }
int cuDeviceGetAttribute(int *v, int which, int device) { *v = which == 75 ? 8 : 7; return 0; }
"""

TENSORRT = '''
"""A fake of TensorRT FAKE_VERSION: an engine is its ONNX, run by onnxruntime.

FAKE_WRONG=1: silently wrong, as 10.3 was. FAKE_REFUSES=1: refuses timing caches, as 8.6 does.
FAKE_ERROR: an error message of the builder.
"""
import ctypes, os
from enum import IntEnum
from types import SimpleNamespace
import numpy as np, onnx, onnxruntime as ort

__version__ = os.environ["FAKE_VERSION"]
_old = __version__.startswith("8.")
NetworkDefinitionCreationFlag = IntEnum(
    "Network", ["EXPLICIT_BATCH"] if _old else ["EXPLICIT_BATCH", "STRONGLY_TYPED"], start=0)
BuilderFlag = IntEnum("Flag", ["TF32"] if __version__.startswith("11") else
                      ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"], start=0)
float32 = "float32"
MemoryPoolType = SimpleNamespace(WORKSPACE=0)
TacticSource = IntEnum("TacticSource", ["CUBLAS", "CUBLAS_LT", "CUDNN", "JIT"], start=0)
ProfilingVerbosity = SimpleNamespace(DETAILED=2)
IProfiler = object
flags = set()

class ILogger:
    Severity = IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING"], start=0)
    def __init__(self): pass

class Logger(ILogger):
    ERROR, WARNING = 1, 2
    def __init__(self, level): pass

def session(content):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(content, options)

class OnnxParser:
    num_errors = 1
    def __init__(self, network, log): self.network = network
    def parse(self, content):
        try:
            self.network.session, self.network.content = session(content), content
            nodes = onnx.load_from_string(content).graph.node
            self.network.layers = [SimpleNamespace(name=n.name, precision=None) for n in nodes]
            norms = [node for node in nodes if node.op_type == "LayerNormalization"]
            if __version__.startswith("8.5") and norms:
                return False
        except Exception:
            return False
        return True
    def get_error(self, i): return SimpleNamespace(desc=lambda: "ModelImporter: failed to parse")

class Network:
    def __init__(self, bits):
        assert bits == (1 if _old else 2), bits
    num_layers = property(lambda self: len(self.layers))
    def get_layer(self, i): return self.layers[i]
    def get_input(self, i):
        return SimpleNamespace(name="frames", shape=tuple(self.session.get_inputs()[0].shape))

class Config:
    def set_memory_pool_limit(self, pool, size): pass
    def set_flag(self, flag): flags.add(flag.name)
    def get_tactic_sources(self): return 15
    def set_tactic_sources(self, bits): assert bits == 8, bits
    def __init__(self, logger): self.logger = logger
    def create_timing_cache(self, stored):
        if stored and os.environ.get("FAKE_REFUSES"):
            error = ILogger.Severity.ERROR
            self.logger.log(error, "1: [myelinCache.h::deserializeFromBuffer::52] Myelin")
            self.logger.log(error, "4: The timing cache will not be used!")
            stored = b""
        return SimpleNamespace(serialize=lambda: stored + b"+timed")
    def set_timing_cache(self, handle, ignore_mismatch): self.handle = handle
    def get_timing_cache(self): return self.handle

class Builder:
    def __init__(self, logger): self.logger = logger
    def create_network(self, bits): return Network(bits)
    def create_builder_config(self): return Config(self.logger)
    def build_serialized_network(self, network, config):
        if os.environ.get("FAKE_ERROR"):
            self.logger.log(ILogger.Severity.ERROR, os.environ["FAKE_ERROR"])
        if _old and not flags & {"FP16", "INT8"}:
            return None
        squares = [l for l in network.layers if l.name.endswith("LayerNormalization/Mul")]
        if squares and "OBEY_PRECISION_CONSTRAINTS" not in flags:
            return None
        if any(layer.precision != float32 for layer in squares):
            return None
        return network.content

class Runtime:
    def __init__(self, log): pass
    def deserialize_cuda_engine(self, plan): return Engine(bytes(plan))

class Engine:
    def __init__(self, plan): self.session = session(plan)
    def create_execution_context(self): return self
    def get_tensor_name(self, i): return ["frames", "features"][i]
    def get_tensor_shape(self, name):
        ends = self.session.get_inputs() if name == "frames" else self.session.get_outputs()
        return tuple(ends[0].shape)
    def set_input_shape(self, name, shape): pass
    def set_tensor_address(self, name, address): self.__dict__[name] = address
    def _array(self, name):
        pointer = ctypes.cast(getattr(self, name), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, self.get_tensor_shape(name))
    def execute_async_v3(self, stream):
        out = self.session.run(None, {"frames": self._array("frames")})[0]
        wrong = os.environ.get("FAKE_WRONG")
        self._array("features")[...] = np.random.normal(size=out.shape) if wrong else out
        return stream == 16
'''

CLOCKS = """SOC family:tegra234  Machine:Orin Nano Developer Kit
Online CPUs: 0-1
cpu0: Online=1 Governor=schedutil MinFreq=1510400 MaxFreq=1510400 CurrentFreq=1510400 IdleStates:
cpu5: Online=0 Governor=schedutil MinFreq=729600 MaxFreq=1510400 CurrentFreq=729600
GPU MinFreq={gpu_min} MaxFreq=624750000 CurrentFreq=624750000
EMC MinFreq=204000000 MaxFreq=2133000000 CurrentFreq=2133000000 FreqOverride=1
NV Power Mode: 15W"""
TOOLS = {
    "nvpmodel": "echo 'NV Power Mode: MAXN'; echo 0",
    "jetson_clocks": "printf '%b' '" + CLOCKS.format(gpu_min=624750000).replace("\n", "\\n") + "'",
    "tegrastats": "while :; do echo '11-22 RAM 2/7620MB cpu@48.2C gpu@45.5C VDD_IN 5000mW/4900mW "
                  "VDD_CPU_GPU_CV 1000mW/1000mW'; sleep .2; done",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """RUN/export/jetson as the command writes it, written once."""
    run = shutil.copytree(exported_run(), tmp_path_factory.mktemp("jetson") / "run")
    exporter = Exporter(load_trained_run(run), EXPORTED, log=lambda _: None)
    exporter.gate = gate()
    return write_bundle(exporter)


@pytest.fixture(scope="module")
def orin(tmp_path_factory) -> dict[str, str]:
    return fake_orin(tmp_path_factory.mktemp("orin"))


def fake_orin(home: Path) -> dict[str, str]:
    """The environment of a fake Orin: TensorRT, CUDA driver and tools where the script looks."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build the fake CUDA driver with")
    (home / "cuda.c").write_text(CUDA)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", home / "libcuda.so.1", home / "cuda.c"],
                   check=True)
    (home / "tensorrt.py").write_text(TENSORRT)
    for name, script in TOOLS.items():
        (home / name).write_text(f"#!/bin/sh\n{script}\n")
        (home / name).chmod(0o755)
    return {
        **os.environ, "PYTHONPATH": str(home), "LD_LIBRARY_PATH": str(home),
        "PATH": f"{home}:{os.environ['PATH']}"
    }


def _on_device(folder: Path, orin: dict[str, str], version: str, *options: str,
               python: str = sys.executable, **env: str) -> subprocess.CompletedProcess:
    command = [python, "run_on_jetson.py", "--iterations", "20", "--seconds", "0.1", *options]
    return subprocess.run(command, cwd=folder, env={**orin, "FAKE_VERSION": version, **env},
                          capture_output=True, text=True, timeout=120)


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "jetson")


def _engines(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.engine")}


def test_folder_has_every_dialect_and_the_reference_features(folder):
    names = {path.name for path in folder.glob("[!.]*")}
    assert names == {
        "README.md", "bundle.json", "probe.npz", "reference_features.npy", "reference_frames.npy",
        "run_on_jetson.py", "device_engine.py", "device_state.py", "timing.py", "cuda.py",
        "model.int8.onnx", "model.fp16.onnx",
        "model.int8.flagged.onnx", "model.flagged.onnx", "model.int8.jp5.onnx", "model.jp5.onnx",
    }
    assert not check_qdq(read_onnx(folder / "model.int8.onnx"), "jetson-orin-jp62", want_int8=True)
    assert not check_qdq(read_onnx(folder / "model.int8.flagged.onnx"), "jetson-orin-jp6",
                         want_int8=True)
    assert not check_qdq(read_onnx(folder / "model.int8.jp5.onnx"), "jetson-orin-jp5",
                         want_int8=True)
    violations = check_qdq(read_onnx(folder / "model.flagged.onnx"), "jetson-orin-jp5")
    assert "operator" in {violation.rule for violation in violations}
    frames = np.load(folder / "reference_frames.npy")
    features = np.load(folder / "reference_features.npy")
    assert frames.dtype == np.uint8 and features.dtype == np.float32
    assert len(frames) == len(features) == 32


def test_readme_has_the_steps_the_dialects_and_the_reason_against_dla(folder):
    readme = (folder / "README.md").read_text()
    for needed in ("python3 run_on_jetson.py", "scp -r jetson", "sudo nvpmodel -m 0", "No DLA",
                   "| 6.0 | 8.6 |", "computed, not measured", "Thor T5000"):
        assert needed in readme, needed
    assert "$" not in readme


def test_jetpack_5_computes_what_jetpack_6_does(folder):
    frames = np.load(folder / "reference_frames.npy")[:2].astype(np.float32) / 255
    for precision in ("", ".int8"):
        jetpack5 = OnnxModel(folder / f"model{precision}.jp5.onnx")(frames)
        jetpack6 = OnnxModel(folder / f"model{precision}.flagged.onnx")(frames)
        np.testing.assert_allclose(jetpack5, jetpack6, atol=0.02)


@pytest.mark.parametrize(("version", "int8_file"), [
    ("8.5.2", "model.int8.jp5.onnx"), ("8.6.2", "model.int8.flagged.onnx"),
    ("10.3.0", "model.int8.onnx"), ("11.4.1", "model.int8.onnx")])
def test_script_builds_gates_times_and_writes_a_result(copied, orin, version, int8_file):
    done = _on_device(copied, orin, version)
    assert done.returncode == 0, done.stderr
    assert _engines(copied) == {f"model.{p}.trt-{version}.sm87.engine" for p in ("int8", "fp16")}
    result = load(copied / "result.json")  # as bench reads it
    fp16, int8 = result.rows
    assert int8["onnx"] == int8_file and int8["batch"] == 1
    assert int8["gate"] == fp16["gate"] == "passed"
    assert 0 < int8["latency_ms"] <= int8["p90_ms"] <= int8["p99_ms"] and int8["iterations"] >= 20
    assert int8["cosine_mean"] > 0.999 and int8["delta1_drop"] <= 0.5 and int8["vs_fp16"] > 0
    assert result.env["verdict"] in done.stdout
    assert "INT8 " in done.stdout and ": use " in done.stdout
    before = result.env["before"]
    assert before["power_mode"].startswith("NV Power Mode: MAXN") and "MinFreq" in before["clocks"]
    assert before["clocks_locked"] is True and "note: " not in done.stderr
    assert fp16["power_w"] == 5 and fp16["power_rail"] == "VDD_IN"
    assert fp16["energy_mj_per_frame"] > 0
    assert bool(result.env["known_bad"]) == (version == "10.3.0")
    assert before["temperature_c"] == {"cpu": 48.2, "gpu": 45.5}
    assert ("silently wrong" in done.stderr) == (version == "10.3.0")
    (cache,) = copied.glob("timing-trt-*.cache")
    assert cache.read_bytes() == b"+timed+timed"  # the second build started from the first one's


def test_one_precision_can_be_built_alone_and_comes_home(copied, orin, capsys):
    done = _on_device(copied, orin, "11.4.1", "--int8")
    assert done.returncode == 0, done.stderr
    assert _engines(copied) == {"model.int8.trt-11.4.1.sm87.engine"}
    (row,) = load(copied / "result.json").rows
    assert row["precision"] == "int8" and row["latency_ms"] > 0
    assert "INT8 alone was built, and passed its gate" in done.stdout
    both = _on_device(copied, orin, "11.4.1", "--int8", "--fp16")
    assert both.returncode == 2 and "not allowed with" in both.stderr
    _comes_home(copied, capsys)


def _comes_home(copied: Path, capsys) -> None:
    """compare sees twice the energy and names clocks that were unlocked; advise reads it too."""
    before = copied / "result.json"
    after = copied / "after.json"
    content = json.loads(before.read_text())
    for row in content["rows"]:
        row["energy_mj_per_frame"] *= 2
    after.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stop:
        main(["bench", "compare", str(before), str(after)])
    output = capsys.readouterr().out
    assert stop.value.code == 1 and output.count("energy_mj_per_frame") == 1
    content["env"]["before"]["clocks"] = CLOCKS.format(gpu_min=306000000)
    after.write_text(json.dumps(content))
    with suppress(SystemExit):
        main(["bench", "compare", str(before), str(after)])
    assert "clocks of GPU" in capsys.readouterr().out
    main(["bench", "advise", str(before)])
    assert "mJ" in capsys.readouterr().out


@pytest.mark.parametrize(("shown", "moving"), [
    (CLOCKS.format(gpu_min=624750000), []),
    (CLOCKS.format(gpu_min=306000000), ["GPU 306 to 625 MHz"]),
    (CLOCKS.format(gpu_min=306000000).replace(" FreqOverride=1", "").replace(
        "MinFreq=1510400", "MinFreq=729600"),
     ["cpu0 730 to 1510 MHz", "GPU 306 to 625 MHz", "EMC 204 to 2133 MHz"]),
    ("Error: please run as root", None), ("", None)])
def test_clocks_that_can_move_are_named(shown, moving):
    assert device_state.moving_clocks(shown) == moving


def test_unlocked_and_unknown_clocks_are_notes():
    notes = device_state.notes
    state = {"power_mode": "15W", "clocks_locked": False, "clocks_moving": "GPU 306 to 625 MHz"}
    assert "GPU 306 to 625 MHz" in next(notes(state)) and "sudo jetson_clocks" in next(notes(state))
    assert "unknown" in next(notes({**state, "clocks_locked": None}))
    assert not list(notes({**state, "clocks_locked": True}))
    assert "no nvpmodel" in next(notes({**state, "power_mode": ""}))


@pytest.mark.parametrize(("line", "power"), [
    ("RAM 2/7620MB gpu@45.5C VDD_IN 4940mW/4800mW VDD_CPU_GPU_CV 900mW/800mW", (4940, "VDD_IN")),
    ("VDD_GPU_SOC 4000mW/1mW VDD_CPU_CV 800mW/1mW VIN_SYS_5V0 3000mW/1mW VDDQ_VDD2_1V8AO 500mW/1mW",
     (7800, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0")),
    ("POM_5V_IN 2500/2400 POM_5V_GPU 300/200", (2500, "POM_5V_IN")), ("RAM 2/7620MB", (0, ""))])
def test_the_module_s_power_is_read_from_tegrastats(line, power):
    assert device_state.module_power(device_state.rails(line)) == power


def test_energy_is_read_from_the_sensors_of_sysfs(tmp_path, monkeypatch):
    for channel, (rail, volts, current) in enumerate((("VDD_IN", 5000, 2000),
                                                      ("VDD_SOC", 5000, 500)), 1):
        (tmp_path / f"in{channel}_label").write_text(f"{rail}\n")
        (tmp_path / f"in{channel}_input").write_text(f"{volts}\n")
        (tmp_path / f"curr{channel}_input").write_text(f"{current}\n")
    (tmp_path / "in7_label").write_text("sum of shunt voltages\n")
    monkeypatch.setattr(device_state, "SENSORS", str(tmp_path))
    found = device_state.energy(lambda: time.sleep(0.01), frames=2, seconds=0.2)
    assert found["power_w"] == 10 and found["power_rail"] == "VDD_IN"
    assert found["energy_mj_per_frame"] >= 10 * 10 / 2  # 10 W for 10 ms or more, two frames
    monkeypatch.setattr(device_state, "SENSORS", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device_state.energy(lambda: None, frames=1, seconds=0.01) == {}


@pytest.mark.parametrize(("minor", "version"), [("3.8", "8.5.2"), ("3.10", "8.6.2")])
def test_script_runs_on_the_python_of_jetpack_5_and_6(copied, orin, minor, version):
    """VEGA3D_JETSON_PYTHONS: interpreters that have what the fake TensorRT needs."""
    given = os.environ.get("VEGA3D_JETSON_PYTHONS", "").split(os.pathsep)
    ask = "import sys, numpy, onnx, onnxruntime; print('%d.%d' % sys.version_info[:2])"
    found = [python for python in filter(None, given) if subprocess.check_output(
        [python, "-c", ask], text=True).strip() == minor]
    if not found:
        pytest.skip(f"VEGA3D_JETSON_PYTHONS names no Python {minor} with numpy and onnxruntime")
    done = _on_device(copied, orin, version, python=found[0])
    assert done.returncode == 0, done.stderr
    result = load(copied / "result.json")
    assert result.env["python"].startswith(minor) and len(_engines(copied)) == 2
    assert all(row["energy_mj_per_frame"] > 0 for row in result.rows)


def test_refused_timing_cache_costs_one_line_and_is_renamed(copied, orin):
    """8.6 refuses even its own cache: the INT8 build refuses that of the FP16 build."""
    first = _on_device(copied, orin, "8.6.2", FAKE_REFUSES="1")
    cache = copied / "timing-trt-8.6.2-sm87.cache"
    assert first.returncode == 0 and len(_engines(copied)) == 2 and not cache.exists()
    assert first.stderr.splitlines() == [
        "note: TensorRT 8.6.2 refused its timing cache: built without it; it is now "
        f"{cache.name}.refused"
    ]
    cache.write_bytes(b"truncated")  # by hand, or by another version
    again = _on_device(copied, orin, "8.6.2", FAKE_REFUSES="1")
    assert again.returncode == 0 and again.stderr.count("refused its timing cache") == 1
    assert (copied / f"{cache.name}.refused").read_bytes() == b"truncated"
    assert cache.read_bytes() == b"+timed"


def test_other_errors_of_tensorrt_are_printed(copied, orin):
    done = _on_device(copied, orin, "8.6.2", FAKE_ERROR="2: out of memory")
    assert "TensorRT: 2: out of memory" in done.stderr


def test_silently_wrong_engine_is_not_kept_and_exits_3(copied, orin):
    stale = copied / "model.int8.trt-10.3.0.sm87.engine"
    stale.write_bytes(b"of another day")
    done = _on_device(copied, orin, "10.3.0", FAKE_WRONG="1")
    assert done.returncode == 3 and _engines(copied) == set()
    assert "FAILED its parity gate, not kept: cosine_mean" in done.stderr
    assert "no verdict" in done.stdout
    assert all(row["gate"].startswith("cosine_mean") for row in load(copied / "result.json").rows)


def test_truncated_onnx_is_one_line_and_no_engine(copied, orin):
    path = copied / "model.fp16.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    done = _on_device(copied, orin, "11.4.1")
    assert done.returncode == 2 and _engines(copied) == set()
    assert done.stderr.strip().splitlines() == [
        f"error: {path.name}: truncated or altered on its way here; "
        "copy the folder again"
    ]


def test_parser_error_is_printed(copied, orin):
    path = copied / "model.fp16.onnx"
    path.write_bytes(b"not a model")
    facts = json.loads((copied / "bundle.json").read_text())
    facts["sha256"][path.name] = hashlib.sha256(b"not a model").hexdigest()
    (copied / "bundle.json").write_text(json.dumps(facts))
    done = _on_device(copied, orin, "11.4.1")
    assert done.returncode == 2 and "TensorRT 11.4.1 cannot read it: ModelImporter" in done.stderr


@pytest.mark.parametrize(("version", "message"), [
    ("8.4.1", "expected >= 8.5: JetPack 5.1 or later"), (None, "no tensorrt")])
def test_device_that_cannot_run_it_gets_one_line_why(copied, orin, version, message):
    env = {**orin, "FAKE_VERSION": version or ""}
    if version is None:
        env.pop("PYTHONPATH")
    done = subprocess.run([sys.executable, "run_on_jetson.py"], cwd=copied, env=env,
                          capture_output=True, text=True)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and message in line


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_is_python_3_8(script):
    ast.parse(script.read_text(), feature_version=(3, 8))
    found = sorted(Path.home().glob(".pyenv/versions/3.8.*/bin/python3.8"))
    for python in found[:1]:
        subprocess.run([python, "-c", f"compile(open({str(script)!r}).read(), 'x', 'exec')"],
                       check=True)


def test_timing_runs_on_python_3_8():
    found = sorted(Path.home().glob(".pyenv/versions/3.8.*/bin/python3.8"))
    if not found:
        pytest.skip("no Python 3.8 here")
    program = "import timing; print(timing.time_interleaved([lambda: None], rounds=2))"
    folder = next(script.parent for script in SCRIPTS if script.name == "timing.py")
    done = subprocess.run([found[0], "-c", program], env={"PYTHONPATH": str(folder)},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_scripts_import_nothing_but_numpy_tensorrt_the_standard_library_and_each_other():
    found = set()
    for script in SCRIPTS:
        for node in ast.walk(ast.parse(script.read_text())):
            if isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
    others = found - set(sys.stdlib_module_names) - {script.stem for script in SCRIPTS}
    assert others == {"numpy", "tensorrt"}


def test_command_writes_the_folder_and_refuses_an_sm(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", "trt", "--run", str(trained_run()), "--target", "jetson", "--sm", "87"])
    assert stop.value.code == 2 and "the device builds for itself" in capsys.readouterr().err


def test_roofline_agrees_with_published_figures():
    small = StudentConfig("s", depth=12, stem="patch")
    # 4.6 G multiply-adds, as published
    assert roofline.operations(small) == pytest.approx(9.2e9, rel=0.02)
    assert roofline.traffic(small, "int8") < roofline.traffic(small, "fp16")
    orin = next(device for device in roofline.DEVICES if device.name == "AGX Orin 64 GB")
    # half of the 170 sparse TOPS that NVIDIA publishes for its GPU
    assert orin.int8_tops == pytest.approx(85, rel=0.01)
    int8_ms, fp16_ms = (roofline.lower_bound_ms(orin, small, rate)[0] for rate in ("int8", "fp16"))
    assert int8_ms < fp16_ms
    table = roofline.lower_bounds_table()
    assert "computed, not measured" in table and table.count("\n| ") == len(roofline.DEVICES)
