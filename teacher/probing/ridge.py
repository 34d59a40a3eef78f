"""Probes of combinations of features, chosen on validation rooms, with intervals over rooms.

One pass over the fitted tokens gives the ridge regressions of every combination of parts.
"""
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from teacher.probing.probe_set import Inputs, ProbeSet
from teacher.probing.probes import match_distances, mlp, solve

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # times the mean eigenvalue
RESAMPLES = 1000
_BATCH = 2048                                # tokens of a step of the MLP
TARGETS = 4                                  # log depth and normal
Terms = dict[str, np.ndarray]                # sums over the tokens of each room, [R]
Combinations = Mapping[str, Sequence[str]]   # name -> the parts that are concatenated


def ridge_terms(fit: Inputs, choice: Inputs, test: Inputs,
                combinations: Combinations) -> dict[str, Terms]:
    """Terms of `scores` on `test` by combination; the penalties are the best on `choice`."""
    gram, cross, shift = _normal_equations(fit)
    table = gram.new_zeros(len(combinations), len(PENALTIES), *cross.shape).float()  # [S,P,D,4]
    for row, parts in zip(table, combinations.values(), strict=True):
        columns = fit.columns(parts)
        part = gram[columns][:, columns]
        for weights, penalty in zip(row, PENALTIES, strict=True):
            weights[columns] = solve(part, cross[columns], penalty)
    error = table.new_zeros(*table.shape[:2], TARGETS, dtype=torch.double)
    for x, y, _ in choice.batches():
        error += (x @ table + shift - y[:, :TARGETS]).square().sum(2)        # [S,P,M,4]
    best = torch.stack([error[..., 0], error[..., 1:].sum(2)], 2).argmin(1)  # [S,2]
    rows = torch.arange(len(table), device=fit.device)
    chosen = torch.cat([table[rows, best[:, 0]][..., :1], table[rows, best[:, 1]][..., 1:]], 2)
    batches = [(x @ chosen + shift, y, clip) for x, y, clip in test.batches()]
    predicted, y, clip = (torch.cat(column, dim) for column, dim in
                          zip(zip(*batches, strict=True), (1, 0, 0), strict=True))
    return {name: _terms(test.data, one, y, clip)
            for name, one in zip(combinations, predicted, strict=True)}


def mlp_terms(fit: Inputs, choice: Inputs, test: Inputs, combinations: Combinations,
              seeds: Sequence[int]) -> dict[str, Terms]:
    """As `ridge_terms` of a 256-unit MLP that stops where `choice` is best; the mean over seeds."""
    (x, y, _), (c, known, _), (b, truth, clip) = fit.all(), choice.all(), test.all()
    out = {}
    for name, parts in combinations.items():
        columns = fit.columns(parts)
        stop = c[:, columns], known[:, :TARGETS]
        out[name] = average([
            _terms(test.data, mlp(x[:, columns], y[:, :TARGETS], b[:, columns], seed, batch=_BATCH,
                                 stop=stop), truth, clip) for seed in seeds])
    return out


def match_terms(data: ProbeSet, x: Tensor) -> Terms:
    """Matches of the first in the last frame by features [N,K,D,14,14], each frame's mean off."""
    flat = x.float().flatten(3).transpose(2, 3)[:, [0, -1]]                # [N,2,196,D]
    clip, off = match_distances(flat - flat.mean(2, keepdim=True), data)
    return {name: data.sums(clip, value.float()) for name, value in
            {"matches": off >= 0, "exact": off == 0, "within1": off <= 1}.items()}


def average(runs: Sequence[Terms]) -> Terms:
    """The mean of the terms of several seeds."""
    return {name: np.mean([run[name] for run in runs], 0) for name in runs[0]}


def scores(terms: Terms, seed: int = 0) -> dict[str, np.ndarray]:
    """depth_r2 and normal_cos, or match_exact and match_within1: [1+RESAMPLES] each.

    The first is of all rooms, the others of rooms drawn with replacement; equal room counts and
    seeds get equal draws. NaN where nothing is known.
    """
    rooms = len(next(iter(terms.values())))
    draws = np.random.default_rng(seed).multinomial(rooms, np.full(rooms, 1 / rooms), RESAMPLES)
    weights = np.concatenate([np.ones((1, rooms)), draws])
    total = {name: weights @ value for name, value in terms.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        if "matches" in total:
            return {f"match_{name}": total[name] / total["matches"]
                    for name in ("exact", "within1")}
        n = total["tokens"]
        return {"depth_r2": 1 - total["error"] / (total["depth_square"] - total["depth"]**2 / n),
                "normal_cos": total["normal_cos"] / n}


def _terms(data: ProbeSet, predicted: Tensor, y: Tensor, clip: Tensor) -> Terms:
    depth = y[:, 0]
    each = {"tokens": torch.ones_like(depth), "depth": depth, "depth_square": depth.square(),
            "error": (predicted[:, 0] - depth).square(),
            "normal_cos": F.cosine_similarity(predicted[:, 1:], y[:, 1:TARGETS], dim=1)}
    return {name: data.sums(clip, value) for name, value in each.items()}


def _normal_equations(fit: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """X'X [D,D] and X'Y [D,4] in float64 of targets less their mean [4], and that mean."""
    gram = cross = sums = total = torch.zeros((), device=fit.device, dtype=torch.double)
    count = 0
    for x, y, _ in fit.batches():
        y = y[:, :TARGETS]
        gram, cross = gram + (x.T @ x).double(), cross + (x.T @ y).double()
        sums, total = sums + x.sum(0).double(), total + y.sum(0).double()
        count += len(y)
    shift = total / max(1, count)
    return gram, cross - sums[:, None] * shift, shift.float()
