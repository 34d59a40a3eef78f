"""Photos through a model, and what comes out written down."""
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from infer.model import Model
from infer.pictures import depth_colours, normal_colours, own_colours, to_bytes
from records.files import atomic_write

SHOWN_PX = 448  # side of the pictures


def infer_photos(model: Path, photos: Sequence[Path], out: Path, threads: int = 0) -> Iterator[str]:
    """Writes out/NAME_*.png and .npy for each photo and yields a line about it. Raises ValueError
    for bad input; what was written before it stays."""
    if not photos:
        raise ValueError(
            "infer: got no photo, expected at least one: vega3d infer model.onnx photo.jpg -o out/")
    if threads < 0:
        raise ValueError(f"infer: got {threads} threads, expected 0 (one a core) or more")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder to write to")
    stems = [path.stem for path in photos]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise ValueError(
            f"infer: got two photos called {twice}, whose answers would have one name; give one at "
            "a time"
        )
    loaded = Model(model, threads)
    for path in photos:
        frame = read_photo(path, loaded.px)
        begin = time.perf_counter()
        answers = {name: value[0] for name, value in loaded(frame[None]).items()}
        took = time.perf_counter() - begin
        for name, picture in pictures(frame, answers).items():
            with atomic_write(out / f"{path.stem}_{name}.png") as scratch:
                shown = Image.fromarray(picture).resize((SHOWN_PX, SHOWN_PX),
                                                        Image.Resampling.BILINEAR)
                shown.save(scratch)
        for name, value in answers.items():
            if name != "colours":  # a picture, not a measurement
                with atomic_write(out / f"{path.stem}_{name}.npy") as scratch:
                    np.save(scratch, value[0] if value.shape[0] == 1 else value)
        yield f"{path.name}: {took * 1000:.0f} ms{_depth_line(answers)}; in {out}/{path.stem}_*"


def pictures(frame: np.ndarray, answers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """uint8 [h,w,3] each: the frame as the model saw it, and what the answers allow."""
    drawn = {"view": frame.transpose(1, 2, 0)}
    if "depth" in answers:
        drawn["depth"] = depth_colours(answers["depth"][0])
    if "normals" in answers:
        drawn["normals"] = normal_colours(answers["normals"])
    if "colours" in answers:
        drawn["pca"] = to_bytes(answers["colours"])
    elif "features" in answers:
        drawn["pca"] = own_colours(answers["features"])
    return drawn


def _depth_line(answers: dict[str, np.ndarray]) -> str:
    if "depth" not in answers:
        return ", no depth in this model (export with --preset web)"
    depth = answers["depth"]
    return f", depth {depth.min():.1f} to {depth.max():.1f} m"


MOST_PIXELS = 250_000_000      # a phone's 200 million and some; 0.75 GB once decoded
# Pillow's own limit is lower than a phone's, and ours is checked before any decoding
Image.MAX_IMAGE_PIXELS = None


def read_photo(path: Path, px: int) -> np.ndarray:
    """uint8 RGB [3,px,px]. Raises ValueError, in one line, for a file that is missing, broken, huge
    or no picture."""
    if not path.is_file():
        raise ValueError(f"{path}: no such photo")
    try:
        image: Image.Image = Image.open(path)
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{path}: got {image.width} x {image.height} px, expected at most "
                             f"{MOST_PIXELS // 1_000_000} million; make it smaller")
        image.draft("RGB", (2 * px, 2 * px))  # a JPEG is decoded no larger than needed
        image = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not a whole picture ({' '.join(str(error).split())})") from error
    square = ImageOps.fit(image, (px, px), Image.Resampling.BICUBIC)
    return np.asarray(square).transpose(2, 0, 1)
