"""Building engines: run_on_jetson.py's part, and what it shares with export/tensorrt/builder.py.

Python 3.8 and the standard library only.
"""
from __future__ import annotations

import functools
import os
import re
import sys


def release(version):
    """(major, minor) of a TensorRT's version such as 10.3.0.30."""
    return tuple(int(part) for part in version.split(".")[:2])


def is_strongly_typed(trt):
    """Whether the graph's types decide, not builder flags: TensorRT >= 10."""
    return (hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
            or not hasattr(trt.BuilderFlag, "FP16"))


def dialect(trt):
    """Which ONNX files it reads: "typed" (TensorRT >= 10), "flagged" (8.6) or "jp5" (8.5)."""
    if is_strongly_typed(trt):
        return "typed"
    return "flagged" if release(trt.__version__) >= (8, 6) else "jp5"


def network_flags(trt):
    """The bits of create_network; 12 has no flag for what it always does."""
    flags = trt.NetworkDefinitionCreationFlag
    name = "STRONGLY_TYPED" if is_strongly_typed(trt) else "EXPLICIT_BATCH"
    return 1 << int(getattr(flags, name)) if hasattr(flags, name) else 0


def add_profile(builder, network, config, batches):
    """Allows frames of an open batch the sizes (least, best, most)."""
    frames = network.get_input(0)
    if frames.shape[0] == -1:
        profile = builder.create_optimization_profile()
        profile.set_shape(frames.name, *((n, *tuple(frames.shape)[1:]) for n in batches))
        config.add_optimization_profile(profile)


def attach_timings(config, stored):
    """True if the builder takes these timings; broken ones and another version's are left out."""
    timings = config.create_timing_cache(stored) or config.create_timing_cache(b"")
    if config.set_timing_cache(timings, ignore_mismatch=False) is not False:
        return True
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return False


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
    add_profile(builder, network, config, (1, 1, 32))
    stored = timing_cache.read_bytes() if timing_cache.is_file() else b""
    logger.refused_cache = False
    if not attach_timings(config, stored):
        logger.refused_cache = True
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
    network = builder.create_network(network_flags(trt))
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


def write_atomically(path, content):
    """Writes beside `path` and renames, so that a killed run leaves no partial file there."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content)
        os.replace(str(scratch), str(path))
    finally:
        if scratch.exists():
            scratch.unlink()
