"""`vega3d teacher pretrain`: rendered rooms -> wan-nano's VAE -> its transformer -> weights,
samples and a card.

On several GPUs: accelerate launch --num_processes N -m vega3d teacher pretrain … (each process its
own share of clips).
"""
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from rich.progress import Progress, track
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from records.files import spec_digest
from scenes.clip import Clip, Source
from teacher.fast.wan_blocks import set_training_processors
from teacher.towers.wan import normalise_latents
from teacher.training.checkpoint import load_checkpoint, save_checkpoint, set_lr
from teacher.training.cuda_graphs import GraphPerShape
from teacher.wan_nano.flow import FlowLoss, build_transformer, empty_prompt, flow_batch
from teacher.wan_nano.vae import (
    ReconstructionLoss,
    build_vae,
    crops,
    encode_all,
    reconstruction_psnr,
)

WARM_STEPS = 200
# the steps whose speed a time budget goes by; the decay starts after them
TIMED_FROM, TIMED_TO = 200, 600


@dataclass(frozen=True)
class PretrainConfig:
    out: Path = Path("runs/wan-nano")
    # an earlier wan-nano to go on from; with vae_steps 0 its VAE stays as it is
    init: Path | None = None
    clips: int = 2000          # training clips
    held_out: int = 64         # clips of unseen rooms and furniture, for PSNR and the sample sheet
    frames: int = 9            # per clip, 4n+1
    vae_steps: int = 4000
    vae_batch: int = 32        # clips a step and process
    vae_crop: int = 112        # px, multiple of 16
    vae_lr: float = 1e-3
    # > 0: as many steps as fit, fixed (and logged) once the speed is known
    vae_seconds: float = 0.0
    flow_steps: int = 20000
    flow_batch: int = 96       # clips a step and process
    flow_lr: float = 1e-3
    flow_seconds: float = 0.0  # as vae_seconds
    ema: float = 0.9995
    save_every: int = 1000     # steps between resumable checkpoints
    workers: int = 2           # rendering processes
    seed: int = 0

    def __post_init__(self) -> None:
        if self.vae_steps < 1 and self.init is None:
            raise ValueError(
                "pretrain.vae_steps is 0, which needs an earlier generator: give --init FOLDER")
        for part in ("vae", "transformer"):
            if self.init is not None and not (self.init / part / "config.json").is_file():
                raise ValueError(
                    f"pretrain.init: {self.init} holds no generator (no {part}/config.json)")
        if self.frames % 4 != 1:
            raise ValueError(f"pretrain.frames is {self.frames}, expected 4n+1 (5, 9, 17): "
                             "Wan's VAE silently drops the rest")


@dataclass
class Pretraining:
    """What the two trainings share: the configuration, the accelerator and the curve."""
    config: PretrainConfig
    accelerator: Accelerator
    curve: list[dict] = field(default_factory=list)

    def log(self, **row: float | str) -> None:
        self.curve.append(row)
        if self.accelerator.is_main_process:
            with (self.config.out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")


def pretrain(config: PretrainConfig, source: Source) -> Path:
    """Trains both parts (or resumes them) and returns the folder in the diffusers layout,
    config.out."""
    cuda = torch.cuda.is_available()
    torch.backends.cudnn.benchmark = cuda  # few shapes, long training
    run = Pretraining(config, Accelerator(mixed_precision="bf16" if cuda else "no"))
    config.out.mkdir(parents=True, exist_ok=True)
    ids = source.ids(
        "train")[:config.clips][run.accelerator.process_index::run.accelerator.num_processes]
    train = gather_frames(source, ids, config.out / f"train{run.accelerator.process_index}.npy",
                          config.workers)
    test = gather_frames(source, source.ids("test")[: config.held_out],
                         config.out / f"test{run.accelerator.process_index}.npy", config.workers)
    if cuda and train.nbytes < 0.6 * torch.cuda.mem_get_info()[0]:
        train = train.to(run.accelerator.device)
    vae = train_vae(run, train, test)
    transformer = train_flow(run, vae, train)
    if run.accelerator.is_main_process:
        save_generator(config.out, vae, transformer)
        (config.out /
         "pretrain.json").write_text(json.dumps(history(config), indent=2, default=str) + "\n")
    run.accelerator.wait_for_everyone()
    return config.out


def history(config: PretrainConfig) -> dict:
    """The configuration, and under `before` that of the generator it goes on from, with the steps
    that one had."""
    before = config.init and config.init / "pretrain.json"
    if not before or not before.is_file():
        return asdict(config)
    rows = [json.loads(line) for line in (before.parent / "metrics.jsonl").read_text().splitlines()]
    done = {f"{stage}_steps": steps_done(rows, stage) for stage in ("vae", "flow")}
    return asdict(config) | {"before": json.loads(before.read_text()) | done}


def steps_done(rows: Sequence[dict], stage: str) -> int:
    """How far metrics.jsonl's rows say a stage came; 0 if it was left as it is."""
    return max((row["step"] for row in rows if row["stage"] == stage and "step" in row), default=0)


def train_vae(run: Pretraining, frames: Tensor, test: Tensor) -> AutoencoderKLWan:
    """Returns the trained VAE in eval mode with its latent statistics set from the training
    clips."""
    config, accelerator = run.config, run.accelerator
    torch.manual_seed(config.seed)
    vae = build_vae() if config.init is None else AutoencoderKLWan.from_pretrained(
        config.init / "vae", torch_dtype=torch.float32)
    if config.vae_steps:
        batches = crops(frames, config.vae_batch, config.vae_crop,
                        config.seed + 1000 * accelerator.process_index)
        _fit(run, "vae", ReconstructionLoss(vae), config.vae_steps, config.vae_lr, lambda step:
             (next(batches), ), {"vae": vae})
    vae = vae.to(accelerator.device).eval().requires_grad_(False)
    psnr = reconstruction_psnr(vae, test, accelerator.device)
    run.log(stage="vae", psnr_db_mean=psnr.mean().item(), psnr_db_std=psnr.std().item(),
            clips=len(test))
    if not config.vae_steps:
        return vae  # the transformer it came with knows its latents by the statistics it came with
    with accelerator.autocast():
        some = encode_all(vae, frames[:512], accelerator.device).float()
    # every process has other clips, so take the first one's statistics for all
    mean = accelerator.gather(some.mean((0, 2, 3, 4))[None])[0]
    std = accelerator.gather(some.std((0, 2, 3, 4))[None])[0]
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    return vae


def train_flow(run: Pretraining, vae: AutoencoderKLWan, frames: Tensor) -> WanTransformer3DModel:
    """Returns the averaged (EMA) transformer in eval mode."""
    config, accelerator = run.config, run.accelerator
    with accelerator.autocast():
        both = [
            normalise_latents(encode_all(vae, f, accelerator.device), vae)
            for f in (frames, frames.flip(-1))
        ]
        clips = torch.cat(both)                                                     # [2N,16,F,h,w]
        single = frames[:,
                        torch.arange(0, config.frames, 4).to(frames.device)].flatten(0,
                                                                                     1).unsqueeze(1)
        images = normalise_latents(encode_all(vae, single, accelerator.device), vae)        # [3N,16,1,h,w]
    torch.manual_seed(config.seed)
    transformer = set_training_processors(
        build_transformer() if config.init is
        None else WanTransformer3DModel.from_pretrained(config.init /
                                                        "transformer", torch_dtype=torch.float32))
    averaged = AveragedModel(transformer, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    seed = config.seed + 1000 * accelerator.process_index
    _fit(run, "flow", FlowLoss(transformer), config.flow_steps, config.flow_lr,
         lambda step: flow_batch(clips, images, config.flow_batch, seed, step),
         {"transformer": transformer, "averaged": averaged}, averaged)
    return averaged.module.to(accelerator.device).eval()


def _fit(run: Pretraining, stage: str, loss: nn.Module, steps: int, lr: float,
         batch: Callable[[int], tuple[Tensor, ...]], modules: dict[str, nn.Module],
         averaged: AveragedModel | None = None) -> None:
    """The loop both parts share: AdamW, linear warm-up, cosine decay, clipping at 1, resumable
    checkpoints."""
    config, accelerator = run.config, run.accelerator
    device = accelerator.device
    for module in modules.values():
        module.to(device)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01,
                                  fused=device.type == "cuda")
    path = config.out / f"{stage}.ckpt.safetensors"
    other = "flow" if stage == "vae" else "vae"  # a new length for one part does not undo the other
    key = spec_digest({k: str(v) for k, v in asdict(config).items()
                       if not k.startswith(other) and k not in ("out", "workers", "save_every")})
    start = step = load_checkpoint(path, modules, optimizer, key)
    if device.type == "cuda" and stage == "flow":
        modules["transformer"].compile_repeated_blocks(fullgraph=True)  # type: ignore[operator]
    elif device.type == "cuda":
        loss.compile(dynamic=False)
    gradients = _Gradients(accelerator, loss.to(device).train(), optimizer)
    seconds, smooth = getattr(config, f"{stage}_seconds"), None
    if seconds and start:
        steps, seconds = _decided(config.out / "metrics.jsonl", stage), 0.0
    began = measured = time.monotonic()
    with Progress(disable=not accelerator.is_main_process) as progress:
        bar = progress.add_task(f"{stage} training", total=steps, completed=start)
        while step < steps:
            if step == start + TIMED_FROM:
                measured = time.monotonic()
            if seconds and step == start + TIMED_TO:
                steps = _affordable(accelerator, step, measured, began + seconds)
                run.log(stage=stage, steps=steps)
            set_lr(optimizer, lr, step, steps, warm=min(WARM_STEPS, max(1, steps // 5)))
            shown = gradients(*(x.to(device) for x in batch(step)))
            accelerator.clip_grad_norm_(loss.parameters(), 1.0)
            optimizer.step()
            if averaged is not None:
                averaged.update_parameters(modules["transformer"])
            smooth = shown.clone() if smooth is None else 0.98 * smooth + 0.02 * shown
            step += 1
            if step % 100 == 0 or step == steps:
                run.log(stage=stage, step=step, loss=float(smooth),
                        seconds=time.monotonic() - began)
            if accelerator.is_main_process and (step % config.save_every == 0 or step == steps):
                save_checkpoint(path, step, modules, optimizer, key)
            progress.update(bar, completed=step, total=steps)
    for module in modules.values():
        module.requires_grad_(False)


class _Gradients:
    """Fills the parameters' gradients for one batch and returns the loss to show: by CUDA graphs on
    one GPU."""

    def __init__(self, accelerator: Accelerator, loss: nn.Module, optimizer: torch.optim.Optimizer):
        self.accelerator, self.optimizer = accelerator, optimizer
        alone = accelerator.device.type == "cuda" and accelerator.num_processes == 1
        self.graphs = GraphPerShape(loss) if alone else None
        self.loss = loss if alone else accelerator.prepare(loss)

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.graphs is not None:
            return self.graphs(*inputs)[-1]
        self.optimizer.zero_grad(set_to_none=True)
        with self.accelerator.autocast():
            out = self.loss(*inputs)
        total, shown = out if isinstance(out, tuple) else (out, out.detach())
        self.accelerator.backward(total)
        return shown


def _decided(metrics: Path, stage: str) -> int:
    """The number of steps that a killed run's time budget had bought."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return next(r["steps"] for r in reversed(rows) if r["stage"] == stage and "steps" in r)


def _affordable(accelerator: Accelerator, step: int, measured: float, deadline: float) -> int:
    """The number of steps that fit before `deadline` (s, monotonic) at the speed seen since
    `measured`."""
    now = time.monotonic()
    a_step = (now - measured) / (TIMED_TO - TIMED_FROM)
    steps = torch.tensor([step + max(0, int((deadline - now) / a_step))], device=accelerator.device)
    return int(accelerator.gather(steps).min())


def gather_frames(source: Source, ids: list[str], path: Path, workers: int) -> Tensor:
    """The clips' frames as one memory-mapped uint8 tensor [N,T,3,H,W]; rendered on the first call
    only."""
    from scenes.rooms.source import render_clips

    done, about = path.with_suffix(".done"), json.dumps(
        {"source": repr(source), "ids": spec_digest({"ids": ids})})
    if path.is_file() and done.is_file() and done.read_text() == about:
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    array: np.memmap | None = None
    clips = render_clips(_FramesOnly(source), ids, workers)
    for i, clip in enumerate(track(clips, total=len(ids), description="rendering")):
        if array is None:
            array = np.lib.format.open_memmap(path, "w+", np.uint8, (len(ids), *clip.frames.shape))
        array[i] = clip.frames
    if array is None:
        raise ValueError(
            "pretrain: the source has no clips; render some with: vega3d scenes render")
    array.flush()
    done.write_text(about)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def save_generator(folder: Path, vae: AutoencoderKLWan, transformer: WanTransformer3DModel) -> None:
    """bfloat16 safetensors in the diffusers layout: vae/, transformer/, prompt.safetensors."""
    for name, module in (("vae", vae), ("transformer", transformer)):
        beside = folder / f".{name}.{os.getpid()}"
        module.to(torch.bfloat16).save_pretrained(beside)
        final = folder / name
        final.mkdir(exist_ok=True)
        for file in beside.iterdir():
            file.replace(final / file.name)
        beside.rmdir()
    save_file({"prompt": empty_prompt()}, folder / "prompt.safetensors")


class _FramesOnly:
    """A source whose clips carry nothing but frames: a quarter of the bytes between rendering
    processes."""

    def __init__(self, source: Source):
        self.source = source

    def clip(self, clip_id: str) -> Clip:
        return Clip(clip_id, self.source.clip(clip_id).frames)
