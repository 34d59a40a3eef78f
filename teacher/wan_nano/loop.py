"""The training loop of wan-nano's two parts: steps, time budget, curve and checkpoints."""
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from records.files import read_rows, spec_digest, write_rows
from records.interrupts import check, deferred, pending
from records.progress import Progress
from teacher.config import PretrainConfig
from teacher.training.checkpoint import load_checkpoint, save_checkpoint, set_lr
from teacher.training.gradients import Gradients
from teacher.training.processes import Processes

METRICS, STAGES = "metrics.jsonl", ("vae", "flow")
WARM_STEPS = 200
LOG_EVERY = 100
# steps over which a time budget measures the speed; the decay starts after them
TIMED_FROM, TIMED_TO = 200, 600


@dataclass
class Pretraining:
    """What both trainings share: the configuration, the accelerator and the curve."""
    config: PretrainConfig
    accelerator: Accelerator
    curve: list[dict] = field(default_factory=list)

    def log(self, **row: float | str) -> None:
        """Adds a row to metrics.jsonl, in the order of the stages."""
        self.curve = sorted([*self.curve, row], key=lambda row: STAGES.index(row["stage"]))
        if self.accelerator.is_main_process:
            write_rows(self.curve, self.config.out / METRICS)

    def resume(self, stage: str, start: int) -> None:
        """Forgets the rows of a stage that are logged again from step `start` on."""
        self.curve = [row for row in self.curve if row["stage"] != stage or "steps" in row
                      or row.get("step", start + 1) <= start]


def fit(run: Pretraining, stage: str, loss: nn.Module, batch: Callable[[int], tuple[Tensor, ...]],
        modules: dict[str, nn.Module],
        validate: Callable[[], dict[str, float]] | None = None) -> None:
    """AdamW, linear warm-up, cosine decay, gradients clipped at 1, resumable checkpoints.

    modules: what a checkpoint holds; `averaged` among them follows `transformer`. validate: called
    every `validate_every` steps for more columns of the curve.
    """
    accelerator, device = run.accelerator, run.accelerator.device
    lr = getattr(run.config, f"{stage}_lr")
    for module in modules.values():
        module.to(device)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01,
                                  fused=device.type == "cuda")
    checkpoint = _Checkpoint(run, stage, modules, optimizer)
    start = step = checkpoint.load()
    run.resume(stage, start)
    if device.type == "cuda":
        _compile(stage, loss, modules)
    processes = Processes(device, accelerator.process_index, accelerator.num_processes)
    processes.copy_of_main(loss.to(device).train())
    gradients = Gradients(loss, processes)
    budget, curve = _StepBudget(run, stage, start), _LossCurve(run, stage, validate)
    with deferred(), Progress(disable=not accelerator.is_main_process) as progress:
        bar = progress.add_task(f"{stage} training", total=budget.steps, completed=start)
        while step < budget.steps:
            check()
            budget.update(step)
            warm = min(WARM_STEPS, max(1, budget.steps // 5))
            set_lr(optimizer, lr, step, budget.steps, warm=warm)
            curve.add(gradients(*(x.to(device) for x in batch(step)), share=1 / processes.count))
            accelerator.clip_grad_norm_(loss.parameters(), 1.0)
            optimizer.step()
            if "averaged" in modules:
                modules["averaged"].update_parameters(modules["transformer"])  # type: ignore
            step += 1
            curve.log(step, last=step == budget.steps)
            checkpoint.save(step, last=step == budget.steps)
            progress.update(bar, completed=step, total=budget.steps)
    for module in modules.values():
        module.requires_grad_(False)


def _compile(stage: str, loss: nn.Module, modules: dict[str, nn.Module]) -> None:
    if stage == "flow":
        modules["transformer"].compile_repeated_blocks(fullgraph=True)  # type: ignore[operator]
    else:
        loss.compile(dynamic=False)


def read_metrics(folder: Path) -> list[dict]:
    """The rows of folder/metrics.jsonl."""
    return read_rows(folder / METRICS)


class _Checkpoint:
    """A stage's resumable state. Its key leaves out the settings of the other stage."""

    def __init__(self, run: Pretraining, stage: str, modules: dict[str, nn.Module],
                 optimizer: torch.optim.Optimizer):
        config = run.config
        self.path = config.out / f"{stage}.ckpt.safetensors"
        self.modules, self.optimizer = modules, optimizer
        self.every, self.saves = config.save_every, run.accelerator.is_main_process
        other = "flow" if stage == "vae" else "vae"
        self.key = spec_digest({k: str(v) for k, v in asdict(config).items()
                                if not k.startswith(other)
                                and k not in ("out", "workers", "save_every")})

    def load(self) -> int:
        return load_checkpoint(self.path, self.modules, self.optimizer, self.key)

    def save(self, step: int, last: bool) -> None:
        if self.saves and (step % self.every == 0 or last or pending()):
            save_checkpoint(self.path, step, self.modules, self.optimizer, self.key)


class _LossCurve:
    """The smoothed loss of a stage, logged every LOG_EVERY steps and at the end."""

    def __init__(self, run: Pretraining, stage: str,
                 validate: Callable[[], dict[str, float]] | None):
        self.run, self.stage, self.validate = run, stage, validate
        self.began = time.monotonic()
        self.smooth: Tensor | None = None

    def add(self, loss: Tensor) -> None:
        self.smooth = loss.clone() if self.smooth is None else 0.98 * self.smooth + 0.02 * loss

    def log(self, step: int, last: bool) -> None:
        if self.smooth is None or not (step % LOG_EVERY == 0 or last):
            return
        row = dict(zip(("loss", "align"), self.smooth.reshape(-1).tolist(), strict=False))
        if self.validate and (step % self.run.config.validate_every == 0 or last):
            row |= self.validate()
        self.run.log(stage=self.stage, step=step, **row, seconds=time.monotonic() - self.began)


class _StepBudget:
    """Steps of a stage: those configured, or as many as fit in its seconds when it first ran."""

    def __init__(self, run: Pretraining, stage: str, start: int):
        self.run, self.stage, self.start = run, stage, start
        self.steps: int = getattr(run.config, f"{stage}_steps")
        self.seconds: float = getattr(run.config, f"{stage}_seconds")
        if self.seconds and start:
            self.steps = next(row["steps"] for row in reversed(run.curve)
                              if row["stage"] == stage and "steps" in row)
            self.seconds = 0.0
        self.began = self.measured = time.monotonic()

    def update(self, step: int) -> None:
        """Call before every step: measures the speed, then fixes and logs the number of steps."""
        if step == self.start + TIMED_FROM:
            self.measured = time.monotonic()
        if self.seconds and step == self.start + TIMED_TO:
            self.steps = self._affordable(step)
            self.run.log(stage=self.stage, steps=self.steps)

    def _affordable(self, step: int) -> int:
        now = time.monotonic()
        seconds_per_step = (now - self.measured) / (TIMED_TO - TIMED_FROM)
        left = max(0, int((self.began + self.seconds - now) / seconds_per_step))
        steps = torch.tensor([step + left], device=self.run.accelerator.device)
        return int(self.run.accelerator.gather(steps).min())
