"""Training the full teacher: one question family a batch; cross-entropy of answers, InfoNCE of
boxes."""
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from records.files import digest
from teacher.fusion import PaperGate, ResidualGate, SemanticOnly, TokenGate
from teacher.language.config import FinetuneConfig
from teacher.language.dataset import Batch, QuestionDataset
from teacher.language.encode import GROUNDED, PromptEncoder
from teacher.language.grounding import ground_loss
from teacher.language.lm import load_lm, recompute, tune
from teacher.language.model import (
    IGNORED,
    SAVED_NAMES,
    LanguageShape,
    LanguageTeacher,
    QuestionBatch,
    TeacherOutput,
    VisualInputs,
)
from teacher.training.checkpoint import clip_and_step, load_checkpoint, save_checkpoint, set_lr
from teacher.training.cuda_graphs import GraphPerShape
from teacher.training.sharded import GatheredOptimizer, StateDictHolder, gather

QUERY_BATCHES = 8  # of 64 questions, for the mean and deviation of grounding queries
CHECKPOINT, METRICS = "tuning.ckpt.safetensors", "metrics.jsonl"
RECOMPILE_LIMIT = 256  # compiled shapes: one a question family, of every model in this process


def build(config: FinetuneConfig, shape: LanguageShape,
          device: torch.device) -> tuple[LanguageTeacher, PromptEncoder]:
    """(model, prompt encoder); trained weights are float32, a frozen or adapted language model is
    bf16 on a GPU."""
    half = config.tune != "full" and _uses_bf16(config, device)
    lm, tokenizer = load_lm(config.lm, torch.bfloat16 if half else torch.float32, config.layers)
    torch.manual_seed(config.seed)  # before tune(): adapters start at random values
    tune(lm, config.tune, config.lora_rank)
    if config.recompute:
        recompute(lm)
    encoder = PromptEncoder(tokenizer, lm.get_input_embeddings().weight.shape[0])
    model = LanguageTeacher(lm, shape, encoder.prefix).to(device)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model, encoder


@torch.no_grad()
def set_statistics(model: LanguageTeacher, dataset: QuestionDataset) -> None:
    """Sets mean and standard deviation (floor 1e-4) of the training clips' features per channel,
    and of the grounding queries before training (LanguageTeacher.grounding_query)."""
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
        _set_query_statistics(model, dataset)


class Objective(nn.Module):
    """The loss of a batch as one module, so that FSDP and DDP see every weight in one forward."""

    def __init__(self, teacher: LanguageTeacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, batch: Batch) -> Tensor:
        """Cross-entropy of the answer tokens or InfoNCE over the boxes, plus in training the
        weighted distance loss; float32 scalar."""
        output = self.teacher(batch.visual, batch.questions)
        loss = self._question_loss(output, batch.questions)
        if self.training and self.teacher.distance_head is not None:
            weight = self.teacher.shape.metric
            loss = loss + weight * self.teacher.distance_loss(output, batch.visual)
        return loss

    def _question_loss(self, output: TeacherOutput, questions: QuestionBatch) -> Tensor:
        if output.ground is not None:
            return ground_loss(output.ground, questions.targets, questions.candidates >= 0)
        logits = self.teacher.answer_logits(output, questions)
        return F.cross_entropy(logits.flatten(0, 2).float(), questions.labels.flatten(),
                               ignore_index=IGNORED)


class FlatInputsObjective(nn.Module):
    """`Objective` of a batch given as separate tensors, as CUDA graphs need it.

    names: of the tensors, as from `flatten_batch`. compiled: the language model's layers are
    compiled, in this module's forward only; all layers share one program.
    """

    def __init__(self, objective: Objective, names: list[str], compiled: bool = False):
        super().__init__()
        self.objective, self.names = objective, names
        self.decoder = objective.teacher.lm.get_decoder()
        self.plain_layers = self.decoder.layers
        self.layers = self.plain_layers
        if compiled:
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


def fit(model: LanguageTeacher, dataset: QuestionDataset, config: FinetuneConfig,
        folder: Path | None = None,
        validate: Callable[[nn.Module], dict[str, float]] | None = None, stop: float | None = None,
        quiet: bool = False, accelerator: Any = None) -> list[dict]:
    """Trains in place and returns the curve, a row every `validate_every` steps.

    folder: gets metrics.jsonl and a checkpoint; an interrupted run resumes to the same result.
    validate: its result is added to each row; called on every process. stop: a time.monotonic() to
    end at (the schedule is cut short). accelerator: of accelerate, for several processes: each
    samples its own clips of the same family, gradients are averaged, the first one writes.
    """
    rank, world = 0, 1
    if accelerator is not None:
        rank, world = accelerator.process_index, accelerator.num_processes
    key = digest(asdict(config), asdict(model.shape), [room.id for room in dataset.rooms],
                 len(dataset), world)
    checkpoint = None if folder is None else folder / CHECKPOINT
    start, moments = _load_weights(model, checkpoint, key)
    optimizer: Any = _optimizer(model, config)
    objective: Any = Objective(model)
    if accelerator is not None:
        objective, optimizer = accelerator.prepare(objective, optimizer)
    if start:
        GatheredOptimizer(_unwrapped(optimizer)).load_state_dict(moments)
    backward = _Backward(model, objective, dataset, config, rank, world)
    metrics = None if folder is None or rank > 0 else folder / METRICS
    curve = _read_curve(metrics, start)
    losses: list[Tensor] = []  # since the last row; on the device, so that no step waits
    for step in track(range(start, config.steps), description="teacher", disable=quiet or rank > 0):
        _set_rates(optimizer, config, step)
        optimizer.zero_grad(set_to_none=True)
        losses.append(backward(step))
        clip_and_step(optimizer, model.parameters())
        done = step + 1
        late = stop is not None and time.monotonic() > stop
        if done % config.validate_every == 0 or done == config.steps or late:
            row = {"step": done, "loss": float(torch.stack(losses).mean())}
            curve.append(row | (validate(objective) if validate else {}))
            _append(metrics, curve[-1])
            losses.clear()
        if checkpoint is not None and (done % config.save_every == 0 or done == config.steps):
            _save(checkpoint, done, model, optimizer, key, write=rank == 0)
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
    """Context of bf16 products if the configuration has them."""
    if _uses_bf16(config, device):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


@torch.no_grad()
def trainable_state_dict(model: LanguageTeacher) -> dict[str, Tensor]:
    """Trained weights and statistics by their saved names: a teacher without its published weights.

    Every process of a sharded model must call it.
    """
    return {name: gather(value) for name, value in _trainable(model).items()}


@torch.no_grad()
def load_trainable(model: LanguageTeacher, state: dict[str, Tensor]) -> None:
    """Copies a `trainable_state_dict` into a model. Raises ValueError if it is of another model."""
    tensors = _trainable(model)
    wrong = sorted(set(tensors) ^ set(state))
    wrong = wrong or [n for n in tensors if tensors[n].shape != state[n].shape]
    if wrong:
        raise ValueError(
            f"teacher: the checkpoint and the model differ in {len(wrong)} weights, {wrong[0]} "
            "first; give the language model and the features that it was trained with")
    for name, value in tensors.items():
        value.copy_(state[name])


@torch.no_grad()
def warm_start(model: LanguageTeacher, state: dict[str, Tensor]) -> None:
    """Loads the `trainable_state_dict` of a teacher without a second stream.

    The model then gives the same output until its second stream, which starts at zero, is trained.
    That stream's statistics must be set already. Raises ValueError if the state is of another
    model, or the fusion cannot start like that.
    """
    tensors = {name: value for name, value in _trainable(model).items()
               if not name.startswith(("fusion.", "generative_"))}
    fusion = {name.removeprefix("fusion."): value for name, value in state.items()
              if name.startswith("fusion.")}
    semantic = SemanticOnly(model.shape.semantic_dim, 1, model.newline.shape[0])
    semantic = semantic.to(model.newline.device)
    given = {name: value for name, value in state.items() if name in tensors} | fusion
    if _shapes(given) != _shapes(tensors | semantic.state_dict()):
        raise ValueError(
            "teacher: that is no teacher without a second stream (--features none) of the same "
            "language model and options")
    semantic.load_state_dict(fusion)
    blends_raw = isinstance(model.fusion, (PaperGate, ResidualGate))
    if isinstance(model.fusion, SemanticOnly):
        model.fusion.load_state_dict(fusion)
    elif isinstance(model.fusion, TokenGate) and not blends_raw:
        model.fusion.warm_start(semantic)
    else:
        raise ValueError(
            f"teacher: fusion {model.shape.fusion} cannot start from a teacher without a second "
            "stream; use token_gate")
    for name, value in tensors.items():
        value.copy_(state[name])


def _set_query_statistics(model: LanguageTeacher, dataset: QuestionDataset) -> None:
    was_training = model.training
    model.eval()
    queries = []
    for name in (name for name in dataset.families if name in GROUNDED):
        for batch in islice(dataset.eval_batches(name, 8, 8), QUERY_BATCHES):
            hidden = model(batch.visual, batch.questions).hidden
            queries.append(model.grounding_query(hidden, batch.questions).flatten(0, 1))
    if queries and sum(map(len, queries)) > 1:
        std, mean = torch.std_mean(torch.cat(queries).float(), 0)
        model.query_mean.copy_(mean)
        model.query_std.copy_(std.clamp_min(1e-4))
    model.train(was_training)


class _Backward:
    """backward(step) adds the gradients of a step's batches and returns its loss (on the device).

    On one GPU in bf16, with one batch a step and no recomputation, it replays a CUDA graph.
    """

    def __init__(self, model: LanguageTeacher, objective: nn.Module, dataset: QuestionDataset,
                 config: FinetuneConfig, rank: int, world: int):
        self.model, self.objective, self.dataset = model, objective, dataset
        self.config, self.rank = config, rank
        self.graphed = (config.graphed and world == 1 and config.accumulate == 1
                        and not config.recompute and dataset.device.type == "cuda"
                        and _uses_bf16(config, dataset.device))
        self.graphs: GraphPerShape | None = None

    def __call__(self, step: int) -> Tensor:
        config = self.config
        torch.manual_seed(config.seed * 1_000_003 + step)  # a resumed run has the same dropout
        self.objective.train()
        loss = torch.zeros((), device=self.dataset.device)
        for part in range(config.accumulate):
            batch = self.dataset.sample_batch(config.seed, step * config.accumulate + part,
                                              config.clips, config.questions, self.rank,
                                              fixed_shape=self.graphed)
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
                  key: str) -> tuple[int, dict[str, Any]]:
    """(step to start at, state of the optimiser); the checkpoint's weights are in the model."""
    weights: Any = StateDictHolder()
    moments: Any = StateDictHolder({"state": {}, "param_groups": []})
    start = 0
    if checkpoint is not None:
        start = load_checkpoint(checkpoint, {"teacher": weights}, moments, key)
    if start:
        load_trainable(model, weights.state)
    return start, moments.state


def _save(checkpoint: Path, step: int, model: LanguageTeacher, optimizer: Any, key: str,
          write: bool) -> None:
    """Every process gathers, one writes."""
    weights: Any = StateDictHolder(trainable_state_dict(model))
    moments: Any = StateDictHolder(GatheredOptimizer(_unwrapped(optimizer)).state_dict())
    if write:
        save_checkpoint(checkpoint, step, {"teacher": weights}, moments, key)


def _trainable(model: LanguageTeacher) -> dict[str, Tensor]:
    """Trained weights and statistics, the model's own tensors by their saved names."""
    tensors: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    tensors |= {n: b for n, b in model.named_buffers()
                if n.endswith(("_mean", "_std")) or n == "scale"}
    return {_saved_name(name): value for name, value in tensors.items()}


def _saved_name(name: str) -> str:
    for prefix, saved in SAVED_NAMES.items():
        if name.startswith(prefix):
            return saved + name.removeprefix(prefix)
    return name


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


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
    metrics.parent.mkdir(parents=True, exist_ok=True)
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    rows = [row for row in map(json.loads, lines) if row["step"] <= start]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _append(metrics: Path | None, row: dict) -> None:
    if metrics is not None:
        with metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _uses_bf16(config: FinetuneConfig, device: torch.device) -> bool:
    return config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
