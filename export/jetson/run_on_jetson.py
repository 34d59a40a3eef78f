#!/usr/bin/env python3
"""Builds this folder's student with the Jetson's own TensorRT, gates it, times INT8 and FP16, says
which to use.

    python3 run_on_jetson.py        # or on any machine with TensorRT >= 8.5 and an NVIDIA GPU

Needs Python 3.8+, numpy and JetPack's own `tensorrt`; CUDA is called by ctypes. Leaves
model.PRECISION.*.engine, a timing cache and result.json here. Exit 2: cannot run here; 3: an engine
failed its parity gate (and is not kept).
"""
from __future__ import annotations

import argparse
import ctypes
import functools
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from timing import MIN_SPEEDUP, interleave, sample_block

HERE = Path(__file__).resolve().parent
ROUNDS = 10
KNOWN_BAD = {(10, 3): "silently wrong on several ViTs (TensorRT issues 4419, 4558, 4723)",
             (10, 4): "silently wrong on several ViTs, fp16 NaN (TensorRT issue 4742)"}
FILES = {"typed": {"int8": "model.int8.onnx", "fp16": "model.fp16.onnx"},
         "flagged": {"int8": "model.int8.flagged.onnx", "fp16": "model.flagged.onnx"},
         "jp5": {"int8": "model.int8.jp5.onnx", "fp16": "model.jp5.onnx"}}


def main():
    options = _options()
    try:
        sys.exit(run(options))
    except (ValueError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)


def run(options):
    """0 if every engine passed its gate, 3 if one failed. Raises ValueError if it cannot run
    here."""
    trt, bundle = _tensorrt(), json.loads((HERE / "bundle.json").read_text())
    cuda = Cuda()
    before = device_state()
    if not before["power_mode"]:
        print(
            "note: no nvpmodel here: power mode and clocks are unknown, so are what these times "
            "mean"
        )
    rows, engines = [], {}
    for precision in ("fp16", "int8"):
        row, engine = make(trt, cuda, bundle, precision, options.own_kernels)
        rows.append(row)
        if engine is not None:
            engines[precision] = engine
    measure(engines, rows, options)
    line = verdict(rows)
    print(line)
    save(trt, bundle, rows, line, before)
    return 0 if all(row["gate"] == "passed" for row in rows) else 3


def make(trt, cuda, bundle, precision, own_kernels=False):
    """(its row, the engine or None): built, run on the reference frames, and kept only if it
    passes."""
    source = HERE / FILES[dialect(trt)][precision]
    path = HERE / f"model.{precision}.trt-{trt.__version__}.sm{cuda.sm}.engine"
    if path.exists():
        path.unlink()
    content = _whole(source, bundle)
    print(f"building {path.name} from {source.name} (minutes the first time) ...", flush=True)
    began = time.time()
    plan = build(trt, content, source, precision,
                 HERE / f"timing-trt-{trt.__version__}-sm{cuda.sm}.cache", own_kernels)
    took = time.time() - began
    engine = Engine(trt, cuda, plan)
    frames = np.load(HERE / "reference_frames.npy").astype(np.float32) / 255
    fidelity, missed = gate(engine(frames), np.load(HERE / "reference_features.npy"), bundle,
                            precision)
    row = {
        "kind": "latency", "model": bundle["model"], "precision": precision, "backend": "tensorrt",
        "device": "cuda", "batch": engine.batch, "latency_ms": None,
        **fidelity, "gate": "; ".join(missed) or "passed", "size_mb": round(len(plan) / 1e6, 3),
        "build_seconds": round(took, 1), "onnx": source.name
    }
    if missed:
        print("{}: FAILED its parity gate, not kept: {}".format(path.name, "; ".join(missed)),
              file=sys.stderr)
        return row, None
    _write(path, plan)
    print("{}: built in {:.0f} s, passed: cosine mean {:.6f}, p1 {:.6f}".format(
        path.name, took, row["cosine_mean"], row["cosine_p1"]))
    return row, engine


def dialect(trt):
    """TensorRT 10+ is strongly typed; 8.6 takes float weights under Q/DQ and builder flags; 8.5 has
    no LayerNorm."""
    if hasattr(trt.NetworkDefinitionCreationFlag,
               "STRONGLY_TYPED") or not hasattr(trt.BuilderFlag, "FP16"):
        return "typed"
    return "flagged" if _release(trt) >= (8, 6) else "jp5"


def build(trt, content, source, precision, cache, own_kernels=False):
    """Serialised engine. Raises ValueError with TensorRT's words if it cannot read or build the
    ONNX."""
    flags = trt.NetworkDefinitionCreationFlag
    log = logger(trt)
    builder = trt.Builder(log)
    typed = dialect(trt) == "typed"
    wanted = "STRONGLY_TYPED" if typed else "EXPLICIT_BATCH"
    network = builder.create_network(
        1 << int(getattr(flags, wanted)) if hasattr(flags, wanted) else 0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content):
        said = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ValueError(f"{source.name}: TensorRT {trt.__version__} cannot read it: {said[:300]}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    for flag in (("INT8", "FP16") if precision == "int8" else ("FP16",)) if not typed else ():
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if dialect(trt) == "jp5":
        keep_norms(trt, network, config)
    if own_kernels:
        others = [
            1 << int(getattr(trt.TacticSource, name)) for name in ("CUBLAS", "CUBLAS_LT", "CUDNN")
        ]
        config.set_tactic_sources(config.get_tactic_sources() & ~sum(others))
    frames = network.get_input(0)
    if frames.shape[0] == -1:
        profile = builder.create_optimization_profile()
        profile.set_shape(frames.name, *((batch, *tuple(frames.shape)[1:]) for batch in (1, 1, 32)))
        config.add_optimization_profile(profile)
    log.refused = False
    held = cache.read_bytes() if cache.is_file() else b""
    timing = config.create_timing_cache(held) or config.create_timing_cache(b"")
    if config.set_timing_cache(timing, ignore_mismatch=False) is False:
        log.refused = True
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError(
            f"{source.name}: TensorRT {trt.__version__} cannot build it; its log is above")
    if held and log.refused:
        os.replace(str(cache), f"{cache}.refused")
        print(
            f"note: TensorRT {trt.__version__} refused its timing cache: built without, set aside "
            f"as {cache.name}.refused", file=sys.stderr)
    else:
        _write(cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


@functools.lru_cache
def logger(trt):
    """TensorRT's errors on stderr, except those about a timing cache, which only set `refused`.

    One for the process: TensorRT keeps the first that it is given.

    8.5 and 8.6 cannot read back a cache of a transformer ("Myelin error from unknown graph"), not
    even the one that the same graph has just left: the same is told of them in KataGo issues 739
    and 945, fixed in TensorRT 10.
    """
    class Log(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self):
            trt.ILogger.__init__(self)
            self.refused = False

        def log(self, severity, said):
            if int(severity) > int(trt.ILogger.Severity.ERROR):
                return
            if re.search(r"timing cache|myelinCache|TimingCache|[aA]rchiveReader", said):
                self.refused = True
            else:
                print(f"TensorRT: {said}", file=sys.stderr)

    return Log()


def keep_norms(trt, network, config):
    """The parts of every LayerNorm in FP32: their squares would overflow in FP16."""
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if re.search(r"norm\d?/LayerNormalization/", layer.name):
            layer.precision = trt.float32


class Engine:
    """Engine bytes as a function: frames [N,3,H,W] float32 in [0,1] -> features [N,D,h,w]."""

    def __init__(self, trt, cuda, plan):
        self.cuda, self.runtime = cuda, trt.Runtime(logger(trt))
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise ValueError("TensorRT cannot read the engine it has just built")
        self.context = self.engine.create_execution_context()
        frames, features = (self.engine.get_tensor_name(i) for i in range(2))
        shape = tuple(self.engine.get_tensor_shape(frames))
        self.batch = max(shape[0], 1)
        self.context.set_input_shape(frames, (self.batch, *shape[1:]))
        self.host_in = np.zeros((self.batch, *shape[1:]), np.float32)
        self.host_out = np.zeros(tuple(self.context.get_tensor_shape(features)), np.float32)
        self.device_in, self.device_out = cuda.malloc(self.host_in.nbytes), cuda.malloc(
            self.host_out.nbytes)
        self.context.set_tensor_address(frames, self.device_in)
        self.context.set_tensor_address(features, self.device_out)

    def __call__(self, frames):
        outputs = []
        for start in range(0, len(frames), self.batch):
            chunk = frames[start:start + self.batch]
            self.host_in[:len(chunk)] = chunk
            self.transfer_and_run()
            outputs.append(self.host_out[:len(chunk)].copy())
        return np.concatenate(outputs)

    def transfer_and_run(self):
        self.cuda.copy(self.device_in, self.host_in.ctypes.data, self.host_in.nbytes, 1)
        self.run()
        self.cuda.copy(self.host_out.ctypes.data, self.device_out, self.host_out.nbytes, 2)

    def run(self):
        """Milliseconds of one pass, between two CUDA events on its stream."""
        self.cuda.begin()
        if not self.context.execute_async_v3(self.cuda.stream):
            raise ValueError("TensorRT could not run the engine")
        return self.cuda.end()


class Cuda:
    """The few calls of the CUDA runtime that are needed, by ctypes."""

    def __init__(self):
        self.lib = _first_library([
            "libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0",
            "/usr/local/cuda/lib64/libcudart.so"
        ])
        self.stream = self._made("cudaStreamCreate")
        self.events = [ctypes.c_void_p(self._made("cudaEventCreate")) for _ in range(2)]
        # compute capability, major and minor
        self.sm = 10 * self._attribute(75) + self._attribute(76)

    def malloc(self, size):
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer.value

    def copy(self, to, source, size, kind):
        """kind 1: host to device, 2: device to host."""
        self._call("cudaMemcpy", ctypes.c_void_p(to), ctypes.c_void_p(source),
                   ctypes.c_size_t(size), kind)

    def begin(self):
        self._call("cudaEventRecord", self.events[0], ctypes.c_void_p(self.stream))

    def end(self):
        milliseconds = ctypes.c_float()
        self._call("cudaEventRecord", self.events[1], ctypes.c_void_p(self.stream))
        self._call("cudaEventSynchronize", self.events[1])
        self._call("cudaEventElapsedTime", ctypes.byref(milliseconds), *self.events)
        return milliseconds.value

    def _made(self, name):
        handle = ctypes.c_void_p()
        self._call(name, ctypes.byref(handle))
        return handle.value

    def _attribute(self, which):
        value = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), which, 0)
        return value.value

    def _call(self, name, *args):
        status = getattr(self.lib, name)(*args)
        if status:
            raise ValueError(f"{name} failed with CUDA error {status}")


def gate(features, reference, bundle, precision):
    """(fidelity, thresholds missed in words). Written so that NaN misses."""
    limits = bundle["thresholds"][precision]
    if features.shape != reference.shape:
        raise ValueError(f"got features {features.shape}, expected {reference.shape}")
    # [N,D,h*w]
    a, b = (x.reshape((*x.shape[:2], -1)).astype(np.float64) for x in (reference, features))
    cosine = (a * b).sum(1) / np.maximum(
        np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    got = {"cosine_mean": float(cosine.mean()), "cosine_p1": float(np.percentile(cosine, 1)),
           "relative_error": float(np.linalg.norm(b - a) / np.linalg.norm(a))}
    if (HERE / "probe.npz").is_file():
        with np.load(HERE / "probe.npz") as probe:
            known = probe["depth"].reshape(len(a), -1) > 0  # [N,h*w]
            before, after = (_delta1(x, probe, known) for x in (a, b))
        got["delta1_drop"] = before - after
    missed = [
        f"{k} {got[k]:.5f} < {limits[k]}" for k in ("cosine_mean", "cosine_p1")
        if not got[k] >= limits[k]
    ]
    missed += [f"{k} {got[k]:.4f} > {limits[k]}" for k in ("relative_error", "delta1_drop")
               if k in got and not got[k] <= limits[k]]
    return {k: round(v, 6) if np.isfinite(v) else None for k, v in got.items()}, missed


def measure(engines, rows, options):
    """Times the engines in turn, after a warm-up of 50 calls each, and completes their rows."""
    for engine in engines.values():
        for _ in range(min(50, options.iterations)):
            engine.run()
    names = sorted(engines)
    blocks = [functools.partial(time_block, engines[name], options) for name in names]
    times = dict(zip(names, interleave(blocks, ROUNDS)))  # noqa: B905  (strict: 3.10)
    for row in rows:
        if row["precision"] in times:
            add_times(row, times[row["precision"]])
            print(
                "{precision}: median {latency_ms:.3f} ms, p90 {p90_ms:.3f}, p99 {p99_ms:.3f} "
                "({iterations} calls of {batch} frame(s)); with copies {host_to_host_ms:.3f} ms".format(**row))


def time_block(engine, options, _round):
    """(GPU milliseconds of each call, milliseconds of one call with its copies)."""
    gpu = sample_block(engine.run, options.iterations / ROUNDS, options.seconds / ROUNDS)
    began = time.perf_counter()
    engine.transfer_and_run()
    return gpu, (time.perf_counter() - began) * 1000


def add_times(row, blocks):
    gpu = np.concatenate([times for times, _ in blocks])
    row["latency_ms"], row["p90_ms"], row["p99_ms"] = (
        float(ms) for ms in np.percentile(gpu, [50, 90, 99]))
    row["host_to_host_ms"] = float(np.median([host for _, host in blocks]))
    row["iterations"] = len(gpu)
    row["frame_ms"], row["timer"] = row["latency_ms"] / row["batch"], "CUDA events"


def verdict(rows):
    """One line: which precision to use on this device."""
    fp16, int8 = rows
    if fp16["latency_ms"] is None or int8["latency_ms"] is None:
        passed = [row["precision"].upper() for row in rows if row["gate"] == "passed"]
        return "no verdict: {} passed its gate{}".format(
            passed[0] if passed else "neither", f": use {passed[0]} here" if passed else "")
    int8["vs_fp16"] = fp16["latency_ms"] / int8["latency_ms"]
    return "INT8 {:.2f}x of FP16 ({:.2f} vs {:.2f} ms), cosine {:.4f}: use {}".format(
        int8["vs_fp16"], int8["latency_ms"], fp16["latency_ms"], int8["cosine_mean"],
        "INT8" if int8["vs_fp16"] >= MIN_SPEEDUP else "FP16 here")


def device_state():
    """Power mode, clocks, temperatures, as the device's own tools say; "" for a tool that is not
    there."""
    stats = _said(["tegrastats", "--interval", "300"], seconds=1)
    heat = {
        name: float(c)
        for name, c in re.findall(r"(\w+)@(-?[\d.]+)C",
                                  stats.splitlines()[-1] if stats else "")
    }
    return {
        "power_mode": " ".join(_said(["nvpmodel",
                                      "-q"]).split()), "clocks": _said(["jetson_clocks", "--show"]),
        "tegrastats": stats.splitlines()[-1] if stats else "", "temperature_c": heat
    }


def save(trt, bundle, rows, line, before):
    """result.json, in the schema of bench/results."""
    release = Path("/etc/nv_tegra_release")
    model = Path("/proc/device-tree/model")
    env = {
        "device": model.read_text().strip("\0\n ") if model.is_file() else platform.node(),
        "l4t": release.read_text().splitlines()[0] if release.is_file() else "",
        "tensorrt": trt.__version__, "dialect": dialect(trt), "python": platform.python_version(),
        "numpy": np.__version__, "machine": platform.machine(), "verdict": line, "before": before,
        "after": device_state(), "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    }
    result = {
        "schema": 1, "name": "jetson",
        "command": " ".join(["python3", Path(sys.argv[0]).name,
                             *sys.argv[1:]]), "commit": bundle["commit"], "env": env, "rows": rows
    }
    _write(HERE / "result.json", (json.dumps(result, indent=1) + "\n").encode())
    print("wrote {}".format(HERE / "result.json"))


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=200,
                        help="timed calls of each engine, at least")
    parser.add_argument("--seconds", type=float, default=3.0, help="and for at least this long")
    parser.add_argument("--own-kernels", action="store_true",
                        help="leave cuBLAS and cuDNN out, where TensorRT 8.6 runs without them")
    return parser.parse_args()


def _tensorrt():
    try:
        import tensorrt as trt
    except ImportError as error:
        raise ValueError(
            f"no tensorrt here ({error}); it comes with JetPack: sudo apt install "
            "python3-libnvinfer, and use the system's python3") from error
    version, release = trt.__version__, _release(trt)
    if release < (8, 5):
        raise ValueError(f"TensorRT {version} is too old, expected >= 8.5: JetPack 5.1 or later")
    if release in KNOWN_BAD:
        print(
            f"warning: TensorRT {version} is {KNOWN_BAD[release]}; fixed in 10.5 (JetPack 7). The "
            "gate decides.",
            file=sys.stderr)
    return trt


def _release(trt):
    return tuple(int(part) for part in trt.__version__.split(".")[:2])


def _whole(source, bundle):
    content = source.read_bytes()
    if hashlib.sha256(content).hexdigest() != bundle["sha256"][source.name]:
        raise ValueError(
            f"{source.name}: truncated or altered on its way here; copy the folder again")
    return content


def _delta1(features, probe, known):
    metres = np.exp(np.einsum("ndk,d->nk", features, probe["weights"]) + probe["bias"])  # [N,h*w]
    ratio = metres[known] / probe["depth"].reshape(known.shape)[known]
    return float(100 * (np.maximum(ratio, 1 / ratio) < 1.25).mean())


def _first_library(names):
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ValueError(
        "no CUDA runtime here (libcudart.so); on a Jetson: sudo apt install cuda-cudart")


def _said(command, seconds=10):
    """What a tool prints within `seconds`; "" if it is not installed."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=seconds)
        return done.stdout.decode(errors="replace").strip()
    except subprocess.TimeoutExpired as stopped:  # tegrastats never ends by itself
        return (stopped.stdout or b"").decode(errors="replace").strip()
    except OSError:
        return ""


def _write(path, content):
    """Beside and renamed: a killed run leaves no half a file at its final name."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content)
        os.replace(str(scratch), str(path))
    finally:
        if scratch.exists():
            scratch.unlink()


if __name__ == "__main__":
    main()
