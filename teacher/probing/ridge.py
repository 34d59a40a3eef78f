"""Ridge regression of log depth and normals of tokens, chosen on validation rooms.

A token's features come in named parts, its place always with them. One pass over the fitted tokens
gives the probes of every combination of parts.
"""
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from teacher.probing.probes import ProbeSet, mlp, place_columns
from teacher.towers.base import GRID

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # times the mean eigenvalue
RESAMPLES = 1000
_CLIPS = 128  # at once
Scale = list[tuple[Tensor, Tensor]]          # mean and deviation of the channels of each part
Terms = dict[str, np.ndarray]                # sums over the tokens of each room, [R]
Combinations = Mapping[str, Sequence[str]]   # name -> the parts that are concatenated


@dataclass
class Split:
    """Probe inputs and targets, and the room of each clip, 0-based."""
    data: ProbeSet
    rooms: np.ndarray

    def __getitem__(self, clips: slice) -> "Split":
        tensors = {f.name: getattr(self.data, f.name)[clips] for f in fields(self.data)
                   if f.name != "keys"}
        return Split(replace(self.data, **tensors), self.rooms[clips])

    def __len__(self) -> int:
        return len(self.rooms)

    def sums(self, clip: Tensor, value: Tensor) -> np.ndarray:
        """Sums over rooms of a value of each token or match, given its clip."""
        total = np.zeros(self.rooms.max() + 1)
        by_clip = value.new_zeros(len(self), dtype=torch.double).index_add_(0, clip, value.double())
        np.add.at(total, self.rooms, by_clip.cpu().numpy())
        return total


class Inputs:
    """The parts' tokens of one split beside the place: standardised columns in order of the parts.

    parts: [N,K,D,14,14] each.
    """

    def __init__(self, split: Split, parts: Mapping[str, Tensor], scale: Scale | None = None):
        self.split, self.parts = split, parts
        self.scale = scale or [_scale(x) for x in parts.values()]
        self.device = next(iter(parts.values())).device

    def columns(self, names: Sequence[str]) -> Tensor:
        """Indices of the columns of some parts and of the place."""
        chosen = [torch.full((x.shape[2], ), name in names) for name, x in self.parts.items()]
        place = torch.ones(place_columns(1, torch.device("cpu")).shape[1], dtype=torch.bool)
        return torch.cat([*chosen, place]).nonzero().flatten().to(self.device)

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """x [M,D], y [M,4] (log depth, normal) and clip [M] of the tokens of known depth."""
        data = self.split.data
        for i in range(0, len(self.split), _CLIPS):
            rows = slice(i, i + _CLIPS)
            x = torch.cat([(_flat(part[rows]) - mean) / std for part, (mean, std) in
                           zip(self.parts.values(), self.scale, strict=True)], 1)
            depth = data.depth[rows].to(self.device)
            y = torch.cat([depth.clamp_min(1e-3).log().flatten()[:, None],
                           _flat(data.normals[rows].to(self.device))], 1)
            known = depth.flatten() > 0
            clip = torch.arange(i, i + len(depth), device=self.device)
            clip = clip.repeat_interleave(depth[0].numel())
            x = torch.cat([x, place_columns(len(x) // GRID**2, self.device)], 1)
            yield x[known], y[known], clip[known]


def ridge_terms(fit: Inputs, choice: Inputs, test: Inputs,
                combinations: Combinations) -> dict[str, Terms]:
    """Terms of `scores` on `test` by combination; the penalties are the best on `choice`."""
    gram, cross, shift = _normal_equations(fit)
    weights = [[_solve(gram, cross, fit.columns(parts), penalty) for penalty in PENALTIES]
               for parts in combinations.values()]
    table = torch.stack([torch.stack(one) for one in weights])             # [S,P,D,4]
    error = torch.zeros(*table.shape[:2], 4, device=fit.device, dtype=torch.double)
    for x, y, _ in choice.batches():
        error += (x @ table + shift - y).square().sum(2)                   # [S,P,M,4]
    best = torch.stack([error[..., 0], error[..., 1:].sum(2)], 2).argmin(1)  # [S,2]
    rows = torch.arange(len(table), device=fit.device)
    chosen = torch.cat([table[rows, best[:, 0]][..., :1], table[rows, best[:, 1]][..., 1:]], 2)
    batches = [(x @ chosen + shift, y, clip) for x, y, clip in test.batches()]
    predicted, y, clip = (torch.cat(column, dim) for column, dim in
                          zip(zip(*batches, strict=True), (1, 0, 0), strict=True))
    return {name: _terms(test.split, one, y, clip)
            for name, one in zip(combinations, predicted, strict=True)}


def mlp_terms(fit: Inputs, test: Inputs, combinations: Combinations,
              seeds: int) -> dict[str, Terms]:
    """As `ridge_terms` of a 256-unit MLP; the mean over seeds."""
    (x, y, _), (b, truth, clip) = (map(torch.cat, zip(*one.batches(), strict=True))
                                   for one in (fit, test))
    out = {}
    for name, parts in combinations.items():
        columns = fit.columns(parts)
        out[name] = average([
            _terms(test.split, mlp(x[:, columns], y, b[:, columns], seed), truth, clip)
            for seed in range(seeds)])
    return out


def match_terms(split: Split, x: Tensor) -> Terms:
    """Matches of the first in the last frame by features [N,K,D,14,14], each frame's mean off."""
    flat = x.float().flatten(3).transpose(2, 3)[:, [0, -1]]                # [N,2,196,D]
    flat = F.normalize(flat - flat.mean(2, keepdim=True), dim=-1)
    nearest = (flat[:, 0] @ flat[:, 1].transpose(1, 2)).argmax(-1)         # [N,196]
    truth = split.data.matches.to(x.device)
    off = torch.maximum((nearest // GRID - truth // GRID).abs(),
                        (nearest % GRID - truth % GRID).abs())
    clip, token = (truth >= 0).nonzero(as_tuple=True)
    off = off[clip, token]
    return {name: split.sums(clip, value.float()) for name, value in
            {"matches": off >= 0, "exact": off == 0, "within1": off <= 1}.items()}


def average(runs: Sequence[Terms]) -> Terms:
    """The mean of the terms of several seeds."""
    return {name: np.mean([run[name] for run in runs], 0) for name in runs[0]}


def scores(terms: Terms) -> dict[str, np.ndarray]:
    """depth_r2 and normal_cos, or match_exact and match_within1: [1+RESAMPLES] each.

    The first is of all rooms, the others of rooms drawn with replacement; equal room counts get
    equal draws. NaN where nothing is known.
    """
    rooms = len(next(iter(terms.values())))
    draws = np.random.default_rng(0).multinomial(rooms, np.full(rooms, 1 / rooms), RESAMPLES)
    weights = np.concatenate([np.ones((1, rooms)), draws])
    total = {name: weights @ value for name, value in terms.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        if "matches" in total:
            return {f"match_{name}": total[name] / total["matches"]
                    for name in ("exact", "within1")}
        n = total["tokens"]
        return {"depth_r2": 1 - total["error"] / (total["depth_square"] - total["depth"]**2 / n),
                "normal_cos": total["normal_cos"] / n}


def _terms(split: Split, predicted: Tensor, y: Tensor, clip: Tensor) -> Terms:
    depth = y[:, 0]
    each = {"tokens": torch.ones_like(depth), "depth": depth, "depth_square": depth.square(),
            "error": (predicted[:, 0] - depth).square(),
            "normal_cos": F.cosine_similarity(predicted[:, 1:], y[:, 1:], dim=1)}
    return {name: split.sums(clip, value) for name, value in each.items()}


def _normal_equations(fit: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """X'X [D,D] and X'Y [D,4] in float64 of targets less their mean [4], and that mean."""
    total, count = torch.zeros(4, device=fit.device, dtype=torch.double), 0
    gram = cross = sums = torch.zeros((), device=fit.device, dtype=torch.double)
    for x, y, _ in fit.batches():
        gram, cross = gram + (x.T @ x).double(), cross + (x.T @ y).double()
        sums = sums + x.sum(0).double()
        total, count = total + y.sum(0).double(), count + len(y)
    shift = total / max(1, count)
    return gram, cross - sums[:, None] * shift, shift.float()


def _solve(gram: Tensor, cross: Tensor, columns: Tensor, penalty: float) -> Tensor:
    """Weights [D,4] of the ridge regression on some columns; 0 elsewhere."""
    part = gram[columns][:, columns]
    part = part + penalty * part.diagonal().mean() * torch.eye(len(part)).to(part)
    weights = torch.zeros(len(gram), 4, device=gram.device)
    weights[columns] = torch.linalg.solve(part, cross[columns]).float()
    return weights


def _flat(x: Tensor) -> Tensor:
    return x.float().permute(0, 1, 3, 4, 2).flatten(0, 3)                  # [N*K*196,D]


def _scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, from at most 512 clips spread evenly."""
    tokens = _flat(x[::-(-len(x) // 512)])
    return tokens.mean(0), tokens.std(0).clamp_min(1e-4)
