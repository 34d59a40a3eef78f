"""Training the full teacher, one question family a batch."""
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from records.files import digest, read_rows, write_rows
from records.interrupts import deferred
from records.progress import track
from teacher.data.dataset import channel_moments
from teacher.language.config import FinetuneConfig
from teacher.language.dataset import Batch, QuestionDataset
from teacher.language.grounding import ground_loss
from teacher.language.model import IGNORED, LanguageTeacher, QuestionBatch, VisualInputs
from teacher.language.weights import GatheredOptimizer, TrainedState, uses_bf16
from teacher.training.checkpoint import Checkpoint, clip_and_step, set_lr
from teacher.training.gradients import GraphPerShape

NUMBER_BETA = 0.1  # a relative error of 10 %: smaller ones are squared
RECOMPILE_LIMIT = 256  # compiled shapes: one a question family, of every model in this process
CHECKPOINT, METRICS = "tuning.ckpt.safetensors", "metrics.jsonl"


@torch.no_grad()
def set_feature_statistics(model: LanguageTeacher, dataset: QuestionDataset) -> None:
    """Sets mean and standard deviation of the training clips' features per channel."""
    for name in ("semantic", "generative"):
        stream = getattr(dataset.visual, name)                    # [N,T,D,14,14]
        if stream is not None:
            found = channel_moments(part.flatten(0, 1) for part in stream.split(64))
            for key, value in zip(("mean", "std"), found, strict=True):
                model.get_buffer(f"{name}_{key}").copy_(value.view(-1, 1, 1))


def fit(model: LanguageTeacher, dataset: QuestionDataset, config: FinetuneConfig,
        folder: Path | None = None, validate: Callable[[nn.Module], dict[str, float]] | None = None,
        quiet: bool = False, accelerator: Any = None) -> list[dict]:
    """Trains in place and returns the curve, a row every `validate_every` steps.

    folder: for metrics.jsonl and a checkpoint to resume from. validate: adds to each row, on every
    process. accelerator: its processes sample different clips of one family, and the first writes.
    """
    rank, world = 0, 1
    optimizer: Any = _optimizer(model, config)
    objective: Any = Objective(model)
    if accelerator is not None:
        rank, world = accelerator.process_index, accelerator.num_processes
        objective, optimizer = accelerator.prepare(objective, optimizer)
    curve = _Curve(None if folder is None or rank else folder / METRICS, dataset.device)
    checkpoint = None
    if folder is not None:
        rooms = [room.id for room in dataset.rooms]  # a run with another key does not resume
        key = digest(asdict(config), asdict(model.shape), rooms, len(dataset), world)
        plain = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        checkpoint = Checkpoint(
            folder / CHECKPOINT, {"teacher": TrainedState(model), "curve": curve},
            GatheredOptimizer(plain), key, math.inf, alone=world == 1, main=rank == 0)
    start = curve.resume(checkpoint.load() if checkpoint else 0)
    backward = _Backward(model, objective, dataset, config, rank, world)
    with deferred():
        for step in track(range(start, config.steps), "teacher", disable=quiet or rank > 0):
            set_lr(optimizer, 1.0, step, config.steps, warm=int(config.warm * config.steps))
            optimizer.zero_grad(set_to_none=True)
            curve.losses.append(backward(step))  # on the device, so that no step waits
            clip_and_step(optimizer, model.parameters())
            done, last = step + 1, step + 1 == config.steps
            if done % config.validate_every == 0 or last:
                curve.add(done, validate(objective) if validate else {})
            if checkpoint is not None:
                checkpoint.after_step(done, due=done % config.save_every == 0 or last)
    return curve.rows


@torch.no_grad()
def validation_loss(objective: nn.Module, dataset: QuestionDataset, config: FinetuneConfig,
                    batches: int = 2) -> dict[str, float]:
    """loss_FAMILY: mean loss of each family over its first few batches of held-out clips."""
    objective.eval()
    out = {}
    for name in dataset.families:
        first = islice(dataset.eval_batches(name, config.clips, config.questions), batches)
        with autocast(config, dataset.device):
            losses = [float(objective(batch)) for batch in first]
        out[f"loss_{name}"] = sum(losses) / len(losses)
    return out


def autocast(config: FinetuneConfig, device: torch.device):
    if uses_bf16(config, device):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


class Objective(nn.Module):
    """The loss of a batch as one module, so that FSDP and DDP see every weight in one forward."""

    def __init__(self, teacher: LanguageTeacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, batch: Batch) -> Tensor:
        """Cross-entropy of the answer or of the options, box InfoNCE or smooth L1 of log numbers,
        and in training the losses of geometry; a scalar."""
        questions = batch.questions
        output = self.teacher(batch.visual, questions)
        if output.ground is not None:
            loss = ground_loss(output.ground, questions.targets, questions.candidates >= 0)
        elif output.choice is not None:
            loss = F.cross_entropy(output.choice.flatten(0, 1), questions.right.flatten())
        elif questions.numeric:
            assert output.number is not None
            loss = F.smooth_l1_loss(output.number.float(), questions.number, beta=NUMBER_BETA)
        else:
            logits = self.teacher.answer_logits(output, questions).flatten(0, 2).float()
            loss = F.cross_entropy(logits, questions.labels.flatten(), ignore_index=IGNORED)
        if self.training:
            loss = loss + self.teacher.geometry_loss(output, batch.visual)
        return loss


class FlatInputsObjective(nn.Module):
    """`Objective` of separate tensors (names of `flatten_batch`), as CUDA graphs need it."""

    def __init__(self, objective: Objective, names: list[str], compiled: bool = False):
        super().__init__()
        self.objective, self.names = objective, names
        self.decoder = objective.teacher.lm.get_decoder()
        self.plain_layers = self.decoder.layers
        self.layers = self.plain_layers
        if compiled:  # in this module's forward only
            layers: list[Any] = [torch.compile(layer, fullgraph=True, dynamic=False)
                                 for layer in self.plain_layers]
            self.layers = nn.ModuleList(layers)

    def forward(self, *tensors: Tensor) -> Tensor:
        parts: dict[str, dict[str, Any]] = {"visual": {"generative": None}, "questions": {}}
        for name, tensor in zip(self.names, tensors, strict=True):
            part, _, field = name.partition(".")
            parts[part][field] = tensor
        batch = Batch(VisualInputs(**parts["visual"]), QuestionBatch(**parts["questions"]), [])
        self.decoder.layers = self.layers
        try:
            with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
                return self.objective(batch)
        finally:
            self.decoder.layers = self.plain_layers


def flatten_batch(batch: Batch) -> dict[str, Tensor]:
    """A batch's tensors by the names that `FlatInputsObjective` takes."""
    tensors = {}
    for part in ("visual", "questions"):
        for name, value in vars(getattr(batch, part)).items():
            if value is not None:
                tensors[f"{part}.{name}"] = value
    return tensors


class _Backward:
    """backward(step) adds a step's gradients and returns its loss; a CUDA graph where one fits."""

    def __init__(self, model: LanguageTeacher, objective: nn.Module, dataset: QuestionDataset,
                 config: FinetuneConfig, rank: int, world: int):
        self.model, self.objective, self.dataset = model, objective, dataset
        self.config, self.rank = config, rank
        # transformers waits for the GPU to look at the positions of a single question
        self.graphed = (config.graphed and world == 1 and config.accumulate == 1
                        and config.questions > 1 and not config.recompute
                        and dataset.device.type == "cuda" and uses_bf16(config, dataset.device))
        self.graphs: GraphPerShape | None = None

    def __call__(self, step: int) -> Tensor:
        config = self.config
        torch.manual_seed(config.seed * 1_000_003 + step)  # a resumed run has the same dropout
        self.objective.train()
        loss = torch.zeros((), device=self.dataset.device)
        for part in range(config.accumulate):
            batch = self.dataset.sample_batch(
                config.seed, step * config.accumulate + part, config.clips, config.questions,
                self.rank, fixed_shape=self.graphed)
            if self.graphed:
                loss += self._replay(batch)
                continue
            with autocast(config, self.dataset.device):
                share = self.objective(batch) / config.accumulate
            share.backward()
            loss += share.detach()
        return loss

    def _replay(self, batch: Batch) -> Tensor:
        inputs = flatten_batch(batch)
        if self.graphs is None:
            self.graphs = GraphPerShape(
                FlatInputsObjective(Objective(self.model), [*inputs], self.config.compiled))
        return self.graphs(*inputs.values())[0]


class _Curve:
    """The rows of metrics.jsonl, and the losses since the last one, which a checkpoint holds."""

    def __init__(self, path: Path | None, device: torch.device):
        self.path, self.device = path, device
        self.rows: list[dict] = []
        self.losses: list[Tensor] = []

    def resume(self, start: int) -> int:
        """Reads the rows up to step `start`, which it returns, and removes later ones."""
        if self.path is not None:
            self.rows = [row for row in read_rows(self.path) if row["step"] <= start]
            write_rows(self.rows, self.path)
        return start

    def add(self, step: int, scores: dict[str, float]) -> None:
        self.rows.append({"step": step, "loss": float(torch.stack(self.losses).mean()), **scores})
        self.losses.clear()
        if self.path is not None:
            write_rows(self.rows, self.path)

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": torch.stack(self.losses)} if self.losses else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.losses = [*state["losses"].to(self.device)] if state else []


def _optimizer(model: LanguageTeacher, config: FinetuneConfig) -> torch.optim.Optimizer:
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    old = [p for n, p in named if n.startswith("lm.")]
    new = [p for n, p in named if not n.startswith("lm.")]
    lr_old = config.lr_new if config.tune == "lora" else config.lr
    groups = [{"params": params, "scale": peak}  # of set_lr
              for params, peak in ((old, lr_old), (new, config.lr_new)) if params]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay,
                             fused=any(p.is_cuda for _, p in named))
