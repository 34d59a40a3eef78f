"""Probes of a tower's features for depth, normals, 3D position and matches.

Ridge regression and a 256-unit MLP read a token and its image position, which features therefore
gain nothing by encoding. Probes train on `val` rooms and are scored on `test` rooms; the generator
was trained on neither.
"""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenes.clip import Clip, check_shapes
from scenes.dense import patch_depth
from scenes.geometry import reproject, unproject
from teacher.probing.correspondence import (
    centre_points,
    correspondence_scores,
    correspondence_sums,
)
from teacher.towers.base import GRID
from teacher.towers.wan import WanTower

# penalties times the mean eigenvalue; chosen on the last tenth of the training tokens
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass
class ProbeSet:
    """Probe inputs and targets of K key frames a clip (first .. last)."""
    frames: Tensor     # [N,T,3,H,W] uint8
    keys: list[int]    # the K frames that are read
    depth: Tensor      # [N,K,14,14] metres, 0 = unknown
    normals: Tensor    # [N,K,3,14,14] unit, camera axes
    positions: Tensor  # [N,K,3,14,14] metres, camera axes: each cell's centre at its depth
    matches: Tensor    # [N,196] int, `true_matches` of the first and the last key frame
    points: Tensor     # [N,K,196,3] world metres of the token centres, NaN = unknown
    fov: Tensor        # [N] degrees across the frame


def probe_set(clips: Sequence[Clip], keys: list[int] | None = None,
              recorded: bool = False) -> ProbeSet:
    """Probe inputs and targets of clips at frames `keys` (None: every fourth).

    recorded: clips may lack normals (then 0) and poses (then no matches). Raises ValueError for
    others that lack something.
    """
    keys = keys or list(range(0, len(clips[0].frames), 4))
    columns: list[tuple[Tensor, ...]] = []
    for clip in clips:
        check_shapes(clip.id, {"frames": clip.frames.shape}, clips[0].id,
                     {"frames": clips[0].frames.shape})
        if clip.normals is None and not recorded:
            raise ValueError(f"clip {clip.id}: has no normals; probes need rendered rooms")
        surface = clip.frames[keys] * 0 if clip.normals is None else clip.normals[keys]
        normals = torch.from_numpy(surface).float()                                   # [K,3,H,W]
        depth = torch.from_numpy(patch_depth(clip)[keys])
        matches = np.full(GRID**2, -1)
        points = torch.full((len(keys), GRID**2, 3), torch.nan, dtype=torch.double)
        if clip.poses is not None or not recorded:
            matches, points = true_matches(clip, keys[0], keys[-1]), centre_points(clip, keys)
        columns.append((depth, F.normalize(F.adaptive_avg_pool2d(normals, GRID), dim=1),
                        _positions(clip, depth), torch.from_numpy(matches), points,
                        torch.tensor(_fov(clip))))
    frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
    return ProbeSet(frames, keys, *map(torch.stack, zip(*columns, strict=True)))


def true_matches(clip: Clip, first: int, last: int) -> np.ndarray:
    """Cell index in frame `last` of each 14x14 token centre of frame `first`, [196], or -1.

    -1: out of view, occluded (depth off by more than 5 %), unknown, or in the same cell.
    """
    assert clip.depth is not None and clip.intrinsics is not None and clip.poses is not None
    h, w = clip.depth.shape[1:]
    cell_h, cell_w = h // GRID, w // GRID
    v, u = np.meshgrid(np.arange(GRID) * cell_h + cell_h // 2,
                       np.arange(GRID) * cell_w + cell_w // 2, indexing="ij")
    rows, columns = v.ravel(), u.ravel()
    depth = clip.depth[first, rows, columns]                                          # [196]
    (x, y), distance = reproject(columns + 0.5, rows + 0.5, depth, clip.intrinsics,
                                 clip.poses[first], clip.poses[last])
    inside = (depth > 0) & (distance > 0.05) & (x >= 0) & (x < w) & (y >= 0) & (y < h)
    xi, yi = np.where(inside, x, 0).astype(int), np.where(inside, y, 0).astype(int)
    visible = inside & (np.abs(clip.depth[last, yi, xi] - distance) < 0.05 * distance)
    cells = yi // cell_h * GRID + xi // cell_w
    return np.where(visible & (cells != np.arange(GRID * GRID)), cells, -1)


def extract(data: ProbeSet, features: Callable[[Tensor], Tensor], device: torch.device,
            whole_clip: bool = False, batch: int = 16) -> Tensor:
    """Features of the key frames, [N,K,D,14,14] float16, or [L,N,K,D,14,14] of L blocks.

    features: frames [B,T,3,H,W] in [0,1] -> [(L,)B,T,D,14,14]. whole_clip: it gets all T frames,
    not only the key frames, as a tower that reads frames together needs.
    """
    parts = []
    for i in range(0, len(data.frames), batch):
        frames = data.frames[i:i + batch] if whole_clip else data.frames[i:i + batch, data.keys]
        out = features(frames.to(device).float() / 255)
        parts.append((out[..., data.keys, :, :, :] if whole_clip else out).half())
    return torch.cat(parts, -5)


def extract_blocks(data: ProbeSet, tower: WanTower, blocks: list[int],
                   device: torch.device) -> Tensor:
    """`extract` of several blocks at or below the tower's tap, [L,N,K,D,14,14]."""
    return extract(data, lambda frames: tower.block_features(frames, blocks), device,
                   tower.tap.frames == "video")


def probe(train: ProbeSet, test: ProbeSet, x_train: Tensor, x_test: Tensor,
          seed: int = 0) -> dict[str, float | None]:
    """All scores on `test` of features x [N,K,D,14,14]; None where undefined.

    depth_r2 by ridge and MLP, xyz_r2 by ridge, delta1 and normal cosine of the MLP, share of exact
    matches and of matches within one token, and those of `correspondence`.
    """
    found = scores({k: v.sum() for k, v in sums(train, test, x_train, x_test, seed).items()})
    rounded = {k: None if np.isnan(v) else float(v) for k, v in found.items()}
    return rounded | match_scores(test, x_test)


def sums(train: ProbeSet, test: ProbeSet, x_train: Tensor, x_test: Tensor, seed: int = 0,
         with_mlp: bool = True) -> dict[str, np.ndarray]:
    """The scores' terms by clip of `test`, [N] each, to resample clips; with_mlp: the MLP's too."""
    a, y, b, truth, clip = _regression(train, test, x_train, x_test)
    linear = ridge(a, y[:, [0, 4, 5, 6]], b)  # log depth and position
    depth, position = truth[:, 0], truth[:, 4:]
    each = {
        "tokens": torch.ones_like(depth), "depth": depth, "depth_square": depth.square(),
        "ridge_error": (linear[:, 0] - depth).square(),
        "xyz_error": (linear[:, 1:] - position).square().sum(1),
        "xyz_square": position.square().sum(1),
        "x": position[:, 0], "y": position[:, 1], "z": position[:, 2],
    }
    if with_mlp:
        predicted = mlp(a, y[:, :4], b, seed)  # log depth and normal
        error = predicted[:, 0] - depth
        each |= {"mlp_error": error.square(), "near": (error.abs() < np.log(1.25)).float(),
                 "normal_cos": F.cosine_similarity(predicted[:, 1:], truth[:, 1:4])}
    return _by_clip(each, clip, len(test.depth)) | correspondence_sums(x_test, test.points)


def _regression(train: ProbeSet, test: ProbeSet, x_train: Tensor,
                x_test: Tensor) -> tuple[Tensor, ...]:
    """Standardised inputs and targets of the tokens whose depth is known, of both sets, and the
    clip of each of test's: x [N,D+22], y [N,7], x, y, clip [M]."""
    device = x_train.device
    a, b = _tokens(x_train), _tokens(x_test)
    mean, std = a.mean(0), a.std(0).clamp_min(1e-4)
    a, b = _with_position((a - mean) / std), _with_position((b - mean) / std)
    (y, valid), (truth, valid_test) = (_targets(s, device) for s in (train, test))
    clip = torch.arange(len(test.depth), device=device).repeat_interleave(test.depth[0].numel())
    return a[valid], y[valid], b[valid_test], truth[valid_test], clip[valid_test]


def _by_clip(each: Mapping[str, Tensor], clip: Tensor, count: int) -> dict[str, np.ndarray]:
    out = {}
    for name, value in each.items():
        total = value.new_zeros(count, dtype=torch.double).index_add_(0, clip, value.double())
        out[name] = total.cpu().numpy()
    return out


def scores(total: Mapping[str, Any]) -> dict[str, Any]:
    """The scores from terms summed over clips: numbers, or arrays of resampled sums."""
    n = total["tokens"]
    variance = total["depth_square"] - total["depth"] ** 2 / n
    variance_xyz = total["xyz_square"] - (total["x"] ** 2 + total["y"] ** 2 + total["z"] ** 2) / n
    out = {"depth_r2_ridge": 1 - total["ridge_error"] / variance,
           "xyz_r2_ridge": 1 - total["xyz_error"] / variance_xyz}
    if "mlp_error" in total:
        out |= {"depth_r2_mlp": 1 - total["mlp_error"] / variance, "delta1": total["near"] / n,
                "normal_cos": total["normal_cos"] / n}
    return out | correspondence_scores(total)


def _tokens(x: Tensor) -> Tensor:
    return x.float().permute(0, 1, 3, 4, 2).flatten(0, 3)                             # [N*K*196,D]


def _with_position(x: Tensor) -> Tensor:
    return torch.cat([x, place_columns(len(x) // GRID**2, x.device)], 1)


def place_columns(frames: int, device: torch.device) -> Tensor:
    """The probes' columns of a token's place in its frame, [frames*196,22]."""
    grid = torch.linspace(-1, 1, GRID, device=device)
    v, u = torch.meshgrid(grid, grid, indexing="ij")
    waves = [f(s * np.pi * c) for s in (0.5, 1, 2, 4) for c in (u, v)
             for f in (torch.sin, torch.cos)]
    columns = [torch.ones_like(u), u, v, u * v, u * u, v * v, *waves]
    return torch.stack(columns, -1).flatten(0, 1).repeat(frames, 1)


def _targets(data: ProbeSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """Log depth, normal and position of every token [N*K*196,7], and whether depth is known."""
    depth = data.depth.to(device).flatten()                                           # [N*K*196]
    rest = [v.to(device).permute(0, 1, 3, 4, 2).flatten(0, 3)
            for v in (data.normals, data.positions)]
    return torch.cat([depth.clamp_min(1e-3).log()[:, None], *rest], 1).float(), depth > 0


def _positions(clip: Clip, depth: Tensor) -> Tensor:
    """Camera-space positions [K,3,14,14] m of the cells' centres at depth [K,14,14] m."""
    h, w = clip.frames.shape[2:]
    v, u = torch.meshgrid(*((torch.arange(GRID) + 0.5) * n / GRID for n in (h, w)), indexing="ij")
    assert clip.intrinsics is not None
    rows, columns = (x.flatten().double().numpy() for x in (v, u))                    # [196]
    points = unproject(columns, rows, depth.flatten(1).numpy(), clip.intrinsics)      # [K,3,196]
    return torch.from_numpy(points).unflatten(2, (GRID, GRID)).float()


def _fov(clip: Clip) -> float:
    assert clip.intrinsics is not None
    return float(np.degrees(2 * np.arctan(clip.frames.shape[3] / 2 / clip.intrinsics[0, 0])))


def ridge(x: Tensor, y: Tensor, x_test: Tensor) -> Tensor:
    """Ridge regression of y [N,K] on standardised x [N,D] with the best of RIDGES, at x_test."""
    cut = len(x) * 9 // 10  # clips are in order, so the rest are the last rooms

    def error(penalty: float) -> float:
        predicted = _solve(x[:cut], y[:cut], penalty, x[cut:])
        return (predicted - y[cut:]).square().mean().item()

    return _solve(x, y, min(RIDGES, key=error), x_test)


def _solve(x: Tensor, y: Tensor, penalty: float, x_test: Tensor) -> Tensor:
    shift = y.mean(0)
    gram = (x.T @ x).double()
    gram += penalty * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    return x_test @ torch.linalg.solve(gram, (x.T @ (y - shift)).double()).float() + shift


def mlp(x: Tensor, y: Tensor, x_test: Tensor, seed: int, steps: int = 300,
        batch: int = 8192) -> Tensor:
    """A 256-unit MLP from standardised x [N,D] to log depth and normal y [N,4], at x_test."""
    torch.manual_seed(seed)
    shift, scale = y.mean(0), torch.tensor([y[:, 0].std().item(), 1, 1, 1], device=x.device)
    net = nn.Sequential(nn.Linear(x.shape[1], 256), nn.GELU(), nn.Linear(256, 4)).to(x.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    draw, batch = torch.Generator(device=x.device).manual_seed(seed), min(batch, len(x))
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,), device=x.device, generator=draw)
        loss = F.smooth_l1_loss(net(x[rows]), (y[rows] - shift) / scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        return net(x_test) * scale + shift


def match_scores(data: ProbeSet, x: Tensor) -> dict[str, float]:
    """Shares of `true_matches` found exactly and within one token by features [N,K,D,14,14]."""
    flat = x.float().flatten(3).transpose(2, 3)                                       # [N,K,196,D]
    flat = F.normalize((flat - flat.mean((0, 1, 2))) / flat.std((0, 1, 2)).clamp_min(1e-4), dim=-1)
    nearest = (flat[:, 0] @ flat[:, -1].transpose(1, 2)).argmax(-1)                   # [N,196]
    truth = data.matches.to(x.device)
    off = torch.maximum((nearest // GRID - truth // GRID).abs(),
                        (nearest % GRID - truth % GRID).abs())[truth >= 0]
    return {"match_exact": (off == 0).float().mean().item(),
            "match_1": (off <= 1).float().mean().item()}
