"""Training and scoring the student's heads on rendered depth, normals and correspondences."""
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.config import HeadTraining
from distill.correspondence import MatchScores, has_correspondences, matching_cells, rgb_patches
from records import manifest
from records.files import sha256
from records.progress import track
from scenes.clip import Clip, Source, Split
from scenes.dense import DenseScores, DenseTargets, dense_targets
from student.config import SHIPPED, HeadsShape
from student.heads import (
    FILE,
    HeadOutputs,
    Heads,
    HeadsBatch,
    fit_pca,
    heads_loss,
    heads_scores,
    load_heads,
    save_heads,
)
from student.vit import Student, load_student
from teacher.training.checkpoint import clipped_step, set_lr

NAME = "student_heads"  # of the row in accuracy.json
QUERIES = 196           # cells of the first view that enter the match loss in a step


@dataclass
class HeadsDataset:
    """All frames of the training clips, and every ordered pair of a clip's frames."""
    features: Tensor  # [N,D,14,14] float16
    depth: Tensor     # [N,56,56] m
    normals: Tensor   # [N,3,56,56] int8
    pairs: Tensor     # [P,2] frame numbers
    targets: Tensor   # [P,784,2] float16: where the second frame shows the first one's cells


def can_train(source: Source) -> bool:
    """Whether the clips have depth, normals and cameras."""
    clip = source.clip(source.ids("train")[0])
    labelled = clip.normals is not None and clip.instances is not None
    return labelled and has_correspondences(clip)


def ensure_heads(folder: Path, source: Source, config: HeadTraining, seed: int,
                 device: torch.device, again: bool = False) -> dict:
    """Trains heads for the student in `folder` unless it has them (`again`: even so).

    Writes folder/heads.safetensors; returns the row of held-out scores. Raises ValueError for clips
    without depth and cameras.
    """
    if not can_train(source):
        raise ValueError("heads: the clips have no depth, normals and cameras; train on rendered "
                         "rooms: vega3d distill heads (without --scenes.path)")
    student_sha256 = sha256(folder / "student.safetensors")
    if again or not _has_heads(folder, student_sha256):
        student = load_student(folder).to(device)
        dataset = _dataset(student, source, device)
        heads = train_student_heads(student, student_sha256, dataset, config, seed)
        save_heads(heads, folder, score_heads(student, heads, source, device))
    return {"features": NAME, "head": "own", "seed": seed, **heads_scores(folder)}


def train_student_heads(student: Student, student_sha256: str, dataset: HeadsDataset,
                        config: HeadTraining, seed: int) -> Heads:
    """Returns the heads in eval mode, trained for `config.steps` of student.heads.heads_loss."""
    torch.manual_seed(seed)
    shape = HeadsShape(student.config.out_dim, student.config.grid, config.width,
                       config.descriptor_dim, student=student_sha256)
    heads = _initial_heads(student, shape, config).to(dataset.features.device)
    fit_pca(heads, dataset.features)
    trainable = [p for p in heads.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.lr, weight_decay=0.02)
    draw = torch.Generator().manual_seed(seed)
    for step in track(range(config.steps), description="heads"):
        set_lr(optimizer, config.lr, step, config.steps, warm=config.steps // 20)
        loss = heads_loss(heads, _draw_batch(dataset, config.batch, draw))
        clipped_step(loss, optimizer, trainable)
    return heads.eval()


@torch.inference_mode()
def score_heads(student: Student, heads: Heads, source: Source,
                device: torch.device) -> dict[str, float]:
    """Test scores: delta1, abs_rel, normal_deg, and match_* between first and last frames."""
    dense, matches = DenseScores(1), MatchScores(heads.shape.grid)
    cells = heads.shape.grid * heads.shape.descriptor_up
    for clip in _clips(source, "test"):
        features = student(_frames(clip, device))
        outputs = heads(features)
        _add_dense(dense, outputs, clip)
        maps = {"descriptor": outputs.descriptors,
                "features": F.interpolate(features, size=(cells, cells)),
                "rgb": rgb_patches(clip.frames, cells)}
        last = len(clip.frames) - 1
        for a, b in ((0, last), (last, 0)):
            pair = {name: (m[a], m[b]) for name, m in maps.items()}
            matches.add(pair, matching_cells(clip, a, b, cells))
    geometry = {k: v for k, v in dense.result().items() if k != "miou"}
    return {**geometry, **matches.result(), "train_clips": len(source.ids("train")),
            "test_clips": len(source.ids("test"))}


def _has_heads(folder: Path, student_sha256: str) -> bool:
    if damage := manifest.fault(folder / FILE):
        print(f"{damage}; training the heads again")
        return False
    try:
        load_heads(folder, student_sha256)
    except ValueError:
        return False
    return True


@torch.inference_mode()
def _dataset(student: Student, source: Source, device: torch.device) -> HeadsDataset:
    features, depth, normals, pairs, targets = [], [], [], [], []
    first, cells = 0, student.config.grid * HeadsShape.descriptor_up
    for clip in _clips(source, "train"):
        features.append(student(_frames(clip, device)).half())
        truth = dense_targets(clip)
        depth.append(torch.from_numpy(truth.depth))
        normals.append(torch.from_numpy(truth.normals))
        clip_pairs = list(permutations(range(len(clip.frames)), 2))
        pairs.append(torch.tensor(clip_pairs) + first)
        found = [matching_cells(clip, a, b, cells) for a, b in clip_pairs]
        targets.append(torch.from_numpy(np.stack(found)).half())
        first += len(clip.frames)
    rest = (torch.cat(parts).to(device) for parts in (depth, normals, pairs, targets))
    return HeadsDataset(torch.cat(features).clone(), *rest)


def _initial_heads(student: Student, shape: HeadsShape, config: HeadTraining) -> Heads:
    heads = Heads(shape)  # the shipped heads are only copied: their shape names the shipped student
    if config.init == "shipped" and (SHIPPED / FILE).is_file():
        shipped, teacher = load_heads(SHIPPED), load_student(SHIPPED).config.teacher
        fits = replace(shipped.shape, student=shape.student) == shape
        if fits and teacher == student.config.teacher:
            heads.load_state_dict(shipped.state_dict())
    return heads


def _draw_batch(dataset: HeadsDataset, size: int, draw: torch.Generator) -> HeadsBatch:
    device = dataset.pairs.device
    chosen = torch.randint(len(dataset.pairs), (size, ), generator=draw).to(device)
    cells = torch.randperm(dataset.targets.shape[1], generator=draw)[:QUERIES].to(device)
    first, second = dataset.pairs[chosen].T                                           # [B] each
    return HeadsBatch(dataset.features[first].float(), dataset.features[second].float(),
                      dataset.depth[first], dataset.normals[first].float(), cells,
                      dataset.targets[chosen][:, cells].float())


def _clips(source: Source, split: Split) -> Iterator[Clip]:
    for clip_id in track(source.ids(split), description=f"heads: {split} clips"):
        yield source.clip(clip_id)


def _frames(clip: Clip, device: torch.device) -> Tensor:
    return torch.from_numpy(clip.frames).to(device).float() / 255


def _add_dense(scores: DenseScores, outputs: HeadOutputs, clip: Clip) -> None:
    truth = dense_targets(clip)
    no_classes = np.zeros_like(truth.classes)  # the heads predict none
    scores.add(outputs.depth[:, 0].cpu().numpy(), outputs.normals.cpu().numpy(), no_classes,
               DenseTargets(truth.depth, truth.normals, no_classes))
