"""Host memory of one artefact: a fresh process loads it, runs it and reports its peak resident
size.

`python -m bench.latency.memory KIND PATH THREADS` is that process; `peak_memory` starts it. Within
one process that timed everything, the peak would belong to whichever was largest.
"""
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np

Kind = Literal["onnx", "openvino", "student", "generator", "semantic"]
CALLS = 3
ROOT = Path(__file__).resolve().parents[2]


def peak_memory(kind: Kind, path: Path, threads: int) -> dict[str, float | None]:
    """memory_mb: the process at its largest; runtime_mb: of that, Python and libraries before
    anything was loaded.

    path: an ONNX file, a student folder, or (generator, semantic) a run folder. Nulls if the
    process failed.
    """
    env = {
        **os.environ, "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])
    }
    done = subprocess.run(
        [sys.executable, "-m", "bench.latency.memory", kind,
         str(path), str(threads)], capture_output=True, text=True, env=env)
    if done.returncode:
        return {"memory_mb": None, "runtime_mb": None}
    return json.loads(done.stdout.splitlines()[-1])


def main(kind: str, path: str, threads: str) -> None:
    loader = {"onnx": _onnx, "openvino": _openvino, "student": _student, "generator": _generator,
              "semantic": _semantic}[kind]
    frame = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    before, run = loader(Path(path), int(threads))
    for _ in range(CALLS):
        run(frame)
    print(json.dumps({"memory_mb": _peak_mb(), "runtime_mb": before}))


def _onnx(path: Path, threads: int):
    import onnxruntime as ort

    before = _peak_mb()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return before, lambda frame: session.run(None, {name: frame})


def _openvino(path: Path, threads: int):
    import openvino

    before = _peak_mb()
    model = openvino.Core().compile_model(str(path), "CPU",
                                          {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1})
    return before, lambda frame: model([frame])


def _student(folder: Path, threads: int):
    import torch

    from student.vit import load_student

    before = _torch_peak(threads)
    student = load_student(folder)
    return before, lambda frame: torch.inference_mode()(student)(torch.from_numpy(frame))


def _generator(run: Path, threads: int):
    import torch

    from bench.latency.teacher_stages import load_generator

    before = _torch_peak(threads)
    tower = load_generator(run)
    return before, lambda frame: tower.features(torch.from_numpy(frame)[:, None])


def _semantic(run: Path, threads: int):
    import torch

    from teacher.towers.efficientnet import SemanticEncoder

    before = _torch_peak(threads)
    encoder = SemanticEncoder()
    return before, lambda frame: encoder.features(torch.from_numpy(frame)[:, None])


def _torch_peak(threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    return _peak_mb()


def _peak_mb() -> float:
    # VmHWM, not ru_maxrss: Linux carries the parent's peak into a child's ru_maxrss across exec
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


if __name__ == "__main__":
    main(*sys.argv[1:])
