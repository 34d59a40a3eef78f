"""One job of trt.py inside TensorRT's own Python (numpy and tensorrt only): builds, gates, waits for its turn, times.

    trt_engines.py JOB.json     see trt.py; CUDA by ctypes, as the Jetson script calls it

One process builds a job's engines one after another: its 1.3 GB of libraries take 9 s to load, and its timing cache is
shared in memory (8.6 refuses every one read from disk). If it dies, trt.py starts it again with what is left.
"""
import ctypes
import json
import sys
import time
from pathlib import Path

import numpy as np
import tensorrt as trt

from bench.h200.trt_worker import BUILDING, Job, fidelity
from export.jetson.run_on_jetson import Cuda, Engine

RELAXED = 2  # cudaStreamCaptureModeRelaxed
FLAGS = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}


def build(builder, logger, onnx_file, variant, timings):
    """(plan, timing cache) of one ONNX under the flags of its variant. Raises ValueError with TensorRT's words.

    timings: the cache of the build before, or None.
    """
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
    if timings is None or config.set_timing_cache(timings, ignore_mismatch=False) is False:
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError("the builder gave no engine; its words are in the log")
    return bytes(plan), timings


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
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    told = json.loads(text, strict=False).get("Layers", [])  # 8.6 leaves control characters in names
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


def main(job):
    logger, cuda = trt.Logger(trt.Logger.WARNING), Cuda()
    builder, timings, engines = trt.Builder(logger), None, {}
    frames = np.load(job.work / "frames.npz")["heldout"].astype(np.float32) / 255  # [32,3,H,W]
    reference = np.load(job.folder / "reference.npy")                              # [32,D,h,w]
    for name, facts in job.variants.items():
        if job.late():
            break
        began = time.time()
        print(f"{time.strftime('%H:%M:%S')} == {name}", file=sys.stderr, flush=True)
        job.row(name, error=BUILDING)
        try:
            plan, timings = build(builder, logger, job.file(name), facts, timings)
            print(f"{time.strftime('%H:%M:%S')} built in {time.time() - began:.1f} s", file=sys.stderr, flush=True)
            took, engine = time.time() - began, Engine(trt, cuda, plan)
            job.row(name, **{"error": None, "size_mb": round(len(plan) / 1e6, 3), "build_seconds": round(took, 1),
                             "level": facts["level"], **fidelity(reference, engine(frames))})
            engines[name] = engine
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            job.row(name, error=" ".join(str(error).split())[:200])
            continue
        with job.alone():  # all that there are, in turn: what drifts, drifts under all
            job.timed({name: engine.run for name, engine in engines.items()},
                      {name: replay for name, engine in engines.items() if (replay := captured(cuda, engine))})
            if job.profile and not job.over():
                (job.out / f"layers.{job.name}.{name}.json").write_text(json.dumps(layers(engine), indent=0))


if __name__ == "__main__":
    main(Job(Path(sys.argv[1])))
