"""Which cell of one view shows what a cell of another view shows: exact, by depth and cameras; and
whether it is found.

A view is cut into g x g cells; a place is (column, row) in cells, so that 0 is the middle of the
first one.
"""
import numpy as np
import torch
from torch import Tensor

from scenes.clip import Clip
from scenes.geometry import cell_pixels, reproject

SAME_SURFACE = 0.05  # of the depth: a point further behind what the other view sees is hidden there


def has_matches(clip: Clip) -> bool:
    return len(clip.frames) > 1 and all(x is not None
                                        for x in (clip.depth, clip.intrinsics, clip.poses))


def places(clip: Clip, a: int, b: int, cells: int) -> np.ndarray:
    """Where frame b shows the middles of frame a's cells: [cells*cells,2] float32 (column, row);
    NaN where it does not.

    Raises ValueError if the clip lacks depth or cameras.
    """
    if clip.depth is None or clip.intrinsics is None or clip.poses is None:
        raise ValueError(
            f"clip {clip.id}: has no depth, intrinsics and poses; matches need all three")
    h, w = clip.depth.shape[1:]
    rows, columns = cell_pixels(h, w, cells)
    depth = clip.depth[a, rows, columns].astype(float)  # [N]
    pixels, distance = reproject(columns + 0.5, rows + 0.5, depth, clip.intrinsics, clip.poses[a],
                                 clip.poses[b])  # [2,N], [N]
    inside = (distance > 1e-3) & (depth > 0) & (pixels >= 0).all(0)
    inside &= (pixels[0] < w) & (pixels[1] < h)
    column, row = np.where(inside, pixels, 0).astype(int)
    there = clip.depth[b, row, column]
    visible = inside & (there > 0) & (np.abs(distance - there) < SAME_SURFACE * there)
    in_cells = pixels * np.array([[cells / w], [cells / h]]) - 0.5
    return np.where(visible, in_cells, np.nan).T.astype(np.float32)


def match_loss(asked: Tensor, b: Tensor, place: Tensor, temperature: float = 0.07) -> Tensor:
    """InfoNCE (arXiv 1807.03748): of all cells of view b, each asked cell must prefer the one that
    shows its place.

    asked: unit descriptors [P,C,M] of M cells of the first view; b [P,C,g,g]; place [P,M,2] in b's
    cells, NaN: not seen. The truth is shared between the four cells around a place. Returns a
    float32 scalar; 0 if nothing is seen.
    """
    grid = b.shape[-1]
    known = ~place.isnan().any(-1)  # [P,M]
    logits = asked.transpose(1, 2).float() @ b.flatten(2).float() / temperature  # [P,M,g*g]
    logits = logits[known].log_softmax(-1)  # [K,g*g]
    at = place[known].clamp(0, grid - 1)  # [K,2]
    low = at.floor().clamp(max=grid - 2)
    share = at - low  # [K,2]
    loss = logits.new_zeros(())
    for dx in (0, 1):
        for dy in (0, 1):
            weight = (share[:, 0] if dx else 1 - share[:, 0]) * (share[:, 1] if dy else 1 -
                                                                 share[:, 1])
            cell = ((low[:, 1] + dy) * grid + low[:, 0] + dx).long()
            loss = loss - (weight * logits.gather(1, cell[:, None])[:, 0]).sum()
    return loss / max(len(logits), 1)


class MatchScores:
    """Share of cells whose best match lies within one 14x14 cell of the truth (both ways at most
    one), over pairs."""

    def __init__(self, cells: int = 14):
        self.cells = cells
        self.asked, self.right, self.lucky = 0, dict[str, float](), 0.0

    def add(self, maps: dict[str, tuple[Tensor, Tensor]], place: np.ndarray) -> None:
        """maps: by name, the two views' maps [C,g,g] (any widths, one g); place [g*g,2] in cells,
        NaN: not seen."""
        known = ~np.isnan(place).any(1)
        if not known.any():
            return
        grid = int(len(place)**0.5)
        near = self.cells / grid
        row, column = np.divmod(np.arange(grid * grid), grid)
        at = np.stack([column, row], 1)  # [N,2]
        self.asked += int(known.sum())
        close = (np.abs(at[None] - place[known][:, None]) * near <= 1).all(-1)  # [M,N]
        self.lucky += float(close.mean(1).sum())
        picks = {name: _best(a, b)[known]
                 for name, (a, b) in maps.items()} | {"same_place": np.flatnonzero(known)}
        for name, pick in picks.items():
            self.right[name] = self.right.get(name, 0.0) + float(close[np.arange(len(pick)),
                                                                       pick].sum())

    def result(self) -> dict[str, float]:
        """match_NAME for each map, match_same_place (nothing moved) and match_chance; 0 to 1."""
        asked = max(self.asked, 1)
        return {**{f"match_{name}": right / asked for name, right in self.right.items()},
                "match_chance": self.lucky / asked}


def rgb_patches(frames: np.ndarray, cells: int) -> Tensor:
    """frames uint8 [T,3,H,W] -> the pixels around each cell's middle, less their mean colour:
    [T,3*8*8,cells,cells].

    The control: what a matcher that knows nothing but colours finds. Windows are 16 px at 224, two
    cells of 28.
    """
    x = torch.from_numpy(frames).float() / 255
    x = torch.nn.functional.avg_pool2d(x, 2)  # 8 x 8 samples a window
    side = x.shape[-1] // cells
    windows = torch.nn.functional.unfold(x, 8, padding=(8 - side) // 2, stride=side)  # [T,192,N]
    windows = windows - windows.unflatten(1, (3, -1)).mean(2).repeat_interleave(64, 1)
    return windows.unflatten(2, (cells, cells))


def _best(a: Tensor, b: Tensor) -> np.ndarray:
    """The cell of b [C,g,g] most alike (cosine) to each cell of a: [g*g]."""
    unit = (torch.nn.functional.normalize(x.flatten(1).float(), dim=0) for x in (a, b))
    first, second = unit
    return (first.T @ second).argmax(1).cpu().numpy()
