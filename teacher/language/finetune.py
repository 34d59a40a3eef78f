"""Training the full teacher, one question family a batch."""
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from records.files import digest, read_rows, write_rows
from records.interrupts import check, deferred, pending
from records.progress import track
from teacher.language.config import FinetuneConfig
from teacher.language.dataset import NUMBER, Batch, QuestionDataset
from teacher.language.encode import GROUNDED, log_number
from teacher.language.model import LanguageTeacher
from teacher.language.objective import FlatInputsObjective, Objective, flatten_batch
from teacher.language.weights import load_trainable, trainable_state_dict, uses_bf16
from teacher.training.checkpoint import clip_and_step, load_checkpoint, save_checkpoint, set_lr
from teacher.training.cuda_graphs import GraphPerShape
from teacher.training.sharded import GatheredOptimizer, StateDictHolder

STATE_BATCHES = 8  # of 64 questions, for the mean and deviation of the states that heads read
CHECKPOINT, METRICS = "tuning.ckpt.safetensors", "metrics.jsonl"


@torch.no_grad()
def set_statistics(model: LanguageTeacher, dataset: QuestionDataset) -> None:
    """Sets mean and standard deviation (floor 1e-4) of the training clips' features per channel,
    and of the states that boxes and numbers are read from, before training; the numeric head starts
    as the best constant."""
    for name in ("semantic", "generative"):
        stream = getattr(dataset.visual, name)
        if stream is None:
            continue
        total, squares = torch.zeros(2, stream.shape[2], dtype=torch.float64, device=stream.device)
        for part in stream.split(64):  # [N,T,D,14,14]
            x = part.double()
            total += x.sum((0, 1, 3, 4))
            squares += x.square().sum((0, 1, 3, 4))
        count = stream.numel() / stream.shape[2]
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(1e-4)
        getattr(model, f"{name}_mean").copy_(mean.view(-1, 1, 1))
        getattr(model, f"{name}_std").copy_(std.view(-1, 1, 1))
    if model.shape.query == "words":
        _set_state_statistics(model, dataset, "query", GROUNDED, model.grounding_query)
    if model.number_head is not None:
        _set_state_statistics(model, dataset, "answer", (NUMBER,), model.answer_state)
        numbers = [log_number(q) for room in dataset.rooms for q in room.questions
                   if q.number is not None]
        last: Any = model.number_head[-1]
        last.weight.zero_()
        last.bias.fill_(float(np.median(numbers)) if numbers else 0.0)


def fit(model: LanguageTeacher, dataset: QuestionDataset, config: FinetuneConfig,
        folder: Path | None = None,
        validate: Callable[[nn.Module], dict[str, float]] | None = None, stop: float | None = None,
        quiet: bool = False, accelerator: Any = None) -> list[dict]:
    """Trains in place and returns the curve, a row every `validate_every` steps.

    folder: for metrics.jsonl and a checkpoint to resume from. validate: adds to each row, on every
    process. stop: the time.monotonic() to end at. accelerator: its processes sample different clips
    of one family, and the first one writes.
    """
    rank, world = 0, 1
    if accelerator is not None:
        rank, world = accelerator.process_index, accelerator.num_processes
    key = _run_key(model, dataset, config, world)
    checkpoint = None if folder is None else folder / CHECKPOINT
    start, moments, losses = _load_weights(model, checkpoint, key)  # losses since the last row
    optimizer: Any = _optimizer(model, config)
    objective: Any = Objective(model)
    if accelerator is not None:
        objective, optimizer = accelerator.prepare(objective, optimizer)
    if start:
        GatheredOptimizer(_unwrapped(optimizer)).load_state_dict(moments)
    backward = _Backward(model, objective, dataset, config, rank, world)
    metrics = None if folder is None or rank > 0 else folder / METRICS
    curve = _read_curve(metrics, start)
    steps = track(range(start, config.steps), description="teacher", disable=quiet or rank > 0)
    with deferred():
        for step in steps:
            _set_rates(optimizer, config, step)
            optimizer.zero_grad(set_to_none=True)
            losses.append(backward(step))  # on the device, so that no step waits
            clip_and_step(optimizer, model.parameters())
            done = step + 1
            late = stop is not None and time.monotonic() > stop
            if done % config.validate_every == 0 or done == config.steps or late:
                _record(curve, metrics, done, losses, validate(objective) if validate else {})
            stopping = pending() and world == 1  # several processes would not gather at one step
            if checkpoint and (done % config.save_every == 0 or done == config.steps or stopping):
                _save(checkpoint, done, model, optimizer, losses, key, write=rank == 0)
            check()
            if late:
                break
    return curve


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


def _set_state_statistics(model: LanguageTeacher, dataset: QuestionDataset, name: str,
                          families: Iterable[str], read: Callable) -> None:
    """Mean and deviation of the states that `read` returns, as buffers NAME_mean and NAME_std."""
    was_training = model.training
    model.eval()
    states = []
    for family in (family for family in dataset.families if family in families):
        for batch in islice(dataset.eval_batches(family, 8, 8), STATE_BATCHES):
            hidden = model(batch.visual, batch.questions).hidden
            states.append(read(hidden, batch.questions).flatten(0, 1))
    if states and sum(map(len, states)) > 1:
        std, mean = torch.std_mean(torch.cat(states).float(), 0)
        getattr(model, f"{name}_mean").copy_(mean)
        getattr(model, f"{name}_std").copy_(std.clamp_min(1e-4))
    model.train(was_training)


def _run_key(model: LanguageTeacher, dataset: QuestionDataset, config: FinetuneConfig,
             world: int) -> str:
    rooms = [room.id for room in dataset.rooms]  # a run with another key does not resume
    return digest(asdict(config), asdict(model.shape), rooms, len(dataset), world)


class _Backward:
    """backward(step) adds a step's gradients and returns its loss; a CUDA graph where one fits."""

    def __init__(self, model: LanguageTeacher, objective: nn.Module, dataset: QuestionDataset,
                 config: FinetuneConfig, rank: int, world: int):
        self.model, self.objective, self.dataset = model, objective, dataset
        self.config, self.rank = config, rank
        self.graphed = (config.graphed and world == 1 and config.accumulate == 1
                        and not config.recompute and dataset.device.type == "cuda"
                        and uses_bf16(config, dataset.device))
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
            loss += self._replay(batch) if self.graphed else self._eager(batch)
        return loss

    def _eager(self, batch: Batch) -> Tensor:
        with autocast(self.config, self.dataset.device):
            loss = self.objective(batch) / self.config.accumulate
        loss.backward()
        return loss.detach()

    def _replay(self, batch: Batch) -> Tensor:
        inputs = flatten_batch(batch)
        if self.graphs is None:
            self.graphs = GraphPerShape(
                FlatInputsObjective(Objective(self.model), [*inputs], self.config.compiled))
        return self.graphs(*inputs.values())[0]


def _load_weights(model: LanguageTeacher, checkpoint: Path | None,
                  key: str) -> tuple[int, dict[str, Any], list[Tensor]]:
    """(step to start at, state of the optimiser, losses since the last row of the curve).

    The checkpoint's weights are in the model.
    """
    weights: Any = StateDictHolder()
    since: Any = StateDictHolder()
    moments: Any = StateDictHolder({"state": {}, "param_groups": []})
    modules = {"teacher": weights, "curve": since}
    start = load_checkpoint(checkpoint, modules, moments, key) if checkpoint else 0
    if start:
        load_trainable(model, weights.state)
    device = next(model.parameters()).device
    return start, moments.state, [*since.state.get("losses", torch.zeros(0)).to(device)]


def _save(checkpoint: Path, step: int, model: LanguageTeacher, optimizer: Any,
          losses: list[Tensor], key: str, write: bool) -> None:
    """Every process gathers, one writes."""
    weights: Any = StateDictHolder(trainable_state_dict(model))
    since: Any = StateDictHolder({"losses": torch.stack(losses)} if losses else None)
    moments: Any = StateDictHolder(GatheredOptimizer(_unwrapped(optimizer)).state_dict())
    if write:
        save_checkpoint(checkpoint, step, {"teacher": weights, "curve": since}, moments, key)


def _optimizer(model: LanguageTeacher, config: FinetuneConfig) -> torch.optim.Optimizer:
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    old = [p for n, p in named if n.startswith("lm.")]
    new = [p for n, p in named if not n.startswith("lm.")]
    lr_old = config.lr_new if config.tune == "lora" else config.lr
    groups = [{"params": params, "peak": peak}
              for params, peak in ((old, lr_old), (new, config.lr_new)) if params]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay,
                             fused=any(p.is_cuda for _, p in named))


def _set_rates(optimizer: Any, config: FinetuneConfig, step: int) -> None:
    set_lr(optimizer, 1.0, step, config.steps, warm=int(config.warm * config.steps))
    for group in optimizer.param_groups:
        group["lr"] *= group["peak"]


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it


def _read_curve(metrics: Path | None, start: int) -> list[dict]:
    """The rows up to step `start`; later ones are removed from the file."""
    if metrics is None:
        return []
    rows = [row for row in read_rows(metrics) if row["step"] <= start]
    write_rows(rows, metrics)
    return rows


def _record(curve: list[dict], metrics: Path | None, step: int, losses: list[Tensor],
            scores: dict[str, float]) -> None:
    curve.append({"step": step, "loss": float(torch.stack(losses).mean()), **scores})
    losses.clear()
    if metrics is not None:
        write_rows(curve, metrics)
