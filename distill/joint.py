"""Training of the student and its heads together, on labelled clips.

What the heads need reaches the student's weights too; the distillation losses, weighted by
`feature_weight`, hold its features near the teacher's.
"""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from distill.augment import Augmentation
from distill.config import JointTraining, StudentTraining
from distill.correspondence import batched_matching_cells
from distill.loop import parameter_groups
from distill.losses import relation_loss, token_loss
from records.interrupts import deferred
from student.heads import Heads, StudentWithHeads, fit_pca, match_loss
from student.vit import Student
from teacher.data.dataset import Example, Examples
from teacher.dense.model import geometry_loss
from teacher.training.checkpoint import Checkpoint, clipped_step, set_lr

QUERIES = 196  # cells of the first view that enter the match loss in a step
PCA_FRAMES = 512


@dataclass
class PairBatch:
    """B ordered pairs of frames of a clip, first frames before second ones, and their matches."""
    examples: Example  # fields [2B,...]
    cells: Tensor      # [M] cells of the first frames
    targets: Tensor    # [B,M,2] (column, row) of their matches in the second frames; NaN: hidden


def train_jointly(student: Student, heads: Heads, examples: Examples, config: JointTraining,
                  training: StudentTraining, seed: int, folder: Path) -> None:
    """Trains both in place for config.steps; examples need `cameras`, and a store of features if
    config.feature_weight > 0. Resumes from folder/joint.ckpt.safetensors."""
    device = examples.device
    model = StudentWithHeads(student, heads).to(device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [group | {"scale": group["scale"] * config.student_lr}
              for group in parameter_groups(student, training)]
    groups.append({"params": [p for p in heads.parameters() if p.requires_grad],
                   "weight_decay": 0.02})
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
    checkpoint = Checkpoint(folder / "joint.ckpt.safetensors", {"model": model}, optimizer,
                            f"{seed} {config} {training} {len(examples)}")
    forward = torch.compile(model) if device.type == "cuda" else model
    augment = Augmentation([n for n in training.augment if n == "photometric"], seed, device)
    first = checkpoint.load()
    with deferred():
        for step in track(range(first, config.steps), description=f"joint: seed {seed}"):
            set_lr(optimizer, config.lr, step, config.steps, warm=max(1, config.steps // 20))
            batch = draw_pairs(examples, config.batch, heads.shape.grid * heads.shape.descriptor_up,
                               seed, step)
            clipped_step(_loss(student, heads, forward, augment, batch, config, step), optimizer,
                         trained)
            checkpoint.after_step(step + 1)
    model.eval()
    fit_pca(heads, _features(student, examples))
    checkpoint.path.unlink(missing_ok=True)


def draw_pairs(examples: Examples, count: int, cells: int, seed: int, step: int) -> PairBatch:
    """`count` pairs, each of a clip and of two of its frames that (seed, step) determine."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    clips = torch.randint(len(examples.ids), (count,), generator=draw)
    frames = examples.frames_per_clip
    first = torch.randint(frames, (count,), generator=draw)
    second = (first + torch.randint(1, frames, (count,), generator=draw)) % frames
    chosen = examples.select([*clips.tolist()] * 2, [*first.tolist(), *second.tolist()])
    depth, poses = chosen["pixel_depth"].float(), chosen["poses"]
    targets = batched_matching_cells(depth[:count], depth[count:], chosen["intrinsics"][:count],
                                     poses[:count], poses[count:], cells)
    queries = torch.randperm(cells**2, generator=draw)[:QUERIES].to(depth.device)
    return PairBatch(chosen, queries, targets[:, queries])


def _loss(student: Student, heads: Heads, forward: Callable, augment: Augmentation,
          batch: PairBatch, config: JointTraining, step: int) -> Tensor:
    labels = batch.examples
    frames, _ = augment(labels["frames"], labels["frames"], step)
    device = frames.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        features, depth, normals, descriptors, _ = forward(frames)
    loss = geometry_loss(depth[:, 0].float().log(), normals.float(), labels["depth"],
                         labels["normals"].float())
    first, second = descriptors.float().chunk(2)
    loss = loss + match_loss(first.flatten(2)[..., batch.cells], second, batch.targets)
    if config.feature_weight:
        target = student.standardise(labels["generative"])
        distance = token_loss(features.float(), target) + relation_loss(features.float(), target)
        loss = loss + config.feature_weight * distance
    return loss


@torch.inference_mode()
def _features(student: Student, examples: Examples) -> Tensor:
    """Of the first frames of up to PCA_FRAMES clips, for the colours."""
    parts = []
    for start in range(0, min(PCA_FRAMES, len(examples.ids)), 64):
        clips = range(start, min(start + 64, PCA_FRAMES, len(examples.ids)))
        frames = examples.select(list(clips), [0] * len(clips))["frames"]
        parts.append(student(frames.float() / 255).float())
    return torch.cat(parts).clone()
