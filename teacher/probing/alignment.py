"""`vega3d teacher probe --generators`: what features add to the semantic encoder's.

Ridge regression of log depth and normals at 14x14, place always given, fitted on the rooms of
train, its penalty and the generator's tap chosen on those of val, and scored on those of test:
three sets of rooms without a common piece of furniture. Recorded frames: fitted on one half of
their camera path and scored on the other, both ways.
"""
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from records.files import read_object
from records.results import Row
from scenes.clip import SPLITS, Clip, ClipFolder, Source
from scenes.rooms.source import RoomSource, render_clips
from scenes.sources.registration import check_registration
from scenes.sources.rgbd import read_rgbd
from teacher.config import AlignmentConfig
from teacher.probing.probes import ProbeSet, extract, probe_set
from teacher.probing.ridge import (
    Combinations,
    Inputs,
    Split,
    Terms,
    average,
    match_terms,
    mlp_terms,
    ridge_terms,
    scores,
)
from teacher.towers.base import GRID
from teacher.towers.checkpoints import block_count, generator_folder
from teacher.towers.controls import RGBPatches, VAELatents
from teacher.towers.efficientnet import SemanticEncoder
from teacher.towers.generators import load_tower
from teacher.towers.tap import Tap
from teacher.towers.wan import WanTower, load_wan

COMBINATIONS: Combinations = {
    "semantic": ("semantic", ), "alone": ("x", ), "fused": ("semantic", "x")}
_CLIPS = 64  # through a tower at once
_HALF = 80   # frames of a recorded half, at least
# clips of train that fit the probes which choose the tap; as few suffice to rank
_CHOICE_CLIPS = 600


@dataclass
class Trial:
    """The probes' splits, 0 fit, 1 choice, 2 test, and what is computed once for each."""
    splits: list[Split]
    semantic: list[Tensor]                             # [N,K,112,14,14]
    latents: list[Tensor] = field(default_factory=list)  # [N,K,C,1,h,w] of a generator's VAE

    def first(self, clips: int) -> "Trial":
        """With so many clips to fit on."""
        return Trial(*([one[0][:clips], *one[1:]] for one in
                       (self.splits, self.semantic, self.latents)))

    def inputs(self, x: Sequence[Tensor]) -> tuple[Inputs, Inputs, Inputs]:
        """The semantic encoder's features and those of each split, [N,K,D,14,14]."""
        parts = [{"semantic": a, "x": b} for a, b in zip(self.semantic, x, strict=True)]
        fit = Inputs(self.splits[0], parts[0])
        return (fit, Inputs(self.splits[1], parts[1], fit.scale),
                Inputs(self.splits[2], parts[2], fit.scale))


Features = Callable[[Trial], list[Tensor]]  # of the three splits


class Alignment:
    """Rows of features beside the semantic encoder's, on rooms and on recorded frames."""

    def __init__(self, config: AlignmentConfig, device: torch.device, seed: int):
        self.config, self.device, self.seed = config, device, seed
        self.trials: dict[str, list[Trial]] = {}
        self._encoder = SemanticEncoder().to(device)
        self._vae: dict[str, Tensor] = {}  # whose latents the trials hold
        self._console = Console(stderr=True)

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False)

    def add(self, frames_from: str, splits: Sequence[Split]) -> None:
        """A trial: splits to fit on, to choose on and to score; `frames_from`: rooms or real."""
        for split in splits:
            split.data.frames = split.data.frames.to(self.device)
        trial = Trial(list(splits), [])
        trial.semantic = self.frame_features(self._encoder.features)(trial)
        self.trials.setdefault(frames_from, []).append(trial)

    def frame_features(self, call: Callable[[Tensor], Tensor]) -> Features:
        """Features of frames [B,T,3,H,W] in [0,1] alone."""
        return lambda trial: [extract(split.data, call, self.device, batch=_CLIPS)
                              for split in trial.splits]

    def rows(self, generators: Sequence[str]) -> list[Row]:
        """The controls' rows, then those of the generators: names, folders or KIND:FOLDER."""
        first = next((name for name in generators if not _is_tower(name)), "wan-nano")
        rows = list(self._control_rows(first))
        for name in generators:
            if _is_tower(name):
                tower = load_tower(name).to(self.device)
                rows += self.measure({"generator": name.partition(":")[0]},
                                     [self.frame_features(tower.features)])
            else:
                rows += self.generator_rows(name)
        return rows

    def _control_rows(self, generator: str) -> Iterable[Row]:
        def nothing(frames: Tensor) -> Tensor:
            return frames.new_zeros(*frames.shape[:2], 1, GRID, GRID)

        latents = VAELatents(load_wan(generator, self.tap(0, 0)).to(self.device)).features
        controls: dict[str, list[Callable[[Tensor], Tensor]]] = {
            "place only": [nothing], "semantic encoder": [self._encoder.features],
            "RGB patches": [RGBPatches().features], "VAE latents": [latents],
            "random-weights ViT-S": [self._untrained_vit(i) for i in range(self.config.redraws)]}
        for name, calls in controls.items():
            yield from self.measure({"generator": name}, list(map(self.frame_features, calls)))

    def _untrained_vit(self, seed: int) -> Callable[[Tensor], Tensor]:
        from student.config import StudentConfig
        from student.vit import Student

        torch.manual_seed(seed)
        vit = Student(StudentConfig("s", depth=12, stem="patch")).to(self.device).eval()

        @torch.inference_mode()
        def features(frames: Tensor) -> Tensor:
            return vit(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return features

    def generator_rows(self, generator: str) -> list[Row]:
        """Rows at the tap chosen on val; of the one that ships also at its own, if it differs."""
        folder = generator_folder(generator)
        record = folder / "pretrain.json"
        settings = read_object(record) if record.is_file() else {}
        aligned = settings.get("align", "none") != "none"
        taps = [self.choose(generator)]
        ships = generator == self.config.shipped
        own = self.tap(Tap().block, Tap().k)
        if own.block >= block_count(folder):
            own = taps[0]
        if ships and own not in taps:
            taps.append(own)
        rows: list[Row] = []
        for tap in taps:
            tower = self.open(generator, tap)
            drawn = [self.open(generator, tap, seed) for seed in range(self.config.redraws)]
            facts = {"generator": folder.name, "align": settings.get("align", "none"),
                     "align_block": settings["align_block"] if aligned else None,
                     "width": tower.dim, "block": tap.block, "t": tap.k / 1000,
                     "draws": tap.seeds, "noise": tap.noise,
                     "shipped": ships and tap == own, "cosine_to_fp32": self._cosine(tower)}
            self._encode(tower)
            rows += self.measure(facts, [self._tapped(tower)], list(map(self._tapped, drawn)))
        return rows

    def choose(self, generator: str) -> Tap:
        """The tap with the largest fused depth R2 + normal cosine on val, of all blocks."""
        blocks = list(range(block_count(generator_folder(generator))))
        found: dict[Tap, float] = {}
        for k in self.config.noise_levels:
            tower = self.open(generator, self.tap(blocks[-1], k))
            self._encode(tower)
            trial = self.trials["rooms"][0].first(_CHOICE_CLIPS)
            x = [self._blocks(tower, trial, split, blocks) for split in range(2)]
            for block in blocks:
                on_val = x[1][block]
                fit, choice, _ = trial.inputs([x[0][block], on_val, trial.semantic[2]])
                terms = ridge_terms(fit, choice, choice, {"fused": ("semantic", "x")})
                found[self.tap(block, k)] = sum(
                    float(value[0]) for value in scores(terms["fused"]).values())
        best = max(found, key=lambda tap: found[tap])
        self.say(f"{generator}: block {best.block}, t {best.k / 1000}")
        return best

    def measure(self, facts: Row, features: Sequence[Features],
                untrained: Sequence[Features] = ()) -> list[Row]:
        """A row for rooms and one for recorded frames; several features are seeds of one."""
        base: Row = dict.fromkeys(("align", "align_block", "width", "block", "t", "draws", "noise",
                                   "cosine_to_fp32")) | {"shipped": False} | facts
        rows = []
        for frames_from, trials in self.trials.items():
            found: list[dict[str, np.ndarray]] = []
            for trial in trials:
                columns = self._columns(trial, features, frames_from == "real")
                if untrained:
                    drawn = self._columns(trial, untrained, frames_from == "real")
                    columns |= {name.replace("fused", "random_fused"): value
                                for name, value in drawn.items() if name.startswith("depth_")
                                and "fused" in name}
                found.append(columns)
            mean = {name: np.mean([one[name] for one in found], 0) for name in found[0]}
            row = {**base, "frames_from": frames_from, "seeds": len(features),
                   "untrained_seeds": len(untrained) or None, **_ruler(trials), **_values(mean)}
            if base["generator"] == "place only":  # all tokens are equal
                row |= {name: None for name in row if name.startswith("match_")}
            rows.append(row)
            self.say(f"{row['generator']}, {frames_from}: depth R2 {row['depth_r2_semantic']:.3f}, "
                     f"alone {row['depth_r2_alone']:.3f}, fused {row['depth_r2_fused']:.3f}")
        return rows

    def _columns(self, trial: Trial, features: Sequence[Features],
                 real: bool) -> dict[str, np.ndarray]:
        """Scores with their resamples [1+R]: of ridge, of the MLP on recorded frames, of matches.

        Recorded frames have no normals.
        """
        ridge, mlp, matches = [], [], []
        for one in features:
            x = one(trial)
            fit, choice, test = trial.inputs(x)
            ridge.append(ridge_terms(fit, choice, test, COMBINATIONS))
            if real:
                mlp.append(mlp_terms(fit, test, COMBINATIONS, self.config.redraws))
            matches.append(match_terms(trial.splits[2], x[2]))
        out = _named(ridge)
        if real:
            out = {name: value for name, value in out.items() if not name.startswith("normal_")}
            out |= {f"{name}_mlp": value for name, value in _named(mlp).items()
                    if name.startswith("depth_")}
        for suffix in ("", "_mlp") if real else ("", ):
            out[f"depth_gain{suffix}"] = (out[f"depth_r2_fused{suffix}"]
                                          - out[f"depth_r2_semantic{suffix}"])
        return out | scores(average(matches))

    def tap(self, block: int, k: int) -> Tap:
        return Tap(block=block, k=k, seeds=self.config.draws, seed=self.seed, noise="shared")

    def open(self, generator: str, tap: Tap, untrained: int | None = None) -> WanTower:
        """untrained: seed of random weights."""
        return load_wan(generator, tap, untrained is not None, untrained or 0).to(self.device)

    def _encode(self, tower: WanTower) -> None:
        """Latents of all trials, unless they are there: generators may share a VAE."""
        weights = tower.vae.state_dict()
        if weights.keys() == self._vae.keys() and all(
                torch.equal(value, self._vae[name]) for name, value in weights.items()):
            return
        self._vae = weights

        def latents(frames: Tensor) -> Tensor:
            videos = tower.resize(frames.flatten(0, 1)).unsqueeze(1)
            return tower.latents(videos).unflatten(0, frames.shape[:2])   # [B,K,C,1,h,w]
        for trials in self.trials.values():
            for trial in trials:
                trial.latents = [
                    torch.cat([latents(frames.float() / 255) for frames in
                               split.data.frames.split(_CLIPS)]) for split in trial.splits]

    @torch.inference_mode()
    def _blocks(self, tower: WanTower, trial: Trial, split: int,
                blocks: Sequence[int]) -> Tensor:
        """[L,N,K,D,14,14] float16 of a split's latents, computed in bfloat16 on a GPU."""
        parts = []
        with torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda"):
            for frames, z in zip(trial.splits[split].data.frames.split(_CLIPS),
                                 trial.latents[split].split(_CLIPS), strict=True):
                parts.append(tower.block_features(frames.float(), blocks, z.flatten(0, 1)).half())
        return torch.cat(parts, 1)

    def _tapped(self, tower: WanTower) -> Features:
        return lambda trial: [self._blocks(tower, trial, split, [tower.tap.block])[0]
                              for split in range(3)]

    @torch.inference_mode()
    def _cosine(self, tower: WanTower) -> float:
        """Mean cosine of the tokens to those in float32, on at most 16 clips to choose on."""
        self._encode(tower)
        trial = self.trials["rooms"][0]
        few = Trial([trial.splits[1][:16]], [], [trial.latents[1][:16]])
        exact = tower.block_features(few.splits[0].data.frames.float(), [tower.tap.block],
                                     few.latents[0].flatten(0, 1))[0]
        found = self._blocks(tower, few, 0, [tower.tap.block])[0].float()
        return torch.cosine_similarity(found, exact, dim=2).mean().item()


def recorded_halves(clip: Clip, gap: int = 6) -> list[list[Split]]:
    """Two trials of a camera path: fit on one half of it and score on the other, both ways.

    The path is cut into blocks of 2*gap frames (a rest is dropped), each of them `gap` pairs, `gap`
    frames apart, which matches compare. The last fifth of a fitted half chooses the penalty.
    Raises ValueError below 80 frames a half.
    """
    blocks = len(clip.frames) // (4 * gap)  # of a half
    if (frames := blocks * 2 * gap) < _HALF:
        raise ValueError(f"{clip.id}: {len(clip.frames)} frames give {frames} a half, expected "
                         f"{_HALF}; fewer cannot fit a probe")
    parts = []
    for first in (i for block in range(2 * blocks) for i in
                  range(2 * gap * block, 2 * gap * block + gap)):
        arrays = {name: value[[first, first + gap]] for name in ("frames", "depth", "poses")
                  if (value := getattr(clip, name)) is not None}
        parts.append(_two_frames(replace(clip, **arrays), recorded=True))
    path = split_of(parts, [f"{i // gap:06d}" for i in range(len(parts))])
    half, chosen = blocks * gap, max(1, blocks // 5) * gap
    trials = []
    for fit, test in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        one, other = path[fit], path[test]
        trials.append([one[:half - chosen], one[half - chosen:],
                       Split(other.data, other.rooms - other.rooms.min())])
    return trials


def read_splits(source: Source, counts: Sequence[int], workers: int) -> list[Split]:
    """The first clips of train, val and test, with their first and last frame.

    Raises ValueError if a split has none.
    """
    splits = []
    for name, count in zip(SPLITS, counts, strict=True):
        ids = source.ids(name)[:count]
        if not ids:
            raise ValueError(f"probe: no clips in {name}; render some with: vega3d scenes render "
                             "--n 2900 --held-out 300 600 --frames 5")
        if isinstance(source, RoomSource):
            parts = list(map(_two_frames, render_clips(source, ids, workers)))
        else:
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                parts = list(pool.map(lambda i: _two_frames(source.clip(i)), ids))
        splits.append(split_of(parts, [i.rpartition("_")[0] or i for i in ids]))
    return splits


def split_of(parts: Sequence[ProbeSet], rooms: Sequence[str]) -> Split:
    """One split of single clips and the names of their rooms."""
    joined = [torch.cat([getattr(part, f.name) for part in parts])
              for f in fields(ProbeSet) if f.name != "keys"]
    data = ProbeSet(joined[0], parts[0].keys, *joined[1:])
    return Split(data, np.unique(list(rooms), return_inverse=True)[1])


def _two_frames(clip: Clip, recorded: bool = False) -> ProbeSet:
    ends = [0, len(clip.frames) - 1]
    arrays = {name: value[ends] for name in ("frames", "depth", "normals", "poses")
              if (value := getattr(clip, name)) is not None}
    return probe_set([replace(clip, instances=None, objects=[], **arrays)], [0, 1], recorded)


def _named(runs: Sequence[dict[str, Terms]]) -> dict[str, np.ndarray]:
    """The scores of each combination, the terms averaged over runs: depth_r2_alone ..."""
    return {f"{score}_{name}": value for name in runs[0]
            for score, value in scores(average([run[name] for run in runs])).items()}


def _values(columns: dict[str, np.ndarray]) -> Row:
    """Each score and its 95 % interval over rooms."""
    row: Row = {}
    for name, value in columns.items():
        known = value[1:][~np.isnan(value[1:])]
        low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
        row |= {name: float(value[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
    return row


def _ruler(trials: Sequence[Trial]) -> Row:
    """What the scores depend on besides the features: grid, field of view, numbers of clips."""
    fov = torch.cat([split.data.fov for trial in trials for split in trial.splits])
    counts = np.array([[len(split) for split in trial.splits] for trial in trials]).sum(0)
    return {"grid": GRID, "fov_low_deg": fov.min().item(), "fov_high_deg": fov.max().item(),
            "probe_clips": int(counts[0]), "val_clips": int(counts[1]),
            "test_clips": int(counts[2]), "frames_a_clip": 2}


def _is_tower(name: str) -> bool:
    return ":" in name and not Path(name).exists()


def probe_alignment(config: AlignmentConfig, source: Source, seed: int, device: str,
                    workers: int) -> list[Row]:
    """Rows for bench/results/alignment.json, controls first."""
    where = torch.device(device.replace("auto", "cuda" if torch.cuda.is_available() else "cpu"))
    table = Alignment(config, where, seed)
    counts = (config.fit_clips, config.val_clips, config.test_clips)
    recorded = None if config.rgbd is None else read_rgbd(config.rgbd)
    halves = recorded_halves(recorded) if recorded is not None else []
    if recorded is not None and config.rgbd is not None:
        offset = check_registration(recorded, config.rgbd)
        table.say(f"{config.rgbd}: depth lies {offset:.1f} px off colour, of 224")
    table.add("rooms", read_splits(source, counts, workers))
    for splits in halves:
        table.add("real", splits)
    return table.rows(config.generators)


def clip_source(config: AlignmentConfig, rooms: RoomSource) -> Source:
    """The folder of clips, or `rooms` without one."""
    return rooms if config.rooms is None else ClipFolder(config.rooms)
