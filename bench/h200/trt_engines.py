"""One job of trt.py inside TensorRT's own Python (numpy and tensorrt only): builds, gates, waits for its turn, times.

    trt_engines.py JOB.json [VARIANT]     see trt.py; CUDA by ctypes, as the Jetson script calls it

Each engine is built by a process of its own (VARIANT), which can crash or run out of time without costing the others.
"""
import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import tensorrt as trt

from bench.h200.trt_worker import Job, fidelity
from export.jetson.run_on_jetson import Cuda, Engine

GRACE = 12   # seconds that a build may take past the time for building
RELAXED = 2  # cudaStreamCaptureModeRelaxed
FLAGS = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}


def build(logger, onnx_file, variant, cache):
    """(plan, timing cache) of one ONNX under the flags of its variant. Raises ValueError with TensorRT's words."""
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_file.read_bytes()):
        raise ValueError("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))[:300])
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    external = (trt.TacticSource.CUBLAS, trt.TacticSource.CUBLAS_LT, trt.TacticSource.CUDNN)
    config.set_tactic_sources(config.get_tactic_sources() & ~sum(1 << int(source) for source in external))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = variant["level"]
    for flag in FLAGS[variant["precision"]]:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if variant["implicit"]:
        set_ranges(network, json.loads(onnx_file.with_suffix(".ranges.json").read_text()))
    handle = config.create_timing_cache(cache)
    config.set_timing_cache(handle, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError("the builder gave no engine; its words are in the log")
    return bytes(plan), bytes(config.get_timing_cache().serialize())


def set_ranges(network, ranges):
    """Implicit INT8: a symmetric range for every tensor that has one; what has none stays in half."""
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        for j in range(layer.num_outputs):
            tensor = layer.get_output(j)
            if tensor is not None and tensor.name in ranges:
                tensor.dynamic_range = (-ranges[tensor.name], ranges[tensor.name])


class Profiler(trt.IProfiler):
    """Milliseconds of each layer of one run."""

    def __init__(self):
        trt.IProfiler.__init__(self)
        self.ms = {}

    def report_layer_time(self, name, ms):
        self.ms[name] = self.ms.get(name, 0) + ms


def layers(engine, runs=20):
    """[{name, type, tactic, inputs, ms}] of an engine, the slowest first."""
    inspector = engine.engine.create_engine_inspector()
    told = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON)).get("Layers", [])
    context = engine.engine.create_execution_context()
    for name, address in ((engine.engine.get_tensor_name(0), engine.device_in),
                          (engine.engine.get_tensor_name(1), engine.device_out)):
        context.set_tensor_address(name, address)
    context.profiler = profiler = Profiler()
    for i in range(runs + 3):
        if i == 3:
            profiler.ms.clear()
        context.execute_v2([engine.device_in, engine.device_out])
    rows = []
    for layer in told:
        layer = layer if isinstance(layer, dict) else {"Name": str(layer)}
        rows.append({"name": layer.get("Name", "")[:300], "type": layer.get("LayerType", ""),
                     "tactic": str(layer.get("TacticName", ""))[:120],
                     "inputs": [f"{t.get('Format/Datatype', '')} {t.get('Dimensions', '')}"
                                for t in layer.get("Inputs", []) if isinstance(t, dict)],
                     "ms": profiler.ms.get(layer.get("Name", ""), 0.0) / runs})
    return sorted(rows, key=lambda row: -row["ms"])


def captured(cuda, engine):
    """A call that replays the engine's launches as one CUDA graph, in milliseconds; None if it cannot be captured."""
    engine.run()
    graph, ready, stream = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p(cuda.stream)
    try:
        cuda._call("cudaStreamBeginCapture", stream, RELAXED)
        launched = engine.context.execute_async_v3(cuda.stream)
        cuda._call("cudaStreamEndCapture", stream, ctypes.byref(graph))
        cuda._call("cudaGraphInstantiate", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
    except ValueError:
        return None

    def replay():
        cuda.begin()
        cuda._call("cudaGraphLaunch", ready, stream)
        return cuda.end()

    return replay if launched else None


def build_one(job, name):
    """Writes the plan of one variant; exits with TensorRT's words if it cannot."""
    cache = job.folder / f"{job.name}.cache"
    plan, timings = build(trt.Logger(trt.Logger.WARNING), job.file(name), job.variants[name],
                          cache.read_bytes() if cache.exists() else b"")
    cache.write_bytes(timings)
    job.plan(name).write_bytes(plan)


def build_apart(job, path, name):
    """build_one in a process of its own. Raises ValueError with the last that TensorRT said."""
    command = [sys.executable, "-m", "bench.h200.trt_engines", path, name]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=job.deadline + GRACE - time.time())
    print(done.stderr, file=sys.stderr, flush=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit {done.returncode}"]
        raise ValueError(next((line for line in said if "[E]" in line), said[-1]))


def main(job, path):
    cuda, frames = Cuda(), np.load(job.work / "frames.npz")["heldout"].astype(np.float32) / 255
    reference, engines = np.load(job.folder / "reference.npy"), {}
    for name in job.variants:
        if job.late():
            job.row(name, error="not built: out of time")
            continue
        began = time.time()
        try:
            print(f"== {name}", file=sys.stderr, flush=True)
            build_apart(job, path, name)
            plan = job.plan(name).read_bytes()
            engine = Engine(trt, cuda, plan)
            job.row(name, size_mb=round(len(plan) / 1e6, 3), build_seconds=round(time.time() - began, 1),
                    **fidelity(reference, engine(frames)))
            engines[name] = engine
        except (ValueError, RuntimeError, OSError, MemoryError, subprocess.SubprocessError) as error:
            job.row(name, error=" ".join(str(error).split())[:200])
    job.wait()
    job.timed({name: engine.run for name, engine in engines.items()},
              {name: replay for name, engine in engines.items() if (replay := captured(cuda, engine))})
    for name, engine in engines.items():
        if job.profile and not job.over():
            (job.out / f"layers.{job.name}.{name}.json").write_text(json.dumps(layers(engine), indent=0))


if __name__ == "__main__":
    wanted = Job(Path(sys.argv[1]))
    build_one(wanted, sys.argv[2]) if len(sys.argv) > 2 else main(wanted, sys.argv[1])
