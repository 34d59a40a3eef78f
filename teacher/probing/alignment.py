"""`vega3d teacher probe --generators`: what features add to the semantic encoder's.

Ridge regression of log depth and normals at 14x14, place always given, fitted on the rooms of
train, its penalty and the generator's tap chosen on those of val, and scored on those of test:
three sets of rooms without a common piece of furniture. Recorded frames, at the taps of the rooms:
fitted on one half of their camera path and scored on the other, both ways, by an MLP as well.
"""
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from records.files import atomic_write, digest, read_object
from records.results import Row
from scenes.clip import SPLITS, Clip, ClipFolder, Source
from scenes.rooms.source import RoomSource, render_clips
from scenes.sources.registration import check_registration
from scenes.sources.rgbd import read_recording
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
CACHE = Path("runs/cache/probe")
Features = Callable[[ProbeSet], Tensor]  # [N,K,D,14,14]
Taps = list[tuple[Tap, bool]]  # and whether it is the shipped one


class Alignment:
    """Rows of features beside the semantic encoder's, on rooms or on recorded frames."""

    def __init__(self, config: AlignmentConfig, device: torch.device, seed: int,
                 splits: Sequence[ProbeSet], chosen: int = 0):
        """splits: to fit on, to choose on and to score. With `chosen`: two halves of a camera path,
        each of which fits (its last `chosen` clips choose) while the other is scored."""
        self.config, self.device, self.seed = config, device, seed
        self.splits, self.chosen = splits, chosen
        self._encoder = SemanticEncoder().to(device)
        self._semantic = [*map(self.frame_features(self._encoder.features), splits)]
        self._console = Console(stderr=True)

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def trials(self, x: Sequence[Tensor]) -> list[list[Inputs]]:
        """To fit, to choose and to score: features x of each split, beside the encoder's."""
        sets = [*zip(self.splits, self._semantic, x, strict=True)]
        if not self.chosen:
            return [_inputs(sets)]
        early, late = slice(-self.chosen), slice(-self.chosen, None)
        return [_inputs([[part[early] for part in fit], [part[late] for part in fit], test])
                for fit, test in (sets, sets[::-1])]

    def frame_features(self, call: Callable[[Tensor], Tensor]) -> Features:
        """Features of frames [B,T,3,H,W] in [0,1] alone."""
        return lambda data: extract(data, call, self.device, batch=_CLIPS)

    def rows(self, generators: Sequence[str], measured: Sequence[Row] = ()) -> list[Row]:
        """Rows of generators: names, folders or KIND:FOLDER. measured: rows of rooms that say
        their taps; without, those of `choose`."""
        rows = []
        for name in generators:
            if _is_tower(name):
                tower = load_tower(name).to(self.device)
                rows.append(self.measure({"generator": name.partition(":")[0]},
                                         [self.frame_features(tower.features)]))
            else:
                taps = _taps(name, measured) if measured else self.choose(name)
                rows += self._generator_rows(name, taps)
        return rows

    def controls(self, generators: Sequence[str]) -> Iterator[Row]:
        """Rows of what a trained generator is more than; the first's VAE is one."""
        def nothing(frames: Tensor) -> Tensor:
            return frames.new_zeros(*frames.shape[:2], 1, GRID, GRID)

        first = next((name for name in generators if not _is_tower(name)), "wan-nano")
        latents = VAELatents(self.open(first, self.tap(0, 0))).features
        controls: dict[str, list[Callable[[Tensor], Tensor]]] = {
            "place only": [nothing], "semantic encoder": [self._encoder.features],
            "RGB patches": [RGBPatches().features], "VAE latents": [latents],
            "random-weights ViT-S": [untrained_vit(i, self.device)
                                     for i in range(self.config.redraws)]}
        for name, calls in controls.items():
            yield self.measure({"generator": name}, [*map(self.frame_features, calls)])

    def _generator_rows(self, generator: str, taps: Taps) -> list[Row]:
        folder = generator_folder(generator)
        settings = read_object(folder / "pretrain.json")
        align = settings.get("align", "none")
        rows: list[Row] = []
        for tap, ships in taps:
            tower = self.open(generator, tap)
            drawn = [self.open(generator, tap, seed) for seed in range(self.config.redraws)]
            facts = {"generator": folder.name, "align": align,
                     "align_block": None if align == "none" else settings["align_block"],
                     "width": tower.dim, "block": tap.block, "t": tap.k / 1000,
                     "draws": tap.seeds, "noise": tap.noise,
                     "shipped": ships, "cosine_to_fp32": self._cosine(tower)}
            rows.append(self.measure(facts, [self._tapped(tower)], [*map(self._tapped, drawn)]))
        return rows

    def choose(self, generator: str) -> Taps:
        """The tap with the largest fused depth R2 + normal cosine on val, of all blocks; of the
        generator that ships also its own, if it differs."""
        count = block_count(generator_folder(generator))
        blocks, found = [*range(count)], {}
        few, semantic = self.splits[0][:_CHOICE_CLIPS], self._semantic[0][:_CHOICE_CLIPS]
        for k in self.config.noise_levels:
            tower = self.open(generator, self.tap(blocks[-1], k))
            x = [self._blocks(tower, data, blocks) for data in (few, self.splits[1])]
            for block in blocks:
                fit, choice = _inputs([[few, semantic, x[0][block]],
                                       [self.splits[1], self._semantic[1], x[1][block]]])
                terms = ridge.ridge_terms(fit, choice, choice, {"fused": ("semantic", "x")})
                found[self.tap(block, k)] = sum(
                    float(value[0]) for value in ridge.scores(terms["fused"]).values())
        best = max(found, key=lambda tap: found[tap])
        self.say(f"{generator}: block {best.block}, t {best.k / 1000}")
        own, ships = self.tap(Tap().block, Tap().k), generator == self.config.shipped
        if not ships or own == best or own.block >= count:
            return [(best, ships)]
        return [(best, False), (own, True)]

    def measure(self, facts: Row, features: Sequence[Features],
                untrained: Sequence[Features] = ()) -> Row:
        """Several features are seeds of one."""
        columns = self._columns(features, COMBINATIONS)
        if untrained:
            drawn = self._columns(untrained, {"random_fused": COMBINATIONS["fused"]})
            columns |= {name: x for name, x in drawn.items() if name.startswith("depth_r2")}
        for name in [name for name in columns if name.startswith("depth_r2_semantic")]:
            for kind in ("", "random_"):
                if (fused := columns.get(name.replace("semantic", f"{kind}fused"))) is not None:
                    gain = name.replace("r2_semantic", f"{kind}gain")
                    columns[gain] = fused - columns[name]
        row: Row = {**dict.fromkeys(TAP_COLUMNS), "shipped": False, **facts,
                    "frames_from": "real" if self.chosen else "rooms", "seeds": len(features),
                    "untrained_seeds": len(untrained) or None}
        row |= self._ruler() | _values(columns)
        if row["generator"] == "place only":  # all tokens are equal
            row |= {name: None for name in row if name.startswith("match_")}
        self.say(f"{row['generator']}: depth R2 {row['depth_r2_semantic']:.3f}, "
                 f"alone {row['depth_r2_alone']:.3f}, fused {row['depth_r2_fused']:.3f}")
        return row

    def _columns(self, features: Sequence[Features],
                 combinations: ridge.Combinations) -> dict[str, np.ndarray]:
        """Scores with their resamples [1+R], means of both ways: of ridge, of matches, and on
        recorded frames, which have no normals, of the MLP, also of each way."""
        runs = []
        for seed, one in enumerate(features):
            seeds = [seed] if len(features) > 1 else range(self.config.redraws)
            runs.append([self._terms(inputs, combinations, seeds)
                         for inputs in self.trials([*map(one, self.splits)])])
        out: dict[str, np.ndarray] = {}
        for name in runs[0][0]:
            ways = [ridge.scores(ridge.average([run[way][name] for run in runs]), way)
                    for way in range(len(runs[0]))]
            for score in ways[0]:
                if self.chosen and score == "normal_cos":
                    continue
                column = score if name == "match" else f"{score}_{name}"
                out[column] = np.mean([found[score] for found in ways], 0)
                if name.endswith("_mlp"):
                    out |= {f"{column}_way{i}": found[score] for i, found in enumerate(ways, 1)}
        return out

    def _terms(self, inputs: Sequence[Inputs], combinations: ridge.Combinations,
               seeds: Sequence[int]) -> dict[str, ridge.Terms]:
        """seeds: of the MLP."""
        fit, choice, test = inputs
        terms = ridge.ridge_terms(fit, choice, test, combinations)
        if self.chosen:
            by_mlp = ridge.mlp_terms(fit, choice, test, combinations, seeds)
            terms |= {f"{name}_mlp": one for name, one in by_mlp.items()}
        return terms | {"match": ridge.match_terms(test.data, test.parts["x"])}

    def _ruler(self) -> Row:
        """What the scores depend on besides the features: grid, field of view, depths, numbers of
        clips; of recorded frames: pairs each way, and blocks of them that intervals draw."""
        fov = torch.cat([data.fov for data in self.splits])
        depth = torch.cat([data.depth.flatten() for data in self.splits])
        low, high = np.percentile(depth[depth > 0], (1, 99))
        fit, *others, test = [len(data) for data in self.splits]
        choice = others[0] if others else self.chosen
        return {"grid": GRID, "fov_low_deg": fov.min().item(), "fov_high_deg": fov.max().item(),
                "depth_p1_m": float(low), "depth_p99_m": float(high),
                "probe_clips": fit - self.chosen, "val_clips": choice, "test_clips": test,
                "frames_a_clip": 2, "resampled": int(self.splits[-1].rooms.max()) + 1}

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
        """Those of recorded frames are kept in files: a run that is stopped goes on from them."""
        def features(data: ProbeSet) -> Tensor:
            if not self.chosen:
                return self._blocks(tower, data, [tower.tap.block])[0]
            frames = hashlib.sha256(data.frames.numpy().tobytes()).hexdigest()
            path = CACHE / f"{digest({**tower.spec, 'frames': frames})}.safetensors"
            if not path.is_file():
                found = self._blocks(tower, data, [tower.tap.block])[0]
                with atomic_write(path) as scratch:
                    save_file({"x": found.cpu().contiguous()}, scratch)
            return load_file(path)["x"].to(self.device)
        return features

    def _cosine(self, tower: WanTower) -> float:
        """Mean cosine of the tokens to those in float32, on at most 4 clips to choose on."""
        few = self.splits[1][:4]
        exact = tower.features(few.frames.to(self.device).float() / 255)
        found = self._blocks(tower, few, [tower.tap.block])[0].float()
        return torch.cosine_similarity(found, exact, dim=2).mean().item()


def untrained_vit(seed: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Features of frames [B,T,3,H,W] in [0,1], of a ViT-S with random weights."""
    from student.config import StudentConfig
    from student.vit import Student

    torch.manual_seed(seed)
    vit = Student(StudentConfig("s", depth=12, stem="patch")).to(device).eval()

    @torch.inference_mode()
    def features(frames: Tensor) -> Tensor:
        return vit(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    return features


def recorded_halves(clip: Clip, gap: int = 6) -> tuple[list[ProbeSet], int]:
    """The first and the last frames of a camera path, and how many clips of a half choose.

    Neighbouring frames are alike, so intervals draw blocks of 2*gap frames: `gap` pairs, `gap`
    frames apart, which matches compare. The last fifth of a half chooses. What fills no block is
    left out between the halves. Raises ValueError below 80 frames a half, or without K.txt.
    """
    if clip.intrinsics is None:
        raise ValueError(f"{clip.id}: has no camera matrix; write it to K.txt")
    blocks = len(clip.frames) // (4 * gap)  # of a half
    if (frames := blocks * 2 * gap) < _HALF:
        raise ValueError(f"{clip.id}: {len(clip.frames)} frames give {frames} a half, expected "
                         f"{_HALF}; fewer cannot fit a probe")
    places = [2 * gap * block + i for block in range(blocks) for i in range(gap)]
    names = [f"{place // (2 * gap):06d}" for place in places]
    halves = []
    for start in (0, len(clip.frames) - frames):
        pairs = (_frames(clip, [start + place, start + place + gap]) for place in places)
        halves.append(probe_set(pairs, [0, 1], True, names))
    return halves, max(1, blocks // 5) * gap


def _inputs(sets: Sequence[Sequence[Any]]) -> list[Inputs]:
    """Of clips, the semantic encoder's features and others of each set; scaled as the first."""
    scale, found = None, []
    for data, semantic, x in sets:
        found.append(Inputs(data, {"semantic": semantic, "x": x}, scale))
        scale = found[0].scale
    return found


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


def _taps(generator: str, measured: Sequence[Row]) -> Taps:
    """Of a generator's rows of rooms."""
    name = generator_folder(generator).name
    rows = [row for row in measured if (row["generator"], row["frames_from"]) == (name, "rooms")]
    if not rows:
        raise ValueError(f"probe: no row of {name} on rooms says its tap; measure rooms as well "
                         "(--rooms FOLDER, or another --out)")
    return [(Tap(row["block"], round(1000 * row["t"]), seeds=row["draws"], noise=row["noise"]),
             row["shipped"]) for row in rows]


def _is_tower(name: str) -> bool:
    return ":" in name and not Path(name).exists()


def probe_alignment(config: AlignmentConfig, rooms: RoomSource, seed: int, device: str,
                    workers: int, measured: Sequence[Row] = ()) -> list[Row]:
    """Rows for bench/results/alignment.json, controls first; `rooms`: without a folder of clips.

    measured: rows of rooms, at whose taps recorded frames alone are then measured: of generators,
    or of the controls if there are none.
    """
    rows, where = [*measured], resolve_device(device)
    if config.rgbd is not None:
        recorded, assumed = read_recording(config.rgbd, per_metre=config.depth_unit)
        halves = recorded_halves(recorded)
        registration = check_registration([recorded])
        if registration.wrong:
            raise ValueError(f"{config.rgbd}: {registration.note}")
    if not measured:
        source = rooms if config.rooms is None else ClipFolder(config.rooms)
        counts = (config.fit_clips, config.val_clips, config.test_clips)
        table = Alignment(config, where, seed, read_splits(source, counts, workers))
        rows = [*table.controls(config.generators), *table.rows(config.generators)]
    if config.rgbd is not None:
        table = Alignment(config, where, seed, *halves)
        for note in assumed:
            table.say(f"{config.rgbd}: {note}")
        table.say(f"{config.rgbd}: {registration.note or 'depth is registered to colour'}")
        taken = [] if measured and config.generators else [*table.controls(config.generators)]
        rows += [*taken, *table.rows(config.generators, rows)]
    return rows[len(measured):]
