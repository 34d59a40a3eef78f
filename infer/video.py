"""A video through a model: a side-by-side MP4 and its depth as 16-bit pictures."""
from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from infer.geometry import depth_mm
from infer.inputs import Input, focal_of_square
from infer.model import Model
from infer.photos import depth_folder, describe, pictures
from infer.pictures import resized
from infer.steady import Steady
from records.ffmpeg import VideoWriter, middle_squares, probe
from records.files import naming, remove_stale_scratch
from records.outputs import OutputFolder

SHOWN = ("view", "depth", "normals")


def infer_video(model: Model, given: Input, folder: OutputFolder, focal_px: float | None,
                steady: bool) -> str:
    """Writes NAME.mp4 and NAME_depth_mm/000000.png … into the folder; returns a line about it.

    steady: each frame's depth together with that of the frames before it (infer.steady).
    """
    depths = depth_folder(folder, given)
    remove_stale_scratch(depths.folder)
    facts = probe(given.path)
    focal = focal_of_square(facts.shorter_px, model.px, focal_px)
    fps = min(facts.fps, 60.0)
    filtered = Steady(focal.px, model.px) if steady else dict
    count, begin = 0, time.perf_counter()
    shown = [name for name in SHOWN if name == "view" or name in model.outputs]
    with TemporaryDirectory(prefix="vega3d-depth-") as scratch:
        with folder.write(f"{given.name}.mp4") as video, VideoWriter(video, fps) as writer:
            for count, frame in enumerate(middle_squares(given.path, model.px, fps), 1):
                outputs = {name: value[0] for name, value in model(frame[None], focal.px).items()}
                outputs = filtered(outputs)
                drawn = pictures(frame, outputs)
                writer.write(np.concatenate([resized(drawn[name]) for name in shown], 1))
                with naming(Path(scratch)):  # which may be on another disk
                    Image.fromarray(depth_mm(outputs["depth"][0])).save(
                        Path(scratch) / f"{count - 1:06d}.png")
        depths.replace_with(Path(scratch), "-o")
    milliseconds = 1000 * (time.perf_counter() - begin) / count
    notes = "".join(f", {note}" for note in facts.notes)
    used = describe(focal, model.px) if model.canonical_focal else ""
    return (f"{given.path.name}: {count} frames, {milliseconds:.0f} ms each{used}{notes}; in "
            f"{folder.folder}/{given.name}.mp4 and {depths.folder.name}/")
