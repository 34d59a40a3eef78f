"""An exported ONNX file as a function of frames, fed as its metadata says."""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from records import manifest
from records.files import parse_json
from records.outputs import printable
from records.runtime import ort, try_model

SHIPPED = Path(__file__).parent / "model" / "model.onnx"
MAX_PX, MAX_OUTPUTS = 4096, 64
# of outputs that are drawn
CHANNELS = {"depth": 1, "confidence": 1, "normals": 3, "colours": 3, "features": None}
EXPORT_HINT = "make one with: vega3d export onnx --preset edge"
CANONICAL = "canonical_focal"  # of the metadata: px at which the output `depth` is in metres
# the `input` of an exported file's metadata, without its name
EXPECTED_INPUT = {"layout": "NCHW", "colour": "RGB", "range": [0, 1],
                  "normalisation": "inside the graph"}
CAMERA_INPUT = {**EXPECTED_INPUT, "layout": "NHWC", "range": [0, 255]}  # of export onnx --input


class Model:
    """frames uint8 [N,3,px,px] -> {output name: float32 [N,...]}, depth in metres.

    focal: of the camera, in px of these frames: depth of a file whose metadata has a canonical one
    is times focal / canonical. None: the canonical camera.

    Raises ValueError for a file that is missing, is no ONNX model, fails its trial run
    (records.runtime), or whose metadata does not declare NCHW RGB frames in [0,1] with the
    normalisation inside; and, when called, for outputs that are not finite or of another shape.
    """

    def __init__(self, path: Path, threads: int = 0):
        if not path.is_file():
            raise ValueError(f"{path}: no such model; {EXPORT_HINT}")
        manifest.check(path, EXPORT_HINT)
        try_model(path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = min(threads, os.cpu_count() or 1)  # more wait for each other
        options.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(str(path), options,
                                                providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise ValueError(f"{path}: onnxruntime cannot load it: {printable(error)}") from error
        self.metadata = _decode(self.session.get_modelmeta().custom_metadata_map)
        _check_input(path, self.metadata.get("input"), self.session.get_inputs())
        self.canonical_focal = _canonical_focal(path, self.metadata)
        frames = self.session.get_inputs()[0]
        self.path, self.name = path, frames.name
        self.batch = frames.shape[0]
        self.camera = frames.shape[1:3] if frames.type == "tensor(uint8)" else None
        self.px = min(self.camera) if self.camera else frames.shape[3]
        self.outputs = [output.name for output in self.session.get_outputs()]
        if not 0 < len(self.outputs) <= MAX_OUTPUTS:
            raise ValueError(f"{path}: has {len(self.outputs)} outputs, expected 1 to "
                             f"{MAX_OUTPUTS}; {EXPORT_HINT}")

    def __call__(self, frames: np.ndarray, focal: float | None = None) -> dict[str, np.ndarray]:
        x = self._as_input(frames)
        batch = self.batch if isinstance(self.batch, int) else len(x)
        if len(x) % batch:
            raise ValueError(
                f"{self.path}: takes {batch} frames at a time, got {len(x)}; {EXPORT_HINT}")
        parts = [self._checked(self._run(x[i:i + batch]), batch) for i in range(0, len(x), batch)]
        values = [np.concatenate(part) for part in zip(*parts)]
        outputs = dict(zip(self.outputs, values))
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise ValueError(f"{self.path}: output {printable(name, 60)} is not finite, so the "
                                 f"file is damaged; {EXPORT_HINT}")
        if focal and self.canonical_focal and "depth" in outputs:
            outputs["depth"] = outputs["depth"] * np.float32(focal / self.canonical_focal)
        return outputs

    def _as_input(self, frames: np.ndarray) -> np.ndarray:
        """float32 in [0,1]; of a file for a camera: uint8 [N,H,W,3] around the middle square."""
        if self.camera is None:
            return frames.astype(np.float32) / 255
        height, width = self.camera
        top, left = (height - self.px) // 2, (width - self.px) // 2
        x = np.zeros((len(frames), height, width, 3), np.uint8)
        x[:, top:top + self.px, left:left + self.px] = frames.transpose(0, 2, 3, 1)
        return x

    def _checked(self, values: list[np.ndarray], batch: int) -> list[np.ndarray]:
        for name, value in zip(self.outputs, values):
            kind = value.dtype.kind if isinstance(value, np.ndarray) else "O"
            shape = value.shape if kind in "fiub" else ()
            channels = CHANNELS.get(name, 0)  # 0: not drawn
            drawable = channels == 0 or (len(shape) == 4 and channels in (None, shape[1]))
            if not shape or shape[0] != batch or not value.size or not drawable:
                wanted = "B,..." if channels == 0 else f"B,{channels or 'D'},h,w"
                raise ValueError(f"{self.path}: output {printable(name, 60)} is "
                                 f"{type(value).__name__ if not shape else list(shape)}, expected "
                                 f"numbers [{wanted}]; {EXPORT_HINT}")
        return values

    def _run(self, x: np.ndarray) -> list[np.ndarray]:
        try:
            return self.session.run(None, {self.name: x})
        except Exception as error:  # as above
            raise ValueError(
                f"{self.path}: onnxruntime cannot run it: {printable(error)}") from error


def _decode(metadata: dict[str, str]) -> dict:
    """Metadata values are JSON or plain text."""
    decoded = {}
    for key, value in metadata.items():
        try:
            decoded[key] = parse_json(value)
        except ValueError:
            decoded[key] = value
    return decoded


def _canonical_focal(path: Path, metadata: dict) -> float | None:
    """In px of the input; None: the file's depth is in metres for every camera."""
    value = metadata.get(CANONICAL)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= 1e5:
        raise ValueError(f"{path}: its metadata has {CANONICAL} {printable(value, 40)}, expected a "
                         f"focal length in px; {EXPORT_HINT}")
    return float(value)


def _check_input(path: Path, declared: object, inputs: list) -> None:
    if (not isinstance(declared, dict) or len(inputs) != 1
            or declared.get("name") != inputs[0].name):
        raise ValueError(f"{path}: its metadata does not describe its input (no `input` of vega3d "
                         f"export); {EXPORT_HINT}")
    shape, kind = inputs[0].shape, inputs[0].type
    camera = declared.get("layout") == "NHWC"
    differences = [f"{key} {declared.get(key)!r}"
                   for key, value in (CAMERA_INPUT if camera else EXPECTED_INPUT).items()
                   if declared.get(key) != value]
    sides = (shape[1:3] if camera else shape[2:]) if len(shape) == 4 else []
    fits = (len(shape) == 4 and shape[3 if camera else 1] == 3
            and all(isinstance(side, int) and 1 <= side <= MAX_PX for side in sides)
            and (camera or shape[2] == shape[3])
            and kind == ("tensor(uint8)" if camera else "tensor(float)"))
    if not fits or not (isinstance(shape[0], str) or (shape[0] or 0) >= 1):
        # an open batch has a name; a negative one is None
        differences = differences or [f"{kind} {shape}"]
    if differences:
        found = printable(", ".join(differences))
        raise ValueError(f"{path}: takes another input ({found}), expected NCHW RGB float frames "
                         f"[B,3,px,px] in [0,1]; {EXPORT_HINT}")
