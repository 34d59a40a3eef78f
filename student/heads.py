"""What an app can draw, from the frozen student's 14x14 features: depth, normals, a descriptor and
a picture of them.

Each is a few layers of its own, so one can be left out or trained again alone. Positions are given
to depth and normals (a floor is low in the picture), never to the descriptor, which must not know
where in the picture it is.
"""
import json
from dataclasses import asdict
from math import log
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from records.files import atomic_write
from student.config import HeadsShape
from student.vit import Student

FILE = "heads.safetensors"  # beside student.safetensors
MIN_DEPTH_M, MAX_DEPTH_M = 0.1, 50.0
OUTPUTS = ("depth", "normals", "descriptors", "colours")
TRAIN = "train them with: vega3d distill heads"


class HeadOutputs(NamedTuple):
    depth: Tensor        # [B,1,56,56] metres along the optical axis, 0.1 to 50
    # [B,3,56,56] unit vectors, camera axes (x right, y down, z ahead), towards the camera
    normals: Tensor
    # [B,32,28,28] unit vectors: the same place has the same one in another view
    descriptors: Tensor
    colours: Tensor      # [B,3,14,14] the features' three main directions, 0 to 1


class Head(nn.Module):
    """x [B,D,g,g] -> [B,outputs,up*g,up*g]: narrow, look at neighbours near and far, spread each
    token over up*up cells, smooth their seams."""

    def __init__(self, shape: HeadsShape, outputs: int, up: int, positions: bool):
        super().__init__()
        self.up, detail = up, max(outputs, 8)
        self.narrow = nn.Conv2d(shape.in_dim, shape.width, 1)
        self.positions = nn.Parameter(torch.zeros(1, shape.width, shape.grid,
                                                  shape.grid)) if positions else None
        self.near = nn.Conv2d(shape.width, shape.width, 3, padding=1)
        # depth needs more than a corner
        self.far = nn.Conv2d(shape.width, shape.width, 3, padding=3, dilation=3)
        self.spread = nn.Conv2d(shape.width, detail * up * up, 1)
        self.smooth = nn.Conv2d(detail, outputs, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.narrow(features)
        if self.positions is not None:
            x = x + self.positions
        x = F.gelu(x)
        x = x + F.gelu(self.near(x))                      # [B,W,g,g]
        x = x + F.gelu(self.far(x))
        return self.smooth(F.pixel_shuffle(self.spread(x), self.up))


class Heads(nn.Module):
    """Standardised student features [B,D,14,14] -> HeadOutputs."""
    colours: nn.Conv2d

    def __init__(self, shape: HeadsShape):
        super().__init__()
        self.shape = shape
        self.depth = Head(shape, 1, shape.dense_up, positions=True)
        self.normals = Head(shape, 3, shape.dense_up, positions=True)
        self.descriptors = Head(shape, shape.descriptor_dim, shape.descriptor_up, positions=False)
        # a fixed map, set by `fit_pca`
        self.colours = nn.Conv2d(shape.in_dim, 3, 1).requires_grad_(False)

    def forward(self, features: Tensor) -> HeadOutputs:
        log_depth = self.depth(features).clamp(log(MIN_DEPTH_M), log(MAX_DEPTH_M))
        return HeadOutputs(log_depth.exp(), _unit(self.normals(features)), self.describe(features),
                       self.colours(features).clamp(0, 1))

    def describe(self, features: Tensor) -> Tensor:
        """The descriptors alone, [B,32,28,28]."""
        return _unit(self.descriptors(features))


class StudentWithHeads(nn.Module):
    """frames [B,3,224,224] in [0,1] -> (features [B,D,14,14], *HeadOutputs): what is exported as one
    file."""

    def __init__(self, student: Student, heads: Heads):
        super().__init__()
        self.student, self.heads = student, heads

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        features = self.student(frames)
        return features, *self.heads(features)


@torch.no_grad()
def fit_pca(heads: Heads, features: Tensor) -> None:
    """Sets the colour map from features [N,D,14,14]: their first three directions, 1st to 99th
    percentile -> 0 to 1.

    One fixed map for all frames: colours that are fitted to each frame flicker.
    """
    flat = features.movedim(1, -1).flatten(0, 2).float()                     # [N*196,D]
    mean = flat.mean(0)
    axes = torch.linalg.eigh(torch.cov(
        flat.T)).eigenvectors.flip(1)[:, :3]  # [D,3], the largest first
    axes = axes * torch.sign(axes.sum(0))  # a direction has no sign of its own
    along = ((flat - mean) @ axes).sort(0).values                            # [N*196,3]
    low, high = along[int(0.01 * len(along))], along[int(0.99 * (len(along) - 1))]
    gain = 1 / (high - low).clamp_min(1e-6)
    heads.colours.weight.copy_((axes * gain).T[:, :, None, None])
    assert heads.colours.bias is not None
    heads.colours.bias.copy_(-(mean @ axes + low) * gain)


def save_heads(heads: Heads, folder: Path, about: dict[str, float] | None = None) -> Path:
    """Writes folder/heads.safetensors beside and renames; shape and `about` (held-out scores) go
    into its header."""
    path = folder / FILE
    with atomic_write(path) as scratch:
        save_file({k: v.detach().cpu().float().contiguous()
                   for k, v in heads.state_dict().items()}, scratch, metadata={
                       "shape": json.dumps(asdict(heads.shape)), "scores": json.dumps(about or {})
                   })
    return path


def load_heads(folder: Path | str, student_sha256: str | None = None) -> Heads:
    """What `save_heads` wrote, in eval mode. Raises ValueError if there are none, they are broken,
    or they were trained on another student than the one whose student.safetensors has this
    sha256."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise ValueError(f"{path}: no heads here; {TRAIN}")
    try:
        with safe_open(path, "pt") as file:
            shape = HeadsShape(**json.loads((file.metadata() or {})["shape"]))
        heads = Heads(shape)
        heads.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, RuntimeError, TypeError, KeyError, json.JSONDecodeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not whole heads ({why}); {TRAIN}") from error
    if student_sha256 is not None and shape.student != student_sha256:
        raise ValueError(
            f"{path}: are of the student {shape.student[:12]}, not of {student_sha256[:12]} here; "
            f"{TRAIN}"
        )
    return heads.eval()


def heads_scores(folder: Path | str) -> dict[str, float]:
    """The held-out scores that were saved with the heads."""
    with safe_open(Path(folder) / FILE, "pt") as file:
        return json.loads((file.metadata() or {}).get("scores", "{}"))


def _unit(x: Tensor) -> Tensor:
    return x / x.square().sum(1, keepdim=True).add(1e-6).sqrt()
