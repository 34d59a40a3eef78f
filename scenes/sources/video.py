"""Your own videos as clips without labels: a video, a picture, or a folder of videos or images."""
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ImageOps

from records.ffmpeg import VIDEOS, VideoFacts, decode, probe
from records.images import IMAGES, read_rgb
from scenes.clip import Clip, Split

Fit = Literal["crop", "letterbox"]


@dataclass(frozen=True)
class _Shot:
    """T frames: of a video from `seek` seconds on, by a filter that takes them, or images."""
    name: str
    video: Path | None = None
    seek: float = 0.0
    rate: str = ""
    images: tuple[Path, ...] = ()


class VideoSource:
    """Consecutive clips of `frames` frames, `size` px square; a shorter rest is dropped.

    fps: frames a second taken from a video, or all of one that has fewer. fit: "crop" takes the
    middle square, "letterbox" everything, with black bars. Three or more videos are split by video
    (80/10/10, at least one each), fewer by time. Notes on stderr say what a video lacks.
    """

    def __init__(self, path: Path | str, frames: int = 9, size: int = 224, fps: float = 5.0,
                 fit: Fit = "crop"):
        self.path, self.frames, self.size, self.fps, self.fit = Path(path), frames, size, fps, fit
        if frames < 1 or size < 1 or fps <= 0:
            raise ValueError(f"video: got frames={frames}, size={size}, fps={fps}, not all above 0")
        if fit not in ("crop", "letterbox"):
            raise ValueError(f"video: got fit={fit!r}, expected 'crop' or 'letterbox'")
        self.as_first = True  # frames are those of the first reader, whose stores lack a version
        files = self._files()
        self.paths: list[Path] = []  # of the files that are read
        for file in files:
            self.paths += [file] if isinstance(file, Path) else file
        shots = [shots for file in files if (shots := list(self._cut(file)))]
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
            return [(self.path,) if self.path.suffix.lower() in IMAGES else self.path]
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
                chosen = file[k * self.frames:(k + 1) * self.frames]
                yield _Shot(f"{self.path.name}_{k:05d}", images=chosen)
            return
        facts = probe(file)
        rate = self._rate(file, facts)
        total = max(1, int((facts.end - facts.times[0]) * rate + 1e-6))
        name = file.name.replace(".", "-")
        shots = [_shot(f"{name}_{k:05d}", file, facts.times, k * self.frames, rate)
                 for k in range(total // self.frames)]
        self.as_first &= (facts.square_pixels and rate == self.fps and not facts.times[0]
                          and not any(shot.rate.startswith("setpts") for shot in shots))
        if shots:
            self._read(shots[-1])  # a video that is cut short fails now, not during training
        yield from shots

    def _rate(self, file: Path, facts: VideoFacts) -> float:
        """`fps`, or the video's own where that is lower, so that a frame is taken once."""
        rate = self.fps
        if facts.fps < 0.98 * self.fps:
            rate = facts.fps
            self._note(f"{file}: runs at {rate:.3g} fps, not the {self.fps:g} that clips take: "
                       "they take every frame")
        slots = np.floor((facts.times - facts.times[0]) * rate + 0.5)
        repeated = 1 - len(np.unique(slots)) / (slots[-1] + 1)
        if repeated > 0.05:
            self._note(f"{file}: {100 * repeated:.0f} % of the frames at {rate:.3g} fps repeat the "
                       "one before (its frame rate varies)")
        for note in facts.notes:
            self._note(f"{file}: {note}")
        return rate

    def _note(self, line: str) -> None:
        print(f"note: {line}", file=sys.stderr)

    def _read(self, shot: _Shot) -> np.ndarray:
        """[T,3,H,W] uint8."""
        if shot.video is None:
            return np.stack([self._image(path) for path in shot.images])
        side = f"{self.size}:{self.size}"
        aspect = "force_original_aspect_ratio"
        square = {"crop": f"scale={side}:{aspect}=increase,crop={side}",
                  "letterbox": f"scale={side}:{aspect}=decrease,pad={side}:(ow-iw)/2:(oh-ih)/2"}
        return decode(shot.video, f"{shot.rate},scale=iw*sar:ih,{square[self.fit]}", self.size,
                      self.frames, shot.seek)

    def _image(self, path: Path) -> np.ndarray:
        image = read_rgb(path)
        square = ImageOps.fit if self.fit == "crop" else ImageOps.pad
        return np.asarray(square(image, (self.size, self.size))).transpose(2, 0, 1)


def _shot(name: str, video: Path, times: np.ndarray, start: int, rate: float) -> _Shot:
    """The shot from frame `start` on, at `rate` a second after the first of `times`."""
    seconds = times[0] + start / rate
    shown = times[np.searchsorted(times, seconds + 0.5 / rate) - 1]
    fps, late = f"fps={rate:.9g}:eof_action=pass", seconds - shown
    if late < 1e-4:
        shown = seconds
    else:  # no frame there: start from the one that is still shown
        fps = f"setpts=PTS-{late:.6f}/TB,{fps}:start_time=0"
    # rounded down: a frame at 0.66667 s is not before 0.6666
    return _Shot(name, video, float(np.floor(shown * 1e4 + 1e-6)) / 1e4, fps)


def _split(videos: list[list[_Shot]]) -> Iterator[tuple[Split, list[_Shot]]]:
    """By video where there are three or more, else each video by time."""
    parts = [videos]
    if len(videos) < 3:
        parts = []
        for video in videos:
            parts.append([[shot] for shot in video])
    for part in parts:
        n = len(part)
        test = max(1, round(n * 0.1)) if n >= 2 else 0
        val = test if n >= 3 else 0
        for i, shots in enumerate(part):
            yield "train" if i < n - val - test else "val" if i < n - test else "test", shots
