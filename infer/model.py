"""An exported ONNX file as a function of frames; its metadata says how it is fed, or it is
refused."""
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

MAKE_ONE = "make one with: vega3d export onnx --preset web"


class Model:
    """frames uint8 [N,3,px,px] -> {output name: float32 [N,...]}.

    Raises ValueError for a file that is missing, no ONNX model, or whose metadata does not say that
    it takes NCHW RGB frames in [0,1] with the normalisation inside; and, when called, if the
    answers are not finite.
    """

    def __init__(self, path: Path, threads: int = 0):
        if not path.is_file():
            raise ValueError(f"{path}: no such model; {MAKE_ONE}")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session = ort.InferenceSession(str(path), options,
                                                providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base but RuntimeError's
            raise ValueError(
                f"{path}: onnxruntime cannot load it: {' '.join(str(error).split())[:200]}"
            ) from error
        self.facts = _facts(self.session.get_modelmeta().custom_metadata_map)
        given, inputs = self.facts.get("input"), self.session.get_inputs()
        if not isinstance(given, dict) or len(inputs) != 1 or given.get("name") != inputs[0].name:
            raise ValueError(
                f"{path}: its metadata does not say how to feed it (no `input` of ours); {MAKE_ONE}"
            )
        wanted = {
            "layout": "NCHW", "colour": "RGB", "range": [0, 1], "normalisation": "inside the graph"
        }
        other = [
            f"{key} {given.get(key)!r}" for key, value in wanted.items() if given.get(key) != value
        ]
        shape, kind = inputs[0].shape, inputs[0].type
        if other or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not isinstance(shape[3], int) \
                or kind != "tensor(float)":
            raise ValueError(
                f"{path}: is fed otherwise ({', '.join(other) or f'{kind} {shape}'}), expected "
                f"NCHW RGB float frames [B,3,px,px] in [0,1]; {MAKE_ONE}")
        self.path, self.name, self.batch, self.px = path, inputs[0].name, shape[0], shape[3]
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        x = frames.astype(np.float32) / 255
        step = self.batch if isinstance(self.batch, int) else len(x)
        if len(x) % step:
            raise ValueError(
                f"infer: got {len(x)} frames, expected a multiple of the model's batch {step}")
        parts = [self._run(x[i:i + step]) for i in range(0, len(x), step)]
        answers = {
            name: np.concatenate([part[i] for part in parts])
            for i, name in enumerate(self.outputs)
        }
        for name, value in answers.items():
            if not np.isfinite(value).all():
                raise ValueError(
                    f"{self.path}: its {name} are no numbers, so the file is damaged; {MAKE_ONE}")
        return answers

    def _run(self, x: np.ndarray) -> list[np.ndarray]:
        try:
            return self.session.run(None, {self.name: x})
        except Exception as error:  # as above
            raise ValueError(
                f"{self.path}: onnxruntime cannot run it: {' '.join(str(error).split())[:200]}"
            ) from error


def _facts(metadata: dict[str, str]) -> dict:
    """Metadata values are JSON or plain text."""
    found = {}
    for key, value in metadata.items():
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
