"""Your own videos as clips without labels: a video, a folder of videos, or of images by name."""
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import imageio_ffmpeg
import numpy as np
from PIL import ImageOps

from records.images import read_image
from scenes.clip import Clip, Split

VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"}
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
Fit = Literal["crop", "letterbox"]


@dataclass(frozen=True)
class _Shot:
    """T frames: of a video from frame `start` (at the source's rate), or images."""
    name: str
    video: Path | None
    start: int
    images: tuple[Path, ...] = ()


class VideoSource:
    """Consecutive clips of `frames` frames, `size` px square; a shorter rest is dropped.

    fps: frames a second taken from a video. fit: "crop" takes the middle square, "letterbox"
    everything, with black bars. Three or more videos are split by video (80/10/10, at least one
    each), fewer by time. Raises ValueError naming what is missing, empty, unreadable or too short.
    """

    def __init__(self, path: Path | str, frames: int = 9, size: int = 224, fps: float = 5.0,
                 fit: Fit = "crop"):
        self.path, self.frames, self.size, self.fps, self.fit = Path(path), frames, size, fps, fit
        if frames < 1 or size < 1 or fps <= 0:
            raise ValueError(f"video: got frames={frames}, size={size}, fps={fps}, not all above 0")
        if fit not in ("crop", "letterbox"):
            raise ValueError(f"video: got fit={fit!r}, expected 'crop' or 'letterbox'")
        shots = [shots for file in self._files() if (shots := list(self._cut(file)))]
        if not shots:
            raise ValueError(f"{self.path}: holds less than {frames} frames at {fps:g} a second; "
                             "use fewer, more a second, or a longer video")
        self._shots = {f"{split}/{shot.name}": shot
                       for split, part in _split(shots) for shot in part}

    def ids(self, split: Split) -> list[str]:
        return [i for i in self._shots if i.startswith(f"{split}/")]

    def clip(self, clip_id: str) -> Clip:
        if clip_id not in self._shots:
            raise ValueError(f"{self.path}: no clip {clip_id!r}; the ids are ids('train'), "
                             "ids('val') and ids('test')")
        return Clip(id=clip_id, frames=self._read(self._shots[clip_id]))

    def _files(self) -> list[Path | tuple[Path, ...]]:
        if self.path.is_file():
            return [self.path]
        if not self.path.is_dir():
            raise ValueError(f"{self.path}: no such file or folder; give a video, a folder of "
                             "videos or of images")
        inside = sorted(p for p in self.path.glob("[!.]*") if p.is_file())
        videos: list[Path | tuple[Path, ...]] = [p for p in inside if p.suffix.lower() in VIDEOS]
        images = tuple(p for p in inside if p.suffix.lower() in IMAGES)
        if not videos and not images:
            raise ValueError(f"{self.path}: holds neither videos ({' '.join(sorted(VIDEOS))}) nor "
                             f"images ({' '.join(sorted(IMAGES))})")
        return videos or [images]

    def _cut(self, file: Path | tuple[Path, ...]) -> Iterator[_Shot]:
        if isinstance(file, tuple):
            for k in range(len(file) // self.frames):
                yield _Shot(f"{self.path.name}_{k:05d}", None, 0,
                            file[k * self.frames:(k + 1) * self.frames])
            return
        count = int(_seconds(file) * self.fps + 1e-6) // self.frames
        name = file.name.replace(".", "-")
        shots = [_Shot(f"{name}_{k:05d}", file, k * self.frames) for k in range(count)]
        if shots:
            self._read(shots[-1])  # a video that is cut short fails now, not during training
        yield from shots

    def _read(self, shot: _Shot) -> np.ndarray:
        """[T,3,H,W] uint8."""
        if shot.video is None:
            return np.stack([self._image(path) for path in shot.images])
        side = f"{self.size}:{self.size}"
        aspect = "force_original_aspect_ratio"
        square = {"crop": f"scale={side}:{aspect}=increase,crop={side}",
                  "letterbox": f"scale={side}:{aspect}=decrease,pad={side}:(ow-iw)/2:(oh-ih)/2"}
        filters = f"fps={self.fps:g},{square[self.fit]},setsar=1"
        reader = imageio_ffmpeg.read_frames(
            str(shot.video), input_params=["-ss", f"{shot.start / self.fps:.4f}"],
            output_params=["-vf", filters, "-frames:v", str(self.frames)])
        try:
            next(reader)  # the facts about the video
            out = [np.frombuffer(frame, np.uint8).reshape(self.size, self.size, 3)
                   for frame in reader]
        except (OSError, RuntimeError, StopIteration) as error:
            raise ValueError(f"{shot.video}: cannot be decoded at {shot.start / self.fps:.1f} s "
                             "(cut short or damaged); copy it again") from error
        if len(out) < self.frames:
            end = (shot.start + len(out)) / self.fps
            raise ValueError(f"{shot.video}: ends at {end:.1f} s although it claims to be longer "
                             "(cut short or damaged); copy it again")
        return np.stack(out).transpose(0, 3, 1, 2).copy()

    def _image(self, path: Path) -> np.ndarray:
        image = read_image(path).convert("RGB")
        square = ImageOps.fit if self.fit == "crop" else ImageOps.pad
        return np.asarray(square(image, (self.size, self.size))).transpose(2, 0, 1)


def _seconds(video: Path) -> float:
    reader = imageio_ffmpeg.read_frames(str(video))
    try:
        return float(next(reader)["duration"])
    except (OSError, RuntimeError, StopIteration, KeyError) as error:
        raise ValueError(f"{video}: not a readable video (damaged, cut short or another format); "
                         "check that it plays, or copy it again") from error
    finally:
        reader.close()


def _split(videos: list[list[_Shot]]) -> Iterator[tuple[Split, list[_Shot]]]:
    """By video where there are three or more, else each video by time."""
    parts = [videos]
    if len(videos) < 3:
        parts = []
        for video in videos:
            parts.append([[shot] for shot in video])
    for part in parts:
        n = len(part)
        held = max(1, round(n * 0.1)) if n >= 3 else 0  # number of each held-out split
        for i, shots in enumerate(part):
            yield ("train" if i < n - 2 * held else "val" if i < n - held else "test"), shots
