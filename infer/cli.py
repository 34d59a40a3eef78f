"""`vega3d infer model.onnx photo.jpg -o out/`."""
from pathlib import Path
from typing import Annotated

import tyro

from records.ranges import Processes

Positional = tyro.conf.Positional


def infer(model: Annotated[Path, Positional], photos: Annotated[tuple[Path, ...], Positional],
          out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out"),
          threads: Processes = 0) -> None:
    """Depth, normals, features and descriptors of photos, as PNG and NPY files. Needs no torch.

    Args:
        model: an ONNX file of `vega3d export onnx` (--preset for depth, normals and descriptors);
            another's file is first run in a process with limits (VEGA3D_TRUST_ONNX=1: not)
        photos: image files; the middle square of each is used
        out: folder to write NAME_depth.png, NAME_depth.npy … to
        threads: of onnxruntime; 0: one a core
    """
    from infer.photos import infer_photos

    for line in infer_photos(model, photos, out, threads):
        print(line)


VERBS = {"": infer}
