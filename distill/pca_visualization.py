"""Feature maps as colours: the three principal components of teacher and student features."""
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
def save_feature_maps(student: Student, examples: Examples, path: Path, rows: int = 6) -> None:
    """Writes a PNG: one row a clip (its first frame), columns frame | teacher | student."""
    student.eval()
    frames, features = [], []
    for _, example in examples.in_order():
        frames.append(example["frames"][:1])
        features.append(example["generative"][:1].float())
        if len(frames) == rows:
            break
    images = torch.cat(frames)                               # [N,3,224,224]
    teacher = student.standardise(torch.cat(features))       # [N,D,14,14]
    colours = pca_colours([teacher, student(images.float() / 255).float()])
    columns = [_tiles(c) for c in (images.permute(0, 2, 3, 1).cpu().numpy(), *colours)]
    with atomic_write(path) as scratch:
        Image.fromarray(np.concatenate(columns, axis=1)).save(scratch)


def pca_colours(maps: list[Tensor]) -> list[np.ndarray]:
    """Maps [N,D,h,w] -> [N,h,w,3] uint8, by the first map's principal components and range."""
    flat = maps[0].permute(0, 2, 3, 1).flatten(0, 2).float().cpu()                    # [N*h*w,D]
    mean = flat.mean(0)
    with torch.random.fork_rng(devices=[]):  # equal maps get equal colours, after a resume too
        torch.manual_seed(0)
        _, _, axes = torch.pca_lowrank(flat - mean, q=3, center=False, niter=4)       # [D,3]
    low, high = torch.quantile((flat - mean) @ axes, torch.tensor([0.01, 0.99]), dim=0)
    colours = []
    for features in maps:
        projected = (features.permute(0, 2, 3, 1).float().cpu() - mean) @ axes
        colours.append((((projected - low) / (high - low)).clamp(0, 1) * 255).byte().numpy())
    return colours


def _tiles(images: np.ndarray) -> np.ndarray:
    tiles = [Image.fromarray(i).resize((TILE, TILE), Image.Resampling.NEAREST) for i in images]
    return np.concatenate([np.asarray(tile) for tile in tiles])
