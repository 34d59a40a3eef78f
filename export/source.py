"""What an export reads from a run folder: the student, its calibration and its held-out frames."""
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file

from distill.config import EXPORT_FRAMES
from records.files import reading, sha256

if TYPE_CHECKING:
    from student.vit import Student

MAKE_ONE = "make one with: vega3d distill run"
CALIBRATION_FRAMES = 300  # NNCF's default; fewer leave rare activations out of the ranges
HELDOUT_FRAMES = EXPORT_FRAMES


@dataclass(frozen=True)
class Frames:
    """frames uint8 [N,3,H,W] RGB; depth float32 [N,h,w] metres per patch (0 = unknown), or None."""
    frames: np.ndarray
    depth: np.ndarray | None
    digest: str

    def __len__(self) -> int:
        return len(self.frames)

    def subset(self, most: int) -> "Frames":
        """At most `most` frames, evenly spaced."""
        depth = None if self.depth is None else evenly_spaced(self.depth, most)
        return Frames(evenly_spaced(self.frames, most), depth, self.digest)


@dataclass(frozen=True)
class TrainedRun:
    folder: Path
    student: "Student"
    student_sha256: str
    calibration: Frames
    heldout: Frames

    @property
    def out(self) -> Path:
        return self.folder / "export"


def to_input(frames: np.ndarray) -> np.ndarray:
    """uint8 RGB [N,3,H,W] -> float32 in [0,1]: all preprocessing that is not in the graph."""
    return frames.astype(np.float32) / 255


def evenly_spaced(items: np.ndarray, most: int) -> np.ndarray:
    """At most `most` items over the whole array (its first ones may all be of one room)."""
    return items[np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)]


def load_trained_run(folder: Path) -> TrainedRun:
    """Raises ValueError for a missing or broken folder, student or frames file."""
    from student.vit import load_student

    if not folder.is_dir():
        raise ValueError(f"{folder}: no such run folder; {MAKE_ONE}")
    folder = folder.resolve()  # runs/latest is a link: the artefacts belong to the run it names now
    student = load_student(folder / "student")
    px = student.config.image_size
    return TrainedRun(folder, student, sha256(folder / "student" / "student.safetensors"),
                      _load_frames(folder, "calibration", px), _load_frames(folder, "heldout", px))


def _load_frames(folder: Path, name: str, px: int) -> Frames:
    path = folder / "frames" / f"{name}.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no {name} frames; {MAKE_ONE}")
    again = f"make it again with: vega3d distill run --name {folder.name}"
    with reading(path, "a safetensors file", again):
        tensors = load_file(path)
    frames = tensors.get("frames")
    if frames is None or frames.dtype != np.uint8 or frames.shape[1:] != (3, px, px):
        got = "none" if frames is None else f"{frames.dtype} {list(frames.shape)}"
        raise ValueError(f"{path}: got frames {got}, expected uint8 [N,3,{px},{px}]; {MAKE_ONE}")
    if len(frames) < HELDOUT_FRAMES:
        raise ValueError(f"{path}: got {len(frames)} frames, expected >= {HELDOUT_FRAMES}; "
                         "distil from more clips")
    return Frames(frames, tensors.get("depth"), sha256(path))
