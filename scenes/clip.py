"""What a clip is: a few frames of one place, and, where known, their depth, cameras and objects.

On disk a clip is one safetensors file whose header carries the objects as JSON; nothing unpickles.
"""
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class SceneObject:
    """One thing in the room, in world coordinates (metres, Z up)."""
    id: int                      # its value in Clip.instances, > 0
    category: str                # one of scenes.furniture.CLASSES
    name: str                    # what a person would call it: "round coffee table"
    center: tuple[float, float, float]  # of the oriented box, m
    size: tuple[float, float, float]    # width, depth, height of the box, m
    heading: float = 0.0         # rotation about +Z, rad


@dataclass
class Clip:
    """T frames of one place. Only `frames` is always there; arrays that are not known are None."""
    id: str
    frames: np.ndarray                      # [T,3,H,W] uint8 RGB
    depth: np.ndarray | None = None  # [T,H,W] float32, metres along the optical axis, 0 = none
    normals: np.ndarray | None = None  # [T,3,H,W] int8, 127 * unit normal in camera axes (OpenCV)
    instances: np.ndarray | None = None     # [T,H,W] int32, SceneObject.id, 0 = none
    intrinsics: np.ndarray | None = None    # [3,3] float64, pixels; pixel centres at +0.5
    # [T,4,4] float64, camera to world, OpenCV axes (x right, y down, z ahead)
    poses: np.ndarray | None = None
    objects: list[SceneObject] = field(default_factory=list)
    room_size: tuple[float, float, float] | None = None  # width (x), depth (y), height (z), m

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[
                1] != 3 or self.frames.dtype != np.uint8 or not len(self.frames):
            raise ValueError(
                f"clip {self.id}: frames are {self.frames.dtype} {list(self.frames.shape)}, "
                "expected uint8 [T,3,H,W] with T >= 1")
        t, _, h, w = self.frames.shape
        for name, shape in {"depth": (t, h, w), "normals": (t, 3, h, w), "instances": (t, h, w),
                            "intrinsics": (3, 3), "poses": (t, 4, 4)}.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"clip {self.id}: {name} is {list(value.shape)}, expected {list(shape)}")
        if self.depth is not None and not (np.isfinite(self.depth).all() and
                                           (self.depth >= 0).all()):
            raise ValueError(f"clip {self.id}: depth holds NaN, infinite or negative metres; "
                             "write 0 where depth is unknown")

    def categories(self, classes: Sequence[str]) -> np.ndarray:
        """Semantic map [T,H,W] uint8: index into `classes` of each pixel's object, 255 = none."""
        if self.instances is None:
            raise ValueError(f"clip {self.id}: has no instances, so no semantic map")
        lookup = np.full(
            max([0, int(self.instances.max()), *(o.id for o in self.objects)]) + 1, 255, np.uint8)
        for thing in self.objects:
            lookup[thing.id] = classes.index(thing.category)
        return lookup[self.instances]


class Source(Protocol):
    """Anything that yields clips by id; splits share neither room nor furniture model."""

    def ids(self, split: Split) -> list[str]: ...

    def clip(self, clip_id: str) -> Clip: ...


_ARRAYS = {f.name for f in fields(Clip)} - {"id", "objects", "room_size"}


def save_clip(clip: Clip, path: Path) -> None:
    """Writes one clip beside `path` and renames it there, so that a kill leaves no half file."""
    arrays = {
        n: np.ascontiguousarray(v)
        for n in sorted(_ARRAYS) if (v := getattr(clip, n)) is not None
    }
    about = {
        "id": clip.id, "objects": [asdict(o) for o in clip.objects], "room_size": clip.room_size
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(save(arrays, metadata={"clip": json.dumps(about)}))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def load_clip(path: Path) -> Clip:
    """Reads what `save_clip` wrote. Raises ValueError naming the file if it is no whole clip."""
    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["clip"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        things = [SceneObject(**{**o, "center": tuple(o["center"]), "size": tuple(o["size"])})
                  for o in about["objects"]]
        room = tuple(about["room_size"]) if about["room_size"] else None
        return Clip(id=about["id"], objects=things, room_size=room, **arrays)
    except FileNotFoundError:
        raise
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise _damaged(path, error) from error


class ClipFolder:
    """A folder of rendered clips, as `vega3d scenes render` writes it: SPLIT/ID.safetensors."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        if not self.root.is_dir():
            raise ValueError(
                f"{self.root}: no such folder; make one with: vega3d scenes render --out "
                f"{self.root}"
            )
        if not any(self.root.glob("*/*.safetensors")):
            raise ValueError(f"{self.root}: holds no clips (SPLIT/ID.safetensors); "
                             f"make some with: vega3d scenes render --out {self.root}")

    def ids(self, split: Split) -> list[str]:
        return [f"{split}/{p.stem}" for p in sorted((self.root / split).glob("*.safetensors"))]

    def clip(self, clip_id: str) -> Clip:
        return load_clip(self.root / f"{clip_id}.safetensors")

    def frames_of(self, clip_id: str) -> np.ndarray:
        """`clip(clip_id).frames` without reading the rest, which is four fifths of the file."""
        path = self.root / f"{clip_id}.safetensors"
        try:
            with safe_open(path, "np") as file:
                return file.get_tensor("frames")
        except SafetensorError as error:
            raise _damaged(path, error) from error


def frames_of(source: Source, clip_id: str) -> np.ndarray:
    """A clip's frames [T,3,H,W] uint8, without the rest where the source can."""
    read = getattr(source, "frames_of", None)
    return source.clip(clip_id).frames if read is None else read(clip_id)


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: not a whole clip file ({error}); render it again")
