"""The clips of a run: rooms rendered once into a cache, or clips, videos, or footage and rooms."""
import sys
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from distill.config import AdaptConfig, RunConfig, ScenesConfig
from records import manifest
from records.files import must_exist, spec_digest
from scenes.clip import SPLITS, Clip, ClipFolder, Cut, Source, Split
from scenes.sources.registration import check_registration
from scenes.sources.remote import RemoteClips, url_of
from scenes.sources.rgbd import is_recording, read_recording


def check_paths(config: RunConfig) -> None:
    """Raises ValueError for clips, furniture or features that are missing; imports no torch."""
    scenes = config.scenes
    for path, remedy in ((scenes.path, "give a video, a folder of videos, of images or of clips"),
                         (scenes.furniture, "make a pack with: vega3d scenes pack"),
                         (config.features, "give a run's features folder, or its URL")):
        if path is not None and not url_of(path):
            must_exist(path, remedy)
    root = config.features
    if (root and not url_of(root) and any(root.iterdir())
            and not any(root.glob("*-" + 16 * "[0-9a-f]"))):
        raise ValueError(f"{root}: holds no features; give runs/NAME/features, or an empty folder")


def open_clips(config: RunConfig, cache: Path, render: bool) -> tuple[Source, str]:
    """`open_source` of the run's scenes; of an adaptation, its footage and rooms."""
    if not isinstance(config, AdaptConfig):
        return open_source(config.scenes, cache, render)
    footage, key, notes = _open_footage(config)
    clips = [i for split in SPLITS for i in footage.ids(split)]
    if len(clips) < 2:
        raise ValueError(f"{config.scenes.path}: holds less than two clips of "
                         f"{config.scenes.frames} frames, to adapt to and to score on; record more")
    for note in notes:
        print(f"note: {config.scenes.path}: {note}", file=sys.stderr)
    last = min(max(1, round(config.held_out * len(clips))), len(clips) - 1)
    rooms, rooms_key = open_source(replace(config.scenes, path=None), cache, render)
    source = FootageAndRooms(footage, {"train": clips[:-last], "test": clips[-last:]}, rooms, notes)
    return source, spec_digest({"footage": key, "rooms": rooms_key})


class FootageAndRooms:
    """Clips of footage, whose ids `parts` holds, then those of rooms; all with the labels that
    heads learn from: what a clip lacks is 0, its poses NaN, its focal length the frame's width.
    notes: what was assumed and noticed about the footage."""

    def __init__(self, footage: Source, parts: dict[str, list[str]], rooms: Source,
                 notes: Sequence[str] = ()):
        self.sources, self.parts, self.notes = {"footage": footage, "rooms": rooms}, parts, notes

    def ids(self, split: Split) -> list[str]:
        return [*(f"footage/{i}" for i in self.parts.get(split, [])),
                *(f"rooms/{i}" for i in self.sources["rooms"].ids(split))]

    def clip(self, clip_id: str) -> Clip:
        kind, _, name = clip_id.partition("/")
        clip = self.sources[kind].clip(name)
        count, _, height, width = clip.frames.shape
        camera = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
        unknown = {"depth": np.zeros((count, height, width), np.float32), "intrinsics": camera,
                   "normals": np.zeros(clip.frames.shape, np.int8),
                   "instances": np.zeros((count, height, width), np.int32),
                   "poses": np.full((count, 4, 4), np.nan)}
        lacking: dict[str, Any] = {k: v for k, v in unknown.items() if getattr(clip, k) is None}
        return replace(clip, id=clip_id, **lacking)


def _open_footage(config: AdaptConfig) -> tuple[Source, str, list[str]]:
    """Footage and its key; of a recording also what was assumed and noticed."""
    path = config.scenes.path
    assert path is not None
    if not (path.is_dir() and is_recording(path)):
        return *_open_path(path, config.scenes.frames), []
    clip, assumed = read_recording(path, most=600, per_metre=config.depth_unit)
    content = sha256()
    for array in (clip.frames, clip.depth, clip.intrinsics, clip.poses):
        if array is not None:
            content.update(array.tobytes())
    notes = [note for note in (*assumed, check_registration([clip]).note) if note]
    return Cut(clip, config.scenes.frames), content.hexdigest(), notes


def open_source(config: ScenesConfig, cache: Path, render: bool) -> tuple[Source, str]:
    """The clips and a key that identifies them; `render`: missing rooms are rendered.

    Raises ValueError for a path that holds neither clips nor video, and for missing rooms that
    are not to be rendered.
    """
    if config.path is not None:
        return _open_path(config.path, config.frames)
    from scenes.rooms.source import RoomSource
    from scenes.rooms.writer import default_workers, render_folder

    rooms = RoomSource(train=config.train, val=config.val, test=config.test, seed=config.seed,
                       clips_per_room=config.clips_per_room, frames=config.frames,
                       pack=config.furniture, style=config.style)
    # the key leaves out the number of rooms, so a larger run reuses a smaller one's clips
    folder = cache / rooms.key
    ids = [clip_id for split in SPLITS for clip_id in rooms.ids(split)]
    paths = {clip_id: folder / f"{clip_id}.safetensors" for clip_id in ids}
    damaged = {i: found for i, path in paths.items() if (found := manifest.fault(path, quick=True))}
    for found in damaged.values():
        print(f"{found}; it is rendered again")
    missing = [i for i, path in paths.items() if i in damaged or not path.is_file()]
    if missing and not render:
        raise ValueError(f"{folder}: lacks {len(missing)} of the run's {len(ids)} clips; "
                         "run again: vega3d distill run")
    if missing:
        workers = default_workers() if config.workers is None else config.workers
        render_folder(rooms, ids, folder, workers)
    return _Subset(folder, ids), rooms.key


class _Subset(ClipFolder):
    """The given clips of a folder that may hold more."""

    def __init__(self, root: Path, ids: list[str]):
        super().__init__(root)
        self._ids = ids

    def ids(self, split: Split) -> list[str]:
        return [i for i in self._ids if i.startswith(f"{split}/")]


def _open_path(path: Path, frames: int) -> tuple[Source, str]:
    spec: dict[str, Any] = {"frames": frames}
    if (url := url_of(path)) and not path.exists():
        remote = RemoteClips(url)
        return remote, spec_digest({"files": remote.facts(), **spec})
    if path.is_dir() and any(path.glob("*/[!.]*.safetensors")):
        folder = ClipFolder(path)
        return folder, spec_digest({"files": folder.facts(), **spec})
    from scenes.sources.video import VideoSource

    video = VideoSource(path, frames=frames)
    if not video.as_first:
        spec["reader"] = 2
    # names, sizes and times identify the content: hashing hours of video takes longer than using it
    parent, facts = path.absolute().parent, []
    for file in sorted(video.paths):  # no others: a file manager's would change the key
        stat = file.stat()
        facts.append((str(file.absolute().relative_to(parent)), stat.st_size, stat.st_mtime_ns))
    return video, spec_digest({"files": facts, **spec})
