"""Training and scoring the dense teacher on stored features: fused, semantic only, or controls."""
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from records import manifest
from records.files import parse_json, reading, spec_digest, to_json
from records.interrupts import deferred
from records.progress import track
from scenes.dense import DenseScores, DenseTargets
from teacher.config import DenseTraining
from teacher.data.dataset import Example, Examples, moments
from teacher.dense.model import DenseShape, DenseTeacher, dense_loss
from teacher.training.checkpoint import (
    Checkpoint,
    clipped_step,
    remove_checkpoint,
    save_finite,
    set_lr,
)

# a batch -> its generative features [B,D,14,14] float32, not standardised; None: semantic only
Stream = Callable[[Example], Tensor | None]


def train_dense_teacher(name: str, examples: Examples, stream: Stream, shape: DenseShape,
                        config: DenseTraining, seed: int, folder: Path) -> DenseTeacher:
    """Trains a DenseTeacher on the examples' field `semantic` and a generative stream.

    The result is folder/NAME.safetensors. An interrupted run resumes from
    folder/NAME.ckpt.safetensors to the same weights.
    """
    device = examples.device
    torch.manual_seed(seed)
    model = DenseTeacher(shape).to(device)
    inputs: dict[str, Callable] = {"semantic": lambda example: example["semantic"]}
    if shape.generative_dim:
        inputs["generative"] = stream
    for side, values in inputs.items():
        for key, value in zip(("mean", "std"), moments(examples, values), strict=True):
            getattr(model, f"{side}_{key}").copy_(value.view(1, -1, 1, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01)
    total = config.epochs * (per_epoch := examples.steps(config.batch))
    key = spec_digest({
        "name": name, "seed": seed, "examples": examples.ids, **asdict(config), **asdict(shape),
        **{name: store.key for name, store in examples.stores.items()}
    })
    checkpoint = Checkpoint(folder / f"{name}.ckpt.safetensors", {"model": model}, optimizer, key)
    step = checkpoint.load()
    for epoch in track(range(step // per_epoch, config.epochs), description=f"teacher: {name}"):
        with deferred():
            for batch in examples.batches(config.batch, seed, epoch, step - epoch * per_epoch):
                set_lr(optimizer, config.lr, step, total, warm=total // 20)
                out = model(batch["semantic"].float(), stream(batch))
                loss = dense_loss(out, batch["depth"], batch["normals"], batch["classes"])
                clipped_step(loss, optimizer, model.parameters())
                step += 1
                checkpoint.after_step(step, due=step == (epoch + 1) * per_epoch)
    save_teacher(model, folder, name)
    remove_checkpoint(checkpoint.path)
    return model.eval()


@torch.inference_mode()
def score(model: DenseTeacher, examples: Examples,
          stream: Stream) -> tuple[dict[str, float], list[dict]]:
    """The four dense metrics over all clips, and rows with those of each `clip`."""
    every, rows = DenseScores(model.shape.classes), []
    for clip_id, example in examples.in_order():
        out = model(example["semantic"].float(), stream(example))
        truth = DenseTargets(*(example[k].cpu().numpy() for k in ("depth", "normals", "classes")))
        predicted = (out.log_depth.exp().cpu().numpy(), out.normals.cpu().numpy(),
                     out.logits.argmax(1).cpu().numpy())
        one = DenseScores(model.shape.classes)
        for scores in (every, one):
            scores.add(*predicted, truth)
        rows.append({"clip": clip_id, **one.result()})
    return every.result(), rows


def save_teacher(model: DenseTeacher, folder: Path, name: str) -> None:
    save_finite(model.state_dict(), folder / f"{name}.safetensors",
                {"shape": to_json(asdict(model.shape))})


def load_teacher(folder: Path, name: str) -> DenseTeacher:
    """What `save_teacher` wrote, in eval mode. Raises ValueError if the file is missing."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no such teacher; train it with: vega3d distill run")
    manifest.check(path, "delete it and run: vega3d distill run --name RUN")
    with reading(path, "a dense teacher, or damaged", "delete it and run: vega3d distill run"):
        with safe_open(path, "pt") as file:
            shape = DenseShape(**parse_json((file.metadata() or {})["shape"]))
        model = DenseTeacher(shape)
        model.load_state_dict(load_file(path), strict=True)
    return model.eval()
