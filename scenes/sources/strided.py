"""Clips that look about more: every n-th frame of longer ones, so that nine frames see as much as a
tour."""
from dataclasses import dataclass, fields, replace

from scenes.clip import Clip, Source, Split

_BY_FRAME = ("frames", "depth", "normals", "instances", "poses")


@dataclass
class Strided:
    """Every `step`-th frame of the clips of another source, under their ids."""
    source: Source
    step: int

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ValueError(f"strided: got step={self.step}, expected at least 1")

    @property
    def key(self) -> str:
        """Names what the clips hold, if the source's own key does."""
        return f"{getattr(self.source, 'key', '')}-every{self.step}"

    def ids(self, split: Split) -> list[str]:
        return self.source.ids(split)

    def clip(self, clip_id: str) -> Clip:
        """Objects that none of the frames shows are left out, where instances say so."""
        return every(self.source.clip(clip_id), self.step)


def every(clip: Clip, step: int) -> Clip:
    """Every `step`-th frame of a clip."""
    kept = {f.name: value[::step] for f in fields(clip)
            if f.name in _BY_FRAME and (value := getattr(clip, f.name)) is not None}
    objects = clip.objects
    if "instances" in kept:
        seen = set(kept["instances"].ravel().tolist())
        objects = [o for o in objects if o.id in seen]
    return replace(clip, **kept, objects=objects)
