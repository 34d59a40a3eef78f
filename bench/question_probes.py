"""What rooms' questions could gain from each second stream: linear probes of frozen features.

    python -m bench.question_probes WORK [--out FILE]     WORK: prepared by ONLY=prepare bench/h200/questions.sh, or so

A language model that reads the features can hardly tell what a ridge regression of them cannot see a trace of. For each
pair of streams, on held-out rooms: R2 of the logarithm of a room's floor, of a thing's longest side, of the distance
between two things, and of two tokens' points in one frame. Which tokens show the things, and each token's place in the
frame, are given throughout. Of the first three, which VSI-Bench asks for, also the mean relative accuracy that the
regression would score, and by how much that is over semantic features alone: what a reader could gain.
"""
import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.questions import Pile, bounds, differences
from records.environment import environment
from records.results import Row, measured, save
from scenes.boxes import gap
from scenes.metrics import mra
from teacher.asking import Room
from teacher.backbones import GRID, FixedNoise, RGBPatches
from teacher.lessons import load_rooms
from teacher.probes import ridge

STREAMS = ("semantic", "generator", "student_fp32", "rgb", "vae_latents", "noise")
PAIRS = 40    # of tokens a clip; of things, all
APART = 0.3   # m between two things, as in scenes.spatial
NEAR = 0.1    # m, so that tokens at one point have a logarithm
ASKED = ("room_size", "thing_size", "thing_distance")
Data = list[tuple[np.ndarray, float]]  # (features, logarithm of what they should tell), of one clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench/results/question_probes.json"))
    args = parser.parse_args()
    folder = args.work / "language"
    rooms = {split: load_rooms(folder / f"rooms_{split}.safetensors") for split in ("train", "test")}
    streams = {name: {split: _stream(folder, name, split, len(rooms[split])) for split in rooms}
               for name in (*STREAMS, "place")}
    rows: list[Row] = []
    alone: dict[str, Pile] = {}
    for names in [("semantic",), *(("semantic", name) for name in STREAMS[1:]), ("generator",), ("place",)]:
        row: Row = {"features": " + ".join(names), "train_clips": len(rooms["train"]), "clips": len(rooms["test"])}
        for what, collect in PROBES.items():
            data = {}
            for split, some in rooms.items():
                rng = np.random.default_rng(0)
                piles = [collect(room, torch.cat([streams[n][split][i] for n in names], 1), rng)
                         for i, room in enumerate(some)]
                data[split] = piles
            told, truth = _told(data["train"], data["test"])
            row[f"{what}_r2"] = _r2(told, truth)
            if what not in ASKED:
                continue
            mine = _accuracies(told, truth, [room.id for room, pile in zip(rooms["test"], data["test"], strict=True)
                                             for _ in pile])
            row[f"{what}_mra"] = float(np.mean([*mine.values()]))
            if what in alone:
                drawn, delta = differences([mine], [alone[what]])
                low, high = bounds(drawn, delta)
                row |= {f"{what}_gain": float(delta.mean()), f"{what}_gain_low": low, f"{what}_gain_high": high}
            alone.setdefault(what, mine)
        rows.append(row)
        print(row, flush=True)
    save(replace(measured("question_probes", rows, environment()),
                 command=" ".join(["python -m bench.question_probes", *sys.argv[1:]])), args.out)


def _stream(folder: Path, name: str, split: str, count: int) -> Tensor:
    """[N,T,D,14,14]; of "place", which is what all have, D = 0."""
    if name == "place":
        return torch.zeros(count, 5, 0, GRID, GRID)
    if name == "noise":
        blank = torch.zeros(1, 5, 3, GRID, GRID)
        return FixedNoise().features(blank).half().expand(count, -1, -1, -1, -1)
    stream: Any = next(iter(load_file(folder / f"{name}_{split}.safetensors").values()))
    if name == "rgb":  # a patch's 768 pixels, uint8: the mean of each 4 x 4 of them keeps the regression small
        assert stream.shape[2] == RGBPatches().dim
        return stream.float().div(255).unflatten(2, (3, 4, 4, 4, 4)).mean((4, 6)).flatten(2, 4).half()
    return stream


def room_size(room: Room, x: Tensor, rng: np.random.Generator) -> Data:
    """x [T,D,14,14]: its mean and spread over the clip."""
    x = x.float()
    pooled = torch.cat([x.mean((0, 2, 3)), x.std((0, 2, 3))]).numpy()
    return [(pooled, np.log(q.number)) for q in room.asked if q.task == "vsi:room_size_estimation" and q.number]


def thing_size(room: Room, x: Tensor, rng: np.random.Generator) -> Data:
    """The mean of its tokens."""
    return [(known, np.log(box[3:6].max())) for box, known in _things(room, x)]


def thing_distance(room: Room, x: Tensor, rng: np.random.Generator) -> Data:
    """The sum and difference of the means of two things' tokens; their distance is that of their boxes' closest points,
    and none are asked about that are nearly in touch."""
    things = _things(room, x)
    pairs = ((_both(a, b), gap(p, q)) for i, (p, a) in enumerate(things) for q, b in things[:i])
    return [(both, np.log(far)) for both, far in pairs if far >= APART]


def token_distance(room: Room, x: Tensor, rng: np.random.Generator) -> Data:
    """Likewise of two tokens of one frame."""
    tokens = _placed(x)                                                                        # [T,196,D+3]
    frame, a, b = rng.integers(len(tokens), size=PAIRS), *rng.integers(GRID * GRID, size=(2, PAIRS))
    points = room.points.reshape(len(tokens), -1, 3)
    far = np.log(np.linalg.norm(points[frame, a] - points[frame, b], axis=1) + NEAR)
    return [(_both(p, q), d) for p, q, d in zip(tokens[frame, a], tokens[frame, b], far, strict=True)]


PROBES: dict[str, Callable[[Room, Tensor, np.random.Generator], Data]] = {
    "room_size": room_size, "thing_size": thing_size, "thing_distance": thing_distance,
    "token_distance": token_distance}


def _placed(x: Tensor) -> np.ndarray:
    """Features with (frame, row, column) behind them, [T,196,D+3]."""
    t = len(x)
    place = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in (t, GRID, GRID)), indexing="ij"), 1)
    return torch.cat([x.float(), place], 1).flatten(2).transpose(1, 2).numpy()


def _things(room: Room, x: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """(box, mean of its tokens) of every box that has any."""
    known = room.inside.astype(np.float32) @ _placed(x).reshape(-1, x.shape[1] + 3)            # [M,D+3]
    return [(box, one) for box, one, mine in zip(room.boxes, known, room.inside, strict=True) if mine.any()]


def _both(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    off = a - b
    return np.concatenate([a + b, np.abs(off), [np.linalg.norm(off[-2:])]])


def _told(train: Sequence[Data], test: Sequence[Data]) -> tuple[Tensor, Tensor]:
    """What teacher.probes.ridge says of the test clips, and the truth, [N] each; of no features the training mean."""
    (x, y), (tx, ty) = (_table(piles) for piles in (train, test))
    if not x.shape[1]:
        return y.mean().expand(len(ty)), ty.squeeze(1)
    mean, std = x.mean(0), x.std(0) + 1e-5
    return ridge((x - mean) / std, y, (tx - mean) / std).squeeze(1), ty.squeeze(1)


def _r2(told: Tensor, truth: Tensor) -> float:
    return float(1 - (truth - told).square().sum() / (truth - truth.mean()).square().sum())


def _accuracies(told: Tensor, truth: Tensor, clips: Sequence[str]) -> Pile:
    """Mean relative accuracy of each, of logarithms."""
    pairs = zip(told.exp().tolist(), truth.exp().tolist(), strict=True)
    return {(clip, i): mra(*pair) for i, (clip, pair) in enumerate(zip(clips, pairs, strict=True))}


def _table(piles: Sequence[Data]) -> tuple[Tensor, Tensor]:
    """[N,D], [N,1]"""
    rows = [one for pile in piles for one in pile]
    return (torch.from_numpy(np.stack([x for x, _ in rows]).astype(np.float32)),
            torch.tensor([[y] for _, y in rows], dtype=torch.float32))


if __name__ == "__main__":
    main()
