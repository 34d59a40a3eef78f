"""Images as arrays, and what a picture's middle square does to its camera. Needs numpy, Pillow."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

CHANNELS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0),
            "mono8": (0, 0, 0)}
SIZES = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}


@dataclass(frozen=True)
class Camera:
    """A pinhole camera, in px of a picture whose first pixel's middle is (0, 0)."""
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    def of_middle_square(self, side: int) -> Camera:
        """The camera of this picture's middle square, scaled to `side` px."""
        square = min(self.width, self.height)
        scale = side / square
        x, y = (self.width - square) / 2, (self.height - square) / 2
        return Camera(side, side, self.fx * scale, self.fy * scale,
                      (self.cx - x + 0.5) * scale - 0.5, (self.cy - y + 0.5) * scale - 0.5)


def assumed(width: int, height: int) -> Camera:
    """53 degrees across the shorter side, as `vega3d infer` assumes."""
    focal = float(min(width, height))
    return Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)


def pixels(data: bytes, encoding: str, width: int, height: int, step: int) -> np.ndarray:
    """uint8 RGB [height,width,3] of a sensor_msgs/Image. Raises ValueError for others."""
    if encoding not in CHANNELS:
        raise ValueError(f"got an image of encoding {encoding!r}, expected one of "
                         f"{', '.join(CHANNELS)}; convert it, for example with image_proc")
    size = SIZES[encoding]
    if step < width * size or len(data) < step * height or not width * height:
        raise ValueError(f"got {len(data)} bytes for {width} x {height} px of {encoding} with "
                         f"rows of {step}")
    rows = np.frombuffer(data, np.uint8, step * height).reshape(height, step)
    return rows[:, :width * size].reshape(height, width, size)[..., CHANNELS[encoding]]


def middle_square(picture: np.ndarray, side: int) -> np.ndarray:
    """uint8 [h,w,3] -> [3,side,side]."""
    square = ImageOps.fit(Image.fromarray(np.ascontiguousarray(picture)), (side, side),
                          Image.Resampling.BICUBIC)
    return np.asarray(square).transpose(2, 0, 1)


def points(depth: np.ndarray, colours: np.ndarray, camera: Camera) -> np.ndarray:
    """depth [h,w] in metres, colours uint8 [h,w,3] -> float32 [h,w,4]: x right, y down, z ahead and
    the colour as RViz reads it, 0xRRGGBB in a float's bits."""
    rows, columns = np.mgrid[:depth.shape[0], :depth.shape[1]]
    x, y = (columns - camera.cx) / camera.fx * depth, (rows - camera.cy) / camera.fy * depth
    red, green, blue = (colours[..., i].astype(np.uint32) for i in range(3))
    rgb = (red << 16 | green << 8 | blue).view(np.float32)
    return np.stack([x, y, depth, rgb], -1, dtype=np.float32)
