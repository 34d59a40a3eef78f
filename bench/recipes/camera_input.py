"""A camera's frame, host to host: prepared by Pillow and NumPy, or inside the graph. `python -m
bench.recipes.camera_input MODEL.onnx` writes bench/results/camera_cpu.json. Timed frames are noise,
which no resize can skip; the cosine is of smooth pictures with a noise of 10 levels."""
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from PIL import Image
from tyro.conf import Positional

from bench.device import device_facts
from export.camera import square_frame, with_camera_input
from export.graph.session import OnnxModel
from export.openvino import OpenVinoModel
from export.parity import token_cosine
from records.results import Row, measured, save
from records.timing import time_interleaved
from vega3d import run_recipe

SIZES = ((480, 640), (720, 1280), (1080, 1920))
LOADERS: dict[str, Callable[[Path], Callable[[np.ndarray], np.ndarray]]] = {
    "onnxruntime": lambda model: OnnxModel(model, optimise=True), "OpenVINO": OpenVinoModel}


def rows_of(path: Path, size: tuple[int, int], folder: Path) -> list[Row]:
    """folder: for the file with this size's input."""
    camera = folder / f"{path.stem}.{size[0]}.onnx"
    onnx.save(with_camera_input(onnx.load(path), "uint8-nhwc", *size), camera)
    rng, rows = np.random.default_rng(0), []
    noise = rng.integers(0, 256, (*size, 3), np.uint8)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    smooth = np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC), np.float32)
    picture = (smooth + rng.normal(0, 10, smooth.shape)).clip(0, 255).astype(np.uint8)
    for runtime, load in LOADERS.items():
        plain, inside = load(path), load(camera)
        cosine = token_cosine(plain(square_frame(picture, 224)), inside(picture[None])).mean()
        present, graph, preparing = time_interleaved([
            partial(_prepared, plain, noise), partial(inside, noise[None]),
            partial(square_frame, noise, 224)])
        rows.append({"artefact": path.name, "runtime": runtime, "height": size[0],
                     "width": size[1], "prepare_ms": preparing, "present_ms": present,
                     "in_graph_ms": graph, "saved": 1 - graph / present, "cosine_mean": cosine})
    return rows


def _prepared(model: Callable[[np.ndarray], np.ndarray], frame: np.ndarray) -> np.ndarray:
    return model(square_frame(frame, 224))


def main(model: Positional[Path], out: Path = Path("bench/results/camera_cpu.json")) -> None:
    with TemporaryDirectory() as scratch:
        rows = [row for size in SIZES for row in rows_of(model, size, Path(scratch))]
    save(measured("camera_cpu", rows, device_facts()), out)


if __name__ == "__main__":
    run_recipe(main)
