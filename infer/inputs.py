"""The arguments of `vega3d infer` as a model, photos and videos, and the camera of each."""
from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from infer.model import SHIPPED
from records.ffmpeg import VIDEOS
from records.files import regular_file
from records.images import IMAGES, size_and_focal
from records.outputs import OutputFolder, safe_name

SHORTEST, LONGEST = 0.1, 20.0  # focal lengths over a square's side: 157 and 3 degrees
ASSUMED = 1.0  # focal length over a square's side: 53 degrees, a phone's main camera (26 mm)


class WrongFocal(ValueError):
    """--focal is none that a lens has for a picture of this size; it may be for others."""


@dataclass(frozen=True)
class Input:
    """A photo or a video; files that are written for it begin with its name."""
    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


@dataclass(frozen=True)
class Focal:
    """A focal length in px of the model's square input, and where it comes from."""
    px: float
    source: str


def split_arguments(given: Sequence[Path]) -> tuple[Path, list[Input]]:
    """[MODEL.onnx] PHOTO|FOLDER|VIDEO… -> the model (the shipped one without) and what is in them.
    """
    models = [path for path in given if path.suffix.lower() == ".onnx"]
    if len(models) > 1:
        raise ValueError(f"infer: got two models, {models[0]} and {models[1]}; give one at a time")
    paths = [found for path in given if path not in models for found in _files(path)]
    if not paths:
        raise ValueError("infer: got no photo, expected at least one: vega3d infer photo.jpg -o "
                         "out/")
    if not models and not SHIPPED.is_file():
        raise ValueError(f"infer: no model is given, and {SHIPPED} is not in this installation; "
                         "give an .onnx file of: vega3d export onnx --preset edge")
    return (models or [SHIPPED])[0], list(_named(paths))


def focal_of_photo(path: Path, px: int, given: float | None) -> Focal:
    """Of the middle square at `px`. given: of the picture as it is stored, in its own px."""
    width, height, exif = size_and_focal(path)
    return focal_of_square(min(width, height), px, given, exif)


def focal_of_square(side: int, px: int, given: float | None, exif: float | None = None) -> Focal:
    """side: px of the square before it was scaled to `px`. Raises WrongFocal for a given one that
    no lens has, such as millimetres."""
    if given and side and not SHORTEST <= given / side <= LONGEST:
        degrees = 2 * math.degrees(math.atan(0.5 * side / given))
        raise WrongFocal(f"--focal: {given:g} px is {degrees:.0f} degrees across the shorter side "
                         f"of {side} px; expected {SHORTEST * side:g} to {LONGEST * side:g}, in px "
                         "of the picture, not in mm")
    for focal, source in ((given, "--focal"), (exif, "EXIF")):
        if focal and side:
            return Focal(focal * px / side, source)
    degrees = 2 * math.degrees(math.atan(0.5 / ASSUMED))
    return Focal(ASSUMED * px, f"assumed: {degrees:.0f} degrees across; --focal PX gives it")


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [regular_file(path)]  # of several photos a missing one is said before the first
    ours = OutputFolder(path).written  # by an earlier `-o` of the same folder
    inside = sorted(p for p in path.glob("[!.]*") if not p.is_dir() and p.name not in ours)
    found = [p for p in inside if p.suffix.lower() in IMAGES | VIDEOS]
    if not found:
        raise ValueError(f"{path}: holds neither photos ({' '.join(sorted(IMAGES))}) nor videos "
                         f"({' '.join(sorted(VIDEOS))})")
    if others := [p.name for p in inside if p not in found]:
        print(f"note: {path}: left out {len(others)} other files, such as {others[0]}",
              file=sys.stderr)
    return found


def _named(paths: Sequence[Path]) -> Iterator[Input]:
    """By stem; those that share one, such as IMG_1.jpg and IMG_1.mov, by their whole name."""
    stems = Counter(path.stem for path in paths)
    names: set[str] = set()
    for path in paths:
        name = path.stem if stems[path.stem] == 1 else safe_name(path.name.replace(".", "_"))
        if name in names:
            raise ValueError(f"infer: got two photos named {path.stem}, whose files would "
                             "overwrite each other; give one at a time")
        names.add(name)
        yield Input(path, name)
