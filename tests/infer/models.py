"""A model of a few nodes with known outputs, and the command that runs it."""
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from PIL import Image

import vega3d
from tests.onnx_graphs import infer_model, value

DEPTH_M = 5.0  # of white; black is at 1 m


def pooling_model(path: Path, canonical: str | None = None,
                  outputs=("depth", "descriptors")) -> Path:
    """depth [1,1,56,56]: 1 m + red * 5 m of 4x4 px; descriptors [1,3,28,28]: colours of 8x8 px."""
    make, shapes = helper.make_node, {"depth": (1, 1, 56, 56), "descriptors": (1, 3, 28, 28)}
    nodes = [make("AveragePool", ["frames"], ["coarse"], kernel_shape=[4, 4], strides=[4, 4]),
             make("Conv", ["coarse", "red", "one"], ["depth"]),
             make("AveragePool", ["frames"], ["descriptors"], kernel_shape=[8, 8], strides=[8, 8])]
    red = np.array([DEPTH_M, 0, 0], np.float32).reshape(1, 3, 1, 1)
    model = infer_model(nodes, {"red": red, "one": np.ones(1, np.float32)},
                        outputs=[value(name, shapes[name]) for name in outputs],
                        metadata={} if canonical is None else {"canonical_focal": canonical})
    onnx.save(model, path)
    return path


def photo(path: Path, size=(400, 300), **options) -> Path:
    """Red grows from left to right, green from top to bottom."""
    rows, columns = np.mgrid[:size[1], :size[0]]
    pixels = np.stack([255 * columns / size[0], 255 * rows / size[1], 0 * rows], -1)
    Image.fromarray(pixels.astype(np.uint8)).save(path, **options)
    return path


def run_infer(capsys, *args) -> tuple[int, str]:
    """The exit code, and what was printed: on stdout if it is 0, else on stderr."""
    try:
        vega3d.main([str(each) for each in ("infer", *args)])
        return 0, capsys.readouterr().out
    except SystemExit as stopped:
        return int(stopped.code or 0), capsys.readouterr().err
