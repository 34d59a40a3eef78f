"""`vega3d teacher search`: every block x noise level x frame mode of a generator, ranked by probes.

A tap's score is its Normalised Overall Score (arXiv 2603.19235), pooled: the mean over the
criteria, each min-max scaled over the taps. Test clips are resampled with replacement, the same
draw for all taps, for intervals and for the share of draws in which a tap comes first.
"""
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from records.files import atomic_write, cache_folder, digest
from scenes.clip import Clip, Split
from teacher.config import Mode, SearchConfig
from teacher.probing.probes import ProbeSet, extract, probe_set, scores, sums
from teacher.towers.checkpoints import block_count, generator_folder, is_hub_id
from teacher.towers.tap import Tap
from teacher.towers.wan import WanTower, load_wan

Sums = dict[str, np.ndarray]              # the terms of the scores: each [clips]
Taps = dict[tuple[Mode, int, int], Sums]  # by mode, k and block
Scores = Mapping[str, Sequence[float]]    # row -> its metrics; higher is better


@dataclass(frozen=True)
class SearchResult:
    """rows: of the result file, one a tap, best first."""
    rows: list[dict]
    best: Tap


def search(config: SearchConfig, clips: Callable[[Split], Sequence[Clip]], key: str,
           work: Path) -> SearchResult:
    """Probes every tap. `work` gets a file for each mode and level, where an interrupted search
    resumes.

    clips: of the splits val and test; `key` identifies them.
    """
    device = torch.device(
        config.device.replace("auto", "cuda" if torch.cuda.is_available() else "cpu"))
    where = generator_folder(config.generator)
    blocks = list(range(block_count(where)))
    todo = [(mode, k) for mode in config.modes for k in config.levels]
    taps: Taps = {}
    sets: list[ProbeSet] = []
    with Progress(console=Console(stderr=True)) as progress:
        tower = load_wan(where, Tap(block=blocks[-1], seeds=1, seed=config.seed))
        for mode, k in progress.track(todo, description=f"{where.name}: taps"):
            tower.tap = replace(tower.tap, k=k, frames=mode)
            name = digest(tower.spec["weights"], asdict(tower.tap), key, config.clips, config.mlp)
            unit = work / f"{name}.safetensors"
            cached = _read(unit)
            if cached is None:
                # only now: a finished search reads no clip
                sets = sets or [_probe_set(clips(split)[:config.clips])
                                for split in ("val", "test")]
                cached = _read_taps(tower.to(device), blocks, sets[0], sets[1], device, config.mlp)
                _write(cached, unit)
            taps |= {(mode, k, block): found for block, found in cached.items()}
    return rank(taps, config)


def rank(taps: Taps, config: SearchConfig) -> SearchResult:
    """Scores of all taps with bootstrap intervals over clips."""
    names = list(next(iter(taps.values())))
    table = np.stack([np.stack([found[n] for n in names]) for found in taps.values()])
    clips = table.shape[2]                                    # table [taps, sums, clips]
    draws = np.random.default_rng(config.seed).multinomial(clips, np.full(clips, 1 / clips),
                                                           config.resamples)
    weights = np.concatenate([np.ones((1, clips)), draws])    # the first row: every clip once
    total = np.einsum("tsc,rc->srt", table, weights)          # [sums, 1+resamples, taps]
    columns = _scores(dict(zip(names, total, strict=True)))   # each [1+resamples, taps]
    criteria = np.stack([columns[name] for name in config.criteria], 2)
    columns["score"] = np.stack([pooled_score(one) for one in criteria])
    winners = columns["score"][1:].argmax(1)
    first_share = np.bincount(winners, minlength=len(taps)) / max(1, config.resamples)
    rows = []
    for i, (mode, k, block) in enumerate(taps):
        row: dict[str, Any] = {"features": f"generator, {mode}", "mode": mode, "t": k / 1000,
                               "block": block, "seeds": 1}
        for name, values in columns.items():
            row[name] = float(values[0, i])
            if name in ("score", "snr", *config.criteria) and config.resamples:
                low, high = np.nanpercentile(values[1:, i], (2.5, 97.5))
                row |= {f"{name}_low": float(low), f"{name}_high": float(high)}
        rows.append(row | {"first_share": float(first_share[i])})
    rows.sort(key=lambda row: -row["score"])
    for place, row in enumerate(rows, 1):
        row["rank"] = place
    best = rows[0]
    return SearchResult(
        rows, Tap(block=best["block"], k=round(1000 * best["t"]), frames=best["mode"]))


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


def overall_score(scores: Scores) -> dict[str, float]:
    """Normalised Overall Score with one scale for all rows, which makes them comparable.

    Each metric is min-max scaled over the rows, then averaged, x100. A metric that is equal in all
    rows is left out. Raises ValueError if rows differ in length.
    """
    if len(lengths := {len(row) for row in scores.values()}) != 1:
        raise ValueError(
            f"overall score: rows have {sorted(lengths)} metrics, expected the same number")
    values = pooled_score(np.array(list(scores.values()), float))
    return dict(zip(scores, values.tolist(), strict=True))


def published_overall_score(scores: Scores, baseline: str, groups: Mapping[str, Collection[str]]
                            ) -> dict[str, dict[str, float]]:
    """{group: {row: score}} with each group scaled apart, together with the baseline.

    The published numbers are scaled like this, discriminative and generative backbones apart;
    scores of two groups do not compare.
    """
    out = {}
    for name, rows in groups.items():
        out[name] = overall_score({row: scores[row] for row in (baseline, *rows)})
    return out


def pooled_score(table: np.ndarray) -> np.ndarray:
    """`overall_score` of [rows, metrics] as [rows]. A metric with NaN is left out; 0 if none is
    left."""
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
        scratch.write_text(yaml.safe_dump(chosen, sort_keys=False))


def chosen_tap(generator: str, tap: Tap) -> Tap:
    """`tap` with the block, noise level and frame mode that a search chose for the generator.

    Raises ValueError if there was no search.
    """
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
    """The terms of every block's scores at one mode and level; noise from a second noise draw."""
    tap, whole_clip = tower.tap, tower.tap.frames == "video"

    def features(data: ProbeSet) -> Tensor:
        return extract(data, lambda f: tower.block_features(f, blocks), device, whole_clip)

    a, b = features(train), features(test)
    tower.tap = replace(tap, seed=tap.seed + 1)
    again = features(test)
    tower.tap = tap
    return {block: sums(train, test, a[i], b[i], tap.seed, mlp) | noise_sums(b[i], again[i])
            for i, block in enumerate(blocks)}


def noise_sums(one: Tensor, two: Tensor) -> Sums:
    """Two draws [N,K,D,14,14] -> for each clip the scatter of tokens about the mean token, and of
    draws about their mean."""
    x = torch.stack([one, two]).movedim(3, -1).flatten(2, -2).double()  # [2,N,K*196,D]
    mean = x.mean(0)
    return {"signal": (mean - mean.mean((0, 1))).square().sum((1, 2)).cpu().numpy(),
            "noise": x.var(0).sum((1, 2)).cpu().numpy()}


def _scores(total: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # the mean of two draws has half of the noise's variance
    snr = (total["signal"] / total["noise"] - 0.5).clip(0)
    return scores(total) | {"snr": snr}


def _probe_set(clips: Sequence[Clip]) -> ProbeSet:
    return probe_set(list(clips), list(range(0, len(clips[0].frames), 4)))


def _write(found: dict[int, Sums], path: Path) -> None:
    arrays: Sums = {}
    for block, terms in found.items():
        arrays |= {f"{block}/{name}": value for name, value in terms.items()}
    with atomic_write(path) as scratch:
        save_file(arrays, scratch)


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
