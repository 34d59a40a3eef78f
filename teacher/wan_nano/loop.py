"""The training loop of wan-nano's two parts: steps, time budget, curve and checkpoints."""
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from records.files import read_rows, spec_digest, write_rows
from records.interrupts import check, deferred
from records.progress import Progress
from teacher.config import PretrainConfig
from teacher.training.checkpoint import Checkpoint, clip_and_step, set_lr
from teacher.training.gradients import Gradients
from teacher.training.processes import Processes

METRICS, STAGES = "metrics.jsonl", ("vae", "flow")
WARM_STEPS = 200
LOG_EVERY = 100
# steps over which a time budget measures the speed; the decay starts after them
TIMED_FROM, TIMED_TO = 200, 600


@dataclass
class Pretraining:
    """What both trainings share: the configuration, the processes and the curve."""
    config: PretrainConfig
    processes: Processes
    curve: list[dict] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return self.processes.device

    def log(self, **row: float | str) -> None:
        """Adds a row to metrics.jsonl, in the order of the stages."""
        self.curve = sorted([*self.curve, row], key=lambda row: STAGES.index(row["stage"]))
        if self.processes.main:
            write_rows(self.curve, self.config.out / METRICS)

    def resume(self, stage: str, start: int) -> None:
        """Forgets the rows of a stage that are logged again from step `start` on."""
        self.curve = [row for row in self.curve if row["stage"] != stage or "steps" in row
                      or row.get("step", start + 1) <= start]

    def autocast(self) -> torch.autocast:
        """bfloat16 on a GPU."""
        return torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda")


def fit(run: Pretraining, stage: str, loss: nn.Module, batch: Callable[[int], tuple[Tensor, ...]],
        modules: dict[str, nn.Module],
        validate: Callable[[], dict[str, float]] | None = None) -> None:
    """AdamW, linear warm-up, cosine decay, gradients clipped at 1, resumable checkpoints.

    modules: what a checkpoint holds; `averaged` among them follows `transformer`. validate: called
    every `validate_every` steps for more columns of the curve.
    """
    config, processes, device = run.config, run.processes, run.device
    lr = getattr(config, f"{stage}_lr")
    for module in modules.values():
        module.to(device)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01,
                                  fused=device.type == "cuda")
    checkpoint = Checkpoint(config.out / f"{stage}.ckpt.safetensors", modules, optimizer,
                            _key(config, stage), math.inf)
    start = checkpoint.load()
    run.resume(stage, start)
    if device.type == "cuda":
        _compile(stage, loss, modules)
    processes.copy_of_main(loss.to(device).train())
    gradients = Gradients(loss, processes)
    step, budget, curve = start, _StepBudget(run, stage, start), _LossCurve(run, stage, validate)
    with deferred(), Progress(disable=not processes.main) as progress:
        bar = progress.add_task(f"{stage} training", total=budget.steps, completed=start)
        while step < budget.steps:
            check()
            budget.update(step)
            set_lr(optimizer, lr, step, budget.steps,
                   warm=min(WARM_STEPS, max(1, budget.steps // 5)))
            curve.add(gradients(*(x.to(device) for x in batch(step)), share=1 / processes.count))
            clip_and_step(optimizer, loss.parameters())
            if "averaged" in modules:
                modules["averaged"].update_parameters(modules["transformer"])  # type: ignore
            step += 1
            last = step == budget.steps
            curve.log(step, last)
            if processes.main:
                checkpoint.after_step(step, due=step % config.save_every == 0 or last)
            progress.update(bar, completed=step, total=budget.steps)


def _compile(stage: str, loss: nn.Module, modules: dict[str, nn.Module]) -> None:
    if stage == "flow":
        modules["transformer"].compile_repeated_blocks(fullgraph=True)  # type: ignore[operator]
    else:
        loss.compile(dynamic=False)


def read_metrics(folder: Path) -> list[dict]:
    """The rows of folder/metrics.jsonl."""
    return read_rows(folder / METRICS)


def _key(config: PretrainConfig, stage: str) -> str:
    """Of the settings but the other stage's."""
    other = "flow" if stage == "vae" else "vae"
    return spec_digest({k: str(v) for k, v in asdict(config).items() if not k.startswith(other)
                        and k not in ("out", "workers", "save_every")})


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
            now = time.monotonic()
            seconds_per_step = (now - self.measured) / (TIMED_TO - TIMED_FROM)
            left = max(0, int((self.began + self.seconds - now) / seconds_per_step))
            self.steps = int(self.run.processes.text_of_main(str(step + left)))
            self.run.log(stage=self.stage, steps=self.steps)
