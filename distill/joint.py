"""Training of the student and its heads together, on labelled clips.

What the heads need reaches the student's weights too; the distillation losses, weighted by
`feature_weight`, hold its features near the teacher's.
"""
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distill.augment import Augmentation
from distill.config import JointTraining, StudentTraining
from distill.correspondence import batched_matching_cells
from distill.loop import parameter_groups
from distill.losses import relation_loss, token_loss
from records.interrupts import deferred
from records.progress import track
from student.heads import Heads, StudentWithHeads, fit_pca, match_loss
from student.vit import Student
from teacher.data.dataset import Example, Examples
from teacher.dense.model import geometry_loss
from teacher.training.checkpoint import Checkpoint, clipped_step, remove_checkpoint, set_lr

QUERIES = 196  # cells of the first view that enter the match loss in a step
PCA_FRAMES = 512


@dataclass
class PairBatch:
    """B ordered pairs of frames of a clip, first frames before second ones, and their matches."""
    examples: Example  # fields [2B,...]
    cells: Tensor      # [M] cells of the first frames
    targets: Tensor    # [B,M,2] (column, row) of their matches in the second frames; NaN: hidden


def train_jointly(student: Student, heads: Heads, examples: Examples, config: JointTraining,
                  training: StudentTraining, seed: int, folder: Path,
                  unlabelled: Examples | None = None) -> None:
    """Trains both in place for config.steps; `examples` need `cameras`.

    The distillation losses are those of `unlabelled`, by default of the labelled frames, and need
    a store of features. Resumes from folder/joint.ckpt.safetensors.
    """
    device = examples.device
    student.requires_grad_(config.student_lr > 0)
    model = StudentWithHeads(student, heads).to(device).train()
    optimizer = torch.optim.AdamW(_groups(student, heads, config, training), lr=config.lr,
                                  betas=(0.9, 0.98))
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    checkpoint = Checkpoint(folder / "joint.ckpt.safetensors", {"model": model}, optimizer,
                            f"{seed} {config} {training} {len(examples)}")
    loss = _JointLoss(model, examples, unlabelled or examples, config, training, seed)
    first = checkpoint.load()
    with deferred():
        for step in track(range(first, config.steps), description=f"joint: seed {seed}"):
            set_lr(optimizer, config.lr, step, config.steps, warm=max(1, config.steps // 20))
            clipped_step(loss(step), optimizer, trained)
            checkpoint.after_step(step + 1)
    model.eval()
    fit_pca(heads, _features(student, examples))
    remove_checkpoint(checkpoint.path)


def _groups(student: Student, heads: Heads, config: JointTraining,
            training: StudentTraining) -> list[dict]:
    """Parameter groups; the student's have a rate of their own, or are absent if it is frozen."""
    groups = [group | {"scale": group["scale"] * config.student_lr}
              for group in parameter_groups(student, training) if config.student_lr]
    return [*groups, {"params": [p for p in heads.parameters() if p.requires_grad],
                      "weight_decay": 0.02}]


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


class _JointLoss:
    """The loss of a step, on pairs that (seed, step) determine."""

    def __init__(self, model: StudentWithHeads, examples: Examples, unlabelled: Examples,
                 config: JointTraining, training: StudentTraining, seed: int):
        self.student, self.shape, self.config = model.student, model.heads.shape, config
        self.examples, self.unlabelled, self.seed = examples, unlabelled, seed
        self.l1_weight, self.relation_weight = training.l1_weight, training.relation_weight
        names = [name for name in training.augment if name == "photometric"]
        self.augment = Augmentation(names, seed, examples.device)
        on_gpu = examples.device.type == "cuda"
        self.model, self.features = (torch.compile(m) if on_gpu else m
                                     for m in (model, model.student))
        self.precision = torch.autocast(examples.device.type, torch.bfloat16, enabled=on_gpu)

    def __call__(self, step: int) -> Tensor:
        cells = self.shape.grid * self.shape.descriptor_up
        batch = draw_pairs(self.examples, self.config.batch, cells, self.seed, step)
        labels = batch.examples
        frames, _ = self.augment(labels["frames"], labels["frames"], step)
        with self.precision:
            features, depth, normals, descriptors, _ = self.model(frames)
        loss = geometry_loss(depth[:, 0].float().log(), normals.float(), labels["depth"],
                             labels["normals"].float())
        first, second = descriptors.float().chunk(2)
        loss = loss + match_loss(first.flatten(2)[..., batch.cells], second, batch.targets)
        if not self.config.feature_weight:
            return loss
        if self.unlabelled is not self.examples:
            labels = draw_frames(self.unlabelled, 2 * self.config.batch, self.seed, step)
            frames, _ = self.augment(labels["frames"], labels["frames"], step)
            with self.precision:
                features = self.features(frames)
        target = self.student.standardise(labels["generative"])
        distance = token_loss(features, target, self.l1_weight)
        distance = distance + self.relation_weight * relation_loss(features, target)
        return loss + self.config.feature_weight * distance


def draw_frames(examples: Examples, count: int, seed: int, step: int) -> Example:
    """`count` frames that (seed, step) determine."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step + 500_000)
    clips = torch.randint(len(examples.ids), (count,), generator=draw).tolist()
    frames = torch.randint(examples.frames_per_clip, (count,), generator=draw).tolist()
    return examples.select(clips, frames)


@torch.inference_mode()
def _features(student: Student, examples: Examples) -> Tensor:
    """Of the first frames of up to PCA_FRAMES clips, for the colours."""
    parts = []
    for start in range(0, min(PCA_FRAMES, len(examples.ids)), 64):
        clips = range(start, min(start + 64, PCA_FRAMES, len(examples.ids)))
        frames = examples.select(list(clips), [0] * len(clips))["frames"]
        parts.append(student(frames.float() / 255).float())
    return torch.cat(parts).clone()
