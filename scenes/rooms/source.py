"""Clips of furnished rooms, rendered on request; (seed, split, room, clip) determines a clip.

Ids are SPLIT/RRRRR_C: room and clip number.
"""
import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from scenes.clip import SPLITS, Clip, Split
from scenes.furniture.pack import Pack
from scenes.rooms.camera_path import FILMING, sample_trajectory
from scenes.rooms.layout import CEILING, FLOOR, WALL_IDS, Room, Style, furnish
from scenes.rooms.renderer import RenderedFrames, Renderer

STRUCTURE = (FLOOR, CEILING, *WALL_IDS.values())
MAX_STRUCTURE = 0.7   # largest share of the pixels that show floor, ceiling and walls
MIN_DEPTH = 0.35      # m, of plain rooms; in filmed ones that of every frame's median
ROOMS_VERSION = 3     # raised whenever the same seed gives another picture
FILMED_VERSION = 1    # as above, of filmed rooms alone
_SHELL = ("wall", "floor", "ceiling")
_ATTEMPTS = {"plain": 6, "filmed": 12}


@dataclass
class RoomSource:
    """Rooms per split, and their clips. Splits share neither rooms nor furniture models."""
    train: int = 160
    val: int = 20
    test: int = 20
    clips_per_room: int = 1
    frames: int = 9
    size: int = 224                 # px, square
    seed: int = 0
    pack: Path | str | None = None  # None = the committed public-domain pack
    # filmed: close-ups, rolling cameras, alcoves, clutter, mirrors, glass, things that move; such
    # clips have no room_size, and no questions are made about them. mixed: every second room filmed
    style: Literal["plain", "filmed", "mixed"] = "plain"
    _last_room: dict[str, Room] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("frames", "size", "clips_per_room"):
            if getattr(self, name) < 1:
                raise ValueError(f"rooms: got {name}={getattr(self, name)}, expected at least 1")
        if min(self.train, self.val, self.test) < 0 or self.seed < 0:
            raise ValueError("rooms: got a negative number of rooms or seed, expected 0 or more")
        if self.pack is not None:
            _ = self.furniture  # a missing pack fails now, not in a worker

    @cached_property
    def key(self) -> str:
        """Equal keys mean equal clips under equal ids, whatever the numbers of rooms."""
        facts = [ROOMS_VERSION, self.seed, self.frames, self.size, self.furniture.digest]
        if self.style != "plain":
            facts.append(f"{self.style} {FILMED_VERSION}")
        return "rooms-" + sha256(json.dumps(facts).encode()).hexdigest()[:12]

    def ids(self, split: Split) -> list[str]:
        return [f"{split}/{room:05d}_{clip}" for room in range(getattr(self, split))
                for clip in range(self.clips_per_room)]

    def clip(self, clip_id: str) -> Clip:
        """Renders one clip. Raises ValueError for an id that is not in `ids`, or without EGL."""
        split, number, clip_number = self._parse(clip_id)
        room, style = self.room(split, number), self._style(number)
        rng = np.random.default_rng([self.seed, SPLITS.index(split), number, clip_number, 1])
        for left in reversed(range(_ATTEMPTS[style])):
            try:
                path = sample_trajectory(room, self.frames, rng, filming=FILMING[style])
            except ValueError:
                if not left:
                    raise
                continue
            poses, intrinsics = path.poses, path.intrinsics(self.size)
            first = self.renderer.render(room, self.furniture, poses[:1], intrinsics)
            if left and self._is_unsuitable(room, style, first):
                continue
            brightness = (95, 165) if style == "plain" else (70, 185)
            exposure = _auto_exposure(first["frames"], rng, *brightness)
            noise, seed = float(rng.uniform(0.002, 0.012)), int(rng.integers(2**32))
            rendered = self.renderer.render(room, self.furniture, poses, intrinsics, exposure,
                                            noise, seed)
            if not self._is_unsuitable(room, style, rendered):
                break
        visible = set(np.unique(rendered["instances"]).tolist())
        objects = [o for o in room.objects if o.id in visible]
        return Clip(id=clip_id, **rendered, intrinsics=intrinsics, poses=poses,
                    room_size=room.size if style == "plain" else None, objects=objects)

    def _is_unsuitable(self, room: Room, style: Style, rendered: RenderedFrames) -> bool:
        structure, most, depth = STRUCTURE, MAX_STRUCTURE, rendered["depth"]
        if style == "plain":
            too_near = depth.min() < MIN_DEPTH
        else:
            most, structure = 0.85, tuple(o.id for o in room.objects if o.category in _SHELL)
            too_near = depth.min() < MIN_DEPTH / 2 or np.median(depth, (1, 2)).min() < MIN_DEPTH
        shares = np.isin(rendered["instances"], structure).mean(axis=(1, 2))
        return bool(shares.max() > most or too_near)

    def room(self, split: Split, number: int) -> Room:
        """The room with this number; the last one is cached."""
        key = f"{split}/{number}"
        if key not in self._last_room:
            self._last_room.clear()
            self._last_room[key] = furnish(split, self.seed * 1_000_000 + number, self.furniture,
                                           style=self._style(number))
        return self._last_room[key]

    def _style(self, room: int) -> Style:
        filmed = self.style == "filmed" or (self.style == "mixed" and room % 2)
        return "filmed" if filmed else "plain"

    @cached_property
    def furniture(self) -> Pack:
        return Pack.load(Path(self.pack) if self.pack is not None else None)

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.size)

    def _parse(self, clip_id: str) -> tuple[Split, int, int]:
        split, _, rest = clip_id.partition("/")
        number, _, clip = rest.partition("_")
        if (split in SPLITS and number.isdigit() and clip.isdigit()
                and int(number) < getattr(self, split) and int(clip) < self.clips_per_room):
            return split, int(number), int(clip)
        raise ValueError(f"rooms: no clip {clip_id!r}; ids are SPLIT/ROOM_CLIP (train/00000_0), of "
                         f"{self.train}/{self.val}/{self.test} rooms with {self.clips_per_room}")

    def __getstate__(self) -> dict:
        state = {k: v for k, v in vars(self).items() if k not in ("furniture", "renderer")}
        return state | {"_last_room": {}}


def _auto_exposure(frames: np.ndarray, rng: np.random.Generator, low: float,
                   high: float) -> float:
    """The exposure that brings the mean brightness at exposure 1 to one between low and high."""
    target = rng.uniform(low, high)
    return float(np.clip((target / max(float(frames.mean()), 1.0)) ** 2.2, 0.25, 4.0))


class ClipRenderer(Protocol):
    """Anything that renders a clip by its id and can be pickled, for the workers."""

    def clip(self, clip_id: str) -> Any: ...


def render_clips(source: ClipRenderer, ids: Sequence[str], workers: int = 0) -> Iterator[Any]:
    """What source.clip returns, in the order of `ids`. Each of n workers renders every n-th room,
    at most one ahead of the reader, so memory stays bounded; 0: this process.

    Workers are spawned, as a GPU context survives no fork: scripts need a guard of `__main__`.
    """
    if workers <= 0 or len(ids) < 2:
        yield from map(source.clip, ids)
        return
    rooms = [list(group) for _, group in groupby(ids, key=lambda i: i.rpartition("_")[0])]
    spawn = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, spawn, _start_worker, (source,))
             for _ in range(min(workers, len(rooms)))]

    def submit(room: int) -> list[Future[Any]]:
        return [pools[room % len(pools)].submit(_render, clip_id) for clip_id in rooms[room]]

    try:
        with _worker_settings():
            submitted = deque(map(submit, range(len(pools))))
        for room, clip_ids in enumerate(rooms):
            futures = submitted.popleft()
            if room + len(pools) < len(rooms):
                submitted.append(submit(room + len(pools)))
            for clip_id, future in zip(clip_ids, futures, strict=True):
                yield _rendered(future, clip_id)
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _worker_settings() -> Iterator[None]:
    """Processes started here use one thread; else Mesa and BLAS start one a core in each.

    Ctrl-C, which a terminal sends to them too, waits: the parent ends them.
    """
    one = dict.fromkeys(("LP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    before = {name: os.environ[name] for name in one if name in os.environ}
    os.environ.update(one)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name in one:
            del os.environ[name]
        os.environ.update(before)


def _rendered(future: Future[Any], clip_id: str) -> Any:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(f"rooms: the process rendering {clip_id} died; if memory ran out, use "
                           "fewer workers") from error


_source: ClipRenderer  # of a worker


def _start_worker(source: ClipRenderer) -> None:
    global _source
    _source = source
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _render(clip_id: str) -> Any:
    return _source.clip(clip_id)


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, which otherwise wait for work."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
