"""Training of the student and its heads together, on clips with depth and cameras.

What the heads need reaches the student's weights too; the distillation losses, weighted by
`feature_weight`, hold its features near the teacher's. With `student_lr` 0 the heads train alone.
"""
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.augment import Augmentation, on, sampled
from distill.config import HeadTraining, StudentTraining
from distill.correspondence import batched_matching_cells
from distill.loop import LossSums, parameter_groups
from distill.losses import depth_losses, match_loss, normal_loss, relation_loss, token_loss
from records.events import emit
from records.files import read_rows, spec_digest, write_rows
from records.interrupts import deferred
from records.progress import Progress
from student.config import HeadsShape
from student.heads import HeadOutputs, StudentWithHeads, fit_pca
from student.vit import Student
from teacher.data.dataset import Example, Examples
from teacher.training.checkpoint import Checkpoint, clip_and_step, set_lr
from teacher.training.gradients import Gradients

CHECKPOINT, METRICS = "joint.ckpt.safetensors", "joint_metrics.jsonl"
QUERIES = 196       # cells of the first view that enter the match loss in a step
SMALLEST_CROP = 0.6  # of a frame's side: 67 degrees become 43
PCA_FRAMES = 512
# weights of the losses; those of token and relation are HeadTraining.feature_weight's
LOSSES = {"relative": 1.0, "scale": 1.0, "gradient": 1.0, "confidence": 0.1, "normals": 1.0,
          "match": 0.5, "token": 1.0, "relation": 1.0}
FIELDS = ("frames", "pixel_depth", "normals", "intrinsics", "poses", "generative")


class Pairs(NamedTuple):
    """Pairs of frames of one clip, the first and the second one of each in turn: [2B,...].

    A first frame is cropped, a second one is complete.
    """
    frames: Tensor      # [2B,3,H,W] in [0,1]
    depth: Tensor       # [2B,S,S] m of the canonical camera, 0: unknown
    normals: Tensor     # [2B,3,56,56] int8, all zero: unknown
    cells: Tensor       # [M] of the first frames
    targets: Tensor     # [B,M,2] (column, row) of their matches in the second frames; NaN: hidden


def train_jointly(model: StudentWithHeads, examples: Examples, config: HeadTraining,
                  training: StudentTraining, seed: int, folder: Path,
                  unlabelled: Examples | None = None) -> None:
    """Trains `model` in place for config.steps; `examples` need `cameras`.

    The distillation losses are those of `unlabelled`, by default of the labelled frames; without a
    store of features there are none. Resumes from folder/joint.ckpt.safetensors to the same weights
    and rows: about ten times in all, folder/joint_metrics.jsonl gets one. With several processes
    each takes its part of every batch.
    """
    loop = _Training(model, examples, unlabelled, config, training, seed, folder)
    main, logged = examples.processes.main, max(1, config.steps // 10)
    rows = [row for row in read_rows(folder / METRICS) if row["step"] <= loop.step]
    with deferred(), Progress(disable=not main) as progress:
        bar = progress.add_task(f"joint: seed {seed}", total=config.steps, completed=loop.step)
        while loop.step < config.steps:
            loop.take_step()
            due = loop.step % logged == 0 or loop.step == config.steps
            if due:
                losses = loop.mean_losses(loop.step - (rows[-1]["step"] if rows else 0))
                rows.append({"seed": seed, "step": loop.step, **losses})
            if due and main:
                write_rows(rows, folder / METRICS)
                emit("metrics", **rows[-1])
            progress.update(bar, completed=loop.step)
            if main:
                loop.checkpoint.after_step(loop.step, due)
    model.eval()
    fit_pca(model.heads, _features(model.student, examples))


class _Training:
    """A training: what its checkpoint holds, and its steps, each determined by (seed, step)."""

    def __init__(self, model: StudentWithHeads, examples: Examples, unlabelled: Examples | None,
                 config: HeadTraining, training: StudentTraining, seed: int, folder: Path):
        device, self.processes = examples.device, examples.processes
        self.examples, self.unlabelled = examples, unlabelled
        self.config, self.seed, self.shape = config, seed, model.heads.shape
        model.to(device).train().student.requires_grad_(config.student_lr > 0)
        self.processes.copy_of_main(model)
        self.augment = Augmentation(training.augment, seed, device)
        loss = JointLoss(model, config, training)
        if device.type == "cuda":
            loss.compile(dynamic=False)
        self.gradients = Gradients(loss, self.processes)
        self.optimizer = torch.optim.AdamW(_groups(model, config, training), lr=config.lr,
                                           betas=(0.9, 0.98), fused=device.type == "cuda")
        self.distils = bool(config.student_lr and config.feature_weight) and (
            "generative" in (unlabelled or examples).stores)
        self.sums = LossSums(len(LOSSES)).to(device)
        key = spec_digest({"seed": seed, "config": str(config), "training": str(training),
                           "shape": str(self.shape), "examples": examples.ids,
                           "unlabelled": unlabelled.ids if unlabelled else [],
                           "stores": [store.key for store in examples.stores.values()]})
        self.checkpoint = Checkpoint(folder / CHECKPOINT, {"model": model, "sums": self.sums},
                                     self.optimizer, key)
        self.step = self.checkpoint.load()

    def take_step(self) -> None:
        config, batch = self.config, self.config.batch
        part = self.processes.part(batch)
        examples, draws = draw_pairs(self.examples, batch, self.seed, self.step, part)
        pairs = cropped_pairs(examples | {"frames": self._augmented(examples, part)}, draws,
                              self.shape, self._queries())
        inputs: tuple[Tensor, ...] = pairs
        if self.distils and self.unlabelled is not None:
            more = draw_frames(self.unlabelled, batch, self.seed, self.step, part)
            frames = torch.cat([pairs.frames, self._augmented(more, part)])
            inputs = (frames, *pairs[1:], more["generative"])
        elif self.distils:
            inputs = (*pairs, examples["generative"][1::2])
        set_lr(self.optimizer, config.lr, self.step, config.steps, warm=max(1, config.steps // 20))
        self.sums.losses += self.gradients(*inputs, share=(part.stop - part.start) / batch)
        clip_and_step(self.optimizer, self.gradients.parameters)
        self.step += 1

    def mean_losses(self, steps: int) -> dict[str, float]:
        """Each loss, unweighted, over the last `steps` steps; the next ones count anew."""
        values = (self.sums.losses / steps).tolist()
        self.sums.losses.zero_()
        return dict(zip((f"{name}_loss" for name in LOSSES), values, strict=True))

    def _augmented(self, examples: Example, part: slice) -> Tensor:
        rows = slice(2 * part.start, 2 * part.stop)
        return self.augment(examples["frames"], self.step, rows, 2 * self.config.batch)

    def _queries(self) -> Tensor:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        cells = (self.shape.grid * self.shape.descriptor_up)**2
        return on(self.examples.device, torch.randperm(cells, generator=draw)[:QUERIES])


class JointLoss(nn.Module):
    """Pairs and raw features [R,D,14,14], if any, -> the loss, and each of LOSSES unweighted.

    The features are the teacher's of the last R frames, or of the second ones if there are no more
    frames than pairs have.
    """

    def __init__(self, model: StudentWithHeads, config: HeadTraining, training: StudentTraining):
        super().__init__()
        self.model, self.l1_weight = model, training.l1_weight
        relation = config.feature_weight * training.relation_weight
        self.weights = {**LOSSES, "token": config.feature_weight, "relation": relation}

    def forward(self, frames: Tensor, depth: Tensor, normals: Tensor, cells: Tensor,
                targets: Tensor, raw: Tensor | None = None) -> tuple[Tensor, Tensor]:
        student, labelled = self.model.student, len(depth)
        features = student(frames)
        out = HeadOutputs(*self.model.heads(features[:labelled], frames[:labelled]))
        assert out.confidence is not None
        losses = depth_losses(out.depth[:, 0], out.confidence[:, 0], depth)
        losses["normals"] = normal_loss(out.normals, normals)
        first, second = out.descriptors[::2], out.descriptors[1::2]
        losses["match"] = match_loss(first.flatten(2)[..., cells], second, targets)
        losses["token"] = losses["relation"] = out.depth.new_zeros(())
        if raw is not None:
            target = student.standardise(raw)
            distilled = features[1::2] if len(frames) == labelled else features[labelled:]
            losses["token"] = token_loss(distilled, target, self.l1_weight)
            losses["relation"] = relation_loss(distilled, target)
        values = torch.stack([losses[name].float() for name in LOSSES])
        weighted = [self.weights[name] * value for name, value in zip(LOSSES, values, strict=True)]
        return torch.stack(weighted).sum(), values


def draw_pairs(examples: Examples, count: int, seed: int, step: int,
               part: slice = slice(None)) -> tuple[Example, Tensor]:
    """`part` of `count` pairs, each of a clip and of two of its frames that (seed, step) determine.

    Returns fields [2B,...], the first and the second frame of each pair in turn, and [B,3] uniform
    numbers for `cropped_pairs`.
    """
    draws = _uniform(count, 6, seed, step, examples.device)
    clips, draws = examples.draw(draws[:, 0])[part], draws[part]
    frames = examples.frames_per_clip
    first = (draws[:, 1] * frames).long()
    second = (first + 1 + (draws[:, 2] * (frames - 1)).long()) % frames
    chosen = torch.stack([first, second], 1).flatten()
    return examples.select(clips.repeat_interleave(2), chosen, FIELDS), draws[:, 3:]


def draw_frames(examples: Examples, count: int, seed: int, step: int,
                part: slice = slice(None)) -> Example:
    """Two frames for each of `part` of `count`, which (seed, step) determine."""
    draws = _uniform(count, 4, seed, step + 500_000, examples.device)[part].reshape(-1, 2)
    clips = (draws[:, 0] * len(examples.ids)).long()
    return examples.select(clips, (draws[:, 1] * examples.frames_per_clip).long(), FIELDS)


def cropped_pairs(examples: Example, draws: Tensor, shape: HeadsShape, cells: Tensor) -> Pairs:
    """The pairs of `draw_pairs`, with first frames cropped to SMALLEST_CROP to 1 of their side.

    examples: frames in [0,1]. Depth, normals, matches and the focal length move along. cells: of
    the first frames, that are matched.
    """
    size = torch.ones(2 * len(draws), 3, device=draws.device)
    size[::2, 0] -= (1 - SMALLEST_CROP) * draws[:, 0]
    size[:, 1:] = (1 - size[:, :1]) * draws.repeat_interleave(2, 0)[:, 1:]
    view = cropped_view(examples, size, shape.depth_cells)
    intrinsics, poses = view["intrinsics"], examples["poses"].double()
    a_to_b = torch.linalg.inv_ex(poses[1::2]).inverse @ poses[::2]
    targets = batched_matching_cells(view["depth"][::2], view["depth"][1::2], intrinsics[::2],
                                     intrinsics[1::2], a_to_b, shape.grid * shape.descriptor_up)
    canonical = view["depth"] * (shape.canonical_focal / view["focal"])[:, None, None]
    return Pairs(view["frames"], canonical, view["normals"], cells, targets[:, cells])


def cropped_view(examples: Example, windows: Tensor, side: int) -> Example:
    """What a camera sees that shows only `windows` of the frames, resized to the frames' size.

    windows [B,3]: side, left and top edge as shares of a frame's side. Returns frames [B,3,W,W] by
    bilinear interpolation; depth m [B,side,side] and normals by the nearest pixel; intrinsics for
    `side` px; focal [B], px at W.
    """
    frames, width = examples["frames"], examples["frames"].shape[-1]
    size, corner = windows[:, 0], windows[:, 1:]
    intrinsics = examples["intrinsics"].clone()
    intrinsics[:, :2, 2] -= corner * width
    intrinsics[:, :2] /= size[:, None, None]
    focal = (intrinsics[:, 0, 0] + intrinsics[:, 1, 1]) / 2
    intrinsics[:, :2] *= side / width
    depth = sampled(examples["pixel_depth"][:, None], windows, side, "nearest")[:, 0]
    normals = examples.get("normals", torch.zeros_like(frames[..., :56, :56]))
    return {"frames": sampled(frames, windows, width, "bilinear"), "depth": depth,
            "normals": sampled(normals, windows, normals.shape[-1], "nearest"),
            "intrinsics": intrinsics, "focal": focal}


def _groups(model: StudentWithHeads, config: HeadTraining,
            training: StudentTraining) -> list[dict]:
    """Parameter groups; the student's have a rate of their own, or are absent if it is frozen."""
    groups = [group | {"scale": group["scale"] * config.student_lr}
              for group in parameter_groups(model.student, training) if config.student_lr]
    return [*groups, {"params": [p for p in model.heads.parameters() if p.requires_grad],
                      "weight_decay": 0.02}]


def _uniform(rows: int, columns: int, seed: int, step: int, device: torch.device) -> Tensor:
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return on(device, torch.rand(rows, columns, generator=draw))


@torch.inference_mode()
def _features(student: Student, examples: Examples) -> Tensor:
    """Of the first frames of up to PCA_FRAMES clips, for the colours."""
    parts = []
    for start in range(0, min(PCA_FRAMES, len(examples.ids)), 64):
        clips = torch.arange(start, min(start + 64, PCA_FRAMES, len(examples.ids)))
        clips = clips.to(examples.device)
        frames = examples.select(clips, torch.zeros_like(clips), ("frames",))["frames"]
        parts.append(student(frames.float() / 255).float())
    return torch.cat(parts).clone()
