"""Probe inputs and targets: clips' frames, features of their tokens, and what probes predict.

Every probe also reads a token's image position, which features therefore gain nothing by encoding.
"""
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scenes.clip import Clip, check_shapes
from scenes.dense import patch_depth
from scenes.geometry import cell_pixels, reproject, unproject
from teacher.probing.correspondence import centre_points
from teacher.towers.base import GRID
from teacher.towers.wan import WanTower

PLACES = 22    # columns of `place_columns`
_CLIPS = 128   # of Inputs at once
Scale = list[tuple[Tensor, Tensor]]  # mean and deviation of the channels of each part


@dataclass
class ProbeSet:
    """N clips and the targets of their K key frames (first .. last)."""
    keys: list[int]    # the K frames that are read
    frames: Tensor     # [N,T,3,H,W] uint8
    depth: Tensor      # [N,K,14,14] metres, 0 = unknown
    normals: Tensor    # [N,K,3,14,14] unit, camera axes
    positions: Tensor  # [N,K,3,14,14] metres, camera axes: each cell's centre at its depth
    matches: Tensor    # [N,196] int, `true_matches` of the first and the last key frame
    points: Tensor     # [N,K,196,3] world metres of the token centres, NaN = unknown
    fov: Tensor        # [N] degrees across the frame
    rooms: Tensor      # [N] int, 0-based

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, clips: slice) -> "ProbeSet":
        return replace(self, **{f.name: getattr(self, f.name)[clips] for f in fields(self)
                                if f.name != "keys"})

    def sums(self, clip: Tensor, value: Tensor) -> np.ndarray:
        """Sums over rooms, [R], of a value of each token or match, given its clip."""
        total = value.new_zeros(int(self.rooms.max()) + 1, dtype=torch.double)
        rooms = self.rooms.to(value.device)[clip]
        return total.index_add_(0, rooms, value.double()).cpu().numpy()


def probe_set(clips: Iterable[Clip], keys: list[int] | None = None, recorded: bool = False,
              rooms: Sequence[str] = ()) -> ProbeSet:
    """Probe inputs and targets of clips at frames `keys` (None: every fourth).

    recorded: clips may lack normals (then 0) and poses (then no matches). rooms: the name of each
    clip's; without, each has its own. Raises ValueError for other clips that lack something.
    """
    columns: list[tuple[Tensor, ...]] = []
    for clip in clips:
        if not columns:
            first, keys = clip, keys or list(range(0, len(clip.frames), 4))
        check_shapes(clip.id, {"frames": clip.frames.shape}, first.id,
                     {"frames": first.frames.shape})
        columns.append(_columns(clip, keys or [], recorded))
    numbers = np.unique(rooms or range(len(columns)), return_inverse=True)[1]
    stacked = [*map(torch.stack, zip(*columns, strict=True)), torch.from_numpy(numbers)]
    return ProbeSet(keys or [], *stacked)


def _columns(clip: Clip, keys: list[int], recorded: bool) -> tuple[Tensor, ...]:
    """A clip's row of each field of ProbeSet up to `fov`."""
    if clip.normals is None and not recorded:
        raise ValueError(f"clip {clip.id}: has no normals; probes need rendered rooms")
    assert clip.intrinsics is not None
    surface = clip.frames[keys] * 0 if clip.normals is None else clip.normals[keys]
    normals = F.adaptive_avg_pool2d(torch.from_numpy(surface).float(), GRID)  # [K,3,14,14]
    depth = torch.from_numpy(patch_depth(clip)[keys])
    matches = np.full(GRID**2, -1)
    points = torch.full((len(keys), GRID**2, 3), torch.nan, dtype=torch.double)
    if clip.poses is not None or not recorded:
        matches, points = true_matches(clip, keys[0], keys[-1]), centre_points(clip, keys)
    fov = np.degrees(2 * np.arctan(clip.frames.shape[3] / 2 / clip.intrinsics[0, 0]))
    return (torch.from_numpy(clip.frames), depth, F.normalize(normals, dim=1),
            _positions(clip, depth), torch.from_numpy(matches), points, torch.tensor(float(fov)))


def true_matches(clip: Clip, first: int, last: int) -> np.ndarray:
    """Cell index in frame `last` of each 14x14 token centre of frame `first`, [196], or -1.

    -1: out of view, occluded (depth off by more than 5 %), unknown, or in the same cell.
    """
    assert clip.depth is not None and clip.intrinsics is not None and clip.poses is not None
    h, w = clip.depth.shape[1:]
    rows, columns = cell_pixels(h, w, GRID)
    depth = clip.depth[first, rows, columns]                                          # [196]
    (x, y), distance = reproject(columns + 0.5, rows + 0.5, depth, clip.intrinsics,
                                 clip.poses[first], clip.poses[last])
    inside = (depth > 0) & (distance > 0.05) & (x >= 0) & (x < w) & (y >= 0) & (y < h)
    xi, yi = np.where(inside, x, 0).astype(int), np.where(inside, y, 0).astype(int)
    visible = inside & (np.abs(clip.depth[last, yi, xi] - distance) < 0.05 * distance)
    cells = yi // (h // GRID) * GRID + xi // (w // GRID)
    return np.where(visible & (cells != np.arange(GRID**2)), cells, -1)


def _positions(clip: Clip, depth: Tensor) -> Tensor:
    """Camera-space positions [K,3,14,14] m of the cells' centres at depth [K,14,14] m."""
    assert clip.intrinsics is not None
    middles = ((np.arange(GRID) + 0.5) * n / GRID for n in clip.frames.shape[2:])
    rows, columns = (x.ravel() for x in np.meshgrid(*middles, indexing="ij"))         # [196]
    points = unproject(columns, rows, depth.flatten(1).numpy(), clip.intrinsics)      # [K,3,196]
    return torch.from_numpy(points).unflatten(2, (GRID, GRID)).float()


def extract(data: ProbeSet, features: Callable[[Tensor], Tensor], device: torch.device,
            whole_clip: bool = False, batch: int = 16) -> Tensor:
    """Features of the key frames, [N,K,D,14,14] float16, or [L,N,K,D,14,14] of L blocks.

    features: frames [B,T,3,H,W] in [0,1] -> [(L,)B,T,D,14,14]. whole_clip: it gets all T frames,
    not only the key frames, as a tower that reads frames together needs.
    """
    parts = []
    for frames in data.frames.split(batch):
        frames = frames if whole_clip else frames[:, data.keys]
        out = features(frames.to(device).float() / 255)
        parts.append((out[..., data.keys, :, :, :] if whole_clip else out).half())
    return torch.cat(parts, -5)


def extract_blocks(data: ProbeSet, tower: WanTower, blocks: list[int],
                   device: torch.device) -> Tensor:
    """`extract` of several blocks at or below the tower's tap, [L,N,K,D,14,14]."""
    return extract(data, lambda frames: tower.block_features(frames, blocks), device,
                   tower.tap.frames == "video")


class Inputs:
    """Tokens of named parts [N,K,D,14,14], standardised, side by side, then the place."""

    def __init__(self, data: ProbeSet, parts: Mapping[str, Tensor], scale: Scale | None = None):
        """scale: of the set that the probes are fitted on, if that is another."""
        self.data, self.parts = data, parts
        self.scale = scale or [_scale(x) for x in parts.values()]
        self.device = next(iter(parts.values())).device

    def columns(self, names: Sequence[str]) -> Tensor:
        """Indices of the columns of some parts and of the place."""
        chosen = [torch.full((x.shape[2], ), name in names) for name, x in self.parts.items()]
        place = torch.ones(PLACES, dtype=torch.bool)
        return torch.cat([*chosen, place]).nonzero().flatten().to(self.device)

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """x [M,D], y [M,7] (log depth, normal, position) and clip [M] of tokens of known depth."""
        data = self.data
        for i in range(0, len(data), _CLIPS):
            rows = slice(i, i + _CLIPS)
            parts = [(_tokens(part[rows]) - mean) / std for part, (mean, std) in
                     zip(self.parts.values(), self.scale, strict=True)]
            x = torch.cat([*parts, place_columns(len(parts[0]) // GRID**2, self.device)], 1)
            depth, normals, positions = (v[rows].to(self.device) for v in
                                         (data.depth, data.normals, data.positions))
            y = torch.cat([depth.clamp_min(1e-3).log().flatten()[:, None], _tokens(normals),
                           _tokens(positions)], 1)
            known = depth.flatten() > 0
            clip = torch.arange(i, i + len(depth), device=self.device)
            yield x[known], y[known], clip.repeat_interleave(depth[0].numel())[known]

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        x, y, clip = map(torch.cat, zip(*self.batches(), strict=True))
        return x, y, clip


def place_columns(frames: int, device: torch.device) -> Tensor:
    """The columns of a token's place in its frame, [frames*196,PLACES]."""
    grid = torch.linspace(-1, 1, GRID, device=device)
    v, u = torch.meshgrid(grid, grid, indexing="ij")
    waves = [f(s * np.pi * c) for s in (0.5, 1, 2, 4) for c in (u, v)
             for f in (torch.sin, torch.cos)]
    columns = [torch.ones_like(u), u, v, u * v, u * u, v * v, *waves]
    return torch.stack(columns, -1).flatten(0, 1).repeat(frames, 1)


def _tokens(x: Tensor) -> Tensor:
    return x.float().permute(0, 1, 3, 4, 2).flatten(0, 3)                  # [N*K*196,D]


def _scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, from at most 512 clips spread evenly."""
    tokens = _tokens(x[::-(-len(x) // 512)])
    return tokens.mean(0), tokens.std(0).clamp_min(1e-4)
