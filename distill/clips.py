"""The clips of a run: rooms rendered once into a cache, a folder of clips, or videos."""
from pathlib import Path
from typing import Any

from distill.config import ScenesConfig
from records import manifest
from records.files import spec_digest
from scenes.clip import SPLITS, ClipFolder, Source, Split
from scenes.sources.remote import RemoteClips, url_of


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
