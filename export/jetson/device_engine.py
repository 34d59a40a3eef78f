"""Building and running engines on a Jetson, for run_on_jetson.py.

Python 3.8, numpy and the JetPack's `tensorrt` only; CUDA is called by ctypes.
"""
from __future__ import annotations

import ctypes
import functools
import os
import re
import sys

import numpy as np


def release(trt):
    """(major, minor) of the installed TensorRT."""
    return tuple(int(part) for part in trt.__version__.split(".")[:2])


def dialect(trt):
    """Which ONNX files it reads: "typed" (TensorRT >= 10), "flagged" (8.6) or "jp5" (8.5)."""
    if (hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
            or not hasattr(trt.BuilderFlag, "FP16")):
        return "typed"
    return "flagged" if release(trt) >= (8, 6) else "jp5"


def build(trt, source, content, precision, timing_cache, own_kernels=False):
    """The serialised engine of the ONNX file `source`. ValueError: cannot be read or built."""
    logger = tensorrt_logger(trt)
    builder = trt.Builder(logger)
    network = _parse(trt, builder, logger, source, content)
    config = builder.create_builder_config()
    _set_precision(trt, network, config, precision)
    if own_kernels:
        libraries = sum(1 << int(getattr(trt.TacticSource, name))
                        for name in ("CUBLAS", "CUBLAS_LT", "CUDNN"))
        config.set_tactic_sources(config.get_tactic_sources() & ~libraries)
    _add_profile(builder, network, config)
    stored = timing_cache.read_bytes() if timing_cache.is_file() else b""
    _attach_timings(config, logger, stored)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError(
            f"{source.name}: TensorRT {trt.__version__} cannot build it; its log is above")
    if stored and logger.refused_cache:
        os.replace(str(timing_cache), f"{timing_cache}.refused")
        print(f"note: TensorRT {trt.__version__} refused its timing cache: built without it; it is "
              f"now {timing_cache.name}.refused", file=sys.stderr)
    else:
        write_atomically(timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _parse(trt, builder, logger, source, content):
    flags = trt.NetworkDefinitionCreationFlag
    name = "STRONGLY_TYPED" if dialect(trt) == "typed" else "EXPLICIT_BATCH"
    network = builder.create_network(1 << int(getattr(flags, name)) if hasattr(flags, name) else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(content):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ValueError(
            f"{source.name}: TensorRT {trt.__version__} cannot read it: {errors[:300]}")
    return network


def _set_precision(trt, network, config, precision):
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    if dialect(trt) == "typed":
        return
    for flag in ("INT8", "FP16") if precision == "int8" else ("FP16",):
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if dialect(trt) == "jp5":  # LayerNorm in parts, whose squares overflow in FP16
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        for layer in (network.get_layer(i) for i in range(network.num_layers)):
            if re.search(r"norm\d?/LayerNormalization/", layer.name):
                layer.precision = trt.float32


def _add_profile(builder, network, config):
    frames = network.get_input(0)
    if frames.shape[0] == -1:
        profile = builder.create_optimization_profile()
        profile.set_shape(frames.name, *((n, *tuple(frames.shape)[1:]) for n in (1, 1, 32)))
        config.add_optimization_profile(profile)


def _attach_timings(config, logger, stored):
    logger.refused_cache = False
    timings = config.create_timing_cache(stored) or config.create_timing_cache(b"")
    if config.set_timing_cache(timings, ignore_mismatch=False) is False:
        logger.refused_cache = True
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


@functools.lru_cache
def tensorrt_logger(trt):
    """Prints TensorRT's errors to stderr; those about a timing cache only set `refused_cache`.

    TensorRT 8.5 and 8.6 cannot read back a transformer's timing cache ("Myelin error from unknown
    graph"; KataGo issues 739 and 945; fixed in 10). TensorRT keeps a process's first logger.
    """
    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self):
            trt.ILogger.__init__(self)
            self.refused_cache = False

        def log(self, severity, message):
            if int(severity) > int(trt.ILogger.Severity.ERROR):
                return
            if re.search(r"timing cache|myelinCache|TimingCache|[aA]rchiveReader", message):
                self.refused_cache = True
            else:
                print(f"TensorRT: {message}", file=sys.stderr)

    return Logger()


class DeviceEngine:
    """An engine as a function: frames [N,3,H,W] float32 in [0,1] -> features [N,D,h,w]."""

    def __init__(self, trt, cuda, plan):
        self.cuda, self.runtime = cuda, trt.Runtime(tensorrt_logger(trt))
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise ValueError("TensorRT cannot read the engine it has just built")
        self.context = self.engine.create_execution_context()
        frames, features = (self.engine.get_tensor_name(i) for i in range(2))
        batch, *frame_shape = tuple(self.engine.get_tensor_shape(frames))
        self.batch = max(batch, 1)
        shape = (self.batch, *frame_shape)
        self.context.set_input_shape(frames, shape)
        self.host_in = np.zeros(shape, np.float32)
        self.host_out = np.zeros(tuple(self.context.get_tensor_shape(features)), np.float32)
        self.device_in = cuda.malloc(self.host_in.nbytes)
        self.device_out = cuda.malloc(self.host_out.nbytes)
        self.context.set_tensor_address(frames, self.device_in)
        self.context.set_tensor_address(features, self.device_out)

    def __call__(self, frames):
        outputs = []
        for start in range(0, len(frames), self.batch):
            chunk = frames[start:start + self.batch]
            self.host_in[:len(chunk)] = chunk
            self.run_with_copies()
            outputs.append(self.host_out[:len(chunk)].copy())
        return np.concatenate(outputs)

    def run_with_copies(self):
        self.cuda.to_device(self.device_in, self.host_in)
        self.run()
        self.cuda.to_host(self.host_out, self.device_out)

    def run(self):
        """Milliseconds of one pass, between two CUDA events on its stream."""
        self.cuda.record_start()
        if not self.context.execute_async_v3(self.cuda.stream):
            raise ValueError("TensorRT could not run the engine")
        return self.cuda.elapsed_ms()


class CudaRuntime:
    """The CUDA runtime calls that are needed, by ctypes. Raises ValueError without libcudart."""

    def __init__(self):
        self.lib = _load_library(["libcudart.so", "libcudart.so.13", "libcudart.so.12",
                                  "libcudart.so.11.0", "/usr/local/cuda/lib64/libcudart.so"])
        self.stream = self._create("cudaStreamCreate")
        self.events = [ctypes.c_void_p(self._create("cudaEventCreate")) for _ in range(2)]
        self.sm = 10 * self._attribute(75) + self._attribute(76)  # compute capability 8.7 -> 87

    def malloc(self, size):
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer.value

    def to_device(self, pointer, array):
        self._copy(pointer, array.ctypes.data, array.nbytes, 1)  # cudaMemcpyHostToDevice

    def to_host(self, array, pointer):
        self._copy(array.ctypes.data, pointer, array.nbytes, 2)  # cudaMemcpyDeviceToHost

    def record_start(self):
        self._call("cudaEventRecord", self.events[0], ctypes.c_void_p(self.stream))

    def elapsed_ms(self):
        """Waits for the stream. Returns milliseconds since `record_start`."""
        milliseconds = ctypes.c_float()
        self._call("cudaEventRecord", self.events[1], ctypes.c_void_p(self.stream))
        self._call("cudaEventSynchronize", self.events[1])
        self._call("cudaEventElapsedTime", ctypes.byref(milliseconds), *self.events)
        return milliseconds.value

    def _copy(self, to, source, size, kind):
        self._call("cudaMemcpy", ctypes.c_void_p(to), ctypes.c_void_p(source),
                   ctypes.c_size_t(size), kind)

    def _create(self, name):
        handle = ctypes.c_void_p()
        self._call(name, ctypes.byref(handle))
        return handle.value

    def _attribute(self, attribute):
        value = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, 0)
        return value.value

    def _call(self, name, *args):
        status = getattr(self.lib, name)(*args)
        if status:
            raise ValueError(f"{name} failed with CUDA error {status}")


def write_atomically(path, content):
    """Writes beside `path` and renames, so that a killed run leaves no partial file there."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content)
        os.replace(str(scratch), str(path))
    finally:
        if scratch.exists():
            scratch.unlink()


def _load_library(names):
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ValueError(
        "no CUDA runtime here (libcudart.so); on a Jetson: sudo apt install cuda-cudart")
