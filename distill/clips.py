"""Where a run's clips come from: furnished rooms rendered once into a cache, a folder of clips, or
your own videos."""
from pathlib import Path
from typing import TYPE_CHECKING

from distill.config import ScenesConfig
from records.files import spec_digest
from scenes.clip import SPLITS, ClipFolder, Source

if TYPE_CHECKING:
    from scenes.rooms.source import RoomSource


def open_source(config: ScenesConfig, cache: Path, render: bool) -> tuple[Source, str]:
    """The clips and a key that names them: other clips, other key. `render` makes what the cache
    lacks.

    Raises ValueError for a path that holds neither clips nor video, or a cache that lacks clips
    when not rendering.
    """
    if config.path is not None:
        return _opened(config)
    from scenes.rooms.writer import default_workers, render_folder

    rooms = rooms_of(config)
    # not the numbers of rooms: a larger request goes on from a smaller one's clips
    folder = cache / rooms.key
    wanted = [clip_id for split in SPLITS for clip_id in rooms.ids(split)]
    missing = [i for i in wanted if not (folder / f"{i}.safetensors").is_file()]
    if missing and not render:
        raise ValueError(f"{folder}: lacks {len(missing)} of the run's {len(wanted)} clips; "
                         "run again: vega3d distill run")
    if missing:
        render_folder(rooms, wanted, folder,
                      default_workers() if config.workers is None else config.workers)
    return _Chosen(ClipFolder(folder), wanted), rooms.key


def rooms_of(config: ScenesConfig) -> "RoomSource":
    """The rooms that a configuration without a path asks for."""
    from scenes.rooms.source import RoomSource

    return RoomSource(train=config.train, val=config.val, test=config.test,
                      clips_per_room=config.clips_per_room, frames=config.frames, seed=config.seed,
                      pack=config.furniture)


class _Chosen:
    """The clips a configuration asks for, out of a cache that may hold more."""

    def __init__(self, folder: ClipFolder, ids: list[str]):
        self.folder, self._ids = folder, ids

    def ids(self, split: str) -> list[str]:
        return [i for i in self._ids if i.startswith(f"{split}/")]

    def clip(self, clip_id: str):
        return self.folder.clip(clip_id)

    def frames_of(self, clip_id: str):
        return self.folder.frames_of(clip_id)


def _opened(config: ScenesConfig) -> tuple[Source, str]:
    path = config.path
    assert path is not None
    if path.is_dir() and any(path.glob("*/*.safetensors")):
        source: Source = ClipFolder(path)
        files = sorted(path.glob("*/*.safetensors"))
    else:
        from scenes.sources.video import VideoSource

        source = VideoSource(path, frames=config.frames)
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    # names, sizes and times stand for the content: hashing hours of video would take longer than
    # using it
    facts = [(str(f.relative_to(path.parent)), f.stat().st_size, f.stat().st_mtime_ns)
             for f in files]
    return source, spec_digest({"files": facts, "frames": config.frames})
