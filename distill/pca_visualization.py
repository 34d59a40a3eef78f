"""A picture of what teacher and student see: the frame, then both feature maps through one shared
PCA."""
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from records.files import atomic_write
from student.vit import Student
from teacher.data.dataset import Examples

TILE = 168  # px


@torch.inference_mode()
def save_maps(student: Student, examples: Examples, path: Path, rows: int = 6) -> None:
    """Writes a PNG: one row a clip (its first frame), columns frame | teacher | student."""
    student.eval()
    frames, targets = [], []
    for _, example in examples.in_order():
        frames.append(example["frames"][:1])
        targets.append(example["generative"][:1].float())
        if len(frames) == rows:
            break
    images = torch.cat(frames)
    raw = torch.cat(targets)
    teacher = (raw - student.target_mean.view(1, -1, 1, 1)) / student.target_std.view(
        1, -1, 1, 1)  # [N,D,14,14]
    colours = pca_colours([teacher, student(images.float() / 255).float()])
    sheet = np.concatenate(
        [_tiles(images.permute(0, 2, 3, 1).cpu().numpy()), *map(_tiles, colours)], axis=1)
    with atomic_write(path) as scratch:
        Image.fromarray(sheet).save(scratch)


def pca_colours(maps: list[Tensor]) -> list[np.ndarray]:
    """Feature maps, each [N,D,h,w], -> [N,h,w,3] uint8 by the first map's three main directions and
    value range."""
    flat = maps[0].permute(0, 2, 3, 1).flatten(0, 2).float().cpu()                    # [N*h*w,D]
    mean = flat.mean(0)
    _, _, axes = torch.pca_lowrank(flat - mean, q=3, center=False, niter=4)           # [D,3]
    low, high = torch.quantile((flat - mean) @ axes, torch.tensor([0.01, 0.99]), dim=0)
    out = []
    for features in maps:
        points = (features.permute(0, 2, 3, 1).float().cpu() - mean) @ axes
        out.append((((points - low) / (high - low)).clamp(0, 1) * 255).byte().numpy())
    return out


def _tiles(images: np.ndarray) -> np.ndarray:
    enlarged = (Image.fromarray(i).resize((TILE, TILE), Image.Resampling.NEAREST) for i in images)
    return np.concatenate([np.asarray(i) for i in enlarged])
