"""What an export starts from: a run folder's student, and the frames that calibrate it and hold it
to account."""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from records.files import sha256
from student.vit import Student, load_student

MAKE_ONE = "make one with: vega3d distill run"
CALIBRATION_FRAMES = 300  # NNCF's own default; fewer leave rare activations out of the ranges
HELDOUT_FRAMES = 32  # the gate's floor: 32 x 196 tokens put 63 of them under the 1st percentile


@dataclass(frozen=True)
class Frames:
    """frames uint8 [N,3,H,W] RGB; depth float32 [N,h,w] metres per patch (0 = unknown), or None for
    plain video."""
    frames: np.ndarray
    depth: np.ndarray | None
    digest: str

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class TrainedRun:
    folder: Path
    student: Student
    student_sha256: str
    calibration: Frames
    heldout: Frames

    @property
    def out(self) -> Path:
        return self.folder / "export"


def to_input(frames: np.ndarray) -> np.ndarray:
    """The deployment preprocessing, all of it: uint8 RGB [N,3,H,W] -> float32 in [0,1]; the graph
    does the rest."""
    return frames.astype(np.float32) / 255


def evenly_spaced(items: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of them, evenly spread over the whole file (its head alone may be one
    room)."""
    return items[np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)]


def load_trained_run(folder: Path) -> TrainedRun:
    """Reads a run folder. Raises ValueError, in one line, for a missing folder, student or frames
    file."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such run folder; {MAKE_ONE}")
    folder = folder.resolve()  # runs/latest is a link: the artefacts belong to the run it names now
    student = load_student(folder / "student")
    px = student.config.image_size
    return TrainedRun(folder, student, sha256(folder / "student" / "student.safetensors"),
               _frames(folder, "calibration", px, at_least=HELDOUT_FRAMES),
               _frames(folder, "heldout", px, at_least=HELDOUT_FRAMES))


def _frames(folder: Path, name: str, px: int, at_least: int) -> Frames:
    path = folder / "frames" / f"{name}.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no {name} frames; {MAKE_ONE}")
    try:
        held = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a safetensors file ({error}); {MAKE_ONE}") from error
    frames, depth = held.get("frames"), held.get("depth")
    if frames is None or frames.dtype != np.uint8 or frames.shape[1:] != (3, px, px):
        got = "none" if frames is None else f"{frames.dtype} {list(frames.shape)}"
        raise ValueError(f"{path}: got frames {got}, expected uint8 [N,3,{px},{px}]; {MAKE_ONE}")
    if len(frames) < at_least:
        raise ValueError(
            f"{path}: got {len(frames)} frames, expected >= {at_least}; distil from more clips")
    return Frames(frames, depth, sha256(path))
