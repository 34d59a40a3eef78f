"""Distillation: the student regresses the teacher's standardised features, frame by frame."""
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from distill.augment import Augmentation
from distill.config import StudentTraining
from distill.losses import relation_loss, token_loss
from records.events import emit
from records.files import atomic_write, read_rows, spec_digest, write_rows
from records.interrupts import deferred
from records.progress import Progress
from student.heads import principal_colours
from student.vit import Student, load_student, save_student
from teacher.data.dataset import Example, Examples
from teacher.dense import Stream
from teacher.training.checkpoint import Checkpoint, clip_and_step, remove_checkpoint, set_lr
from teacher.training.gradients import Gradients

CHECKPOINT, METRICS = "student.ckpt.safetensors", "metrics.jsonl"
TILE = 168  # px, of a feature map


class LossSums(nn.Module):
    """Losses summed over steps, [count]: a part of checkpoints."""
    losses: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("losses", torch.zeros(count))


def build_student(config: StudentTraining, teacher: str, mean: Tensor, std: Tensor,
                  seed: int) -> Student:
    """A student for the teacher with spec digest `teacher` and feature moments mean, std [D].

    init "shipped": the shipped one of its size, all of it if distilled from this teacher, else its
    trunk. Raises ValueError if their shapes differ.
    """
    torch.manual_seed(seed)
    student = Student(replace(config.model, out_dim=len(mean), teacher=teacher))
    student.target_mean.copy_(mean)
    student.target_std.copy_(std)
    if config.init == "scratch":
        return student
    shipped = load_student(config.model.shipped)
    if shipped.config == student.config:
        return shipped.train()
    expected = replace(shipped.config, out_dim=config.model.out_dim, teacher=config.model.teacher)
    if expected != config.model:
        raise ValueError(f"student.model: got {config.model}, expected {expected} as in "
                         f"{config.model.shipped}; or use --student.init scratch")
    trunk = {name: value for name, value in shipped.state_dict().items()
             if not name.startswith(("head.", "target_"))}
    student.load_state_dict(trunk, strict=False)
    return student


def train_student(student: Student, train: Examples, held_out: Examples, config: StudentTraining,
                  seed: int, folder: Path) -> Student:
    """Trains in place, saves into `folder` and returns the student in eval mode.

    Resumes from folder/student.ckpt.safetensors to the same weights and rows. About ten times in
    all, folder/metrics.jsonl gets a row and folder/maps a picture of features. With several
    processes each takes its part of every batch, and the first one scores and writes.
    """
    training = _Training(student, train, config, seed, folder)
    processes = train.processes
    first = max(0, -(-training.step // training.per_epoch) - 1)  # a complete epoch may lack its row
    rows = [row for row in read_rows(folder / METRICS) if row["epoch"] <= first]
    with Progress(disable=not processes.main) as progress:
        bar = progress.add_task(f"student: seed {seed}", total=training.total,
                                completed=training.step)
        for epoch in range(first, config.epochs):
            done = epoch + 1
            logged = done % max(1, config.epochs // 10) == 0 or done == config.epochs
            for step in training.steps(epoch, logged):
                progress.update(bar, completed=step)
            if logged and processes.main:
                token, relation = training.mean_losses()
                row = {"seed": seed, "epoch": done, "token_loss": token, "relation_loss": relation}
                rows.append(row | fidelity(student, held_out))
                _record(student, held_out, rows, folder, progress)
    if processes.main:
        save_student(student.cpu(), folder)
        remove_checkpoint(training.checkpoint.path)
    processes.wait()
    return student.to(train.device).eval()


class _Training:
    """A student's training: what its checkpoint holds, and the steps of an epoch.

    step: how many are done.
    """

    def __init__(self, student: Student, train: Examples, config: StudentTraining, seed: int,
                 folder: Path):
        device, self.train, self.config, self.seed = train.device, train, config, seed
        self.student = student.to(device).train()
        train.processes.copy_of_main(student)
        self.augment = Augmentation(config.augment, seed, device)
        self.optimizer = torch.optim.AdamW(parameter_groups(student, config), lr=config.lr,
                                           betas=(0.9, 0.98), fused=device.type == "cuda")
        self.per_epoch, self.size = train.steps(config.batch), train.batch_frames(config.batch)
        self.total, self.part = config.epochs * self.per_epoch, train.processes.part(self.size)
        self.sums = LossSums(2).to(device)
        self.checkpoint = Checkpoint(folder / CHECKPOINT, {"student": student, "sums": self.sums},
                                     self.optimizer, _key(student, train, config, seed))
        self.step = self.checkpoint.load()
        self.gradients = Gradients(compiled_loss(student, config, device), train.processes)

    def steps(self, epoch: int, saved: bool) -> Iterator[int]:
        """Takes the steps that are left of an epoch; yields how many are done in all.

        saved: with a checkpoint at its end.
        """
        self.student.train()
        done = (epoch + 1) * self.per_epoch
        if self.step == epoch * self.per_epoch:
            self.sums.losses.zero_()
        skipped = self.step - epoch * self.per_epoch
        with deferred():
            for batch in self.train.batches(self.config.batch, self.seed, epoch, skipped, self.part,
                                            ("generative",)):
                self._step(batch)
                yield self.step
                if self.train.processes.main:  # the others end when it leaves
                    self.checkpoint.after_step(self.step, due=saved and self.step == done)

    def mean_losses(self) -> list[float]:
        """Token and relation loss of the last epoch."""
        return (self.sums.losses / self.per_epoch).tolist()

    def _step(self, batch: Example) -> None:
        warm = max(1, self.total // 20)
        set_lr(self.optimizer, self.config.lr, self.step, self.total, warm=warm)
        frames = self.augment(batch["frames"], self.step, self.part, self.size)
        self.sums.losses += train_step(self.gradients, self.optimizer, frames, batch["generative"],
                                       len(frames) / self.size)
        self.step += 1


@torch.inference_mode()
def fidelity(student: Student, examples: Examples,
             stream: Stream | None = None) -> dict[str, float]:
    """Mean and 1st percentile of the tokens' standardised cosine; stream: raw features."""
    student.eval()
    cosines = []
    for _, example in examples.in_order():
        raw = stream(example) if stream else None
        out = student(example["frames"].float() / 255) if raw is None else student.standardise(raw)
        target = student.standardise(example["generative"])
        cosines.append(torch.cosine_similarity(out, target, dim=1).flatten())
    cosine = torch.cat(cosines)
    low = cosine.cpu().float().quantile(0.01)
    return {"cosine_mean": cosine.mean().item(), "cosine_p1": low.item()}


class StudentLoss(nn.Module):
    """frames in [0,1] [B,3,H,W], raw features [B,D,14,14] -> the loss; token and relation loss."""

    def __init__(self, student: Student, config: StudentTraining):
        super().__init__()
        self.student, self.config = student, config

    def forward(self, frames: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        target, out = self.student.standardise(raw), self.student(frames)
        token = token_loss(out, target, self.config.l1_weight)
        relation = relation_loss(out, target)
        return token + self.config.relation_weight * relation, torch.stack([token, relation])


def compiled_loss(student: Student, config: StudentTraining, device: torch.device) -> StudentLoss:
    loss = StudentLoss(student, config)
    if device.type == "cuda":
        loss.compile(dynamic=False)
    return loss


def train_step(gradients: Gradients, optimizer: torch.optim.Optimizer, frames: Tensor, raw: Tensor,
               share: float) -> Tensor:
    """A step on this process's share of a batch; token and relation loss of all of it, [2]."""
    losses = gradients(frames, raw, share=share)
    clip_and_step(optimizer, gradients.parameters)
    return losses


def parameter_groups(student: Student, config: StudentTraining) -> list[dict]:
    """For the optimiser: norms, biases and positions are not decayed (arXiv 2012.12877), and an
    ImageNet-trained stem has a lower rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        decayed = parameter.ndim > 1 and parameter is not student.positions
        scale = config.stem_lr if name.startswith("stem.") else 1.0
        groups.setdefault((config.weight_decay if decayed else 0.0, scale), []).append(parameter)
    return [{"params": parameters, "weight_decay": decay, "scale": scale}
            for (decay, scale), parameters in groups.items()]


def _key(student: Student, train: Examples, config: StudentTraining, seed: int) -> str:
    stores = {name: store.key for name, store in train.stores.items()}  # a change starts anew
    return spec_digest({"format": 2, "seed": seed, "examples": train.ids, **asdict(config),
                        **asdict(student.config), **stores})


def _record(student: Student, held_out: Examples, rows: list[dict], folder: Path,
            progress: Progress) -> None:
    row = rows[-1]
    write_rows(rows, folder / METRICS)
    emit("metrics", **row)
    progress.console.print(
        f"student: epoch {row['epoch']}  loss {row['token_loss']:.3f}  held-out cosine "
        f"{row['cosine_mean']:.3f}", highlight=False)
    save_feature_maps(student, held_out, folder / "maps" / f"epoch_{row['epoch']:03d}.png")


@torch.inference_mode()
def save_feature_maps(student: Student, examples: Examples, path: Path, rows: int = 6) -> None:
    """Writes a PNG: one row a clip (its first frame), columns frame | teacher | student."""
    student.eval()
    frames, features = [], []
    for _, (_, example) in zip(range(rows), examples.in_order(), strict=False):
        frames.append(example["frames"][:1])
        features.append(example["generative"][:1].float())
    images = torch.cat(frames)                               # [N,3,224,224]
    teacher = student.standardise(torch.cat(features))       # [N,D,14,14]
    colours = pca_colours([teacher, student(images.float() / 255).float()])
    columns = [_tiles(c) for c in (images.permute(0, 2, 3, 1).cpu().numpy(), *colours)]
    with atomic_write(path) as scratch:
        Image.fromarray(np.concatenate(columns, axis=1)).save(scratch)


def pca_colours(maps: list[Tensor]) -> list[np.ndarray]:
    """Maps [N,D,h,w] -> [N,h,w,3] uint8, by the first map's principal components and range."""
    weight, bias = principal_colours(maps[0].cpu())
    return [((features.movedim(1, -1).cpu().float() @ weight.T + bias).clamp(0, 1) * 255)
            .byte().numpy() for features in maps]


def _tiles(images: np.ndarray) -> np.ndarray:
    tiles = [Image.fromarray(i).resize((TILE, TILE), Image.Resampling.NEAREST) for i in images]
    return np.concatenate([np.asarray(tile) for tile in tiles])
