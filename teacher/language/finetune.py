"""Training the full teacher: several tasks, one a batch; words by cross-entropy, boxes by
InfoNCE."""
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from records.files import digest
from teacher.fusion import PaperGate, ResidualGate, SemanticOnly, TokenGate
from teacher.language.dataset import Batch, QuestionDataset
from teacher.language.encode import GROUNDED, PromptEncoder
from teacher.language.grounding import ground_loss
from teacher.language.lm import RANK, Tune, load_lm, recompute, tune
from teacher.language.model import (
    IGNORED,
    LanguageShape,
    LanguageTeacher,
    QuestionBatch,
    TeacherOutput,
    VisualInputs,
)
from teacher.training.checkpoint import load_checkpoint, save_checkpoint, set_lr
from teacher.training.cuda_graphs import GraphPerShape
from teacher.training.sharded import GatheredOptimizer, StateDictHolder, gather


@dataclass(frozen=True)
class FinetuneConfig:
    """How the teacher is trained; RECIPES holds two. lm: a name, hub id or folder."""
    lm: str = "smollm2-135m"
    layers: int | None = None   # of the language model, the first ones; None: all
    tune: Tune = "full"
    lora_rank: int = RANK
    steps: int = 1500
    clips: int = 8              # a batch
    questions: int = 8          # about each clip: they share its visual tokens
    accumulate: int = 1         # batches to a step
    lr: float = 2e-4            # of the language model
    lr_new: float = 1e-3        # of all that starts from nothing
    warm: float = 0.03          # share of the steps
    weight_decay: float = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU
    # keep only the layers' inputs and compute the rest again in the backward pass
    recompute: bool = False
    # on one GPU in bf16: a step as one CUDA graph, which waits for no launches
    graphed: bool = True
    # of such a graph, the language model's layers compiled: takes a minute at first
    compiled: bool = False
    save_every: int = 200       # steps
    validate_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "clips", "questions", "accumulate", "lora_rank", "save_every",
                     "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"tuning: got {name}={getattr(self, name)}, expected at least 1")


QUERY_BATCHES = 8  # of 64 questions, enough for a mean and a spread
CHECKPOINT, METRICS = "tuning.ckpt.safetensors", "metrics.jsonl"
RECIPES = {
    # what docs/language.md was measured with, and a little longer than its longest
    "embedded": FinetuneConfig(layers=6, steps=2000, clips=16, lr=5e-4),
    # the paper's: 128 questions a step over 8 GPUs (bench/recipes/paper_fsdp.yaml; `vega3d teacher
    # plan`: what it needs)
    "paper": FinetuneConfig(lm="llava-video-7b", steps=1500, clips=1, questions=1, accumulate=16,
                        lr=1e-5, lr_new=1e-5, recompute=True),
}


def build(config: FinetuneConfig, shape: LanguageShape,
          device: torch.device) -> tuple[LanguageTeacher, PromptEncoder]:
    """(model, writer); a frozen or adapted language model is held in bf16 on a GPU, a trained one
    in float32."""
    half = config.tune != "full" and _half(config, device)
    lm, tokenizer = load_lm(config.lm, torch.bfloat16 if half else torch.float32, config.layers)
    torch.manual_seed(config.seed)  # adapters, too, start from a draw
    tune(lm, config.tune, config.lora_rank)
    if config.recompute:
        recompute(lm)
    writer = PromptEncoder(tokenizer, lm.get_input_embeddings().weight.shape[0])
    model = LanguageTeacher(lm, shape, writer.prefix).to(device)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model, writer


@torch.no_grad()
def set_statistics(model: LanguageTeacher, dataset: QuestionDataset) -> None:
    """Per-channel mean and standard deviation (floor 1e-4) of the training clips' features, and of
    the grounding questions' states before any training (LanguageTeacher.query)."""
    for name in ("semantic", "generative"):
        stream = getattr(dataset.visual, name)
        if stream is None:
            continue
        sums = [
            torch.zeros(stream.shape[2], dtype=torch.float64, device=stream.device)
            for _ in range(2)
        ]
        for part in stream.split(64):  # [N,T,D,14,14]
            x = part.double()
            sums[0] += x.sum((0, 1, 3, 4))
            sums[1] += x.square().sum((0, 1, 3, 4))
        count = stream.numel() / stream.shape[2]
        mean = sums[0] / count
        std = (sums[1] / count - mean.square()).clamp_min(0).sqrt().clamp_min(1e-4)
        getattr(model, f"{name}_mean").copy_(mean.view(-1, 1, 1))
        getattr(model, f"{name}_std").copy_(std.view(-1, 1, 1))
    if model.shape.query == "words":
        _set_query_statistics(model, dataset)


def _set_query_statistics(model: LanguageTeacher, dataset: QuestionDataset) -> None:
    was = model.training
    model.eval()
    states = []
    for name in (name for name in dataset.families if name in GROUNDED):
        for batch in islice(dataset.eval_batches(name, 8, 8), QUERY_BATCHES):
            states.append(
                model.query(model(batch.visual, batch.questions).hidden, batch.questions).flatten(0, 1))
    if states and sum(map(len, states)) > 1:
        std, mean = torch.std_mean(torch.cat(states).float(), 0)
        model.query_mean.copy_(mean)
        model.query_std.copy_(std.clamp_min(1e-4))
    model.train(was)


class Objective(nn.Module):
    """A batch's loss as one module, so that what shards or replicates models sees every weight
    inside one forward."""

    def __init__(self, teacher: LanguageTeacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, batch: Batch) -> Tensor:
        """Cross-entropy of the answers' tokens, or InfoNCE over the boxes, and in training the
        tokens' distances if the shape gives them a weight; a float32 scalar."""
        heard = self.teacher(batch.visual, batch.questions)
        loss = self._answers(heard, batch.questions)
        if self.training and self.teacher.metric is not None:
            loss = loss + self.teacher.shape.metric * self.teacher.metric_loss(heard, batch.visual)
        return loss

    def _answers(self, heard: TeacherOutput, asked: QuestionBatch) -> Tensor:
        if heard.ground is not None:
            return ground_loss(heard.ground, asked.targets, asked.candidates >= 0)
        logits = self.teacher.answers(heard, asked)
        return F.cross_entropy(
            logits.flatten(0, 2).float(), asked.labels.flatten(), ignore_index=IGNORED)


class FlatInputsObjective(nn.Module):
    """The objective, of a batch whose tensors come one by one: what CUDA graphs can be made of."""

    def __init__(self, objective: Objective, names: list[str], compiled: bool = False):
        super().__init__()
        self.objective, self.names = objective, names
        self.layers = [*objective.teacher.lm.get_decoder().layers] if compiled else []
        if compiled:  # a shape a family of questions, of every model that this process trains
            torch._dynamo.config.recompile_limit = 256

    def forward(self, *tensors: Tensor) -> Tensor:
        parts: dict[str, dict[str, Any]] = {"visual": {"generative": None}, "questions": {}}
        for name, tensor in zip(self.names, tensors, strict=True):
            part, _, field = name.partition(".")
            parts[part][field] = tensor
        batch = Batch(VisualInputs(**parts["visual"]), QuestionBatch(**parts["questions"]), [])
        # one program for all of them; elsewhere, as in validation, they stay as they are
        for layer in self.layers:
            layer.forward = torch.compile(
                type(layer).forward.__get__(layer), fullgraph=True, dynamic=False)
        try:
            return self.objective(batch)
        finally:
            for layer in self.layers:
                del layer.forward


def _tensors(batch: Batch) -> dict[str, Tensor]:
    both = {
        f"{part}.{name}": x
        for part in ("visual", "questions")
        for name, x in vars(getattr(batch, part)).items()
    }
    return {name: x for name, x in both.items() if x is not None}


def fit(model: LanguageTeacher, dataset: QuestionDataset, config: FinetuneConfig, folder: Path | None = None,
        validate: Callable[[nn.Module], dict[str, float]] | None = None, stop: float | None = None,
        quiet: bool = False, accelerator: Any = None) -> list[dict]:
    """Trains in place and returns the curve. With a folder: metrics.jsonl, and a killed run resumes
    to the same result.

    validate: what the objective adds to the curve every `validate_every` steps; runs on every
    process. stop: a time.monotonic() to end at, whatever the step (benchmarks under a budget; the
    schedule is then cut short).
    accelerator: of accelerate, for several processes: each draws its own clips of the same family,
    gradients are averaged, the first one writes.
    """
    device = dataset.device
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index,
                                                      accelerator.num_processes)
    key = digest(asdict(config), asdict(model.shape), [room.id for room in dataset.rooms],
                 len(dataset), world)
    weights: Any = StateDictHolder()
    moments: Any = StateDictHolder({"state": {}, "param_groups": []})
    start = 0 if folder is None else load_checkpoint(folder /
                                                     CHECKPOINT, {"teacher": weights}, moments, key)
    if start:
        load_trainable(model, weights.state)
    optimizer: Any = _optimizer(model, config)
    objective: Any = Objective(model)
    # a step is one forward and one backward
    single = world == 1 and config.accumulate == 1 and not config.recompute
    graphed = config.graphed and single and device.type == "cuda" and _half(config, device)
    graphs: GraphPerShape | None = None
    if accelerator is not None:
        objective, optimizer = accelerator.prepare(objective, optimizer)
    if start:
        GatheredOptimizer(_plain(optimizer)).load_state_dict(moments.state)
    saves = folder is not None  # every process reads and gathers, one writes
    folder = folder if rank == 0 else None
    curve = _read_curve(folder, start)
    # losses since the last row of the curve; on the device, so that no step waits
    recent: list[Tensor] = []
    for step in track(range(start, config.steps), description="teacher", disable=quiet or rank > 0):
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout of a resumed run
        set_lr(optimizer, 1.0, step, config.steps, warm=int(config.warm * config.steps))
        for group in optimizer.param_groups:
            group["lr"] *= group["peak"]
        objective.train()
        loss = torch.zeros((), device=device)
        optimizer.zero_grad(set_to_none=True)
        for part in range(config.accumulate):
            batch = dataset.draw(config.seed, step * config.accumulate + part, config.clips,
                                 config.questions, rank, alike=graphed)
            if graphed:
                inputs = _tensors(batch)
                graphs = graphs or GraphPerShape(
                    FlatInputsObjective(Objective(model), [*inputs], config.compiled))
                loss += graphs(*inputs.values())[0]
                continue
            with autocast(config, device):
                one = objective(batch) / config.accumulate
            one.backward()
            loss += one.detach()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        recent.append(loss)
        done = step + 1
        late = stop is not None and time.monotonic() > stop
        if done % config.validate_every == 0 or done == config.steps or late:
            row = {
                "step": done, "loss": float(torch.stack(recent).mean()),
                **(validate(objective) if validate else {})
            }
            recent.clear()
            curve.append(row)
            if folder is not None:
                with (folder / METRICS).open("a") as file:
                    file.write(json.dumps(row) + "\n")
        if saves and (done % config.save_every == 0 or done == config.steps):
            weights, moments = StateDictHolder(trainable_state_dict(model)), StateDictHolder(
                GatheredOptimizer(_plain(optimizer)).state_dict())
            if folder is not None:
                save_checkpoint(folder / CHECKPOINT, done, {"teacher": weights}, moments, key)
        if late:
            break
    return curve


@torch.no_grad()
def validation_loss(objective: nn.Module, dataset: QuestionDataset, config: FinetuneConfig,
                    batches: int = 2) -> dict[str, float]:
    """Mean loss of each family over its first few batches of held-out clips, by name
    loss_FAMILY."""
    objective.eval()
    out = {}
    for name in dataset.families:
        exam = islice(dataset.eval_batches(name, config.clips, config.questions), batches)
        with autocast(config, dataset.device):
            losses = [float(objective(batch)) for batch in exam]
        out[f"loss_{name}"] = sum(losses) / len(losses)
    return out


def autocast(config: FinetuneConfig, device: torch.device):
    """bf16 products where the recipe asks for them."""
    return torch.autocast(device.type, torch.bfloat16) if _half(config, device) else nullcontext()


@torch.no_grad()
def trainable_state_dict(model: LanguageTeacher) -> dict[str, Tensor]:
    """What was trained, and the statistics, by name: all that a checkpoint needs beside the
    published weights. Of a sharded model every process must ask."""
    return {name: gather(value) for name, value in _trained(model).items()}


@torch.no_grad()
def load_trainable(model: LanguageTeacher, state: dict[str, Tensor]) -> None:
    """Copies what `learned` gave back into a model. Raises ValueError if it is another model's."""
    mine = _trained(model)
    if wrong := sorted(set(mine)
                       ^ set(state)) or [n for n in mine if mine[n].shape != state[n].shape]:
        raise ValueError(
            f"teacher: the checkpoint and the model differ in {len(wrong)} weights, {wrong[0]} "
            "first; give the language model and the features that it was trained with")
    for name, value in mine.items():
        value.copy_(state[name])


@torch.no_grad()
def warm_start(model: LanguageTeacher, state: dict[str, Tensor]) -> None:
    """Starts a model as `learned` of one without a second stream left off: it answers the same
    until its own stream, silent at first, has learnt. The statistics of that stream must be set
    already.

    Raises ValueError if the state is of another model, or if the fusion cannot start like that.
    """
    mine = {
        n: value
        for n, value in _trained(model).items() if not n.startswith(("fusion.", "generative_"))
    }
    fused = {
        n.removeprefix("fusion."): value
        for n, value in state.items() if n.startswith("fusion.")
    }
    alone = SemanticOnly(model.shape.semantic_dim, 1,
                         model.newline.shape[0]).to(model.newline.device)
    theirs = {n: value.shape
              for n, value in state.items() if n in mine} | {n: v.shape
                                                             for n, v in fused.items()}
    if theirs != {n: value.shape for n, value in {**mine, **alone.state_dict()}.items()}:
        raise ValueError(
            "teacher: that is no teacher without a second stream (--features none) of the same "
            "language model and options")
    alone.load_state_dict(fused)
    if isinstance(model.fusion, SemanticOnly):
        model.fusion.load_state_dict(fused)
    # raw streams
    elif isinstance(model.fusion, TokenGate) and not isinstance(model.fusion,
                                                                (PaperGate, ResidualGate)):
        model.fusion.warm_start(alone)
    else:
        raise ValueError(
            f"teacher: fusion {model.shape.fusion} cannot go on from a teacher without a second "
            "stream; use token_gate")
    for name, value in mine.items():
        value.copy_(state[name])


def _trained(model: LanguageTeacher) -> dict[str, Tensor]:
    return {
        **{n: p
           for n, p in model.named_parameters() if p.requires_grad},
        **{n: b
           for n, b in model.named_buffers() if n.endswith(("_mean", "_std")) or n == "scale"}
    }


def _optimizer(model: LanguageTeacher, config: FinetuneConfig) -> torch.optim.Optimizer:
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for n, p in named if n.startswith("lm.") == old], "peak": peak}
              for old, peak in ((True, config.lr_new if config.tune == "lora" else config.lr),
                                (False, config.lr_new))]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr,
                             weight_decay=config.weight_decay,
                             fused=any(p.is_cuda for _, p in named))


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it


def _read_curve(folder: Path | None, start: int) -> list[dict]:
    if folder is None:
        return []
    path = folder / METRICS
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    rows = [row for row in rows if row["step"] <= start]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _half(config: FinetuneConfig, device: torch.device) -> bool:
    return config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
