"""Peak host memory of one artefact, in a fresh process that loads and runs it: `python -m
bench.latency.memory WORKLOAD PATH THREADS`, which `peak_memory` starts."""
import importlib
import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

Workload = Literal["onnx", "openvino", "student", "generator", "semantic"]
CALLS = 3
TORCH = {"student": ("student.vit", "load_student"),  # workload: what loads it
         "generator": ("bench.latency.teacher_stages", "load_generator"),
         "semantic": ("teacher.towers.efficientnet", "SemanticEncoder")}
ROOT = Path(__file__).resolve().parents[2]


def peak_memory(workload: Workload, path: Path, threads: int) -> dict[str, float | None]:
    """memory_mb: the process's peak; runtime_mb: the part before anything was loaded; None if it
    failed. path: a file, a student folder, or (generator, semantic) a run folder."""
    command = [sys.executable, "-m", "bench.latency.memory", workload, str(path), str(threads)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads),
           "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        return {"memory_mb": None, "runtime_mb": None}
    return json.loads(done.stdout.splitlines()[-1])


def main(workload: str, path: str, threads: str) -> None:
    load = {"onnx": _onnx, "openvino": _openvino}.get(workload) or partial(_torch, workload)
    frame = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    runtime_mb, run = load(Path(path), int(threads))
    for _ in range(CALLS):
        run(frame)
    print(json.dumps({"memory_mb": _peak_mb(), "runtime_mb": runtime_mb}))


def _onnx(path: Path, threads: int):
    from records.runtime import ort

    runtime_mb = _peak_mb()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return runtime_mb, lambda frame: session.run(None, {name: frame})


def _openvino(path: Path, threads: int):
    from records.runtime import import_untracked

    openvino = import_untracked("openvino")
    runtime_mb = _peak_mb()
    model = openvino.Core().compile_model(str(path), "CPU",
                                          {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1})
    return runtime_mb, lambda frame: model([frame])


def _torch(workload: str, path: Path, threads: int):
    import torch

    module, name = TORCH[workload]
    load = getattr(importlib.import_module(module), name)
    torch.set_num_threads(threads)
    runtime_mb = _peak_mb()
    if workload == "student":
        student = load(path)
        return runtime_mb, lambda frame: torch.inference_mode()(student)(torch.from_numpy(frame))
    tower = load(path) if workload == "generator" else load()
    return runtime_mb, lambda frame: tower.features(torch.from_numpy(frame)[:, None])


def _peak_mb() -> float:
    # not ru_maxrss: Linux carries the parent's peak into a child's across exec
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


if __name__ == "__main__":
    main(*sys.argv[1:])
