"""Photos and videos through a model: read, run, and write its outputs as pictures and arrays."""
from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from infer.geometry import depth_mm, match_picture, mutual_matches, write_ply
from infer.inputs import Focal, Input, WrongFocal, focal_of_photo, split_arguments
from infer.model import Model
from infer.pictures import depth_colours, frame_pca_colours, grey, normal_colours, resized, to_bytes
from records.ffmpeg import program
from records.files import Unreadable, prepare_folder
from records.images import read_rgb
from records.outputs import OutputFolder, printable, safe_name

PICTURES = ("view", "depth", "confidence", "normals", "pca")
MATCHED = ("descriptors", "features")  # outputs that are matched, the first of them that is there
PRESET = "use a file of a preset: vega3d export onnx --preset edge"
MAX_FEATURES = 1 << 24  # values of an output that is drawn by its principal components
Outputs = dict[str, np.ndarray]
View = tuple[str, np.ndarray, Outputs]  # name, frame, outputs of a photo


@dataclass(frozen=True)
class Options:
    """focal: px of the pictures as they are stored; None: by EXIF, or assumed."""
    threads: int = 0
    focal: float | None = None
    ply: bool = False
    matches: bool = False
    steady: bool = True


def infer_all(given: Sequence[Path], out: Path, options: Options = Options()) -> Iterator[str]:
    """Writes out/NAME_* for each photo and video of [MODEL.onnx] PHOTO|FOLDER|VIDEO…, and yields a
    line about it. One of several that cannot be read, or that options.focal does not fit, is named
    on stderr, and the others are done. Raises ValueError for bad input, of such ones at the end;
    files of other photos stay."""
    model_file, inputs = split_arguments(given)
    model, folder = Model(model_file, options.threads), OutputFolder(out)
    _check(model, inputs, folder, options)
    prepare_folder(out)
    views: list[View] = []
    failed = 0
    for each in inputs:
        try:
            if each.is_video:
                from infer.video import infer_video

                line = infer_video(model, each, folder, options.focal, options.steady)
            else:
                line, view = _infer_photo(model, each, folder, options)
                views.append(view)
        except (Unreadable, WrongFocal, OSError, MemoryError) as error:
            of_input = not isinstance(error, OSError) or str(error.filename) == str(each.path)
            if not of_input or len(inputs) == 1:
                raise
            failed += 1
            reason = str(getattr(error, "strerror", error)) or "out of memory; make it smaller"
            reason = reason if isinstance(error, Unreadable) else f"{each.path}: {reason}"
            print(f"vega3d: {printable(reason, 1000)}", file=sys.stderr)
        else:
            yield line
    if failed:
        raise ValueError(f"infer: {failed} of {len(inputs)} photos and videos failed; they are "
                         "named above")
    if options.matches:
        yield _write_matches(views, folder)


def _infer_photo(model: Model, given: Input, folder: OutputFolder,
                 options: Options) -> tuple[str, View]:
    """Writes NAME_* into the folder; returns a line about it, and what matches are made of."""
    frame = read_photo(given.path, model.px)
    focal = focal_of_photo(given.path, model.px, options.focal)
    begin = time.perf_counter()
    outputs = {name: value[0] for name, value in model(frame[None], focal.px).items()}
    milliseconds = 1000 * (time.perf_counter() - begin)
    _write(frame, outputs, folder, given.name)
    if options.ply:
        with folder.write(f"{given.name}.ply") as scratch:
            write_ply(scratch, frame, outputs["depth"][0], focal.px)
    used = options.ply or (model.canonical_focal and "depth" in outputs)
    line = (f"{given.path.name}: {milliseconds:.0f} ms{_depth_range(outputs)}"
            f"{describe(focal, model.px) if used else ''}; in {folder.folder}/{given.name}_*")
    return line, (given.name, frame, outputs)


def read_photo(path: Path, px: int) -> np.ndarray:
    """The upright photo's middle square, uint8 RGB [3,px,px]."""
    image = read_rgb(path, px)
    square = ImageOps.fit(image, (px, px), Image.Resampling.BICUBIC)
    return np.asarray(square).transpose(2, 0, 1)


def describe(focal: Focal, px: int) -> str:
    return f", focal length {focal.px:.0f} px of {px} ({focal.source})"


def pictures(frame: np.ndarray, outputs: Outputs) -> Outputs:
    """By name, uint8 [h,w,3]: the model's input, and a picture of each output that has one."""
    drawn = {"view": frame.transpose(1, 2, 0)}
    if "depth" in outputs:
        drawn["depth"] = depth_colours(outputs["depth"][0])
    if "confidence" in outputs:
        drawn["confidence"] = grey(outputs["confidence"][0])
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


def depth_folder(folder: OutputFolder, video: Input) -> OutputFolder:
    """Of 16-bit pictures, one a frame."""
    return OutputFolder(folder.folder / f"{video.name}_depth_mm")


def _check(model: Model, inputs: Sequence[Input], folder: OutputFolder, options: Options) -> None:
    """Raises ValueError or FileExistsError for what is known before the first one is read."""
    videos = [each for each in inputs if each.is_video]
    if options.matches and (videos or len(inputs) != 2):
        raise ValueError(f"--matches: got {len(inputs) - len(videos)} photos and {len(videos)} "
                         "videos, expected two photos")
    if options.ply and videos:
        raise ValueError("--ply: is for photos, got a video; give one of its frames")
    if (options.ply or videos) and "depth" not in model.outputs:
        raise ValueError(f"{videos[0].path if videos else '--ply'}: {model.path} has no depth; "
                         f"{PRESET}")
    if options.matches and not {*MATCHED} & {*model.outputs}:
        raise ValueError(f"--matches: {model.path} has no descriptors; {PRESET}")
    names = [name for each in inputs for name in _file_names(each, model.outputs, options)]
    if len(set(names)) < len(names):
        raise ValueError(f"{model.path}: outputs {', '.join(model.outputs)} have the same file "
                         "name; rename them")
    if options.matches:
        names += _match_names(*(each.name for each in inputs))
    folder.check(names, "-o")
    for each in videos:
        depths = depth_folder(folder, each)
        depths.check((path.name for path in depths.folder.glob("*.png")), "-o")
    if videos:
        program()


def _match_names(one: str, two: str) -> list[str]:
    return [f"{one}_{two}_matches{suffix}" for suffix in (".png", ".npy")]


def _file_names(given: Input, outputs: Sequence[str], options: Options) -> list[str]:
    """All that may be written into the folder for one photo or video."""
    stem = given.name
    if given.is_video:
        return [f"{stem}.mp4"]
    points = [f"{stem}.ply"] if options.ply else []
    return [*(f"{stem}_{name}.png" for name in PICTURES), f"{stem}_depth_mm.png", *points,
            *(f"{stem}_{safe_name(name)}.npy" for name in outputs)]


def _write(frame: np.ndarray, outputs: Outputs, folder: OutputFolder, stem: str) -> None:
    for name, picture in pictures(frame, outputs).items():
        with folder.write(f"{stem}_{name}.png") as scratch:
            Image.fromarray(resized(picture)).save(scratch)
    for name, value in outputs.items():
        if name != "colours":  # a picture, not a measurement
            with folder.write(f"{stem}_{safe_name(name)}.npy") as scratch:
                np.save(scratch, value[0] if value.shape[0] == 1 else value)
    if "depth" in outputs:
        with folder.write(f"{stem}_depth_mm.png") as scratch:
            Image.fromarray(depth_mm(outputs["depth"][0])).save(scratch)


def _write_matches(views: Sequence[View], folder: OutputFolder) -> str:
    """views: of two photos."""
    (one, first, a), (two, second, b) = views
    name = next(name for name in MATCHED if name in a)
    pairs = mutual_matches(a[name], b[name])
    picture, numbers = _match_names(one, two)
    with folder.write(picture) as scratch:
        Image.fromarray(match_picture(first, second, pairs)).save(scratch)
    with folder.write(numbers) as scratch:
        np.save(scratch, pairs)
    return f"{len(pairs)} mutual matches of {name}; in {folder.folder}/{picture}"


def _depth_range(outputs: Outputs) -> str:
    if "depth" not in outputs:
        return ", no depth in this model (export with --preset edge)"
    depth = outputs["depth"]
    return f", depth {depth.min():.1f} to {depth.max():.1f} m"
