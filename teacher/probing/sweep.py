"""`vega3d teacher probe`: probes over block x noise level x frame mode, and of every control."""
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from records.files import atomic_write
from records.progress import Progress
from scenes.clip import Source
from scenes.rooms.source import render_clips
from teacher.config import ProbeConfig
from teacher.probing.alignment import untrained_vit
from teacher.probing.correspondence import noise_snr
from teacher.probing.probe_set import ProbeSet, extract, extract_blocks, probe_set
from teacher.probing.probes import probe
from teacher.towers.base import GRID
from teacher.towers.checkpoints import NANO, block_count, generator_folder
from teacher.towers.controls import RGBPatches, VAELatents
from teacher.towers.efficientnet import SemanticEncoder
from teacher.towers.generators import load_tower
from teacher.towers.tap import Tap
from teacher.towers.wan import WanTower, load_wan
from teacher.training.processes import resolve_device

Features = Callable[[Tensor], Tensor]  # of frames [B,T,3,H,W] in [0,1]
PANELS = {"depth_r2_mlp": "depth R²", "normal_cos": "normal cosine"}


class Sets(NamedTuple):
    """fit trains the probes, test scores them; semantic: the semantic encoder's features of both,
    [N,K,112,14,14]."""
    fit: ProbeSet
    test: ProbeSet
    semantic: tuple[Tensor, Tensor]

    def row(self, facts: dict, a: Tensor, b: Tensor, seed: int) -> dict:
        """Scores of features a of fit and b of test, and what they depend on."""
        fov = torch.cat([self.fit.fov, self.test.fov])
        return {**facts, "grid": GRID, "probe_clips": len(self.fit), "test_clips": len(self.test),
                "fov_low_deg": fov.min().item(), "fov_high_deg": fov.max().item(),
                **probe(self.fit, self.test, a, b, self.semantic, seed)}

    def extract(self, features: Features | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of fit and of test, [N,K,D,14,14]; features None: the semantic encoder's."""
        if features is None:
            return self.semantic
        return extract(self.fit, features, device), extract(self.test, features, device)


def probe_grid(config: ProbeConfig, source: Source, workers: int = 0) -> list[dict]:
    """Rows for bench/results/nano_probe.json, controls first. workers: rendering processes."""
    device, blocks = resolve_device(config.device), list(range(_block_count(config)))
    ids = [source.ids(split)[:config.clips] for split in ("val", "test")]
    fit, test = (probe_set(render_clips(source, split, workers)) for split in ids)
    encoder = SemanticEncoder().to(device).features
    sets = Sets(fit, test, (extract(fit, encoder, device), extract(test, encoder, device)))
    rows = list(_controls(config, sets, device))
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        taps = list(product(config.modes, config.levels))
        for mode, k in progress.track(taps, description="noise levels"):
            tower = _open_tower(config, Tap(block=blocks[-1], k=k, frames=mode, seeds=1,
                                            seed=config.seed), device)
            rows += _read_blocks(tower, blocks, sets, device, f"generator, {mode}")
            best = max(rows[-len(blocks):], key=lambda r: r["depth_r2_mlp"])
            console.print(f"{mode} t={k / 1000}: best block {best['block']}  depth R2 "
                          f"{best['depth_r2_mlp']:.3f}  normal cosine {best['normal_cos']:.3f}",
                          highlight=False)
    for mode in config.modes:
        single = [r for r in rows if r["features"] == f"generator, {mode}"]
        best = max(single, key=lambda r: r["depth_r2_mlp"] + r["normal_cos"])
        tap = Tap(block=best["block"], k=round(1000 * best["t"]), frames=mode,
                  seeds=config.averaged, seed=config.seed)
        near = [b for b in (best["block"] - 1, best["block"]) if b >= 0]
        tower = _open_tower(config, tap, device)
        averaged = _read_blocks(tower, near, sets, device, f"generator, {mode}")
        for row, draws in zip(averaged, _two_draws(tower, near, sets.test, device), strict=True):
            rows.append(row | noise_snr(draws))
    return rows


def heat_map(rows: Sequence[dict], path: Path, panels: Mapping[str, str] = PANELS) -> None:
    """PNG of metrics by block and noise level, from rows of one noise draw: a column of panels a
    metric, a row a frame mode; the best is framed."""
    from matplotlib.figure import Figure

    single = [r for r in rows if r["features"].startswith("generator") and r["seeds"] == 1]
    blocks, levels = sorted({r["block"] for r in single}), sorted({r["t"] for r in single})
    modes = sorted({r["mode"] for r in single})
    size = (5.5 * len(panels), 0.33 * len(modes) * len(blocks) + 2)
    figure = Figure(size, layout="constrained")
    axes = figure.subplots(len(modes), len(panels), squeeze=False)
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
            _annotate(axis, grid, low, high)
            figure.colorbar(picture, ax=axis)
    with atomic_write(path) as scratch:
        figure.savefig(scratch, dpi=110)


def _annotate(axis: Any, grid: np.ndarray, low: float, high: float) -> None:
    """Writes the values into the cells, and frames the highest."""
    from matplotlib.patches import Rectangle

    for (y, x), value in np.ndenumerate(grid):
        axis.text(x, y, f"{value:.3g}" if high > 10 else f"{value:.2f}", ha="center", va="center",
                  fontsize=7, color="white" if value < (low + high) / 2 else "black")
        if value == high:
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="red",
                                     linewidth=2))


def frame_controls(tower: WanTower, seed: int, device: torch.device) -> dict[str, Features | None]:
    """What a trained generator is more than; None: the semantic encoder (`Sets.extract`)."""
    return {"position only": lambda frames: frames.new_zeros(*frames.shape[:2], 1, GRID, GRID),
            "semantic encoder": None, "rgb patches": RGBPatches().features,
            "vae latents": VAELatents(tower).features,
            "random-weights ViT-S": untrained_vit(seed, device)}


def without_matches(name: str, row: dict) -> dict:
    """A control's row; of position only without matches: all tokens are equal, so nearest
    neighbours mean nothing."""
    return {key: None if name == "position only" and key.removeprefix("test_").startswith(
        ("match_", "corr_")) else value for key, value in row.items()}


def _controls(config: ProbeConfig, sets: Sets, device: torch.device) -> Iterator[dict]:
    tower = _open_tower(config, Tap(block=0, seeds=1), device)
    controls = frame_controls(tower, config.seed, device)
    controls |= {name: load_tower(name).to(device).features for name in config.also}
    for name, features in controls.items():
        row = sets.row({"features": name.partition(":")[0], "mode": "-", "t": None, "block": None,
                        "seeds": None}, *sets.extract(features, device), config.seed)
        yield without_matches(name, row)
    count = _block_count(config)
    for mode in config.modes:
        tap = Tap(block=count - 1, k=300, frames=mode, seeds=1, seed=config.seed)
        random = _open_tower(config, tap, device, random_weights=True)
        yield from _read_blocks(random, [count // 2], sets, device, "random weights")
        pure = _open_tower(config, replace(tap, k=1000), device)
        yield from _read_blocks(pure, [count // 2], sets, device, "pure noise")


def _read_blocks(tower: WanTower, blocks: list[int], sets: Sets, device: torch.device,
                 name: str) -> list[dict]:
    tap = tower.tap
    a, b = (extract_blocks(data, tower, blocks, device) for data in (sets.fit, sets.test))
    return [sets.row({"features": name, "mode": tap.frames, "t": tap.k / 1000, "block": block,
                      "seeds": tap.seeds}, a[i], b[i], tap.seed)
            for i, block in enumerate(blocks)]


def _two_draws(tower: WanTower, blocks: list[int], data: ProbeSet,
               device: torch.device) -> Tensor:
    """Tokens of each block from single draws of two noise seeds, [L,2,N*K*196,D]."""
    tap, draws = tower.tap, []
    for seed in (tap.seed, tap.seed + 1):
        tower.tap = replace(tap, seeds=1, seed=seed)
        draws.append(extract_blocks(data, tower, blocks, device))  # [L,N,K,D,14,14]
    tower.tap = tap
    return torch.stack(draws, 1).movedim(4, -1).flatten(2, -2).float()


def _open_tower(config: ProbeConfig, tap: Tap, device: torch.device,
                random_weights: bool = False) -> WanTower:
    return load_wan(config.generator or NANO, tap, random_weights).to(device)


def _block_count(config: ProbeConfig) -> int:
    return block_count(generator_folder(str(config.generator or "wan-nano")))
