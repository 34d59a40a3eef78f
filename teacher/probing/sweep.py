"""`vega3d teacher probe`: the probes over block x noise level x frame mode, beside every control;
JSON, heat map."""
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from records.files import atomic_write
from scenes.clip import Source
from teacher.probing.correspondence import noise_snr
from teacher.probing.probes import ProbeSet, extract, probe, probe_set
from teacher.towers.checkpoints import block_count, generator_folder
from teacher.towers.controls import RGBPatches, VAELatents
from teacher.towers.generators import load_tower
from teacher.towers.tap import Tap
from teacher.towers.wan import WanTower, load_wan

LEVELS = (20, 100, 200, 300, 500, 700, 999)


@dataclass(frozen=True)
class ProbeConfig:
    # None: the wan-nano that ships; else a name, hub id or diffusers folder
    generator: Path | None = None
    clips: int = 120                     # of each split: val trains the probes, test scores them
    modes: tuple[Literal["image", "video"], ...] = ("image", "video")
    levels: tuple[int, ...] = LEVELS     # k, in thousandths of pure noise
    averaged: int = 8                    # noise draws of the second look at the best taps
    # other towers as rows, KIND:FOLDER (dinov2, dinov3, vjepa2, unet, cogvideox)
    also: tuple[str, ...] = ()
    seed: int = 0
    device: str = "auto"


def probe_grid(config: ProbeConfig, source: Source) -> list[dict]:
    """Rows for bench/results/nano_probe.json, controls first."""
    device = torch.device(
        config.device.replace("auto", "cuda" if torch.cuda.is_available() else "cpu"))
    train, test = (collect(source, source.ids(split)[: config.clips]) for split in ("val", "test"))
    rows = list(controls(config, train, test, device))
    console = Console(stderr=True)
    blocks = list(range(_count(config)))
    for mode in config.modes:
        for k in config.levels:
            tap = Tap(block=blocks[-1], k=k, frames=mode, seeds=1, seed=config.seed)
            rows += read_blocks(open_tower(config, tap, device), blocks, train, test, device,
                                f"generator, {mode}")
            best = max(rows[-len(blocks):], key=lambda r: r["depth_r2_mlp"])
            console.print(
                f"{mode} t={k / 1000}: best block {best['block']}  depth R2 "
                f"{best['depth_r2_mlp']:.3f}  normal cosine {best['normal_cos']:.3f}", highlight=False)
    for mode in config.modes:
        tried = [r for r in rows if r["features"] == f"generator, {mode}"]
        best = max(tried, key=lambda r: r["depth_r2_mlp"] + r["normal_cos"])
        tap = Tap(block=best["block"], k=round(1000 * best["t"]), frames=mode,
                  seeds=config.averaged, seed=config.seed)
        near = [b for b in (best["block"] - 1, best["block"]) if b >= 0]
        seen = read_blocks(open_tower(config, tap, device), near, train, test, device,
                           f"generator, {mode}")
        rows += [
            row | signal(config, replace(tap, block=row["block"]), test, device) for row in seen
        ]
    return rows


def signal(config: ProbeConfig, tap: Tap, test: ProbeSet, device: torch.device) -> dict[str, float]:
    """How much of one draw's feature is the image and how much the noise, from two draws:
    noise_snr's columns."""
    towers = (open_tower(config, replace(tap, seeds=1, seed=s), device)
              for s in (tap.seed, tap.seed + 1))
    draws = [
        extract(test, lambda f, t=t: t.features(f)[None], device,
                tap.frames == "video")[0]  # type: ignore[misc]
        for t in towers
    ]
    return noise_snr(torch.stack(draws).movedim(3, -1).flatten(1, -2).float())  # [2,N*K*196,D]


PANELS = {"depth_r2_mlp": "depth R²", "normal_cos": "normal cosine"}


def heat_map(rows: Sequence[dict], path: Path, panels: Mapping[str, str] = PANELS) -> None:
    """Columns of the rows of one noise draw by block and noise level, a row of panels a frame mode,
    as PNG; the highest of each column is framed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    single = [r for r in rows if r["features"].startswith("generator") and r["seeds"] == 1]
    blocks, levels = sorted({r["block"] for r in single}), sorted({r["t"] for r in single})
    modes = sorted({r["mode"] for r in single})
    size = (5.5 * len(panels), 0.33 * len(modes) * len(blocks) + 2)
    figure, axes = plt.subplots(len(modes), len(panels), figsize=size, squeeze=False,
                                constrained_layout=True)
    for column, (metric, title) in zip(axes.T, panels.items(), strict=True):
        grids = {m: np.full((len(blocks), len(levels)), np.nan) for m in modes}
        for r in single:
            grids[r["mode"]][blocks.index(r["block"]), levels.index(r["t"])] = r[metric]
        low, high = np.nanmin([*grids.values()]), np.nanmax([*grids.values()])
        for axis, (mode, grid) in zip(column, grids.items(), strict=True):
            picture = axis.imshow(grid, vmin=low, vmax=high, cmap="viridis", aspect="auto",
                                  origin="lower")
            axis.set(title=f"{title}, {mode} mode", xlabel="noise level t", ylabel="block",
                     xticks=range(len(levels)), xticklabels=levels, yticks=range(len(blocks)),
                     yticklabels=blocks)
            for (y, x), value in np.ndenumerate(grid):
                axis.text(x, y, f"{value:.3g}" if high > 10 else f"{value:.2f}", ha="center",
                          va="center", fontsize=7,
                          color="white" if value < (low + high) / 2 else "black")
                if value == high:
                    axis.add_patch(
                        plt.Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="red",
                                      linewidth=2))
            figure.colorbar(picture, ax=axis)
    with atomic_write(path) as scratch:
        figure.savefig(scratch, dpi=110)
    plt.close(figure)


def controls(config: ProbeConfig, train: ProbeSet, test: ProbeSet,
             device: torch.device) -> Iterator[dict]:
    nothing = {"mode": "-", "t": None, "block": None, "seeds": None}
    tower = open_tower(config, Tap(block=0, seeds=1), device)

    def position(frames: Tensor) -> Tensor:
        return frames.new_zeros(*frames.shape[:2], 1, 14, 14)

    for name, features in (("position only", position), ("rgb patches", RGBPatches().features),
                           ("vae latents", VAELatents(tower).features),
                           *((name, load_tower(name).to(device).features) for name in config.also)):
        a, b = (extract(s, lambda f, run=features: run(f)[None], device)[0]
                for s in (train, test))  # type: ignore[misc]
        row = {
            "features": name.partition(":")[0], **nothing, **probe(train, test, a, b, config.seed)
        }
        if name == "position only":
            # every token alike: its nearest neighbour means nothing
            row |= {k: None for k in row if k.startswith(("match_", "corr_"))}
        yield row
    for mode in config.modes:
        tap = Tap(block=_count(config) - 1, k=300, frames=mode, seeds=1, seed=config.seed)
        random = open_tower(config, tap, device, random_weights=True)
        yield from read_blocks(random, [_count(config) // 2], train, test, device, "random weights")
        pure = open_tower(config, replace(tap, k=1000), device)
        yield from read_blocks(pure, [_count(config) // 2], train, test, device, "pure noise")


def read_blocks(tower: WanTower, blocks: list[int], train: ProbeSet, test: ProbeSet,
                device: torch.device, name: str) -> list[dict]:
    tap = tower.tap
    a, b = (extract(s, lambda f: tower.block_features(f, blocks), device, tap.frames == "video")
            for s in (train, test))
    return [{
        "features": name, "mode": tap.frames, "t": tap.k / 1000, "block": block, "seeds": tap.seeds,
        **probe(train, test, a[i], b[i], tap.seed)
    } for i, block in enumerate(blocks)]


def collect(source: Source, ids: Sequence[str]) -> ProbeSet:
    clips = [source.clip(i) for i in ids]
    return probe_set(clips, list(range(0, len(clips[0].frames), 4)))


def open_tower(config: ProbeConfig, tap: Tap, device: torch.device,
               random_weights: bool = False) -> WanTower:
    where = {} if config.generator is None else {"folder": config.generator}
    return load_wan(tap=tap, random_weights=random_weights, **where).to(device)


def _count(config: ProbeConfig) -> int:
    return block_count(generator_folder(str(config.generator or "wan-nano")))
