"""Peak host memory of one artefact, measured in a fresh process that loads and runs it.

`python -m bench.latency.memory WORKLOAD PATH THREADS` is that process; `peak_memory` starts it. In
the process that times everything, the peak would belong to the largest artefact.
"""
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np

Workload = Literal["onnx", "openvino", "student", "generator", "semantic"]
CALLS = 3
ROOT = Path(__file__).resolve().parents[2]


def peak_memory(workload: Workload, path: Path, threads: int) -> dict[str, float | None]:
    """memory_mb: the process's peak; runtime_mb: the part before anything was loaded.

    path: an ONNX file, a student folder, or (generator, semantic) a run folder. None if the process
    failed.
    """
    command = [sys.executable, "-m", "bench.latency.memory", workload, str(path), str(threads)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads),
           "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        return {"memory_mb": None, "runtime_mb": None}
    return json.loads(done.stdout.splitlines()[-1])


def main(workload: str, path: str, threads: str) -> None:
    loaders = {"onnx": _onnx, "openvino": _openvino, "student": _student, "generator": _generator,
               "semantic": _semantic}
    frame = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    runtime_mb, run = loaders[workload](Path(path), int(threads))
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


def _student(folder: Path, threads: int):
    import torch

    from student.vit import load_student

    runtime_mb = _torch_peak(threads)
    student = load_student(folder)
    return runtime_mb, lambda frame: torch.inference_mode()(student)(torch.from_numpy(frame))


def _generator(run: Path, threads: int):
    import torch

    from bench.latency.teacher_stages import load_generator

    runtime_mb = _torch_peak(threads)
    tower = load_generator(run)
    return runtime_mb, lambda frame: tower.features(torch.from_numpy(frame)[:, None])


def _semantic(run: Path, threads: int):
    import torch

    from teacher.towers.efficientnet import SemanticEncoder

    runtime_mb = _torch_peak(threads)
    encoder = SemanticEncoder()
    return runtime_mb, lambda frame: encoder.features(torch.from_numpy(frame)[:, None])


def _torch_peak(threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    return _peak_mb()


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
