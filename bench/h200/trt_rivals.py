"""One job of trt.py on torch (compiled) or onnxruntime (its CUDA provider), gated as the engines are."""
import copy
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.h200.trt_graphs import student_of
from bench.h200.trt_worker import Job, fidelity

Call = Callable[[], float]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def torch_job(job: Job) -> None:
    """Each precision compiled, attention by torch's fused kernel; TF32 on for FP32, as TensorRT has it."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    runs: dict[str, Callable[[], Any]] = {}
    frames = _frames(job)
    student = student_of(job.folder.name, job.student).requires_grad_(False)
    student.train()  # where it calls scaled_dot_product_attention; it has no dropout, so nothing else changes
    for name, facts in job.variants.items():
        began = time.time()
        try:
            dtype = DTYPES[facts["precision"]]
            module = copy.deepcopy(student).to(dtype)
            run = torch.compile(module, dynamic=False)
            answer = torch.cat([run(chunk.to(dtype)).float() for chunk in frames.split(job.batch)])
            job.row(name, build_seconds=round(time.time() - began, 1), size_mb=_size(module),
                    **fidelity(np.load(job.folder / "reference.npy"), answer.cpu().numpy()))
            runs[name] = partial(run, frames[:job.batch].to(dtype))
        except Exception as error:
            job.row(name, error=" ".join(str(error).split())[:200])
    with job.alone():
        job.timed({name: _events(run) for name, run in runs.items()},
                  {name: replay for name, run in runs.items() if (replay := _captured(run))})


def ort_job(job: Job) -> None:
    """The CUDA provider, frames and features on the GPU."""
    import onnxruntime as ort

    frames, calls = _frames(job), {}
    for name in job.variants:
        began = time.time()
        try:
            options = ort.SessionOptions()
            options.log_severity_level = 3
            session = ort.InferenceSession(str(job.file(name)), options, providers=["CUDAExecutionProvider"])
            if session.get_providers()[0] != "CUDAExecutionProvider":
                raise ValueError("onnxruntime fell back to its CPU provider")
            run, out = _bound(session, frames[:job.batch], job)
            answers = []
            for chunk in frames.split(job.batch):
                run(chunk)
                answers.append(out.cpu().numpy())
            job.row(name, build_seconds=round(time.time() - began, 1), size_mb=job.file(name).stat().st_size / 1e6,
                    **fidelity(np.load(job.folder / "reference.npy"), np.concatenate(answers)))
            calls[name] = _wall(run)
        except Exception as error:
            job.row(name, error=" ".join(str(error).split())[:200])
    with job.alone():
        job.timed(calls, {})


def _bound(session: Any, frames: torch.Tensor, job: Job) -> tuple[Callable[..., None], torch.Tensor]:
    """(a call with input and output bound to GPU memory, its output)."""
    x = frames.clone()  # written to below: a view would change the frames of whoever comes next
    shape = [d if isinstance(d, int) else job.batch for d in session.get_outputs()[0].shape]
    out = torch.empty(shape, dtype=torch.float32, device=x.device)
    binding = session.io_binding()
    where = x.device.type
    binding.bind_input(session.get_inputs()[0].name, where, 0, np.float32, list(x.shape), x.data_ptr())
    binding.bind_output(session.get_outputs()[0].name, where, 0, np.float32, shape, out.data_ptr())

    def run(chunk: torch.Tensor | None = None) -> None:
        if chunk is not None:
            x.copy_(chunk)
            if where == "cuda":
                torch.cuda.synchronize()  # onnxruntime has a stream of its own
        session.run_with_iobinding(binding)  # returns when the features are there

    return run, out


def _frames(job: Job) -> torch.Tensor:
    frames = torch.from_numpy(np.load(job.work / "frames.npz")["heldout"]).float() / 255
    return frames.cuda() if torch.cuda.is_available() else frames


def _size(module: torch.nn.Module) -> float:
    return round(sum(p.numel() * p.element_size() for p in module.parameters()) / 1e6, 3)


def _wall(call: Callable[[], Any]) -> Call:
    """Milliseconds of a call that returns when it is done."""
    def timed() -> float:
        began = time.perf_counter()
        call()
        return (time.perf_counter() - began) * 1000
    return timed


def _events(call: Callable[[], Any]) -> Call:
    """Milliseconds of a call between two CUDA events on torch's stream."""
    if not torch.cuda.is_available():
        return _wall(call)

    def timed() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)
    return timed


def _captured(call: Callable[[], Any]) -> Call | None:
    if not torch.cuda.is_available():
        return None
    try:
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return _events(graph.replay)
    except Exception as error:
        print(f"no CUDA graph: {error}", file=sys.stderr)
        return None


if __name__ == "__main__":
    wanted = Job(Path(sys.argv[1]))
    with torch.no_grad():
        {"torch": torch_job, "onnxruntime-cuda": ort_job}[wanted.backend](wanted)
