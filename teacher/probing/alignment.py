"""`vega3d teacher probe --generators`: what features add to the semantic encoder's.

Ridge regression of log depth and normals at 14x14, place always given, fitted on the rooms of
train, its penalty and the generator's tap chosen on those of val, and scored on those of test:
three sets of rooms without a common piece of furniture. Recorded frames: fitted on one half of
their camera path and scored on the other, both ways.
"""
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
from teacher.probing import ridge
from teacher.probing.probe_set import Inputs, ProbeSet, extract, probe_set
from teacher.towers.base import GRID
from teacher.towers.checkpoints import block_count, generator_folder
from teacher.towers.controls import RGBPatches, VAELatents
from teacher.towers.efficientnet import SemanticEncoder
from teacher.towers.generators import load_tower
from teacher.towers.tap import Tap
from teacher.towers.wan import WanTower, load_wan
from teacher.training.processes import resolve_device

COMBINATIONS: ridge.Combinations = {
    "semantic": ("semantic", ), "alone": ("x", ), "fused": ("semantic", "x")}
TAP_COLUMNS = ("align", "align_block", "width", "block", "t", "draws", "noise", "cosine_to_fp32")
_CLIPS = 64  # through a tower at once
_HALF = 80   # frames of a recorded half, at least
# clips of train that fit the probes which choose the tap; as few suffice to rank
_CHOICE_CLIPS = 600
Features = Callable[[ProbeSet], Tensor]  # [N,K,D,14,14]


@dataclass
class Trial:
    """Clips to fit on, to choose on and to score, and the semantic encoder's features of each."""
    splits: list[ProbeSet]
    semantic: list[Tensor]  # [N,K,112,14,14]

    def inputs(self, x: Sequence[Tensor]) -> tuple[Inputs, Inputs, Inputs]:
        """The semantic encoder's features and those of each split, [N,K,D,14,14]."""
        parts = [{"semantic": a, "x": b} for a, b in zip(self.semantic, x, strict=True)]
        fit = Inputs(self.splits[0], parts[0])
        return (fit, Inputs(self.splits[1], parts[1], fit.scale),
                Inputs(self.splits[2], parts[2], fit.scale))


class Alignment:
    """Rows of features beside the semantic encoder's, on rooms and on recorded frames."""

    def __init__(self, config: AlignmentConfig, device: torch.device, seed: int):
        self.config, self.device, self.seed = config, device, seed
        self.trials: dict[str, list[Trial]] = {}
        self._encoder = SemanticEncoder().to(device)
        self._console = Console(stderr=True)

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False)

    def add(self, frames_from: str, splits: Sequence[ProbeSet]) -> None:
        """A trial: splits to fit on, to choose on and to score; `frames_from`: rooms or real."""
        semantic = self.frame_features(self._encoder.features)
        trial = Trial([*splits], [semantic(data) for data in splits])
        self.trials.setdefault(frames_from, []).append(trial)

    def frame_features(self, call: Callable[[Tensor], Tensor]) -> Features:
        """Features of frames [B,T,3,H,W] in [0,1] alone."""
        return lambda data: extract(data, call, self.device, batch=_CLIPS)

    def rows(self, generators: Sequence[str]) -> list[Row]:
        """The controls' rows, then those of the generators: names, folders or KIND:FOLDER."""
        first = next((name for name in generators if not _is_tower(name)), "wan-nano")
        rows = [*self._control_rows(first)]
        for name in generators:
            if _is_tower(name):
                tower = load_tower(name).to(self.device)
                rows += self.measure({"generator": name.partition(":")[0]},
                                     [self.frame_features(tower.features)])
            else:
                rows += self.generator_rows(name)
        return rows

    def _control_rows(self, generator: str) -> Iterator[Row]:
        def nothing(frames: Tensor) -> Tensor:
            return frames.new_zeros(*frames.shape[:2], 1, GRID, GRID)

        latents = VAELatents(self.open(generator, self.tap(0, 0))).features
        controls: dict[str, list[Callable[[Tensor], Tensor]]] = {
            "place only": [nothing], "semantic encoder": [self._encoder.features],
            "RGB patches": [RGBPatches().features], "VAE latents": [latents],
            "random-weights ViT-S": [self._untrained_vit(i) for i in range(self.config.redraws)]}
        for name, calls in controls.items():
            yield from self.measure({"generator": name}, [*map(self.frame_features, calls)])

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
        settings = read_object(folder / "pretrain.json")
        align = settings.get("align", "none")
        taps = [self.choose(generator)]
        own = self.tap(Tap().block, Tap().k)
        if own.block >= block_count(folder):
            own = taps[0]
        ships = generator == self.config.shipped
        if ships and own not in taps:
            taps.append(own)
        rows: list[Row] = []
        for tap in taps:
            tower = self.open(generator, tap)
            drawn = [self.open(generator, tap, seed) for seed in range(self.config.redraws)]
            facts = {"generator": folder.name, "align": align,
                     "align_block": None if align == "none" else settings["align_block"],
                     "width": tower.dim, "block": tap.block, "t": tap.k / 1000,
                     "draws": tap.seeds, "noise": tap.noise,
                     "shipped": ships and tap == own, "cosine_to_fp32": self._cosine(tower)}
            rows += self.measure(facts, [self._tapped(tower)], [*map(self._tapped, drawn)])
        return rows

    def choose(self, generator: str) -> Tap:
        """The tap with the largest fused depth R2 + normal cosine on val, of all blocks."""
        blocks = [*range(block_count(generator_folder(generator)))]
        trial, found = self.trials["rooms"][0], {}
        few = Trial([trial.splits[0][:_CHOICE_CLIPS], *trial.splits[1:]],
                    [trial.semantic[0][:_CHOICE_CLIPS], *trial.semantic[1:]])
        for k in self.config.noise_levels:
            tower = self.open(generator, self.tap(blocks[-1], k))
            x = [self._blocks(tower, data, blocks) for data in few.splits[:2]]
            for block in blocks:
                fit, choice, _ = few.inputs([x[0][block], x[1][block], few.semantic[2]])
                terms = ridge.ridge_terms(fit, choice, choice, {"fused": ("semantic", "x")})
                found[self.tap(block, k)] = sum(
                    float(value[0]) for value in ridge.scores(terms["fused"]).values())
        best = max(found, key=lambda tap: found[tap])
        self.say(f"{generator}: block {best.block}, t {best.k / 1000}")
        return best

    def measure(self, facts: Row, features: Sequence[Features],
                untrained: Sequence[Features] = ()) -> list[Row]:
        """A row for rooms and one for recorded frames; several features are seeds of one."""
        rows = []
        for frames_from, trials in self.trials.items():
            found: list[dict[str, np.ndarray]] = []
            for trial in trials:
                columns = self._columns(trial, features, frames_from == "real")
                if untrained:
                    drawn = self._columns(trial, untrained, frames_from == "real")
                    columns |= {name.replace("fused", "random_fused"): value for name, value in
                                drawn.items() if name.startswith("depth_r2_fused")}
                found.append(columns)
            mean = {name: np.mean([one[name] for one in found], 0) for name in found[0]}
            row: Row = {**dict.fromkeys(TAP_COLUMNS), "shipped": False, **facts,
                        "frames_from": frames_from, "seeds": len(features),
                        "untrained_seeds": len(untrained) or None}
            row |= _ruler(trials) | _values(mean)
            if row["generator"] == "place only":  # all tokens are equal
                row |= {name: None for name in row if name.startswith("match_")}
            rows.append(row)
            self.say(f"{row['generator']}, {frames_from}: depth R2 {row['depth_r2_semantic']:.3f}, "
                     f"alone {row['depth_r2_alone']:.3f}, fused {row['depth_r2_fused']:.3f}")
        return rows

    def _columns(self, trial: Trial, features: Sequence[Features],
                 real: bool) -> dict[str, np.ndarray]:
        """Scores with their resamples [1+R]: of ridge, of matches, and on recorded frames (`real`),
        which have no normals, of the MLP."""
        runs: list[dict[str, ridge.Terms]] = []
        for one in features:
            x = [one(data) for data in trial.splits]
            fit, choice, test = trial.inputs(x)
            run = ridge.ridge_terms(fit, choice, test, COMBINATIONS)
            if real:
                by_mlp = ridge.mlp_terms(fit, test, COMBINATIONS, self.config.redraws)
                run |= {f"{name}_mlp": terms for name, terms in by_mlp.items()}
            runs.append(run | {"match": ridge.match_terms(trial.splits[2], x[2])})
        out: dict[str, np.ndarray] = {}
        for name in runs[0]:
            for score, value in ridge.scores(ridge.average([run[name] for run in runs])).items():
                if not (real and score == "normal_cos"):
                    out[score if name == "match" else f"{score}_{name}"] = value
        for suffix in ("", "_mlp") if real else ("", ):
            out[f"depth_gain{suffix}"] = (out[f"depth_r2_fused{suffix}"]
                                          - out[f"depth_r2_semantic{suffix}"])
        return out

    def tap(self, block: int, k: int) -> Tap:
        return Tap(block=block, k=k, seeds=self.config.draws, seed=self.seed, noise="shared")

    def open(self, generator: str, tap: Tap, untrained: int | None = None) -> WanTower:
        """untrained: seed of random weights."""
        return load_wan(generator, tap, untrained is not None, untrained or 0).to(self.device)

    @torch.inference_mode()
    def _blocks(self, tower: WanTower, data: ProbeSet, blocks: Sequence[int]) -> Tensor:
        """[L,N,K,D,14,14] float16; on a GPU the transformer runs in bfloat16."""
        parts = []
        for part in data.frames.split(_CLIPS):
            frames = part.to(self.device).float() / 255
            latents = tower.latents(tower.resize(frames.flatten(0, 1)).unsqueeze(1))
            with torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda"):
                parts.append(tower.block_features(frames, blocks, latents).half())
        return torch.cat(parts, 1)

    def _tapped(self, tower: WanTower) -> Features:
        return lambda data: self._blocks(tower, data, [tower.tap.block])[0]

    def _cosine(self, tower: WanTower) -> float:
        """Mean cosine of the tokens to those in float32, on at most 16 clips to choose on."""
        few = self.trials["rooms"][0].splits[1][:16]
        exact = tower.features(few.frames.to(self.device).float() / 255)
        found = self._tapped(tower)(few).float()
        return torch.cosine_similarity(found, exact, dim=2).mean().item()


def recorded_halves(clip: Clip, gap: int = 6) -> list[list[ProbeSet]]:
    """Two trials of a camera path: fit on one half of it and score on the other, both ways.

    The path is cut into blocks of 2*gap frames (a rest is dropped), each of them `gap` pairs, `gap`
    frames apart, which matches compare. The last fifth of a fitted half chooses the penalty.
    Raises ValueError below 80 frames a half.
    """
    blocks = len(clip.frames) // (4 * gap)  # of a half
    if (frames := blocks * 2 * gap) < _HALF:
        raise ValueError(f"{clip.id}: {len(clip.frames)} frames give {frames} a half, expected "
                         f"{_HALF}; fewer cannot fit a probe")
    firsts = [2 * gap * block + i for block in range(2 * blocks) for i in range(gap)]
    path = probe_set((_frames(clip, [first, first + gap]) for first in firsts), [0, 1], True,
                     [f"{first // (2 * gap):06d}" for first in firsts])
    half, chosen = blocks * gap, max(1, blocks // 5) * gap
    trials = []
    for fit, test in ((path[:half], path[half:]), (path[half:], path[:half])):
        trials.append([fit[:half - chosen], fit[half - chosen:],
                       replace(test, rooms=test.rooms - test.rooms.min())])
    return trials


def read_splits(source: Source, counts: Sequence[int], workers: int) -> list[ProbeSet]:
    """The first and last frame of the first clips of train, val and test; ValueError for none."""
    splits = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for name, count in zip(SPLITS, counts, strict=True):
            ids = source.ids(name)[:count]
            if not ids:
                raise ValueError(f"probe: no clips in {name}; render some with: vega3d scenes "
                                 "render --n 2900 --held-out 300 600 --frames 5")
            rendered = isinstance(source, RoomSource)
            clips = (render_clips(source, ids, workers) if rendered else
                     pool.map(lambda i: _frames(source.clip(i), [0, -1]), ids))
            splits.append(probe_set((_frames(clip, [0, -1]) for clip in clips), [0, 1],
                                    rooms=[i.rpartition("_")[0] or i for i in ids]))
    return splits


def _frames(clip: Clip, numbers: list[int]) -> Clip:
    """Some of a clip's frames, without objects."""
    arrays = {name: value[numbers] for name in ("frames", "depth", "normals", "poses")
              if (value := getattr(clip, name)) is not None}
    return replace(clip, instances=None, objects=[], **arrays)


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
    fov = torch.cat([data.fov for trial in trials for data in trial.splits])
    counts = np.array([[len(data) for data in trial.splits] for trial in trials]).sum(0)
    return {"grid": GRID, "fov_low_deg": fov.min().item(), "fov_high_deg": fov.max().item(),
            "probe_clips": int(counts[0]), "val_clips": int(counts[1]),
            "test_clips": int(counts[2]), "frames_a_clip": 2}


def _is_tower(name: str) -> bool:
    return ":" in name and not Path(name).exists()


def probe_alignment(config: AlignmentConfig, rooms: RoomSource, seed: int, device: str,
                    workers: int) -> list[Row]:
    """Rows for bench/results/alignment.json, controls first; `rooms`: without a folder of clips."""
    table = Alignment(config, resolve_device(device), seed)
    halves: list[list[ProbeSet]] = []
    if config.rgbd is not None:
        recorded = read_rgbd(config.rgbd)
        halves = recorded_halves(recorded)
        offset = check_registration(recorded, config.rgbd)
        table.say(f"{config.rgbd}: depth lies {offset:.1f} px off colour, of 224")
    source = rooms if config.rooms is None else ClipFolder(config.rooms)
    counts = (config.fit_clips, config.val_clips, config.test_clips)
    table.add("rooms", read_splits(source, counts, workers))
    for splits in halves:
        table.add("real", splits)
    return table.rows(config.generators)
