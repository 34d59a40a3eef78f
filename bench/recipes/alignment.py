"""What a generator's features add to the semantic encoder's, and what controls in their place add.

    python -m bench.recipes.alignment GENERATOR... --clips CLIPS --out alignment.json

GENERATOR: a name or folder in the diffusers layout. CLIPS: as `vega3d scenes render` writes them.
Ridge regression of log depth and normals at 14x14, position always given: fitted on the clips of
val; the tap is chosen on the last quarter of these, and scored on those of test, whose rooms and
furniture are others. --real CLIPS: recorded clips with depth, in the order of one camera path (its
split test); fitted on one half of it, scored on the other, both ways.
"""
import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from records.environment import environment
from records.files import read_object
from records.results import Row, measured, save
from scenes.clip import ClipFolder
from student.config import StudentConfig
from student.vit import Student
from teacher.probing.probes import (
    ProbeSet,
    extract,
    extract_blocks,
    match_scores,
    probe_set,
    ridge_sums,
)
from teacher.towers.checkpoints import block_count, generator_folder
from teacher.towers.controls import RGBPatches, VAELatents
from teacher.towers.efficientnet import SemanticEncoder
from teacher.towers.tap import Tap
from teacher.towers.wan import load_wan

LEVELS = (300, 500)
RESAMPLES = 1000


class Probing:
    """The semantic encoder's features of all sets, and rows of other features beside them."""

    def __init__(self, folder: Path, real: Path | None, draws: int, device: torch.device):
        self.device, self.draws = device, draws
        source = ClipFolder(folder)
        fit, test = (probe_set([source.clip(i) for i in source.ids(split)])
                     for split in ("val", "test"))
        cut = len(fit.depth) * 3 // 4
        self.choice = part(fit, slice(cut)), part(fit, slice(cut, None))
        self.pairs: dict[str, list[tuple[ProbeSet, ProbeSet]]] = {"rooms": [(fit, test)]}
        if real:
            recorded = ClipFolder(real)
            clips = [recorded.clip(i) for i in recorded.ids("test")]
            path = probe_set(clips, sorted({0, len(clips[0].frames) - 1}), recorded=True)
            half = len(path.depth) // 2
            first, second = part(path, slice(half)), part(path, slice(half, None))
            self.pairs["real"] = [(first, second), (second, first)]
        encoder = SemanticEncoder().to(device)
        self.semantic: dict[int, Tensor] = {}
        for one in self.sets():
            self.semantic[id(one)] = extract(one, encoder.features, device)

    def sets(self) -> list[ProbeSet]:
        return [*self.choice, *(one for pairs in self.pairs.values() for pair in pairs
                                for one in pair)]

    def fused(self, one: ProbeSet, features: Tensor) -> Tensor:
        return torch.cat([self.semantic[id(one)], features], 2)

    def choose(self, generator: str) -> tuple[int, int]:
        """(block, k) of the largest fused depth R2 + normal cosine on the validation clips."""
        blocks, found = list(range(block_count(generator_folder(generator)))), {}
        for k in LEVELS:
            tower = load_wan(generator, self.tap(blocks[-1], k)).to(self.device)
            a, b = (extract_blocks(one, tower, blocks, self.device) for one in self.choice)
            for block in blocks:
                scores = self.score(*self.choice, a[block], b[block])
                found[block, k] = scores["depth_r2_fused"] + scores["normal_cos_fused"]
        return max(found, key=lambda tap: found[tap])

    def generator_rows(self, generator: str, shipped: bool) -> list[Row]:
        folder = generator_folder(generator)
        settings = read_object(folder / "pretrain.json")
        block, k = self.choose(generator)
        print(f"{generator}: block {block}, t {k / 1000}", flush=True)
        tower = load_wan(generator, self.tap(block, k)).to(self.device)
        random = load_wan(generator, self.tap(block, k), random_weights=True).to(self.device)
        facts = {"generator": folder.name, "align": settings.get("align", "none"),
                 "align_block": settings.get("align_block") if settings.get("align") else None,
                 "width": tower.dim, "block": block, "t": k / 1000, "draws": self.draws,
                 "shipped": shipped}
        return self.rows(facts, tower.features, random.features)

    def control_rows(self, name: str, features: Callable[[Tensor], Tensor]) -> list[Row]:
        facts = {"generator": name, "align": None, "align_block": None, "width": None,
                 "block": None, "t": None, "draws": None, "shipped": False}
        return self.rows(facts, features)

    def rows(self, facts: Row, features: Callable, random: Callable | None = None) -> list[Row]:
        rows = []
        for frames_from, pairs in self.pairs.items():
            found: list[dict[str, float]] = []
            for train, test in pairs:
                a, b = (extract(one, features, self.device) for one in (train, test))
                scores = self.score(train, test, a, b)
                if random is not None:
                    drawn = [extract(one, random, self.device) for one in (train, test)]
                    scores["depth_r2_random_fused"] = self.score(
                        train, test, *drawn)["depth_r2_fused"]
                found.append(scores)
            mean = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
            if frames_from == "real":  # these have no normals
                mean = {k: v for k, v in mean.items() if not k.startswith("normal_")}
            if facts["generator"] == "position only":  # all tokens are equal
                mean = {k: v for k, v in mean.items() if not k.startswith("match_")}
            rows.append({**facts, "frames_from": frames_from, "grid": 14,
                         "probe_clips": sum(len(train.depth) for train, _ in pairs),
                         "test_clips": sum(len(test.depth) for _, test in pairs), **mean})
            print(json.dumps(rows[-1]), flush=True)
        return rows

    def score(self, train: ProbeSet, test: ProbeSet, x_train: Tensor,
              x_test: Tensor) -> dict[str, float]:
        """Scores on `test` of the features alone and fused; depth_gain with an interval."""
        pairs = {"semantic": [self.semantic[id(one)] for one in (train, test)],
                 "alone": [x_train, x_test],
                 "fused": [self.fused(train, x_train), self.fused(test, x_test)]}
        out, r2 = {}, {}
        for name, inputs in pairs.items():
            sums = ridge_sums(train, test, *inputs)
            r2[name] = _resampled_r2(sums)
            out[f"depth_r2_{name}"] = float(r2[name][0])
            out[f"normal_cos_{name}"] = float(sums["normal_cos"].sum() / sums["tokens"].sum())
        gain = r2["fused"] - r2["semantic"]
        low, high = np.percentile(gain[1:], (2.5, 97.5))
        matches = match_scores(test, x_test)
        return out | {"depth_gain": float(gain[0]), "depth_gain_low": float(low),
                      "depth_gain_high": float(high), "match_exact": matches["match_exact"],
                      "match_within1": matches["match_1"]}

    def tap(self, block: int, k: int) -> Tap:
        return Tap(block=block, k=k, seeds=self.draws, noise="shared")


def part(data: ProbeSet, rows: slice) -> ProbeSet:
    """The clips `rows`."""
    tensors = {name: value[rows] for name, value in vars(data).items() if name != "keys"}
    return replace(data, **tensors)


def _resampled_r2(sums: dict[str, np.ndarray]) -> np.ndarray:
    """Depth R2 over all clips, then of clips drawn with replacement: [1+RESAMPLES]."""
    count = len(sums["tokens"])
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = np.concatenate([np.ones((1, count)), draws])
    n, y, square, error = (weights @ sums[name]
                           for name in ("tokens", "depth", "depth_square", "ridge_error"))
    return 1 - error / (square - y**2 / n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("generators", nargs="+")
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--shipped", help="the generator that ships")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    probing = Probing(args.clips, args.real, args.draws, device)
    torch.manual_seed(0)
    untrained = Student(StudentConfig(size="s")).to(device).eval()

    def vit(frames: Tensor) -> Tensor:
        return untrained(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).detach()

    latents = VAELatents(load_wan(args.generators[0], probing.tap(0, 0)).to(device))
    rows = probing.control_rows("random-weights ViT-S", vit)
    rows += probing.control_rows("VAE latents", latents.features)
    rows += probing.control_rows("RGB patches", RGBPatches().features)
    rows += probing.control_rows("position only", lambda x: x.new_zeros(*x.shape[:2], 1, 14, 14))
    for generator in args.generators:
        rows += probing.generator_rows(generator, generator == args.shipped)
    program = "python -m bench.recipes.alignment"
    save(measured(args.out.stem, rows, environment(), program), args.out)


if __name__ == "__main__":
    main()
