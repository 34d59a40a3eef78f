"""Renders clips into a folder: scenes.json, and SPLIT/ID.safetensors written by the workers."""
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import compress
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from records import manifest
from records.files import make_folder, read_json, remove_stale_scratch, write_json
from records.progress import Progress
from scenes.clip import load_clip, save_clip
from scenes.rooms.source import ROOMS_VERSION, RoomSource, render_clips

BYTES_A_PIXEL = 3 + 4 + 3 + 4  # colour, depth, normal, instance
_SPARE_BYTES = 200_000_000     # left free on the disk


def render_folder(source: RoomSource, ids: Sequence[str], folder: Path, workers: int) -> int:
    """Renders those of `ids` that `folder` lacks, with a progress bar; returns their number.

    Raises ValueError before any work if the disk is too small or the folder holds other clips.
    """
    card = _card(source, folder)
    make_folder(folder)
    remove_stale_scratch(folder, below=True)
    paths = [folder / f"{i}.safetensors" for i in ids]
    with ThreadPoolExecutor() as pool:
        complete = set(compress(paths, pool.map(is_complete, paths, ids)))
    missing = [i for i, path in zip(ids, paths, strict=True) if path not in complete]
    size = check_disk_space(folder, len(missing), source.frames * source.size**2 * BYTES_A_PIXEL)
    write_json(card, folder / "scenes.json")
    manifest.create(folder, [folder / "scenes.json", *complete])
    if missing:
        print(f"{folder}: rendering {len(missing)} of {len(ids)} clips, {size / 1e6:.0f} MB")
        manifest.forget(folder / f"{i}.safetensors" for i in missing)
        _render(source, missing, folder, workers)
    return len(missing)


def check_disk_space(folder: Path, clips: int, bytes_a_clip: int) -> int:
    """Bytes of so many clips; raises ValueError if the folder's disk cannot hold them."""
    size, free = clips * bytes_a_clip, shutil.disk_usage(folder).free
    if size > free - _SPARE_BYTES:
        raise ValueError(f"{folder}: {clips} clips need {size / 1e9:.1f} GB, the disk has "
                         f"{free / 1e9:.1f} GB free; write fewer, smaller or shorter clips, or use "
                         "another folder")
    return size


def default_workers() -> int:
    """One process less than there are cores, at most 15; on two cores 0, this process: Mesa then
    renders 29 to 36 frames/s, and 22 to 27 in two processes."""
    cores = len(os.sched_getaffinity(0))
    return 0 if cores <= 2 else min(cores - 1, 15)


def _card(source: RoomSource, folder: Path) -> dict:
    """Of scenes.json: what defines these clips. ValueError if the file is there and differs."""
    path = folder / "scenes.json"
    if not path.is_file() and any(folder.glob("*/*.safetensors")):
        raise ValueError(f"{folder}: holds .safetensors files but no scenes.json, so they are not "
                         "clips of render; use another folder")
    card = {"schema": 1, "key": source.key, "rooms": ROOMS_VERSION, "style": source.style,
            "seed": source.seed, "frames": source.frames, "size": source.size,
            "furniture": source.furniture.digest, "source": source.furniture.manifest["source"],
            "versions": {name: version(name) for name in ("vega3d-edge", "moderngl", "numpy")}}
    found = card
    if path.exists():
        found = read_json(path, "use another folder", kind=dict, schema=1)
    if found.get("key") != source.key:
        names = ["style", "seed", "frames", "size", "furniture"]
        was, now = [found.get(k) for k in names], [card[k] for k in names]
        raise ValueError(f"{path}: its folder holds clips with [{', '.join(names)}] {was}, "
                         f"expected {now}; use another folder")
    return card


def is_complete(path: Path, clip_id: str, shape: tuple[int, ...] | None = None) -> bool:
    """Whether the file holds this clip, with frames of `shape`. Without a shape, a listed file is
    not read if its size and time are as written."""
    if not shape and manifest.is_listed(path) and not manifest.fault(path, quick=True):
        return True
    try:
        clip = load_clip(path)
    except (OSError, ValueError):
        return False
    return clip.id == clip_id and shape in (None, clip.frames.shape)


def _render(source: RoomSource, ids: Sequence[str], folder: Path, workers: int) -> None:
    columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TextColumn("clips,"),
               TextColumn("{task.fields[rate]:.0f} frames/s,"), TimeRemainingColumn(),
               TextColumn("left"))
    written: dict[Path, manifest.Written] = {}
    try:
        with Progress(*columns) as progress:
            task = progress.add_task("rendering", total=len(ids), rate=0.0)
            begin = time.monotonic()
            for path, facts in render_clips(_SavingSource(source, folder), ids, workers):
                written[path] = facts
                rate = len(written) * source.frames / (time.monotonic() - begin)
                progress.update(task, advance=1, rate=rate)
    finally:  # also of an interrupted command
        manifest.record(filter(Path.is_file, written), written)


class _SavingSource:
    """Saves each clip, and computes its digest, where it is rendered; no frames are pickled."""

    def __init__(self, source: RoomSource, folder: Path):
        self.source, self.folder = source, folder.absolute()

    def clip(self, clip_id: str) -> tuple[Path, manifest.Written]:
        path = self.folder / f"{clip_id}.safetensors"
        return path, save_clip(self.source.clip(clip_id), path)
