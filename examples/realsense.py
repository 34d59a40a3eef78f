"""The model's depth beside that of an Intel RealSense: how far apart they are, frame by frame.

    pip install pyrealsense2 && python realsense.py --frames 100

Needs this package's core. The sensor's depth is registered to colour before it is compared.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from infer.model import SHIPPED, Model

WIDTH, HEIGHT, FPS = 640, 480, 30


def compare(depth: np.ndarray, sensor: np.ndarray) -> dict[str, float]:
    """depth, sensor: metres [h,w]; 0 in sensor: unknown. AbsRel, delta1 and the median ratio."""
    valid = sensor > 0
    if not valid.any():
        return {"abs_rel": float("nan"), "delta1": float("nan"), "ratio": float("nan")}
    a, b = depth[valid], sensor[valid]
    return {"abs_rel": float((np.abs(a - b) / b).mean()), "ratio": float(np.median(a / b)),
            "delta1": float((np.maximum(a / b, b / a) < 1.25).mean())}


def middle_cells(values: np.ndarray, side: int) -> np.ndarray:
    """The values at the middle of each of side x side cells of the middle square: no mixing of near
    and far."""
    height, width = values.shape
    square = min(height, width)
    at = ((np.arange(side) + 0.5) * square / side).astype(int)
    return values[np.ix_((height - square) // 2 + at, (width - square) // 2 + at)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=SHIPPED, help="of vega3d export onnx")
    parser.add_argument("--frames", type=int, default=100)
    given = parser.parse_args()
    try:
        run(Model(given.model), given.frames)
    except (ImportError, RuntimeError, ValueError) as error:  # RuntimeError: pyrealsense2's
        sys.exit(f"realsense.py: {error}")


def run(model: Model, count: int) -> None:
    """Prints a line for each frame and the means at the end."""
    import pyrealsense2 as rs

    pipeline, config, align = rs.pipeline(), rs.config(), rs.align(rs.stream.color)
    config.enable_stream(rs.stream.color, WIDTH, HEIGHT, rs.format.rgb8, FPS)
    config.enable_stream(rs.stream.depth, WIDTH, HEIGHT, rs.format.z16, FPS)
    profile = pipeline.start(config)
    try:
        metres = profile.get_device().first_depth_sensor().get_depth_scale()
        stream = profile.get_stream(rs.stream.color).as_video_stream_profile()
        focal = stream.get_intrinsics().fx * model.px / min(WIDTH, HEIGHT)
        rows = []
        for i in range(count):
            frames = align.process(pipeline.wait_for_frames())
            colour = np.asanyarray(frames.get_color_frame().get_data())
            sensor = np.asanyarray(frames.get_depth_frame().get_data()) * metres
            square = ImageOps.fit(Image.fromarray(colour), (model.px, model.px),
                                  Image.Resampling.BICUBIC)
            began = time.perf_counter()
            depth = model(np.asarray(square).transpose(2, 0, 1)[None], focal)["depth"][0, 0]
            row = {"ms": 1000 * (time.perf_counter() - began),
                   **compare(depth, middle_cells(sensor, len(depth)))}
            rows.append(row)
            print(f"{i:4}: {_line(row)}")
        print(f"mean: {_line({key: float(np.nanmean([row[key] for row in rows])) for key in row})}")
    finally:
        pipeline.stop()


def _line(row: dict[str, float]) -> str:
    return (f"{row['ms']:.0f} ms, AbsRel {row['abs_rel']:.3f}, delta1 {row['delta1']:.3f}, model / "
            f"sensor {row['ratio']:.2f}")


if __name__ == "__main__":
    main()
