"""Depth of a photo and matches in a second one, by an exported model, without this repository.

python geometry.py model.onnx first.jpg second.jpg [FOCAL]

FOCAL: of the camera, in px of a photo of 224 px (width of the square in px: times 224 over it).
"""
import os
import sys

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import
import onnxruntime as ort
from PIL import Image, ImageOps


def preprocess(path: str, side: int = 224) -> np.ndarray:
    """[1,3,side,side] float32 in [0,1]: the middle square. The model normalises it."""
    photo = ImageOps.exif_transpose(Image.open(path))
    if photo.mode[0] in "IF":
        raise SystemExit(f"{path}: has more than 8 bits a channel; convert it first")
    colours = Image.new("RGBA", photo.size, "white")
    colours.alpha_composite(photo.convert("RGBA"))
    square = ImageOps.fit(colours.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
    return np.asarray(square, np.float32).transpose(2, 0, 1)[None] / 255


def run(session: ort.InferenceSession, frames: np.ndarray) -> dict[str, np.ndarray]:
    """Every output by its name, without the batch dimension."""
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {"frames": frames})
    return {name: value[0] for name, value in zip(names, values)}


def match(first: np.ndarray, second: np.ndarray, x: float, y: float) -> tuple[float, float, float]:
    """(x, y, cosine) in the second view of the point (x, y) of the first, x and y in [0,1]; by
    descriptors [C,h,w]."""
    _, h, w = first.shape
    descriptor = first[:, min(int(y * h), h - 1), min(int(x * w), w - 1)]
    cosine = np.tensordot(descriptor, second, 1)  # [h,w]
    row, column = np.unravel_index(cosine.argmax(), cosine.shape)
    return (column + 0.5) / w, (row + 0.5) / h, float(cosine.max())


def main(model: str, first: str, second: str, focal: str = "") -> None:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    one, two = (run(session, preprocess(path)) for path in (first, second))
    canonical = session.get_modelmeta().custom_metadata_map.get("canonical_focal")
    scale = float(focal) / float(canonical) if focal and canonical else 1.0
    depth, middle = scale * one["depth"][0], one["depth"].shape[-1] // 2
    if canonical and not focal:
        print(f"no focal length was given; {canonical} px is assumed")
    print(f"depth {depth.min():.2f} to {depth.max():.2f} m, middle {depth[middle, middle]:.2f} m")
    centre = one["normals"].shape[-1] // 2
    nx, ny, nz = one["normals"][:, centre, centre]
    print(f"the surface in the middle faces ({nx:+.2f}, {ny:+.2f}, {nz:+.2f})")
    for x, y in ((0.25, 0.25), (0.5, 0.5), (0.75, 0.75)):
        u, v, cosine = match(one["descriptors"], two["descriptors"], x, y)
        print(f"({x:.2f}, {y:.2f}) is at ({u:.2f}, {v:.2f}) in the second, cosine {cosine:.2f}")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
