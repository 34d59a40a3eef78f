"""An ONNX file as a function: frames in [0,1] -> features, on onnxruntime's CPU provider."""
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

from student.vit import Student

CHUNK = 8  # frames at a time where the model lets us choose


class OnnxModel:
    """Runs a model, given as a file or as a proto. frames [N,3,H,W] float32 -> features [N,D,h,w].

    optimise=False stops at onnxruntime's basic level: what the graph says, not what a fused kernel
    makes of it.
    Raises ValueError for a file that is no ONNX model or does not take one frames tensor.
    """

    def __init__(self, model: Path | onnx.ModelProto, optimise: bool = False, threads: int = 1):
        name = str(model) if isinstance(model, Path) else "model"
        content = model.read_bytes() if isinstance(model, Path) else model.SerializeToString()
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_ENABLE_BASIC
        try:
            self.session = ort.InferenceSession(content, options,
                                                providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base but RuntimeError's
            raise ValueError(
                f"{name}: onnxruntime cannot load it: {' '.join(str(error).split())[:300]}"
            ) from error
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            got = ", ".join(f"{i.name} {i.shape}" for i in inputs)
            raise ValueError(f"{name}: got inputs ({got}), expected one frames tensor [B,3,H,W]")
        self.input = inputs[0]

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return self.answers(frames)[0]

    def answers(self, frames: np.ndarray) -> list[np.ndarray]:
        """Every output [N,...], in the order of the graph's."""
        batch = self.input.shape[0]
        step = batch if isinstance(batch, int) else CHUNK
        outputs = []
        for start in range(0, len(frames), step):
            chunk = frames[start:start + step]
            # a static batch's last one is filled up
            missing = step - len(chunk) if isinstance(batch, int) else 0
            full = np.concatenate([chunk, np.repeat(chunk[-1:], missing, 0)]) if missing else chunk
            outputs.append(
                [output[:len(chunk)] for output in self.session.run(None, {self.input.name: full})])
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


class TorchModel:
    """The student itself, FP32: the reference every artefact answers to."""

    def __init__(self, student: Student):
        self.student = student.eval().float()

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            chunks = torch.from_numpy(frames).split(CHUNK)
            return torch.cat([self.student(chunk) for chunk in chunks]).numpy()
