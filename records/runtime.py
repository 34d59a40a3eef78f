"""onnxruntime, without its telemetry, and the first run of an ONNX file that we did not write.

`from records.runtime import ort`: since 1.31 it would write a device id below the user's cache
folder and open a telemetry session.

A graph may loop for ever, fill the memory or crash onnxruntime, so `try_model` first runs it in a
process with limits: `python records/runtime.py MODEL BATCH MEMORY_MB SECONDS`.
"""
from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from records.files import read_object, sha256
from records.outputs import printable

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import; subprocesses inherit it

import onnxruntime as ort

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 20             # and one more for every 50 MB
MEMORY_MB = 1500         # and four times the file
MAX_VALUES = 1 << 26     # of an input: 4096 px square, or 440 frames of 224 px
PX = 224                 # of frames whose size the graph leaves open
TRUST = "VEGA3D_TRUST_ONNX"
_HINT = f"if you trust the file, set {TRUST}=1"
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64",
          "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(int8)": "int8",
          "tensor(uint8)": "uint8", "tensor(bool)": "bool"}


def import_untracked(name: str) -> ModuleType:
    """nncf (imported late: 10 s) or openvino: sends nothing, leaves no file in the home folder.

    NNCF_CI stops nncf from sending. openvino-telemetry, which both open, would still write
    ~/intel/openvino_ga_cid, and openvino sends, unless they find themselves in a CI job (TF_BUILD).
    """
    os.environ.setdefault("NNCF_CI", "1")
    before = os.environ.get("TF_BUILD")
    os.environ["TF_BUILD"] = "1"
    try:
        return importlib.import_module(name)
    finally:
        del os.environ["TF_BUILD"]
        if before is not None:
            os.environ["TF_BUILD"] = before


def try_model(path: Path, batch: int = 1, data: tuple[Path, ...] = (),
              must_run: bool = True) -> None:
    """Loads the model on the CPU and runs it once on random values, in a process of its own.

    data: its data files. A file that its sidecar says we exported is not tried. must_run=False: a
    graph with open sizes need only load. Raises ValueError, naming the file, for one that fails or
    goes beyond SECONDS or MEMORY_MB.
    """
    if os.environ.get(TRUST) or _is_ours(path):
        return
    size_mb = sum(part.stat().st_size for part in (path, *data)) // 1_000_000
    seconds, memory = SECONDS + size_mb // 50, MEMORY_MB + 4 * size_mb
    command = [sys.executable, __file__, str(path.resolve()),
               *map(str, (batch, memory, seconds))]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
           "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=seconds, env=env)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{path}: did not finish its first run within {seconds} s; {_HINT}"
                         ) from error
    try:
        verdict = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        verdict = {"error": f"ended onnxruntime with exit code {done.returncode}"}
    reason = verdict.get("error")
    if reason and ("alloc" in reason or "MemoryError" in reason):
        reason = f"needs more than {memory / 1000:g} GB of memory; {_HINT}"
    elif reason:
        reason = f"onnxruntime cannot {verdict.get('stage', 'run')} it: {printable(reason)}"
    if reason and (must_run or not verdict.get("open")):
        raise ValueError(f"{path}: {reason}")


def _is_ours(path: Path) -> bool:
    """True for a file whose sidecar of `vega3d export` has its SHA-256."""
    sidecar = read_object(path.with_name(f"{path.name}.json"))
    return "cache_key" in sidecar and sidecar.get("sha256") == sha256(path)


def _trial(path: str, batch: int) -> dict[str, Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    stage, is_open = "load", False
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        stage, inputs = "run", session.get_inputs()
        is_open = any(not isinstance(side, int) for given in inputs for side in given.shape)
        feeds = {given.name: _values(given, batch) for given in inputs}
        if not session.get_outputs():
            raise ValueError("it has no outputs")
        session.run(None, feeds)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        return {"error": f"{type(error).__name__} {error}"[:2000], "stage": stage, "open": is_open}
    return {}


def _values(given: Any, batch: int) -> np.ndarray:
    """Random values in [0,1], or whole ones, for one input of a session."""
    if given.type not in _TYPES:
        raise ValueError(f"its input {given.name} is a {given.type}")
    usual = (batch, 3, PX, PX) if len(given.shape) == 4 else (1,) * len(given.shape)
    shape = [side if isinstance(side, int) else other
             for side, other in zip(given.shape, usual)]
    if min(shape, default=1) < 1 or math.prod(shape) > MAX_VALUES:
        raise ValueError(f"its input {given.name} has the shape {shape}")
    dtype = np.dtype(_TYPES[given.type])
    rng = np.random.default_rng(0)
    values = rng.random(shape, np.float32) if dtype.kind == "f" else rng.integers(0, 2, shape)
    return values.astype(dtype)


def _limit(memory_mb: int, seconds: int) -> None:
    """Bounds this process: further memory, processor time, no core file."""
    try:
        import resource
    except ImportError:  # Windows: the time limit alone, from outside
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds + 1, seconds + 1))
    pages = Path("/proc/self/statm")
    if pages.is_file():  # macOS does not enforce RLIMIT_AS
        used = int(pages.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = used + memory_mb * 1_000_000
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    _limit(int(sys.argv[3]), int(sys.argv[4]))  # after the import, whose memory is not the model's
    print(json.dumps(_trial(sys.argv[1], int(sys.argv[2]))), flush=True)
    os._exit(0)  # a session that was interrupted in its limits may not close
