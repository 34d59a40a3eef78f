"""Models as functions: frames in [0,1] -> features, by onnxruntime on the CPU or by torch."""
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch

from records.runtime import ort
from student.vit import Student

CHUNK = 8  # frames at a time where the batch is open
_Level = ort.GraphOptimizationLevel


def cpu_session(model: bytes | str,
                optimisation: ort.GraphOptimizationLevel = _Level.ORT_ENABLE_ALL,
                threads: int = 1) -> ort.InferenceSession:
    """A file's path or a serialised model on onnxruntime's CPU provider, without its warnings."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.graph_optimization_level = optimisation
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxModel:
    """Runs a file or a proto. frames [N,3,H,W] float32 in [0,1] -> features [N,D,h,w].

    optimise=False: no fused kernels. Raises ValueError unless it is ONNX with one frames tensor.
    """

    def __init__(self, model: Path | onnx.ModelProto, optimise: bool = False, threads: int = 1):
        name = str(model) if isinstance(model, Path) else "model"
        content = name if isinstance(model, Path) else model.SerializeToString()  # path: data files
        level = _Level.ORT_ENABLE_ALL if optimise else _Level.ORT_ENABLE_BASIC
        try:
            self.session = cpu_session(content, level, threads)
        except Exception as error:  # onnxruntime's exceptions share no base but RuntimeError's
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{name}: onnxruntime cannot load it: {reason}") from error
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            got = ", ".join(f"{i.name} {i.shape}" for i in inputs)
            raise ValueError(f"{name}: got inputs ({got}), expected one frames tensor [B,3,H,W]")
        self.input = inputs[0]

    def __call__(self, frames: np.ndarray, apply: Callable = map) -> np.ndarray:
        return self.outputs(frames, apply)[0]

    def outputs(self, frames: np.ndarray, apply: Callable = map) -> list[np.ndarray]:
        """Every output [N,...], in the graph's order. apply: or a thread pool's map of batches."""
        batch = self.input.shape[0]
        step = batch if isinstance(batch, int) else CHUNK

        def run(start: int) -> list[np.ndarray]:
            chunk = frames[start:start + step]
            count = len(chunk)
            if isinstance(batch, int) and count < batch:  # filled up with the last frame
                chunk = np.concatenate([chunk, np.repeat(chunk[-1:], batch - count, 0)])
            outputs = self.session.run(None, {self.input.name: chunk})
            return [output[:count] for output in outputs]

        chunks = apply(run, range(0, len(frames), step))
        return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]


class TorchModel:
    """The FP32 student in torch: the reference of every parity gate."""

    def __init__(self, student: Student):
        self.student = student.eval().float()

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            chunks = torch.from_numpy(frames).split(CHUNK)
            return torch.cat([self.student(chunk) for chunk in chunks]).numpy()
