"""`vega3d infer photo.jpg -o out/`."""
from pathlib import Path
from typing import Annotated, Optional

import tyro

from records.options import FocalPx, Processes
from records.outputs import printable

Positional = tyro.conf.Positional


def infer(inputs: Annotated[tuple[Path, ...], Positional],
          out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out"),
          focal: Optional[FocalPx] = None, ply: bool = False, matches: bool = False,
          steady: bool = True, threads: Processes = 0) -> None:
    """Depth, normals, features and descriptors of photos and videos. Needs no torch.

    A photo gives PNG and NPY files, a video an MP4 of frame, depth and normals side by side; depth
    is also written as 16-bit PNG in millimetres.

    Args:
        inputs: [MODEL.onnx] PHOTO|FOLDER|VIDEO…; the middle square of each picture is used.
            MODEL.onnx: a file of `vega3d export onnx --preset edge` (another's is first run in a
            process with limits; VEGA3D_TRUST_ONNX=1: not); without one the shipped model
        out: folder to write NAME_depth.png, NAME_depth.npy … to
        focal: focal length of the camera, in px of the pictures as they are; default: by EXIF, else
            assumed, which is then said
        ply: also write NAME.ply, coloured points in metres
        matches: of two photos, also write the matching points, drawn and as numbers
        steady: of videos: depth follows the camera's motion and is averaged over the last frames
        threads: of onnxruntime, at most one a core; 0: one a core
    """
    from infer.photos import Options, infer_all

    for line in infer_all(inputs, out, Options(threads, focal, ply, matches, steady)):
        print(printable(line, 1000))  # a photo's name may hold an escape sequence


VERBS = {"": infer}
