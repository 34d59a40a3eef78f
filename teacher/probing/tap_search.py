"""`vega3d teacher search`: every block x noise level x frame mode of a generator, ranked by probes.

A tap's score is its Normalised Overall Score (arXiv 2603.19235), pooled: the mean over the
criteria, each min-max scaled over the taps. Probes are fitted on train rooms; val rooms rank the
taps; the first one and the controls are scored on test rooms as well. Clips are resampled with
replacement, the same draw for all taps, for intervals and for the share of draws in which a tap
comes first.
"""
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from records.files import atomic_write, cache_folder, digest, reading
from records.progress import Progress
from records.yaml_files import read_yaml, write_yaml
from scenes.clip import Clip, Split
from teacher.config import Mode, SearchConfig
from teacher.probing.probe_set import ProbeSet, extract, extract_blocks, probe_set
from teacher.probing.probes import scores, sums
from teacher.probing.sweep import Features, Sets, frame_controls, without_matches
from teacher.towers.base import GRID
from teacher.towers.checkpoints import NANO, block_count, expert, generator_folder, is_hub_id
from teacher.towers.efficientnet import SemanticEncoder
from teacher.towers.tap import Tap
from teacher.towers.wan import WanTower, load_wan
from teacher.training.processes import resolve_device

Sums = dict[str, np.ndarray]              # the terms of the scores: each [clips]
TermsByBlock = dict[int, Sums]
Taps = dict[tuple[Mode, int, int], Sums]  # by mode, k and block
FUSED = "depth_r2_fused"                  # beside the semantic encoder


@dataclass(frozen=True)
class SearchResult:
    rows: list[dict]  # of the result file, one a tap, best first; the first has test_ columns too
    best: Tap
    controls: list[dict]  # rows with test_ columns and no rank


def search(config: SearchConfig, clips: Callable[[Split], Iterable[Clip]], key: str,
           work: Path) -> SearchResult:
    """Probes every tap on `clips` of the three splits, which `key` identifies; resumes from the
    files of each mode and level in `work`."""
    device = resolve_device(config.device)
    where = generator_folder(config.generator)
    blocks = list(range(block_count(where)))
    todo = [(mode, k) for mode in config.modes for k in config.levels]

    @cache
    def read(split: Split) -> ProbeSet:  # only when needed: a finished search reads no clip
        return probe_set(islice(clips(split), config.clips))

    @cache
    def semantic(split: Split) -> Tensor:
        return extract(read(split), SemanticEncoder().to(device).features, device)

    def scored(split: Split, found: Callable[[Sets], TermsByBlock], *what: Any) -> TermsByBlock:
        """From a file, or of probes fitted on train and scored on `split`; `what` tells files."""
        name = digest(*what, SemanticEncoder.spec, key, config.clips, config.mlp, split)
        unit = work / f"{name}.safetensors"
        terms = _read(unit)
        if terms is None:
            terms = found(Sets(read("train"), read(split), (semantic("train"), semantic(split))))
            _write(terms, unit)
        return terms

    def scored_taps(tower: WanTower, blocks: list[int], split: Split) -> TermsByBlock:
        settings = {name: value for name, value in asdict(tower.tap).items() if name != "vae"}
        return scored(split, lambda sets: _read_taps(tower.to(device), blocks, sets, device,
                                                     config.mlp), tower.spec["weights"], settings)

    def scored_control(name: str, features: Features | None, split: Split) -> Sums:
        def found(sets: Sets) -> TermsByBlock:
            x = sets.extract(features, device)
            return {0: sums(sets.fit, sets.test, *x, sets.semantic, config.seed, config.mlp)}
        return scored(split, found, name, tower.spec["weights"], config.seed)[0]

    taps: Taps = {}
    with Progress(console=Console(stderr=True)) as progress:
        loaded = ""  # of two experts, the one that denoises at the level
        for mode, k in progress.track(todo, description=f"{where.name}: taps"):
            tap = Tap(block=blocks[-1], k=k, frames=mode, seeds=1, seed=config.seed)
            if (part := expert(where, k)) != loaded:
                tower, loaded = load_wan(where, tap), part
            tower.tap = tap
            taps |= {(mode, k, block): found
                     for block, found in scored_taps(tower, blocks, "val").items()}
    result = rank(taps, config)
    best = replace(result.best, seeds=1, seed=config.seed)
    tower = load_wan(where, best)
    on_test = scored_taps(tower, [best.block], "test")[best.block]
    result.rows[0].update(_test_columns(on_test, config))
    for name, features in frame_controls(tower.to(device), config.seed, device).items():
        val, test = (scored_control(name, features, split) for split in ("val", "test"))
        result.controls.append(without_matches(name, _control_row(name, None, val, test, config)))
    drawn = load_wan(where, best, random_weights=True)
    val, test = (scored_taps(drawn, [best.block], split)[best.block] for split in ("val", "test"))
    result.controls.append(_control_row("random weights", best, val, test, config))
    return result


def rank(taps: Taps, config: SearchConfig) -> SearchResult:
    """Scores of all taps with bootstrap intervals over clips."""
    columns = _resampled([*taps.values()], config)
    criteria = np.stack([columns[name] for name in config.criteria], 2)
    columns["score"] = np.stack([pooled_score(one) for one in criteria])
    winners = columns["score"][1:].argmax(1)
    first_share = np.bincount(winners, minlength=len(taps)) / config.resamples
    rows = []
    for i, (mode, k, block) in enumerate(taps):
        tap = Tap(block, k, mode)
        row = {**_facts(f"generator, {mode}", tap, next(iter(taps.values()))),
               "shipped": generator_folder(config.generator) == NANO and tap == Tap(),
               **_values(columns, i, config), "first_share": float(first_share[i])}
        rows.append(row)
    rows.sort(key=lambda row: -row["score"])
    for place, row in enumerate(rows, 1):
        row["rank"] = place
    best = rows[0]
    return SearchResult(rows, Tap(best["block"], round(1000 * best["t"]), best["mode"]), [])


def _resampled(found: Sequence[Sums], config: SearchConfig) -> dict[str, np.ndarray]:
    """Scores [1+resamples,len(found)]: the first row is of all clips, the others of clips drawn."""
    names = list(found[0])
    table = np.stack([np.stack([terms[n] for n in names]) for terms in found])
    clips = table.shape[2]                                    # table [taps, sums, clips]
    draws = np.random.default_rng(config.seed).multinomial(clips, np.full(clips, 1 / clips),
                                                           config.resamples)
    weights = np.concatenate([np.ones((1, clips)), draws])    # the first row: every clip once
    total = np.einsum("tsc,rc->srt", table, weights)          # [sums, 1+resamples, taps]
    by_name = dict(zip(names, total, strict=True))
    columns = scores(by_name)                                 # each [1+resamples, taps]
    if "noise" in by_name:
        # the mean of two draws has half of the noise's variance
        columns["snr"] = (by_name["signal"] / by_name["noise"] - 0.5).clip(0)
    return columns


def _values(columns: Mapping[str, np.ndarray], i: int, config: SearchConfig) -> dict[str, Any]:
    """Each score of the i-th, and intervals of those that decide and of the fused depth R2."""
    row = {}
    for name, values in columns.items():
        row[name] = float(values[0, i])
        if name in ("score", "snr", FUSED, *config.criteria):
            low, high = np.nanpercentile(values[1:, i], (2.5, 97.5))
            row |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return row


def _test_columns(found: Sums, config: SearchConfig) -> dict[str, float]:
    """On test rooms: what decides and the fused depth R2, with intervals."""
    row = _values(_resampled([found], config), 0, config)
    return {f"test_{name}{end}": row[f"{name}{end}"] for name in (*config.criteria, FUSED)
            for end in ("", "_low", "_high") if name in row}


def _control_row(name: str, tap: Tap | None, val: Sums, test: Sums, config: SearchConfig) -> dict:
    row = _facts(name, tap, val) | {"shipped": False}
    return row | _values(_resampled([val], config), 0, config) | _test_columns(test, config)


def _facts(name: str, tap: Tap | None, val: Sums) -> dict[str, Any]:
    place = {"mode": "-", "t": None, "block": None, "seeds": None} if tap is None else {
        "mode": tap.frames, "t": tap.k / 1000, "block": tap.block, "seeds": 1}
    return {"features": name, **place, "clips": len(val["tokens"]), "grid": GRID}


def print_ranking(rows: Sequence[dict], count: int = 10) -> None:
    """The best taps as a table on the terminal."""
    shown = {"depth_r2_ridge": "depth R²", "xyz_r2_ridge": "XYZ R²", "corr_std_auc": "AUC",
             "snr": "SNR"}
    table = Table("mode", "t", "block", "score", "first", *shown.values(),
                  title=f"best of {len(rows)} taps")
    for row in rows[:count]:
        low, high = (row.get(f"score_{end}", row["score"]) for end in ("low", "high"))
        table.add_row(row["mode"], str(row["t"]), str(row["block"]),
                      f"{row['score']:.0f} ({low:.0f}-{high:.0f})", f"{row['first_share']:.0%}",
                      *(f"{row[column]:.2f}" for column in shown))
    Console().print(table)
    best = rows[0]
    print("the first on test rooms: " + "  ".join(
        f"{title} {best[f'test_{column}']:.2f}" for column, title in shown.items()
        if f"test_{column}" in best))


def pooled_score(table: np.ndarray) -> np.ndarray:
    """Normalised Overall Score of [rows, metrics], higher is better, as [rows] in 0..100.

    The mean of metrics, each min-max scaled over the rows; without those that are equal in all
    rows or have NaN. 0 if none is left.
    """
    low, high = table.min(0), table.max(0)
    differs = high > low
    scaled = (table[:, differs] - low[differs]) / (high - low)[differs]
    return 100 * scaled.mean(1) if differs.any() else np.zeros(len(table))


def tap_file(where: Path) -> Path:
    """File of the chosen tap: in a local generator's folder, or in our cache for a hub id."""
    if is_hub_id(where):
        return cache_folder() / "taps" / f"{str(where).replace('/', '--')}.yaml"
    return where / "tap.yaml"


def save_tap(tap: Tap, path: Path) -> None:
    """Writes block, noise level and frame mode, which a search chooses."""
    chosen = {name: asdict(tap)[name] for name in ("block", "k", "frames")}
    with atomic_write(path) as scratch:
        scratch.write_text(write_yaml(chosen))


def chosen_tap(generator: str, tap: Tap) -> Tap:
    """`tap` with what a search chose for the generator; ValueError if there was no search."""
    path = tap_file(generator_folder(generator))
    if not path.is_file():
        raise ValueError(
            f"{path}: no tap was chosen for {generator} yet; run: vega3d teacher search "
            f"--generator {generator}")
    remedy = "run vega3d teacher search again"
    with reading(path, "a chosen tap", remedy):
        chosen = read_yaml(path, remedy)
        return replace(tap, **{name: chosen[name] for name in ("block", "k", "frames")})


def _read_taps(tower: WanTower, blocks: list[int], sets: Sets, device: torch.device,
               mlp: bool) -> TermsByBlock:
    """The terms of every block's scores at one mode and level; noise from a second noise draw."""
    tap = tower.tap
    a, b = (extract_blocks(data, tower, blocks, device) for data in (sets.fit, sets.test))
    tower.tap = replace(tap, seed=tap.seed + 1)
    again = extract_blocks(sets.test, tower, blocks, device)
    tower.tap = tap
    return {block: sums(sets.fit, sets.test, a[i], b[i], sets.semantic, tap.seed, mlp)
            | noise_sums(b[i], again[i]) for i, block in enumerate(blocks)}


def noise_sums(one: Tensor, two: Tensor) -> Sums:
    """Of two draws [N,K,D,14,14], by clip: squares about the mean token, variance of draws."""
    x = torch.stack([one, two]).movedim(3, -1).flatten(2, -2).double()  # [2,N,K*196,D]
    mean = x.mean(0)
    return {"signal": (mean - mean.mean((0, 1))).square().sum((1, 2)).cpu().numpy(),
            "noise": x.var(0).sum((1, 2)).cpu().numpy()}


def _write(found: TermsByBlock, path: Path) -> None:
    arrays = {f"{block}/{name}": value for block, terms in found.items()
              for name, value in terms.items()}
    with atomic_write(path) as scratch:
        save_file(arrays, scratch)


def _read(path: Path) -> TermsByBlock | None:
    found: TermsByBlock = {}
    try:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 (no dict)
                block, _, what = name.partition("/")
                found.setdefault(int(block), {})[what] = file.get_tensor(name)
    except (OSError, SafetensorError):
        return None
    return dict(sorted(found.items()))
