"""The student's heads: depth, normals, a descriptor and PCA colours from frozen 14x14 features.

Each head is a few layers of its own, so one can be left out or trained alone. Depth and normals get
position embeddings (floors are low in a frame); the descriptor gets none, because it has to be the
same wherever a point appears. A new head: a name in OUTPUTS, a field of HeadOutputs, a module of
Heads and a term of `heads_loss`.
"""
from dataclasses import asdict
from math import log
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from records.files import parse_json, reading, to_json
from student.config import HeadsShape
from student.vit import Student
from teacher.dense.model import geometry_loss
from teacher.training.checkpoint import save_finite

FILE = "heads.safetensors"  # next to student.safetensors
MIN_DEPTH_M, MAX_DEPTH_M = 0.1, 50.0
OUTPUTS = ("depth", "normals", "descriptors", "colours")  # names of the ONNX outputs, in order
TRAIN = "train them with: vega3d distill heads"


class HeadOutputs(NamedTuple):
    depth: Tensor        # [B,1,56,56] metres along the optical axis, 0.1 to 50
    normals: Tensor      # [B,3,56,56] unit vectors, camera axes (x right, y down, z ahead)
    descriptors: Tensor  # [B,32,28,28] unit vectors, alike for one point in two views
    colours: Tensor      # [B,3,14,14] the features' three principal components, 0 to 1


class HeadsBatch(NamedTuple):
    """Ground truth for B pairs of frames; M cells of each pair's first frame are matched."""
    features: Tensor  # [B,D,14,14] of the first frames
    other: Tensor     # [B,D,14,14] of the second frames
    depth: Tensor     # [B,56,56] m
    normals: Tensor   # [B,3,56,56] of any length, 0: unknown
    cells: Tensor     # [M] cells of the 28x28 grid
    targets: Tensor   # [B,M,2] (column, row) of their matches in the second frame; NaN: not visible


class Head(nn.Module):
    """x [B,D,g,g] -> [B,outputs,up*g,up*g]: a projection, a 3x3 and a dilated 3x3 convolution, a
    pixel shuffle and a 3x3 convolution that smooths its seams."""

    def __init__(self, shape: HeadsShape, outputs: int, up: int, positions: bool):
        super().__init__()
        self.up, detail = up, max(outputs, 8)
        embedding = torch.zeros(1, shape.width, shape.grid, shape.grid)
        self.narrow = nn.Conv2d(shape.in_dim, shape.width, 1)
        self.positions = nn.Parameter(embedding) if positions else None
        self.near = nn.Conv2d(shape.width, shape.width, 3, padding=1)
        # depth needs a large receptive field
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
        self.colours = nn.Conv2d(shape.in_dim, 3, 1).requires_grad_(False)  # set by `fit_pca`

    def forward(self, features: Tensor) -> HeadOutputs:
        log_depth = self.depth(features).clamp(log(MIN_DEPTH_M), log(MAX_DEPTH_M))
        return HeadOutputs(log_depth.exp(), _unit(self.normals(features)), self.describe(features),
                           self.colours(features).clamp(0, 1))

    def describe(self, features: Tensor) -> Tensor:
        """The descriptors alone, [B,32,28,28]."""
        return _unit(self.descriptors(features))


class StudentWithHeads(nn.Module):
    """frames [B,3,224,224] in [0,1] -> (features [B,D,14,14], *HeadOutputs): the model that export
    writes as one file."""

    def __init__(self, student: Student, heads: Heads):
        super().__init__()
        self.student, self.heads = student, heads

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        features = self.student(frames)
        return features, *self.heads(features)


def heads_loss(heads: Heads, batch: HeadsBatch) -> Tensor:
    """Log-depth L1 + normal cosine distance + InfoNCE over matches, a float32 scalar. No two heads
    share weights, so the terms do not compete."""
    outputs = heads(batch.features)
    geometry = geometry_loss(outputs.depth[:, 0].log(), outputs.normals, batch.depth, batch.normals)
    queries = outputs.descriptors.flatten(2)[..., batch.cells]
    return geometry + match_loss(queries, heads.describe(batch.other), batch.targets)


def match_loss(queries: Tensor, keys: Tensor, targets: Tensor, temperature: float = 0.07) -> Tensor:
    """InfoNCE (arXiv 1807.03748) over all cells of the second view, for each query of the first.

    queries: unit descriptors [P,C,M]; keys: unit descriptors [P,C,g,g]; targets [P,M,2]: (column,
    row) of the matching point in cells of the second view, NaN: not visible. A target is shared
    bilinearly among the four cells around it. Returns a float32 scalar; 0 if nothing is visible.
    """
    grid = keys.shape[-1]
    visible = ~targets.isnan().any(-1)                                              # [P,M]
    logits = queries.transpose(1, 2).float() @ keys.flatten(2).float() / temperature  # [P,M,g*g]
    logits = logits[visible].log_softmax(-1)                                        # [V,g*g]
    target = targets[visible].clamp(0, grid - 1)                                    # [V,2]
    low = target.floor().clamp(max=grid - 2)
    fraction = target - low                                                         # [V,2]
    loss = logits.new_zeros(())
    for dx in (0, 1):
        for dy in (0, 1):
            across = fraction[:, 0] if dx else 1 - fraction[:, 0]
            down = fraction[:, 1] if dy else 1 - fraction[:, 1]
            cell = ((low[:, 1] + dy) * grid + low[:, 0] + dx).long()
            loss = loss - (across * down * logits.gather(1, cell[:, None])[:, 0]).sum()
    return loss / max(len(logits), 1)


@torch.no_grad()
def fit_pca(heads: Heads, features: Tensor) -> None:
    """Sets the `colours` layer from features [N,D,14,14]: three principal components, 1st to 99th
    percentile -> 0 to 1. One projection serves all frames, so colours do not flicker."""
    flat = features.movedim(1, -1).flatten(0, 2).float()                     # [N*196,D]
    mean = flat.mean(0)
    ascending = torch.linalg.eigh(torch.cov(flat.T)).eigenvectors
    axes = ascending.flip(1)[:, :3]                                          # [D,3]
    axes = axes * torch.sign(axes.sum(0))  # an eigenvector's sign is arbitrary
    projected = ((flat - mean) @ axes).sort(0).values                        # [N*196,3]
    low, high = projected[int(0.01 * len(flat))], projected[int(0.99 * (len(flat) - 1))]
    gain = 1 / (high - low).clamp_min(1e-6)
    heads.colours.weight.copy_((axes * gain).T[:, :, None, None])
    assert heads.colours.bias is not None
    heads.colours.bias.copy_(-(mean @ axes + low) * gain)


def save_heads(heads: Heads, folder: Path, scores: dict[str, float] | None = None) -> Path:
    """Writes folder/heads.safetensors; its header holds the shape and the held-out scores."""
    path = folder / FILE
    state = {k: v.detach().cpu().float().contiguous() for k, v in heads.state_dict().items()}
    header = {"shape": to_json(asdict(heads.shape)), "scores": to_json(scores or {})}
    save_finite(state, path, header)
    return path


def load_heads(folder: Path | str, student_sha256: str | None = None) -> Heads:
    """The heads that `save_heads` wrote, in eval mode.

    Raises ValueError if there are none, the file is damaged, or they were trained on another
    student than the one whose student.safetensors has this sha256.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise ValueError(f"{path}: no heads here; {TRAIN}")
    with reading(path, "a heads file, or damaged", TRAIN):
        with safe_open(path, "pt") as file:
            shape = HeadsShape(**parse_json((file.metadata() or {})["shape"]))
        heads = Heads(shape)
        heads.load_state_dict(load_file(path), strict=True)
    if student_sha256 is not None and shape.student != student_sha256:
        raise ValueError(f"{path}: was trained on student {shape.student[:12]}, expected "
                         f"{student_sha256[:12]}; {TRAIN}")
    return heads.eval()


def heads_scores(folder: Path | str) -> dict[str, float]:
    """The held-out scores that were saved with the heads."""
    path = Path(folder) / FILE
    with reading(path, "a heads file, or damaged", TRAIN), safe_open(path, "pt") as file:
        return parse_json((file.metadata() or {}).get("scores", "{}"))


def _unit(x: Tensor) -> Tensor:
    return x / x.square().sum(1, keepdim=True).add(1e-6).sqrt()
