"""Frames as cameras give them: uint8 RGB or NV12 of one size, prepared inside the graph.

The centre square, means of k x k pixels (k: how often the student's side fits into the square's),
bilinear to the student's side, /255. Only ops that every runtime has: OpenVINO ignores, and
TensorRT refuses, the antialiasing of Resize.
"""
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image, ImageOps

from export.artefact import Facts, discard, save_onnx, source_digest, up_to_date
from export.graph.index import add_constant, copy_model, redirect, replace_nodes
from export.graph.session import OnnxModel
from export.parity import THRESHOLDS, GateError, token_cosine
from export.pipeline import FP16, FP32, INT8, INT8_CPU, ExportedFile, Exporter
from export.source import to_input
from records.files import digest

GATE_FRAMES = 16
CameraInput = Literal["uint8-nhwc", "nv12"]
# full-range RGB in [0,1] of Y, U, V in [0,255]: BT.601, limited range, as webcams and Jetsons send
_RGB = np.array([[1.164, 0, 1.596], [1.164, -0.392, -0.813], [1.164, 2.017, 0]], np.float32) / 255
_BIAS = -_RGB @ np.array([16, 128, 128], np.float32)


def frame_size(text: str, kind: CameraInput, px: int) -> tuple[int, int]:
    """(height, width) of "480x640". ValueError for what cannot be prepared for `px`."""
    found = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    height, width = map(int, found.groups()) if found else (0, 0)
    if min(height, width) < px or (kind == "nv12" and (height % 4 or width % 4)):
        wanted = "multiples of 4 " if kind == "nv12" else ""
        raise ValueError(f"--size: got {text}, expected HEIGHTxWIDTH, {wanted}of at least {px}")
    return height, width


def with_camera_input(model: onnx.ModelProto, kind: CameraInput, height: int,
                      width: int) -> onnx.ModelProto:
    """A copy whose `frames` are uint8 [B,height,width,3], or NV12 [B,1.5*height,width,1]."""
    copy = copy_model(model)
    given, px = copy.graph.input[0], copy.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    prefix = _Prefix(copy, given.name, px)
    prepare = prefix.from_rgb if kind == "uint8-nhwc" else prefix.from_nv12
    redirect(copy.graph.node, given.name, prepare(height, width))
    replace_nodes(copy.graph, [*prefix.nodes, *copy.graph.node])
    batch = given.type.tensor_type.shape.dim[0]
    shape = [batch.dim_value or batch.dim_param, *_shape(kind, height, width)]
    given.CopyFrom(helper.make_tensor_value_info(given.name, TensorProto.UINT8, shape))
    del copy.graph.value_info[:]
    onnx.checker.check_model(copy, full_check=True)
    return copy


def camera_facts(facts: Facts, kind: CameraInput, height: int, width: int) -> Facts:
    """The `input` of the metadata, and a canonical focal length, for such frames."""
    px = facts["input"]["shape"][2]
    layout, colour = ("NHWC", "RGB") if kind == "uint8-nhwc" else ("NV12", "BT.601 limited")
    frames = {**facts["input"], "shape": [facts["input"]["shape"][0], *_shape(kind, height, width)],
              "layout": layout, "colour": colour, "range": [0, 255], "dtype": "uint8",
              "crop": "centre square", "size": [height, width],
              "resize": f"means of {min(height, width) // px} x the same, then bilinear to {px}"}
    found = {**facts, "input": frames}
    if "canonical_focal" in found:
        found["canonical_focal"] *= min(height, width) / px
    return found


def export_camera(exporter: Exporter, files: Sequence[ExportedFile], kind: CameraInput,
                  size: tuple[int, int]) -> list[ExportedFile]:
    """Beside each of `files` NAME.KIND.onnx for frames of `size` (height, width).

    Raises GateError if its features differ from those of the file fed with `reduced_square` frames:
    below a mean token cosine of .999 on held-out frames enlarged to `size`.
    """
    made = []
    for file in files:
        if file.spec not in (FP32, FP16, INT8, INT8_CPU):
            continue  # opset 17: for one version of TensorRT
        path = file.path.with_name(f"{file.path.stem}.{kind}.onnx")
        key = digest(file.facts["sha256"], kind, size, source_digest())
        if facts := up_to_date(path, key, exporter.log):
            made.append(ExportedFile(path, file.spec, facts, reused=True))
            continue
        model = with_camera_input(onnx.load(file.path), kind, *size)
        cosine = _cosine(exporter, file, model, kind, size)
        if not cosine >= THRESHOLDS["int8"].cosine_mean:
            raise GateError(f"{path}: its features differ from those of prepared frames: cosine "
                            f"{cosine:.5f} < {THRESHOLDS['int8'].cosine_mean}")
        plain = {name: fact for name, fact in file.facts.items()
                 if name not in ("schema", "file", "sha256", "size_mb", "verdict")}
        facts = camera_facts(plain, kind, *size) | {"cache_key": key,
                                                    "camera_cosine": round(cosine, 6)}
        discard(path)
        made.append(ExportedFile(path, file.spec, save_onnx(model, path, facts), reused=False))
    return made


def square_frame(frame: np.ndarray, px: int) -> np.ndarray:
    """uint8 [H,W,3] -> the centre square by Pillow's bilinear, float32 [1,3,px,px] in [0,1]."""
    square = ImageOps.fit(Image.fromarray(frame), (px, px), Image.Resampling.BILINEAR)
    return to_input(np.asarray(square).transpose(2, 0, 1)[None])


def reduced_square(frame: np.ndarray, px: int) -> np.ndarray:
    """As square_frame, by the filter of the graph, which blurs less: means of k x k first."""
    image = Image.fromarray(frame)
    side = min(image.size)
    left, top, k = (image.width - side) // 2, (image.height - side) // 2, side // px
    used = side - side % k
    means = image.crop((left, top, left + used, top + used)).reduce(k)
    square = means.resize((px, px), Image.Resampling.BILINEAR)
    return to_input(np.asarray(square).transpose(2, 0, 1)[None])


def to_nv12(frames: np.ndarray) -> np.ndarray:
    """uint8 RGB [B,H,W,3] -> NV12 [B,1.5*H,W,1], BT.601 limited."""
    batch, height, width, _ = frames.shape
    yuv = (frames / 255 - _BIAS) @ np.linalg.inv(_RGB).T
    halves = yuv[..., 1:].reshape(batch, height // 2, 2, width // 2, 2, 2).mean((2, 4))
    planes = [yuv[..., 0], halves.reshape(batch, height // 2, width)]
    return np.concatenate(planes, 1).round().clip(0, 255).astype(np.uint8)[..., None]


def _cosine(exporter: Exporter, file: ExportedFile, model: onnx.ModelProto, kind: CameraInput,
            size: tuple[int, int]) -> float:
    small = exporter.run.heldout.frames[:GATE_FRAMES]
    pictures = [Image.fromarray(frame.transpose(1, 2, 0)) for frame in small]
    frames = np.stack([np.asarray(ImageOps.pad(picture, size[::-1])) for picture in pictures])
    prepared = np.concatenate([reduced_square(frame, small.shape[-1]) for frame in frames])
    expected = OnnxModel(file.path, file.spec.optimise)(prepared)
    given = frames if kind == "uint8-nhwc" else to_nv12(frames)
    return float(token_cosine(expected, OnnxModel(model, file.spec.optimise)(given)).mean())


def _shape(kind: CameraInput, height: int, width: int) -> list[int]:
    return [height, width, 3] if kind == "uint8-nhwc" else [height * 3 // 2, width, 1]


class _Prefix:
    """`nodes` to go in front of a graph, which gets their constants."""

    def __init__(self, model: onnx.ModelProto, source: str, px: int):
        self.model, self.source, self.px = model, source, px
        self.nodes: list[onnx.NodeProto] = []

    def from_rgb(self, height: int, width: int) -> str:
        planar = self.resized(self.square(self.source, height, width), min(height, width), 3)
        return self.add("Mul", [planar, self.constant(np.float32(1 / 255))])

    def from_nv12(self, height: int, width: int) -> str:
        """Y, U and V are resized before they become RGB: both steps are linear."""
        luma = self.slice(self.source, [0], [height], [1])
        pairs = self.slice(self.source, [height], [height * 3 // 2], [1])
        chroma = self.add("Reshape", [pairs, self.constant([0, height // 2, width // 2, 2])])
        side, planes = min(height, width), []
        for plane, scale in ((luma, 1), (chroma, 2)):  # U and V: two channels, half the size
            square = self.square(plane, height // scale, width // scale)
            planes.append(self.resized(square, side // scale, scale))
        joined = self.add("Concat", planes, axis=1)
        rgb = self.add("Conv", [joined, self.constant(_RGB.reshape(3, 3, 1, 1)),
                                self.constant(_BIAS)])
        return self.add("Clip", [rgb, self.constant(np.float32(0)), self.constant(np.float32(1))])

    def square(self, name: str, height: int, width: int) -> str:
        """Less the last rows and columns that fill no k x k."""
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        side -= side % max(1, side // self.px)
        return self.slice(name, [top, left], [top + side, left + side], [1, 2])

    def resized(self, name: str, side: int, channels: int) -> str:
        """uint8 [B,side,side,channels] -> float32 [B,channels,px,px]"""
        floats, k = self.add("Cast", [name], to=TensorProto.FLOAT), side // self.px
        if k > 1:
            floats = self.means(floats, side // k, k, channels)
        planar = self.add("Transpose", [floats], perm=[0, 3, 1, 2])
        sizes = self.constant([self.px, self.px])
        return self.add("Resize", [planar, "", "", sizes], mode="linear", axes=[2, 3],
                        coordinate_transformation_mode="half_pixel")

    def means(self, name: str, side: int, k: int, channels: int) -> str:
        """[B,side*k,side*k,channels] -> [B,side,side,channels], means of k x k. AveragePool takes
        several times as long on CPUs."""
        rows = self.add("Reshape", [name, self.constant([0, side, k, side * k * channels])])
        summed = self.add("ReduceSum", [rows, self.constant([2])], keepdims=0)
        runs = self.add("Reshape", [summed, self.constant([0, side, side, k * channels])])
        weights = np.tile(np.eye(channels, dtype=np.float32) / k**2, (k, 1))
        return self.add("MatMul", [runs, self.constant(weights)])

    def slice(self, name: str, start: Sequence[int], end: Sequence[int],
              axes: Sequence[int]) -> str:
        return self.add("Slice", [name, *(self.constant(each) for each in (start, end, axes))])

    def constant(self, value: Any) -> str:
        name = f"camera.constant_{len(self.model.graph.initializer)}"
        add_constant(self.model, name, np.asarray(value))
        return name

    def add(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"camera.{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name
