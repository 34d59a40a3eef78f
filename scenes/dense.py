"""Dense targets (depth, normals, classes) of a clip at every fourth pixel, and their metrics.

A frame of 224 px has [56,56] targets: four to a side of each 14x14 token.
"""
from dataclasses import dataclass

import numpy as np

from scenes.clip import Clip

STRIDE = 4          # px between targets
NO_CLASS = 255
MAX_DEPTH_M = 20.0


@dataclass
class DenseTargets:
    depth: np.ndarray    # [T,56,56] float32 metres, 0 = unknown
    normals: np.ndarray  # [T,3,56,56] int8, 127 * unit vector in camera axes; all zero = unknown
    classes: np.ndarray  # [T,56,56] uint8 index into scenes.furniture.CLASSES, 255 = none


def dense_targets(clip: Clip) -> DenseTargets:
    """Ground truth at the middle of every 4x4 px cell. Raises ValueError for a clip without."""
    from scenes.furniture.pack import CLASSES

    if clip.depth is None or clip.normals is None or clip.instances is None:
        raise ValueError(f"clip {clip.id}: has no depth, normals and instances; heads train on "
                         "rendered rooms (vega3d scenes render), videos can only be distilled from")
    cut = slice(STRIDE // 2, None, STRIDE)
    return DenseTargets(clip.depth[:, cut, cut].copy(), clip.normals[:, :, cut, cut].copy(),
                        clip.categories(CLASSES, cut))


def patch_depth(clip: Clip, cells: int = 14) -> np.ndarray:
    """Mean depth in m of each patch's valid pixels, [T,cells,cells] float32; 0 without any."""
    if clip.depth is None:
        raise ValueError(f"clip {clip.id}: has no depth")
    t, h, w = clip.depth.shape
    blocks = clip.depth.reshape(t, cells, h // cells, cells, w // cells)
    valid = (blocks > 0).sum((2, 4))
    return (blocks.sum((2, 4)) / np.maximum(valid, 1)).astype(np.float32)


class DenseScores:
    """Accumulates the four scores over batches; predictions are laid out like DenseTargets."""

    def __init__(self, classes: int):
        self.confusion = np.zeros((classes, classes), np.int64)
        self.close, self.relative, self.valid = 0.0, 0.0, 0
        self.angle, self.facing = 0.0, 0

    def add(self, depth: np.ndarray, normals: np.ndarray, logits_argmax: np.ndarray,
            truth: DenseTargets) -> None:
        valid = truth.depth > 0
        ratio = np.maximum(depth[valid], 1e-3) / truth.depth[valid]
        self.close += float((np.maximum(ratio, 1 / ratio) < 1.25).sum())
        self.relative += float(np.abs(ratio - 1).sum())
        self.valid += int(valid.sum())
        target = truth.normals.astype(np.float32) / 127
        facing = (truth.normals != 0).any(1)                                         # [T,56,56]
        unit = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
        length = np.maximum(np.linalg.norm(target, axis=1), 1e-6)
        cosine = np.clip((unit * target).sum(1) / length, -1, 1)
        self.angle += float(np.degrees(np.arccos(cosine[facing])).sum())
        self.facing += int(facing.sum())
        labelled = truth.classes != NO_CLASS
        n = len(self.confusion)
        pairs = truth.classes[labelled].astype(np.int64) * n + logits_argmax[labelled]
        self.confusion += np.bincount(pairs, minlength=n * n).reshape(n, n)

    def result(self) -> dict[str, float]:
        """delta1 (share of pixels within 25 % of the true depth), abs_rel, normal_deg, and the mean
        IoU of the classes that the truth has."""
        hits = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        present = self.confusion.sum(1) > 0
        miou = float((hits[present] / union[present]).mean()) if present.any() else 0.0
        valid, facing = max(self.valid, 1), max(self.facing, 1)
        return {"delta1": self.close / valid, "abs_rel": self.relative / valid,
                "normal_deg": self.angle / facing, "miou": miou}
