"""The student: a plain ViT that turns one RGB frame into the teacher's 14x14 geometric features.

Written for export: LayerNorm stays one op, attention is two products and a softmax with the scale
on the query, positions are one constant, and input normalisation is inside the graph (arXiv
2010.11929, 2012.12877).
"""
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from records.files import read_json, reading, write_json
from student.config import StudentConfig
from teacher.towers.efficientnet import SEMANTIC_DIM, Lite0Trunk
from teacher.training.checkpoint import save_finite

HEAD_WIDTH = 64  # TensorRT fuses attention of head width 16, 32 or 64


class Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (t.reshape(b, n, self.heads, HEAD_WIDTH).transpose(1, 2)
                   for t in self.qkv(x).split(c, dim=-1))
        if self.training:
            y = F.scaled_dot_product_attention(q, k, v)             # [B,h,N,64]
        else:
            weights = (q * HEAD_WIDTH**-0.5) @ k.transpose(-2, -1)  # [B,h,N,N]
            y = weights.softmax(-1) @ v                             # [B,h,N,64]
        return self.proj(y.transpose(1, 2).reshape(b, n, c))        # [B,N,C]


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Student(nn.Module):
    """frames [B,3,224,224] in [0,1] -> teacher features [B,D,14,14], standardised per channel.

    `target_mean` and `target_std` ([D], moments of the training set's features) convert between
    standardised and raw features.
    """
    pixel_mean: Tensor
    pixel_std: Tensor
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, config: StudentConfig, pretrained_stem: bool = True):
        super().__init__()
        self.config = config
        width, grid = config.width, config.grid
        mean, std = _PIXELS[config.stem]
        self.register_buffer("pixel_mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(std).view(1, 3, 1, 1))
        self.register_buffer("target_mean", torch.zeros(config.out_dim))
        self.register_buffer("target_std", torch.ones(config.out_dim))
        self.patch_embed = (nn.Conv2d(3, width, config.patch, config.patch)
                            if config.stem == "patch" else nn.Conv2d(SEMANTIC_DIM, width, 1))
        self.positions = nn.Parameter(torch.zeros(1, grid * grid, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, config.out_dim)
        self.apply(_init)
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.stem = None if config.stem == "patch" else Lite0Trunk(pretrained_stem)

    def forward(self, frames: Tensor) -> Tensor:
        x = (frames - self.pixel_mean) / self.pixel_std
        if self.stem is not None:
            x = self.stem(x)                                                 # [B,112,14,14]
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.positions  # [B,N,C], N = 196
        for block in self.blocks:
            x = block(x)
        x = self.head(self.norm(x))                                          # [B,N,D]
        return x.transpose(1, 2).unflatten(2, (self.config.grid, self.config.grid))  # [B,D,14,14]

    def standardise(self, features: Tensor) -> Tensor:
        """Raw teacher features [B,D,H,W] -> float32 of mean 0 and std 1 per channel."""
        mean, std = self.target_mean.view(1, -1, 1, 1), self.target_std.view(1, -1, 1, 1)
        return (features.float() - mean) / std

    def destandardise(self, features: Tensor) -> Tensor:
        """Standardised [B,D,H,W] back to the teacher's own units."""
        return features * self.target_std.view(1, -1, 1, 1) + self.target_mean.view(1, -1, 1, 1)


def save_student(student: Student, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes folder/student.safetensors and folder/student.json; weights in `dtype`, statistics in
    float32."""
    state = {}
    for name, value in student.state_dict().items():
        kind = dtype if name.split(".")[0] in _WEIGHTS else torch.float32
        state[name] = value.detach().to("cpu", kind).contiguous()
    write_json(asdict(student.config), folder / "student.json")
    save_finite(state, folder / "student.safetensors")  # last: a run with weights is complete


def load_student(folder: Path | str, teacher: str | None = None) -> Student:
    """The student that `save_student` wrote, float32, in eval mode. Raises ValueError if there is
    none, its files are damaged, or it was not distilled from the tower with spec digest `teacher`.
    """
    folder = Path(folder)
    config, weights = folder / "student.json", folder / "student.safetensors"
    if not (config.is_file() and weights.is_file()):
        raise ValueError(f"{folder}: holds no student (student.json, student.safetensors); "
                         "make one with: vega3d distill run")
    complete = ("a complete student, or damaged", "distil it again")
    with reading(config, *complete):
        # files older than the field `stem` are of students without one
        shape = StudentConfig(**{"stem": "patch"} | read_json(config, "distil it again"))
        student = Student(shape, pretrained_stem=False)
    if teacher not in (None, shape.teacher):
        raise ValueError(f"{folder}: was distilled from the teacher {shape.teacher}, but this "
                         f"generator at this tap is {teacher}; undo the change of one of them")
    with reading(weights, *complete):
        student.load_state_dict({k: v.float() for k, v in load_file(weights).items()}, strict=True)
    return student.eval()


_WEIGHTS = {"stem", "patch_embed", "positions", "blocks", "norm", "head"}  # the rest: statistics
# mean and deviation of pixels that a stem expects
_PIXELS = {"patch": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
           "lite0": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])}


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
