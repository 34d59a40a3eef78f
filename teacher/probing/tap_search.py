"""`vega3d teacher search`: every block x noise level x frame mode of a generator ranked by what it
knows of 3D.

A tap's score is the mean over the criteria, each scaled from worst to best tap (the paper's NOS,
pooled). Test clips are drawn again with replacement, the same draw for all taps: intervals, and how
often a tap would have come first.
"""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from records.files import atomic_write, cache_folder, digest
from scenes.clip import Clip, Split
from teacher.probing.overall_score import pooled
from teacher.probing.probes import ProbeSet, extract, probe_set, scores, sums
from teacher.towers.checkpoints import block_count, generator_folder, is_hub_id
from teacher.towers.tap import Tap
from teacher.towers.wan import WanTower, load_wan

CRITERIA = ("depth_r2_ridge", "xyz_r2_ridge", "corr_std_auc")
MLP = ("depth_r2_mlp", "normal_cos", "delta1")
COLUMNS = (*CRITERIA, *MLP, "corr_x100", "corr_random_x100", "corr_std_x100", "corr_auc",
           "corr_pck", "snr")
Mode = Literal["image", "video"]
Sums = dict[str, np.ndarray]           # what scores are made of, clip by clip: each [clips]
Taps = dict[tuple[Mode, int, int], Sums]  # by mode, k and block


@dataclass(frozen=True)
class SearchConfig:
    """What is tried, on what, and what decides."""
    generator: str = "wan-nano"  # or a name, a hub id, a local folder in the diffusers layout
    clips: int = 100                     # of each split: val trains the probes, test scores them
    modes: tuple[Mode, ...] = ("image", "video")
    levels: tuple[int, ...] = (50, 100, 200, 300, 500, 700)  # k, in thousandths of pure noise
    mlp: bool = True  # also the MLP's probes: of depth and normals, and most of the time
    # columns of the result that decide (more is better); none: five, or three
    by: tuple[str, ...] = ()
    resamples: int = 1000
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.clips < 2 or not self.modes or not self.levels:
            raise ValueError("search: needs at least 2 clips of each split, one mode and one level")
        if bad := [k for k in self.levels if not 0 <= k <= 1000]:
            raise ValueError(f"search: level {bad[0]}, expected 0 (clean) to 1000 (pure noise)")
        there = [c for c in COLUMNS if self.mlp or c not in MLP]
        if unknown := [name for name in self.by if name not in there]:
            raise ValueError(
                f"search: no column {', '.join(unknown)}; there are: {', '.join(there)}")

    @property
    def criteria(self) -> tuple[str, ...]:
        return self.by or (*CRITERIA, *(MLP[:2] if self.mlp else ()))


@dataclass(frozen=True)
class Found:
    """rows: one a tap, best first, for the result file."""
    rows: list[dict]
    best: Tap


def search(config: SearchConfig, clips: Callable[[Split], Sequence[Clip]], key: str,
           work: Path) -> Found:
    """Reads every tap, one file of `work` a mode and level: a killed search goes on there. clips:
    of the two splits val and test; `key` names them."""
    device = torch.device(
        config.device.replace("auto", "cuda" if torch.cuda.is_available() else "cpu"))
    where = generator_folder(config.generator)
    blocks = list(range(block_count(where)))
    todo = [(mode, k) for mode in config.modes for k in config.levels]
    taps: Taps = {}
    sets: tuple[ProbeSet, ProbeSet] | None = None
    with Progress(console=Console(stderr=True)) as progress:
        tower = load_wan(where, Tap(block=blocks[-1], seeds=1, seed=config.seed))
        for mode, k in progress.track(todo, description=f"{where.name}: taps"):
            tower.tap = replace(tower.tap, k=k, frames=mode)
            name = digest(tower.spec["weights"], asdict(tower.tap), key, config.clips, config.mlp)
            unit = work / f"{name}.safetensors"
            if (known := _read(unit)) is None:
                # only now: a finished search needs no clip
                sets = sets or (_probe_set(
                    clips("val")[:config.clips]), _probe_set(clips("test")[:config.clips]))
                known = _read_taps(tower.to(device), blocks, *sets, device, config.mlp)
                with atomic_write(unit) as scratch:
                    save_file(
                        {
                            f"{b}/{name}": v
                            for b, found in known.items()
                            for name, v in found.items()
                        }, scratch)
            taps |= {(mode, k, block): found for block, found in known.items()}
    return rank(taps, config)


def rank(taps: Taps, config: SearchConfig) -> Found:
    """Scores and intervals of clips drawn again, for all taps at once."""
    names = list(next(iter(taps.values())))
    table = np.stack([np.stack([found[n] for n in names])
                      for found in taps.values()])  # [taps, sums, clips]
    draws = np.random.default_rng(config.seed).multinomial(table.shape[2],
                                                           np.full(table.shape[2],
                                                                   1 / table.shape[2]),
                                                           config.resamples)  # [resamples, clips]
    weights = np.concatenate([np.ones((1, table.shape[2])), draws])  # the first: as they are
    total = np.einsum("tsc,rc->srt", table, weights)  # [sums, 1+resamples, taps]
    found = _scores(dict(zip(names, total, strict=True)))
    score = np.stack(
        [pooled(np.stack([found[c][r] for c in config.criteria], 1)) for r in range(len(weights))])
    first = np.bincount(score[1:].argmax(1), minlength=len(taps)) / max(1, config.resamples)
    columns = {**found, "score": score}
    rows = []
    for i, (mode, k, block) in enumerate(taps):
        row: dict[str, Any] = {
            "features": f"generator, {mode}", "mode": mode, "t": k / 1000, "block": block,
            "seeds": 1
        }
        for name, values in columns.items():
            row[name] = float(values[0, i])
            if name in ("score", "snr", *config.criteria) and config.resamples:
                row[f"{name}_low"], row[f"{name}_high"] = map(
                    float, np.nanpercentile(values[1:, i], (2.5, 97.5)))
        rows.append(row | {"first_share": float(first[i])})
    rows.sort(key=lambda row: -row["score"])
    for place, row in enumerate(rows, 1):
        row["rank"] = place
    return Found(rows,
                 Tap(block=rows[0]["block"], k=round(1000 * rows[0]["t"]), frames=rows[0]["mode"]))


def tap_file(where: Path) -> Path:
    """The chosen tap: beside a local generator's parts, in our cache for a hub id."""
    if is_hub_id(where):
        return cache_folder() / "taps" / f"{str(where).replace('/', '--')}.yaml"
    return where / "tap.yaml"


def save_tap(tap: Tap, path: Path) -> None:
    """Block, noise level and frame mode: what a search decides."""
    chosen = {name: asdict(tap)[name] for name in ("block", "k", "frames")}
    with atomic_write(path) as scratch:
        scratch.write_text(yaml.safe_dump(chosen, sort_keys=False))


def chosen_tap(generator: str, tap: Tap) -> Tap:
    """`tap` at the block, noise level and frame mode that a search chose for the generator.
    ValueError without one."""
    path = tap_file(generator_folder(generator))
    if not path.is_file():
        raise ValueError(
            f"{path}: no tap was chosen for {generator} yet; run: vega3d teacher search "
            f"--generator {generator}")
    try:
        chosen = yaml.safe_load(path.read_text())
        return replace(tap, **{name: chosen[name] for name in ("block", "k", "frames")})
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a chosen tap ({' '.join(str(error).split())}); run vega3d teacher search "
            "again"
        ) from error


def _read_taps(tower: WanTower, blocks: list[int], train: ProbeSet, test: ProbeSet,
               device: torch.device, mlp: bool) -> dict[int, Sums]:
    """Of one mode and level; a second noise draw of the test clips says how much of the first is
    noise."""
    tap, whole = tower.tap, tower.tap.frames == "video"
    a, b = (extract(s, lambda f: tower.block_features(f, blocks), device, whole)
            for s in (train, test))
    tower.tap = replace(tap, seed=tap.seed + 1)
    again = extract(test, lambda f: tower.block_features(f, blocks), device, whole)
    tower.tap = tap
    return {block: sums(train, test, a[i], b[i], tap.seed, mlp) | noise_sums(b[i], again[i])
            for i, block in enumerate(blocks)}


def noise_sums(one: Tensor, two: Tensor) -> Sums:
    """Two draws [N,K,D,14,14] -> each clip's scatter of tokens about the mean token, and of draws
    about theirs."""
    x = torch.stack([one, two]).movedim(3, -1).flatten(2, -2).double()  # [2,N,K*196,D]
    mean = x.mean(0)
    return {"signal": (mean - mean.mean((0, 1))).square().sum((1, 2)).cpu().numpy(),
            "noise": x.var(0).sum((1, 2)).cpu().numpy()}


def _scores(total: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # the mean of two draws still holds half of the noise's variance
    snr = (total["signal"] / total["noise"] - 0.5).clip(0)
    return scores(total) | {"snr": snr}


def _probe_set(clips: Sequence[Clip]) -> ProbeSet:
    return probe_set(list(clips), list(range(0, len(clips[0].frames), 4)))


def _read(path: Path) -> dict[int, Sums] | None:
    found: dict[int, Sums] = {}
    try:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 (no dict)
                block, _, what = name.partition("/")
                found.setdefault(int(block), {})[what] = file.get_tensor(name)
    except (OSError, SafetensorError):
        return None
    return dict(sorted(found.items()))
