"""`vega3d teacher pretrain`, also by accelerate launch: wan-nano's VAE, then its transformer."""
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from records.files import atomic_write, make_folder, read_json, spec_digest, write_json
from records.progress import track
from scenes.clip import Clip, Source, check_shapes
from scenes.rooms.source import RoomSource
from teacher.config import PretrainConfig
from teacher.fast.wan_blocks import set_training_processors
from teacher.training.processes import join_processes, resolve_device
from teacher.wan_nano.alignment import AlignedFlowLoss, FlowData
from teacher.wan_nano.flow import FlowLoss, build_transformer, empty_prompt
from teacher.wan_nano.loop import Pretraining, fit, read_metrics
from teacher.wan_nano.vae import (
    ReconstructionLoss,
    build_vae,
    crops,
    encode_all,
    reconstruction_psnr,
)


def pretrain(config: PretrainConfig, source: Source) -> Path:
    """Trains (or resumes) both parts; returns config.out, a folder in the diffusers layout."""
    cuda = torch.cuda.is_available()
    torch.backends.cudnn.benchmark = cuda  # few shapes, long training
    processes = join_processes(resolve_device("auto"))
    run = Pretraining(config, processes)
    if (config.out / "transformer").exists() and not (config.out / "metrics.jsonl").is_file():
        raise ValueError(f"{config.out}: holds a generator that was not trained here; choose "
                         "another --out")
    if (before := config.blocks_before()) > (blocks := config.blocks()) and processes.main:
        print(f"note: {config.init}: holds the first {blocks} of its {before} blocks, so a "
              f"generator of {blocks} is trained; its output layer has read block {before - 1} so "
              "far", file=sys.stderr)
    make_folder(config.out)
    run.curve = read_metrics(config.out)
    train_ids = source.ids("train")[: config.clips][processes.index::processes.count]
    train = gather_frames(source, train_ids, config.out / f"train{processes.index}.npy",
                          config.workers)
    test = gather_frames(source, source.ids("test")[: config.held_out],
                         config.out / f"test{processes.index}.npy", config.workers)
    if cuda and train.nbytes < 0.6 * torch.cuda.mem_get_info()[0]:
        train = train.to(run.device)
    vae = train_vae(run, train, test)
    transformer = train_flow(run, vae, train, test)
    if processes.main:
        save_generator(config.out, vae, transformer)
        shape = {"width": transformer.config.num_attention_heads
                 * transformer.config.attention_head_dim, "depth": transformer.config.num_layers}
        settings = json.loads(json.dumps(history(config) | shape | rendered(source), default=str))
        write_json(settings, config.out / "pretrain.json")
    processes.leave()
    return config.out


def rendered(source: Source) -> dict:
    """The seed, style and furniture pack of rendered rooms; nothing of other clips."""
    if not isinstance(source, RoomSource):
        return {}
    return {"rooms": source.train, "render_seed": source.seed, "style": source.style,
            "furniture_digest": source.furniture.digest}


def history(config: PretrainConfig) -> dict:
    """The configuration; `before`: that of the generator it continues, with the steps it took."""
    before = config.init and config.init / "pretrain.json"
    if not before or not before.is_file():
        return asdict(config)
    rows = read_metrics(before.parent)
    done = {f"{stage}_steps": steps_done(rows, stage) for stage in ("vae", "flow")}
    return asdict(config) | {"before": read_json(before, "leave --init out") | done}


def steps_done(rows: Sequence[dict], stage: str) -> int:
    """The last step of a stage in metrics.jsonl's rows; 0 if it was not trained."""
    return max((row["step"] for row in rows if row["stage"] == stage and "step" in row), default=0)


def train_vae(run: Pretraining, frames: Tensor, test: Tensor) -> AutoencoderKLWan:
    """The trained VAE in eval mode; its latent statistics are those of the training clips."""
    config = run.config
    torch.manual_seed(config.seed)
    vae = build_vae() if config.init is None else AutoencoderKLWan.from_pretrained(
        config.init / "vae", torch_dtype=torch.float32)
    if config.vae_steps:
        draw = partial(crops, frames, config.vae_batch, config.vae_crop, _process_seed(run))
        fit(run, "vae", ReconstructionLoss(vae), lambda step: (draw(step),), {"vae": vae})
    else:
        run.resume("vae", 0)
    vae = vae.to(run.device).eval().requires_grad_(False)
    psnr = reconstruction_psnr(vae, test, run.device)
    run.log(stage="vae", psnr_db_mean=psnr.mean().item(), psnr_db_std=psnr.std().item(),
            clips=len(test))
    if not config.vae_steps:
        return vae  # its transformer was trained on its present latent statistics
    with run.autocast():
        z = encode_all(vae, frames[:512], run.device).float()
    found = {"latents_mean": z.mean((0, 2, 3, 4)).tolist(),
             "latents_std": z.std((0, 2, 3, 4)).tolist()}
    # processes have different clips: all take the first one's statistics
    vae.register_to_config(**json.loads(run.processes.text_of_main(json.dumps(found))))
    return vae


def train_flow(run: Pretraining, vae: AutoencoderKLWan, frames: Tensor,
               test: Tensor) -> WanTransformer3DModel:
    """Returns the averaged (EMA) transformer in eval mode."""
    config = run.config
    aligned = config.align != "none"
    data, held_out = FlowData(run, vae, frames, aligned), FlowData(run, vae, test, aligned=False)
    torch.manual_seed(config.seed)
    transformer = _transformer(config)
    set_training_processors(transformer)
    averaged = AveragedModel(transformer, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    modules: dict[str, nn.Module] = {"transformer": transformer, "averaged": averaged}
    loss: nn.Module = FlowLoss(transformer)
    if aligned:
        loss = AlignedFlowLoss(transformer, config.align_block, config.align_weight, config.align_t)
        modules["projector"] = loss.projector
    seed = _process_seed(run)
    fit(run, "flow", loss, lambda step: data.batch(seed, step), modules,
        lambda: held_out.flow_loss(averaged.module))
    return averaged.module.to(run.device).eval()


def _transformer(config: PretrainConfig) -> WanTransformer3DModel:
    if config.init is None or not (config.init / "transformer").is_dir():
        return build_transformer(config.width, config.depth)
    return WanTransformer3DModel.from_pretrained(config.init / "transformer",
                                                 torch_dtype=torch.float32)


def save_generator(folder: Path, vae: AutoencoderKLWan, transformer: WanTransformer3DModel) -> None:
    """bfloat16 safetensors in the diffusers layout: vae/, transformer/, prompt.safetensors."""
    for name, module in (("vae", vae), ("transformer", transformer)):
        with atomic_write(folder / name) as scratch:
            module.to(torch.bfloat16).save_pretrained(scratch)
            if (folder / name).is_dir():  # of an earlier run: a folder does not replace a full one
                shutil.rmtree(folder / name)
    with atomic_write(folder / "prompt.safetensors") as scratch:
        save_file({"prompt": empty_prompt()}, scratch)


def gather_frames(source: Source, ids: list[str], path: Path, workers: int) -> Tensor:
    """The clips' frames as a memory-mapped uint8 tensor [N,T,3,H,W]; rendered on the first call."""
    from scenes.rooms.source import render_clips
    from scenes.rooms.writer import check_disk_space

    done = path.with_suffix(".done")
    key = json.dumps({"source": repr(source), "ids": spec_digest({"ids": ids})})
    if path.is_file() and done.is_file() and done.read_text() == key:
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    array: np.memmap | None = None
    clips = render_clips(_FramesOnly(source), ids, workers)
    for i, clip in enumerate(track(clips, total=len(ids), description="rendering")):
        if array is None:
            check_disk_space(path.parent, len(ids), clip.frames.nbytes)  # a full one ends by SIGBUS
            array = np.lib.format.open_memmap(path, "w+", np.uint8, (len(ids), *clip.frames.shape))
        check_shapes(clip.id, {"frames": clip.frames.shape}, ids[0], {"frames": array.shape[1:]})
        array[i] = clip.frames
    if array is None:
        raise ValueError("pretrain: no clips; render some with: vega3d scenes render")
    array.flush()
    done.write_text(key)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


class _FramesOnly:
    """A source of clips with frames alone: a quarter of the bytes between rendering processes."""

    def __init__(self, source: Source):
        self.source = source

    def clip(self, clip_id: str) -> Clip:
        return Clip(clip_id, self.source.clip(clip_id).frames)


def _process_seed(run: Pretraining) -> int:
    return run.config.seed + 1000 * run.processes.index
