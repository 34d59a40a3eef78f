"""A clip: a few frames of one place and, where known, their depth, cameras and objects.

On disk a clip is one safetensors file whose header carries the objects as JSON; nothing unpickles.
"""
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from shlex import quote
from typing import Literal, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from records import manifest
from records.files import atomic_write, parse_json, reading

Split = Literal["train", "val", "test"]
Surface = Literal["fixed", "moving", "mirror"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
_SUFFIX = ".safetensors"
_READING = ("a complete clip file", "render it again")


@dataclass(frozen=True)
class SceneObject:
    """One object of the room, in world coordinates (metres, Z up)."""
    id: int                      # its value in Clip.instances, > 0
    category: str                # one of scenes.furniture.pack.CLASSES
    name: str                    # in everyday words: "round coffee table"
    center: tuple[float, float, float]  # of the oriented box, m
    size: tuple[float, float, float]    # width, depth, height of the box, m
    heading: float = 0.0         # rotation about +Z, rad
    # its pixels cannot be matched by depth and poses if it moves (its box holds its way) or mirrors
    surface: Surface = "fixed"


@dataclass
class Clip:
    """T frames of one place. Only `frames` is always there; unknown arrays are None."""
    id: str
    frames: np.ndarray                      # [T,3,H,W] uint8 RGB
    depth: np.ndarray | None = None         # [T,H,W] float32 m along the optical axis, 0 = unknown
    normals: np.ndarray | None = None       # [T,3,H,W] int8, 127 * unit normal in camera axes
    instances: np.ndarray | None = None     # [T,H,W] int32, SceneObject.id, 0 = none
    intrinsics: np.ndarray | None = None    # [3,3] float64, pixels; pixel centres at +0.5
    poses: np.ndarray | None = None         # [T,4,4] float64 camera to world, OpenCV axes
    objects: list[SceneObject] = field(default_factory=list)
    room_size: tuple[float, float, float] | None = None  # width (x), depth (y), height (z), m

    def __post_init__(self) -> None:
        frames = self.frames
        if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise ValueError(f"clip {self.id}: frames are {frames.dtype} {list(frames.shape)}, "
                             "expected uint8 [T,3,H,W] with T >= 1")
        t, _, h, w = frames.shape
        shapes = {"depth": (t, h, w), "normals": (t, 3, h, w), "instances": (t, h, w),
                  "intrinsics": (3, 3), "poses": (t, 4, 4)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"clip {self.id}: {name} is {list(value.shape)}, expected {list(shape)}")
        depth = self.depth
        if depth is not None and not (np.isfinite(depth).all() and (depth >= 0).all()):
            raise ValueError(f"clip {self.id}: depth holds NaN, infinite or negative metres; "
                             "write 0 where depth is unknown")

    @property
    def static_depth(self) -> np.ndarray | None:
        """Depth, 0 also where depth and poses give no match: on moving things and mirrors."""
        odd = [o.id for o in self.objects if o.surface != "fixed"]
        if self.depth is None or self.instances is None or not odd:
            return self.depth
        return np.where(np.isin(self.instances, odd), np.float32(0), self.depth)

    def categories(self, classes: Sequence[str], pixels: slice = slice(None)) -> np.ndarray:
        """Semantic map [T,H,W] uint8: index into `classes` of each pixel's object, 255 = none;
        pixels: the rows and columns that are wanted."""
        if self.instances is None:
            raise ValueError(f"clip {self.id}: has no instances, so no semantic map")
        largest = max([0, int(self.instances.max()), *(o.id for o in self.objects)])
        lookup = np.full(largest + 1, 255, np.uint8)
        for item in self.objects:
            lookup[item.id] = classes.index(item.category)
        return lookup[self.instances[:, pixels, pixels]]


class Source(Protocol):
    """Anything that yields clips by id; splits share neither room nor furniture model."""

    def ids(self, split: Split) -> list[str]: ...

    def clip(self, clip_id: str) -> Clip: ...


Shapes = Mapping[str, tuple[int, ...]]  # by the name of an array

_ARRAYS = {f.name for f in fields(Clip)} - {"id", "objects", "room_size"}


def save_clip(clip: Clip, path: Path) -> manifest.Written:
    """Writes one clip; a killed process leaves no partial file. Returns what lists it."""
    arrays = {n: np.ascontiguousarray(v) for n in sorted(_ARRAYS)
              if (v := getattr(clip, n)) is not None}
    header = {"id": clip.id, "objects": [_plain(o) for o in clip.objects],
              "room_size": clip.room_size}
    data = save(arrays, metadata={"clip": json.dumps(header)})
    with atomic_write(path, listed=False) as scratch:  # who writes many lists them together
        scratch.write_bytes(data)
        return manifest.stamp(scratch), hashlib.sha256(data).hexdigest()  # renaming keeps both


def _plain(item: SceneObject) -> dict:
    facts = asdict(item)
    if item.surface == "fixed":  # left out, as in clips older than the field
        del facts["surface"]
    return facts


def load_clip(path: Path) -> Clip:
    """Reads what `save_clip` wrote. Raises ValueError naming a damaged file."""
    with reading(path, *_READING), safe_open(path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        return clip_of(arrays, file.metadata() or {})


def clip_of(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Clip:
    """What `save_clip` made a safetensors file of."""
    header = parse_json(metadata["clip"])
    objects = [SceneObject(**{**o, "center": tuple(o["center"]), "size": tuple(o["size"])})
               for o in header["objects"]]
    room = tuple(header["room_size"]) if header["room_size"] else None
    return Clip(id=header["id"], objects=objects, room_size=room, **arrays)


def check_shapes(clip_id: str, found: Shapes, first_id: str, first: Shapes) -> None:
    """Raises ValueError if a clip cannot be stacked with the first one: other arrays or shapes."""
    for name in sorted(found.keys() | first.keys()):
        if (shape := found.get(name)) != (wanted := first.get(name)):
            here, there = (list(s) if s else "none" for s in (shape, wanted))
            raise ValueError(f"clip {clip_id}: {name} is {here}, that of clip {first_id} {there}; "
                             "clips of one run have one length, one size and the same labels: "
                             "put the others in a folder of their own")


def check_alike(source: Source, ids: Sequence[str]) -> None:
    """check_shapes of all clips, from their headers; nothing for sources without files of clips."""
    read = getattr(source, "shapes", None)
    if read is not None:
        first = read(ids[0])
        for clip_id in ids[1:]:
            if (found := read(clip_id)) != first:
                frames_of(source, clip_id)  # a damaged file is named as such
                check_shapes(clip_id, found, ids[0], first)


class ClipFolder:
    """A folder of clips as `vega3d scenes render` and `import` write it: SPLIT/ID.safetensors."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self._listed: dict[str, str] = {}  # names, each with a slash behind it: there may be many
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: no such folder; make one with: vega3d scenes render "
                             f"--out {quote(str(root))}")
        if not any(self.root.glob("*/[!.]*.safetensors")):
            raise ValueError(f"{self.root}: holds no clips (SPLIT/ID.safetensors); "
                             f"make some with: vega3d scenes render --out {quote(str(root))}")

    def ids(self, split: Split) -> list[str]:
        return [f"{split}/{name.removesuffix(_SUFFIX)}" for name in self._names(split)]

    def facts(self) -> list[tuple[str, int, int]]:
        """Path from the folder's parent, bytes and mtime in ns of every clip, which identify it."""
        top, found = self.root.absolute().name, []
        for split in sorted(SPLITS):
            for name in self._names(split):
                stat = os.stat(f"{self.root}/{split}/{name}")
                found.append((f"{top}/{split}/{name}", stat.st_size, stat.st_mtime_ns))
        return found

    def _names(self, split: Split) -> list[str]:
        if split not in self._listed:
            folder = self.root / split
            names = os.listdir(folder) if folder.is_dir() else []
            self._listed[split] = "".join(f"{name}/" for name in sorted(names)
                                          if name.endswith(_SUFFIX) and name[0] != ".")
        return self._listed[split].split("/")[:-1]

    def clip(self, clip_id: str) -> Clip:
        return load_clip(self.root / f"{clip_id}.safetensors")

    def frames_of(self, clip_id: str) -> np.ndarray:
        """`clip(clip_id).frames` without reading the rest, which is four fifths of the file."""
        path = self.root / f"{clip_id}.safetensors"
        with reading(path, *_READING), safe_open(path, "np") as file:
            return file.get_tensor("frames")

    def shapes(self, clip_id: str) -> Shapes:
        """Of the arrays of a clip, from the file's header; its manifest is not looked at."""
        path = f"{self.root}/{clip_id}{_SUFFIX}"
        if os.path.isfile(path):  # a pipe would be waited for
            with suppress(OSError, SafetensorError):
                return _header(path)
        with reading(Path(path), *_READING):
            return _header(path)


def _header(path: str) -> Shapes:
    with safe_open(path, "np") as file:
        return {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118


@dataclass
class Strided:
    """Every `step`-th frame of another source's clips, under their ids."""
    source: Source
    step: int

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ValueError(f"strided: got step={self.step}, expected at least 1")

    @property
    def key(self) -> str:
        """Identifies what the clips hold, if the source's own key does."""
        return f"{getattr(self.source, 'key', '')}-every{self.step}"

    def ids(self, split: Split) -> list[str]:
        return self.source.ids(split)

    def clip(self, clip_id: str) -> Clip:
        return some_frames(self.source.clip(clip_id), slice(None, None, self.step))


class Cut:
    """One long clip, cut into clips of `frames`; a shorter rest is dropped. All are in train."""

    def __init__(self, clip: Clip, frames: int):
        self.complete, self.frames = clip, frames

    def ids(self, split: Split) -> list[str]:
        count = len(self.complete.frames) // self.frames if split == "train" else 0
        return [f"train/{self.complete.id}_{k:05d}" for k in range(count)]

    def clip(self, clip_id: str) -> Clip:
        start = int(clip_id.rpartition("_")[2]) * self.frames
        return some_frames(self.complete, slice(start, start + self.frames))


def some_frames(clip: Clip, frames: slice) -> Clip:
    """Those frames; objects that none of them shows are left out, where instances say so."""
    arrays = {name: value[frames] for name in _ARRAYS - {"intrinsics"}
              if (value := getattr(clip, name)) is not None}
    objects = clip.objects
    if "instances" in arrays:
        shown = set(arrays["instances"].ravel().tolist())
        objects = [o for o in objects if o.id in shown]
    return replace(clip, **arrays, objects=objects)


def frames_of(source: Source, clip_id: str) -> np.ndarray:
    """A clip's frames [T,3,H,W] uint8, without the rest where the source can."""
    read = getattr(source, "frames_of", None)
    return source.clip(clip_id).frames if read is None else read(clip_id)
