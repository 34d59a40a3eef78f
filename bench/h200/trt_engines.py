"""One job of trt.py inside TensorRT's own Python (numpy and tensorrt only): builds and gates engines, or times them.

    trt_engines.py build|time JOB.json     see trt.py; CUDA by ctypes, as the Jetson script calls it

Building is what takes long, and hardly the GPU: one process an engine. The engines of a place (a student at a batch)
meet in another process, which loads each as it comes, waits for its turn, and times all of them in turn.
"""
import ctypes
import json
import sys
import time
from pathlib import Path

import numpy as np
import tensorrt as trt

from bench.h200.trt_kernels import traced
from bench.h200.trt_worker import BUILDING, LOADING, Job, fidelity
from export.jetson.run_on_jetson import Cuda, Engine

RELAXED = 2  # cudaStreamCaptureModeRelaxed
THREADS = 2  # of one build
FLAGS = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}


def build(logger, onnx_file, variant):
    """The plan of one ONNX under the flags of its variant. Raises ValueError with TensorRT's words."""
    builder = trt.Builder(logger)
    builder.max_threads = THREADS
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
    if variant["prefer"]:
        prefer_half(network)
        config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    if variant["implicit"]:
        set_ranges(network, json.loads(onnx_file.with_suffix(".ranges.json").read_text()))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError("the builder gave no engine; its words are in the log")
    return bytes(plan)


def set_ranges(network, ranges):
    """Implicit INT8: a symmetric range for every tensor that has one; what has none stays in half."""
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        for j in range(layer.num_outputs):
            tensor = layer.get_output(j)
            if tensor is not None and tensor.name in ranges:
                tensor.dynamic_range = (-ranges[tensor.name], ranges[tensor.name])


def prefer_half(network):
    """Asks for FP16 in every layer of floats but quantisers, constants, and the products of what is quantised."""
    made_by: dict = {}
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        made_by.update((layer.get_output(j).name, layer.type) for j in range(layer.num_outputs))
    alone = {trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE, trt.LayerType.CONSTANT, trt.LayerType.SHAPE}
    results = {network.get_output(i).name for i in range(network.num_outputs)}
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        inputs = [layer.get_input(j) for j in range(layer.num_inputs)]
        quantised = any(made_by.get(t.name) == trt.LayerType.DEQUANTIZE for t in inputs if t is not None)
        floats = [j for j in range(layer.num_outputs) if layer.get_output(j).dtype == trt.float32]
        if layer.type in alone or quantised or not floats:
            continue
        layer.precision = trt.float16
        for j in floats:
            if layer.get_output(j).name not in results:
                layer.set_output_type(j, trt.float16)


class Profiler(trt.IProfiler):
    """Milliseconds of each layer of one run."""

    def __init__(self):
        trt.IProfiler.__init__(self)
        self.ms = {}

    def report_layer_time(self, name, ms):
        self.ms[name] = self.ms.get(name, 0) + ms


def layers(engine, runs=20):
    """[{name, type, tactic, inputs, ms}] of an engine, the slowest first: TensorRT's own account.

    It names one layer for whatever its compiler fused (ForeignNode); trt_kernels.py sees what is within.
    """
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


def build_all(job):
    """Builds a job's engines, holds each against the reference, leaves its plan."""
    logger, cuda = trt.Logger(trt.Logger.WARNING), Cuda()
    frames = np.load(job.work / "frames.npz")["heldout"].astype(np.float32) / 255  # [32,3,H,W]
    reference = np.load(job.folder / "reference.npy")                              # [32,D,h,w]
    for name, facts in job.variants.items():
        began = time.time()
        job.row(name, error=BUILDING)
        try:
            plan = build(logger, job.file(name), facts)
            took = time.time() - began
            job.row(name, **{"error": None, "size_mb": round(len(plan) / 1e6, 3), "build_seconds": round(took, 1),
                             "level": facts["level"], **fidelity(reference, Engine(trt, cuda, plan)(frames))})
            scratch = job.plan(name).with_suffix(".new")
            scratch.write_bytes(plan)
            scratch.replace(job.plan(name))
        except Exception as error:  # whatever it is, the others go on
            job.row(name, error=" ".join(str(error).split())[:200])


def time_all(job):
    """Loads every engine of its place as it comes; in its turn times all there are, then looks into them."""
    cuda, engines, passed_over = Cuda(), {}, {name for name, row in job.rows.items() if row.get("error")}

    def load():
        for name in job.variants:
            if name not in engines and name not in passed_over and job.plan(name).exists():
                job.row(name, error=LOADING)
                try:
                    engines[name] = Engine(trt, cuda, job.plan(name).read_bytes())
                    engines[name].run()
                    job.row(name, error=None)
                except Exception as error:  # whatever it is, the others go on
                    passed_over.add(name)
                    job.row(name, error=" ".join(str(error).split())[:200])

    with job.alone(meanwhile=load):
        job.timed({name: engine.run for name, engine in engines.items()},
                  {name: replay for name, engine in engines.items() if (replay := captured(cuda, engine))})
        for what, look in (("layers", layers), ("kernels", traced)) if job.profile else ():
            for name, engine in engines.items():  # whatever fails here, the times are written
                if not job.over():
                    try:
                        told = look(engine)
                    except Exception as error:
                        print(f"{what} of {name}: {error}", file=sys.stderr, flush=True)
                        continue
                    (job.out / f"{what}.{job.name}.{name}.json").write_text(json.dumps(told, indent=0))


if __name__ == "__main__":
    {"build": build_all, "time": time_all}[sys.argv[1]](Job(Path(sys.argv[2])))
