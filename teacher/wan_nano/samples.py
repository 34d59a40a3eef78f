"""Samples of a pretrained generator (real clip, reconstruction, generated clip), and its card."""
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from PIL import Image
from torch import Tensor

from records.files import atomic_write, read_json
from scenes.clip import Source
from teacher.config import PretrainConfig
from teacher.wan_nano.flow import sample
from teacher.wan_nano.loop import read_metrics
from teacher.wan_nano.pretrain import steps_done
from teacher.wan_nano.vae import to_pixels

ROWS = 4


@torch.inference_mode()
def write_samples(folder: Path, source: Source, config: PretrainConfig, rows: int = ROWS) -> Path:
    """folder/samples.png: held-out clips and their reconstructions, then generated clips."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    vae = vae.to(device).eval()
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer",
                                                        torch_dtype=torch.float32)
    clips = [source.clip(i).frames for i in source.ids("test")[:rows]]
    real = to_pixels(torch.from_numpy(np.stack(clips))).to(device)  # [N,3,T,H,W]
    latent = vae.encode(real).latent_dist.mode()
    rebuilt = vae.decode(latent).sample
    drawn = sample(transformer.to(device).eval(), tuple(latent.shape), device, seed=config.seed)
    mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1, 1)
                 for v in (vae.config.latents_mean, vae.config.latents_std))
    generated = vae.decode(drawn * std + mean).sample
    strips = [_strip(pair[i]) for i in range(len(clips)) for pair in (real, rebuilt)]
    strips += [_strip(clip) for clip in generated]
    path = folder / "samples.png"
    with atomic_write(path) as scratch:
        Image.fromarray(np.concatenate(strips)).save(scratch)
    return path


def write_card(folder: Path, config: PretrainConfig) -> None:
    """folder/README.md from pretrain.json and metrics.jsonl."""
    rows = read_metrics(folder)
    psnr = next(r for r in reversed(rows) if "psnr_db_mean" in r)
    settings = read_json(folder / "pretrain.json", "train it again")
    earlier = {stage: _total(settings.get("before"), f"{stage}_steps") for stage in ("vae", "flow")}
    steps = {stage: done + steps_done(rows, stage) for stage, done in earlier.items()}
    loss = next(r["loss"] for r in reversed(rows) if r["stage"] == "flow" and "loss" in r)
    continued = (
        f".\n  Of these steps {earlier['vae']} and {earlier['flow']} were made in an earlier run, "
        "on other clips: `before` in pretrain.json") if settings.get("before") else ""
    if (before := config.blocks_before()) > (blocks := config.blocks()):
        continued += f".\n  It had {before} blocks, of which this one continues the first {blocks}"
    shape = read_json(folder / "transformer" / "config.json", "train it again")
    aligned = "" if config.align == "none" else (
        f".\n  Block {config.align_block} aligned to {config.align} (REPA) in training")
    (folder / "README.md").write_text(f"""# wan-nano

A small video generator in Wan2.1's diffusers classes (`AutoencoderKLWan`, `WanTransformer3DModel`),
trained from scratch on rendered rooms. It is a feature extractor, not a tool to generate videos.

- **VAE:** 2.5 M parameters, 8x space, 4x time, 16 channels; {steps['vae']} steps of
  {config.vae_batch} crops of {config.vae_crop} px x {config.frames} frames.
  {psnr['psnr_db_mean']:.1f} dB PSNR (standard deviation {psnr['psnr_db_std']:.1f}) on
  {psnr['clips']} clips of held-out rooms and furniture at 224 px.
- **Transformer:** {shape['num_layers']} blocks of width {64 * shape['num_attention_heads']},
  patch (1,2,2), 14x14 tokens a latent frame{aligned}.
  Flow matching, {steps['flow']} steps of {config.flow_batch} clips of {config.frames} frames
  alternating with single frames; last loss {loss:.4f}{continued}.
- **Data:** {_total(settings, 'clips')} clips rendered by `vega3d scenes` from the training split of
  the furniture; no photographs.
- **Made by** `vega3d teacher pretrain`: settings in pretrain.json, curves in metrics.jsonl.
  Weights are bfloat16 safetensors.
- **samples.png:** held-out clips, each above its reconstruction, then generated clips, unselected.
- **Text:** the empty prompt only (prompt.safetensors).
- **Limits:** rooms of one renderer and one furniture library; no photographs.
- **Licence:** Apache-2.0 (weights). Furniture models rendered for training: CC0 and CC-BY, see
  scenes/assets/NOTICE.
""")


def _total(config: dict | None, field: str) -> int:
    """A field summed over a generator and those it continues."""
    return config[field] + _total(config.get("before"), field) if config else 0


def _strip(clip: Tensor) -> np.ndarray:
    frames = ((clip.clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 3, 0).cpu().numpy()  # [T,H,W,3]
    return np.concatenate([np.asarray(Image.fromarray(f).resize((112, 112))) for f in frames[::2]],
                          axis=1)
