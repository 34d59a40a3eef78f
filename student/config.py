"""Sizes of the student and of its heads. Imports no torch: `--help` reads this module."""
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from records.options import Depth, Pixels, Range, Width, check_ranges

# distilled from wan-nano; see their cards
SHIPPED_BY_SIZE = {size: Path(__file__).parent / "weights" / f"vit-{size}" for size in ("ti", "s")}
SHIPPED = SHIPPED_BY_SIZE["ti"]
WIDTHS = {"ti": 192, "s": 384, "b": 768}


@dataclass(frozen=True)
class StudentConfig:
    size: Literal["ti", "s", "b"] = "ti"
    out_dim: Width = 256    # D, the teacher's feature width
    depth: Depth = 8        # blocks
    image_size: Pixels = 224  # px, square; 224 / 16 = the 14x14 grid of the targets
    patch: Pixels = 16      # px
    # lite0: EfficientNet-Lite0 up to stride 16, from its ImageNet weights; patch: one convolution
    stem: Literal["lite0", "patch"] = "lite0"
    teacher: str = ""       # digest of the distilled tower's spec; set by the run

    def __post_init__(self) -> None:
        check_ranges(self, "student.model")
        if self.stem == "lite0" and self.patch != 16:
            raise ValueError(f"student.patch is {self.patch}, expected 16: the stride of the stem "
                             "lite0")
        if self.image_size % self.patch:
            raise ValueError(f"student.image_size is {self.image_size}, expected a multiple of "
                             f"student.patch {self.patch}")

    @property
    def width(self) -> int:
        return WIDTHS[self.size]

    @property
    def shipped(self) -> Path:
        """The shipped student of this size; the ViT-Ti where none ships."""
        return SHIPPED_BY_SIZE.get(self.size, SHIPPED)

    @property
    def grid(self) -> int:
        """Tokens a side."""
        return self.image_size // self.patch


@dataclass(frozen=True)
class HeadsShape:
    in_dim: Width = 256     # D, the student's out_dim
    grid: Annotated[int, Range(1, 64)] = 14  # tokens a side
    width: Width = 64
    descriptor_dim: Width = 32
    dense_up: Annotated[int, Range(1, 16)] = 4  # normals: 56x56
    descriptor_up: Annotated[int, Range(1, 16)] = 2  # descriptors: 28x28
    # sha256 of the student.safetensors that the heads read: they fit no other student's features
    student: str = ""
    # px at the model's input, of the camera that depth is predicted for: metres = depth * focal /
    # canonical_focal. 0: heads of the first edition, metres of any camera at 56x56, no confidence
    canonical_focal: Annotated[float, Range(0, 100_000)] = 0.0
    depth_up: Annotated[int, Range(1, 16)] = 8  # depth and confidence: 112x112
    patch: Pixels = 16      # px of a token's side

    def __post_init__(self) -> None:
        check_ranges(self, "heads")
        if self.patch % self.depth_up or self.depth_up % 2:
            raise ValueError(f"heads.depth_up is {self.depth_up}, expected an even divisor of the "
                             f"patch, {self.patch}")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the ONNX outputs after `features`, in order."""
        names = "depth", "normals", "descriptors", "colours"
        return (*names, "confidence") if self.canonical_focal else names

    @property
    def depth_cells(self) -> int:
        """Side of the depth map."""
        return self.grid * (self.depth_up if self.canonical_focal else self.dense_up)
