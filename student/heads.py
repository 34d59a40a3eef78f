"""The student's heads: depth, normals, a descriptor and PCA colours from its 14x14 features.

Each head is a few layers of its own, so one can be left out or trained alone. Depth and normals get
position embeddings (floors are low in a frame); the descriptor gets none, because it has to be the
same wherever a point appears. Depth also reads the frame, whose edges are finer than a token. A new
head: a name in HeadsShape.outputs, a field of HeadOutputs, a module of Heads and a term of
distill.joint.JointLoss.
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
from teacher.training.checkpoint import save_finite

FILE = "heads.safetensors"  # next to student.safetensors
MIN_DEPTH_M, MAX_DEPTH_M = 0.1, 50.0
DETAIL = 8  # channels at the resolution of a head's output
COARSE = 2  # cells to a token's side, of the map that depth is upsampled from
TRAIN = "train them with: vega3d distill heads"


class HeadOutputs(NamedTuple):
    # of a camera of HeadsShape.canonical_focal: metres along the optical axis, 0.1 to 50, times
    # the camera's own focal length over that one
    depth: Tensor        # [B,1,112,112]
    normals: Tensor      # [B,3,56,56] unit vectors, camera axes (x right, y down, z ahead)
    descriptors: Tensor  # [B,32,28,28] unit vectors, alike for one point in two views
    colours: Tensor      # [B,3,14,14] the features' three principal components, 0 to 1
    # [B,1,112,112] the probability that depth is within 25 % of the truth; not of the first edition
    confidence: Tensor | None = None


class Head(nn.Module):
    """x [B,D,g,g] -> [B,outputs,up*g,up*g]: a projection, a 3x3 and a dilated 3x3 convolution, a
    pixel shuffle and a 3x3 convolution that smooths its seams."""

    def __init__(self, shape: HeadsShape, outputs: int, up: int, positions: bool):
        super().__init__()
        self.up, detail = up, max(outputs, DETAIL)
        embedding = torch.zeros(1, shape.width, shape.grid, shape.grid)
        self.narrow = nn.Conv2d(shape.in_dim, shape.width, 1)
        self.positions = nn.Parameter(embedding) if positions else None
        self.near = nn.Conv2d(shape.width, shape.width, 3, padding=1)
        # depth needs a large receptive field
        self.far = nn.Conv2d(shape.width, shape.width, 3, padding=3, dilation=3)
        self.spread = nn.Conv2d(shape.width, detail * up * up, 1)
        self.smooth = nn.Conv2d(detail, outputs, 3, padding=1)

    def trunk(self, features: Tensor) -> Tensor:
        """[B,W,g,g]"""
        x = self.narrow(features)
        if self.positions is not None:
            x = x + self.positions
        x = F.gelu(x)
        x = x + F.gelu(self.near(x))
        return x + F.gelu(self.far(x))

    def forward(self, features: Tensor) -> Tensor:
        return self.smooth(F.pixel_shuffle(self.spread(self.trunk(features)), self.up))


class DepthHead(Head):
    """features, frames -> ln depth and the logit of its confidence, each [B,1,up*g,up*g].

    ln depth is a map of mean zero, which no change of scale moves, plus one number a frame. The map
    is one of 28x28 by convex upsampling (arXiv 2003.12039): a pixel is a weighted mean of the 3x3
    cells around it, and the frame decides the weights, so that an occlusion edge stays an edge.
    """
    neighbours: Tensor

    def __init__(self, shape: HeadsShape):
        super().__init__(shape, DETAIL, shape.depth_up, positions=True)
        self.coarse = nn.Conv2d(shape.width, COARSE**2, 1)
        stride = shape.patch // shape.depth_up
        self.detail = nn.Conv2d(3, DETAIL, 2 * stride, stride, padding=stride // 2)
        self.edges = nn.Conv2d(DETAIL, 2 * DETAIL, 3, padding=1)
        self.mix = nn.Conv2d(DETAIL, 2 * DETAIL, 3, padding=1)
        self.smooth = nn.Conv2d(2 * DETAIL, 9, 3, padding=1)
        self.confidence = nn.Conv2d(2 * DETAIL, 1, 3, padding=1)
        self.scale = nn.Sequential(nn.Conv2d(shape.width, shape.width, 1), nn.GELU(),
                                   nn.Conv2d(shape.width, 1, 1))
        self.fine = shape.depth_up // COARSE
        copies = torch.eye(9).reshape(9, 1, 3, 3).repeat_interleave(self.fine**2, 0)
        self.register_buffer("neighbours", copies, persistent=False)

    def estimate(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(features)
        scale = self.scale(x.mean((2, 3), keepdim=True)).float()         # [B,1,1,1]
        spread = F.pixel_shuffle(self.spread(x), self.up)                # [B,8,112,112]
        guide = (self.mix(spread) + self.edges(self.detail(frames - 0.5).relu())).relu()
        weights = self.smooth(guide).float().softmax(1)                  # [B,9,112,112]
        cells = F.pixel_shuffle(self.coarse(x), COARSE).float()          # [B,1,28,28]
        cells = cells - cells.mean((2, 3), keepdim=True)                 # what pads is the mean
        cells = F.pixel_shuffle(F.conv2d(cells, self.neighbours, padding=1), self.fine)
        relative = (weights * cells).sum(1, keepdim=True)
        relative = relative - relative.mean((2, 3), keepdim=True)
        return relative + scale, self.confidence(guide).float()


class Heads(nn.Module):
    """Standardised student features [B,D,14,14] and frames in [0,1] -> the fields of HeadOutputs,
    without those that `shape.outputs` lacks."""
    depth: Head
    colours: nn.Conv2d

    def __init__(self, shape: HeadsShape):
        super().__init__()
        self.shape = shape
        self.depth = (DepthHead(shape) if shape.canonical_focal
                      else Head(shape, 1, shape.dense_up, positions=True))
        self.normals = Head(shape, 3, shape.dense_up, positions=True)
        self.descriptors = Head(shape, shape.descriptor_dim, shape.descriptor_up, positions=False)
        self.colours = nn.Conv2d(shape.in_dim, 3, 1).requires_grad_(False)  # set by `fit_pca`

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, ...]:
        log_depth, *logit = (self.depth.estimate(features, frames)
                             if isinstance(self.depth, DepthHead) else (self.depth(features),))
        depth = log_depth.clamp(log(MIN_DEPTH_M), log(MAX_DEPTH_M)).exp()
        return (depth, _unit(self.normals(features)), _unit(self.descriptors(features)),
                self.colours(features).clamp(0, 1), *(x.sigmoid() for x in logit))


class StudentWithHeads(nn.Module):
    """frames [B,3,224,224] in [0,1] -> (features [B,D,14,14], *HeadOutputs): the model that export
    writes as one file."""

    def __init__(self, student: Student, heads: Heads):
        super().__init__()
        self.student, self.heads = student, heads

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        features = self.student(frames)
        return features, *self.heads(features, frames)


@torch.no_grad()
def fit_pca(heads: Heads, features: Tensor) -> None:
    """Sets the `colours` layer from features [N,D,14,14]: three principal components, 1st to 99th
    percentile -> 0 to 1. One projection serves all frames, so colours do not flicker."""
    weight, bias = principal_colours(features)
    heads.colours.weight.copy_(weight[:, :, None, None])
    assert heads.colours.bias is not None
    heads.colours.bias.copy_(bias)


def principal_colours(features: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [3,D] and bias [3] that turn a D-vector of features [N,D,h,w] into a colour."""
    flat = features.movedim(1, -1).flatten(0, 2).float()                     # [N*h*w,D]
    mean = flat.mean(0)
    ascending = torch.linalg.eigh(torch.cov(flat.T)).eigenvectors
    axes = ascending.flip(1)[:, :3]                                          # [D,3]
    axes = axes * torch.sign(axes.sum(0))  # an eigenvector's sign is arbitrary
    projected = ((flat - mean) @ axes).sort(0).values                        # [N*196,3]
    low, high = projected[int(0.01 * len(flat))], projected[int(0.99 * (len(flat) - 1))]
    gain = 1 / (high - low).clamp_min(1e-6)
    return (axes * gain).T, -(mean @ axes + low) * gain


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
