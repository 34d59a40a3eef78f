"""Depth of a photo, and where its places are in a second one: an exported model without this
repository.

python geometry.py model.onnx first.jpg second.jpg
"""
import sys

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageOps


def load(path: str) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def frame(path: str, side: int = 224) -> np.ndarray:
    """[1,3,side,side] float32 in [0,1]: the middle square; the model normalises by itself."""
    photo = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    square = ImageOps.fit(photo, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(square, np.float32).transpose(2, 0, 1)[None] / 255


def look(session: ort.InferenceSession, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Every output by its name, without the batch."""
    names = [output.name for output in session.get_outputs()]
    return {
        name: value[0]
        for name, value in zip(names, session.run(names, {"frames": pixels}), strict=True)
    }


def same_place(first: np.ndarray, second: np.ndarray, x: float,
               y: float) -> tuple[float, float, float]:
    """Descriptors [C,h,w] of two views; (x, y) from 0 to 1 in the first -> (x, y, likeness) in the
    second."""
    _, h, w = first.shape
    asked = first[:, min(int(y * h), h - 1), min(int(x * w), w - 1)]
    likeness = np.tensordot(asked, second, 1)  # [h,w]
    row, column = np.unravel_index(likeness.argmax(), likeness.shape)
    return (column + 0.5) / w, (row + 0.5) / h, float(likeness.max())


def main(model: str, first: str, second: str) -> None:
    session = load(model)
    one, two = (look(session, frame(path)) for path in (first, second))
    depth, side = one["depth"][0], one["depth"].shape[-1]
    print(
        f"depth {depth.min():.2f} to {depth.max():.2f} m, middle {depth[side // 2, side // 2]:.2f} "
        "m"
    )
    nx, ny, nz = one["normals"][:, side // 2, side // 2]
    print(f"the surface in the middle faces ({nx:+.2f}, {ny:+.2f}, {nz:+.2f})")
    for x, y in ((0.25, 0.25), (0.5, 0.5), (0.75, 0.75)):
        u, v, likeness = same_place(one["descriptors"], two["descriptors"], x, y)
        print(f"({x:.2f}, {y:.2f}) is at ({u:.2f}, {v:.2f}) in the second, likeness {likeness:.2f}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
