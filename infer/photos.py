"""Photos through a model: read, run, and write its outputs as pictures and arrays."""
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from infer.model import Model
from infer.pictures import depth_colours, frame_pca_colours, normal_colours, to_bytes
from records.images import read_rgb
from records.outputs import OutputFolder, safe_name

PICTURES = ("view", "depth", "normals", "pca")
MAX_FEATURES = 1 << 24  # values of an output that is drawn by its principal components
PICTURE_PX = 448  # side of the written pictures


def infer_photos(model: Path, photos: Sequence[Path], out: Path, threads: int = 0) -> Iterator[str]:
    """Writes out/NAME_*.png and .npy for each photo and yields a line about it.

    Raises ValueError for bad input; files of earlier photos stay.
    """
    _check(photos, out, threads)
    loaded = Model(model, threads)
    folder = OutputFolder(out)
    names = [name for path in photos for name in _file_names(path.stem, loaded.outputs)]
    if len(set(names)) < len(names):
        raise ValueError(f"{model}: outputs {', '.join(loaded.outputs)} have the same file name; "
                         "rename them")
    folder.check(names, "-o")
    for path in photos:
        frame = read_photo(path, loaded.px)
        begin = time.perf_counter()
        outputs = {name: value[0] for name, value in loaded(frame[None]).items()}
        milliseconds = 1000 * (time.perf_counter() - begin)
        _write(frame, outputs, folder, path.stem)
        yield f"{path.name}: {milliseconds:.0f} ms{_depth_range(outputs)}; in {out}/{path.stem}_*"


def read_photo(path: Path, px: int) -> np.ndarray:
    """The upright photo's middle square, uint8 RGB [3,px,px].

    Raises ValueError for a file that is missing, damaged, too large or no image.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such photo")
    image = read_rgb(path, px)
    square = ImageOps.fit(image, (px, px), Image.Resampling.BICUBIC)
    return np.asarray(square).transpose(2, 0, 1)


def pictures(frame: np.ndarray, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By name, uint8 [h,w,3]: the model's input, and a picture of each output that has one."""
    drawn = {"view": frame.transpose(1, 2, 0)}
    if "depth" in outputs:
        drawn["depth"] = depth_colours(outputs["depth"][0])
    if "normals" in outputs:
        drawn["normals"] = normal_colours(outputs["normals"])
    if "colours" in outputs:
        drawn["pca"] = to_bytes(outputs["colours"])
    elif "features" in outputs and _has_axes(outputs["features"]):
        drawn["pca"] = frame_pca_colours(outputs["features"])
    return drawn


def _has_axes(features: np.ndarray) -> bool:
    """True for [D,h,w] with three principal components that take seconds, not minutes."""
    return min(len(features), features[0].size) >= 3 and features.size <= MAX_FEATURES


def _check(photos: Sequence[Path], out: Path, threads: int) -> None:
    if not photos:
        raise ValueError(
            "infer: got no photo, expected at least one: vega3d infer model.onnx photo.jpg -o out/")
    if threads < 0:
        raise ValueError(f"infer: got {threads} threads, expected 0 (one a core) or more")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder to write to")
    stems = [path.stem for path in photos]
    for stem in stems:
        if stems.count(stem) > 1:
            raise ValueError(f"infer: got two photos named {stem}, whose files would overwrite "
                             "each other; give one at a time")


def _file_names(stem: str, outputs: Sequence[str]) -> list[str]:
    """All that `_write` may write for one photo."""
    return [*(f"{stem}_{name}.png" for name in PICTURES),
            *(f"{stem}_{safe_name(name)}.npy" for name in outputs)]


def _write(frame: np.ndarray, outputs: dict[str, np.ndarray], folder: OutputFolder,
           stem: str) -> None:
    for name, picture in pictures(frame, outputs).items():
        image = Image.fromarray(picture).resize((PICTURE_PX, PICTURE_PX),
                                                Image.Resampling.BILINEAR)
        with folder.write(f"{stem}_{name}.png") as scratch:
            image.save(scratch)
    for name, value in outputs.items():
        if name != "colours":  # a picture, not a measurement
            with folder.write(f"{stem}_{safe_name(name)}.npy") as scratch:
                np.save(scratch, value[0] if value.shape[0] == 1 else value)


def _depth_range(outputs: dict[str, np.ndarray]) -> str:
    if "depth" not in outputs:
        return ", no depth in this model (export with --preset web)"
    depth = outputs["depth"]
    return f", depth {depth.min():.1f} to {depth.max():.1f} m"
