"""Training the student's heads: depth and normals from rendered truth, descriptors from exact
matches between frames.

The student is frozen: its features are computed once, and the heads train on those in well under a
minute.
"""
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from distill.config import HeadTraining
from distill.correspondence import MatchScores, has_matches, match_loss, places, rgb_patches
from records.files import sha256
from scenes.clip import Clip, Source, Split
from scenes.dense import DenseScores, DenseTargets, dense_targets
from student.config import SHIPPED, HeadsShape
from student.heads import (
    FILE,
    Heads,
    StudentWithHeads,
    fit_pca,
    heads_scores,
    load_heads,
    save_heads,
)
from student.vit import Student, load_student
from teacher.training.checkpoint import set_lr

NAME = "student_heads"  # the row in accuracy.json
ASKED = 196             # cells of the first view that are asked for in a step


@dataclass
class Views:
    """All frames of the training clips: features [N,D,14,14] half, depth [N,56,56] m, normals int8
    [N,3,56,56], and ordered pairs of one clip's frames [P,2] with where the second shows the
    first's cells [P,784,2]."""
    features: Tensor
    depth: Tensor
    normals: Tensor
    pairs: Tensor
    places: Tensor


def can_train(source: Source) -> bool:
    """Whether the clips have depth, normals and cameras."""
    clip = source.clip(source.ids("train")[0])
    return has_matches(clip) and clip.normals is not None and clip.instances is not None


def make_heads(folder: Path, source: Source, config: HeadTraining, seed: int, device: torch.device,
               again: bool = False) -> dict:
    """Heads for the student in `folder`, beside it, unless it has them; returns their row of
    held-out scores.

    again: train them even so.
    Raises ValueError if the clips have no depth and cameras.
    """
    if not can_train(source):
        raise ValueError(
            "heads: the clips have no depth, normals and cameras; train on rendered rooms: "
            "vega3d distill heads (without --scenes.path)")
    own = sha256(folder / "student.safetensors")
    if again or not _has_own(folder, own):
        student = load_student(folder).to(device)
        heads = train_student_heads(student, own, _views(student, source, device), config, seed)
        save_heads(heads, folder, score_heads(student, heads, source, device))
    return {"features": NAME, "head": "own", "seed": seed, **heads_scores(folder)}


def train_student_heads(student: Student, student_sha256: str, views: Views, config: HeadTraining,
                seed: int) -> Heads:
    """Log-depth L1 + normal cosine distance + InfoNCE over matches; each head has its own weights,
    so they never compete. Returns them in eval mode."""
    torch.manual_seed(seed)
    shape = HeadsShape(student.config.out_dim, student.config.grid, config.width,
                       config.descriptor_dim, student=student_sha256)
    heads = _start(student, shape, config).to(views.features.device)
    fit_pca(heads, views.features)
    learned = [p for p in heads.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.lr, weight_decay=0.02)
    draw = torch.Generator().manual_seed(seed)
    for step in track(range(config.steps), description="heads"):
        set_lr(optimizer, config.lr, step, config.steps, warm=config.steps // 20)
        chosen = torch.randint(len(views.pairs), (config.batch, ),
                               generator=draw).to(views.pairs.device)
        first, second = views.pairs[chosen].T                                     # [B] each
        answers = heads(views.features[first].float())
        cells = torch.randperm(views.places.shape[1], generator=draw)[:ASKED].to(chosen.device)
        loss = (
            _dense_loss(answers.depth, answers.normals, views.depth[first], views.normals[first]) +
            match_loss(
                answers.descriptors.flatten(2)[..., cells],
                heads.describe(views.features[second].float()),
                views.places[chosen][:, cells].float()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
    return heads.eval()


@torch.inference_mode()
def score_heads(student: Student, heads: Heads, source: Source,
                device: torch.device) -> dict[str, float]:
    """Held-out rooms: delta1, abs_rel, normal_deg; and the share of 28x28 cells that are found
    within one 14x14 cell in the clip's last frame from its first and back: by descriptors,
    features, RGB patches, staying put, and chance."""
    model = StudentWithHeads(student, heads)
    dense, matches = DenseScores(1), MatchScores(heads.shape.grid)
    cells = heads.shape.grid * heads.shape.descriptor_up
    for clip in _clips(source, "test"):
        features, answers = _run(model, clip, device)
        truth = dense_targets(clip)
        nothing = np.zeros_like(truth.classes)  # classes are not asked
        dense.add(answers.depth[:, 0].cpu().numpy(), answers.normals.cpu().numpy(), nothing,
                  DenseTargets(truth.depth, truth.normals, nothing))
        maps = {
            "descriptor": answers.descriptors,
            "features": F.interpolate(features,
                                      size=(cells, cells)), "rgb": rgb_patches(clip.frames, cells)
        }
        last = len(clip.frames) - 1
        for a, b in ((0, last), (last, 0)):
            matches.add({name: (m[a], m[b]) for name, m in maps.items()}, places(clip, a, b, cells))
    kept = {k: v for k, v in dense.result().items() if k != "miou"}
    return {
        **kept, **matches.result(), "train_clips": len(source.ids("train")),
        "test_clips": len(source.ids("test"))
    }


@torch.inference_mode()
def _views(student: Student, source: Source, device: torch.device) -> Views:
    """Everything the heads need of the training clips; descriptors see every ordered pair of a
    clip's frames."""
    features, depth, normals, pairs, where = [], [], [], [], []
    at, cells = 0, student.config.grid * HeadsShape.descriptor_up
    for clip in _clips(source, "train"):
        frames = torch.from_numpy(clip.frames).to(device)
        features.append(student(frames.float() / 255).half())
        truth = dense_targets(clip)
        depth.append(torch.from_numpy(truth.depth))
        normals.append(torch.from_numpy(truth.normals))
        count = len(clip.frames)
        own = [(a, b) for a in range(count) for b in range(count) if a != b]
        pairs.append(torch.tensor(own) + at)
        where.append(torch.from_numpy(np.stack([places(clip, a, b, cells) for a, b in own])).half())
        at += count
    return Views(
        torch.cat(features).clone(),
        *(torch.cat(x).to(device) for x in (depth, normals, pairs, where)))


def _has_own(folder: Path, student_sha256: str) -> bool:
    try:
        load_heads(folder, student_sha256)
    except ValueError:
        return False
    return True


def _clips(source: Source, split: Split) -> Iterator[Clip]:
    for clip_id in track(source.ids(split), description=f"heads: {split} clips"):
        yield source.clip(clip_id)


def _start(student: Student, shape: HeadsShape, config: HeadTraining) -> Heads:
    # never the shipped ones themselves: those name the shipped student as theirs
    heads = Heads(shape)
    if config.init == "shipped" and (SHIPPED / FILE).is_file():
        shipped, spoken = load_heads(SHIPPED), load_student(SHIPPED).config
        if replace(shipped.shape,
                   student=shape.student) == shape and spoken.teacher == student.config.teacher:
            heads.load_state_dict(shipped.state_dict())
    return heads


def _dense_loss(depth: Tensor, normals: Tensor, true_depth: Tensor, true_normals: Tensor) -> Tensor:
    known = true_depth > 0
    distance = (depth[:, 0].log() - true_depth.clamp_min(1e-3).log()).abs()[known].mean()
    facing = (true_normals != 0).any(1)
    return distance + (1 - F.cosine_similarity(normals, true_normals.float(), dim=1))[facing].mean()


def _run(model: StudentWithHeads, clip: Clip, device: torch.device):
    frames = torch.from_numpy(clip.frames).to(device).float() / 255
    features = model.student(frames)
    return features, model.heads(features)
