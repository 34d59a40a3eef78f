"""Small random tiling textures of walls, floors, rugs and pictures, [128,128,3] uint8 sRGB."""
import numpy as np

from scenes.furniture.pack import TEXTURE_PX as PX

Rng = np.random.Generator
WALL_KINDS = ("plaster", "wallpaper", "stripes", "bricks")
FLOOR_KINDS = ("planks", "parquet", "tiles", "carpet")
MORE_KINDS = ("terrazzo", "concrete", "marble", "plaid", "wood")  # of filmed rooms, on any side
METRES = {  # what one repeat of the texture measures
    "plaster": 1.5, "wallpaper": 1.2, "stripes": 0.8, "bricks": 1.0, "planks": 1.2, "parquet": 1.0,
    "tiles": 1.2, "carpet": 1.0, "wood": 0.8, "wall_tiles": 0.6, "terrazzo": 0.9, "concrete": 2.0,
    "marble": 1.4, "plaid": 0.7}


def make_texture(kind: str, rng: Rng) -> np.ndarray:
    """A random texture of a kind in METRES, or "rug", "picture", "poster", "view"."""
    return (np.clip(_KINDS[kind](rng), 0, 1) * 255).astype(np.uint8)


def smooth_noise(rng: Rng, cells_y: int, cells_x: int) -> np.ndarray:
    """Tiling noise [PX,PX] in about [-1,1]: random values on a grid, joined by cosines."""
    grid = rng.uniform(-1, 1, (cells_y, cells_x))
    for axis, cells in ((0, cells_y), (1, cells_x)):
        at = np.arange(PX) * cells / PX
        low = at.astype(int)
        t = (1 - np.cos(np.pi * (at - low))) / 2
        t = t[:, None] if axis == 0 else t[None, :]
        below, above = np.take(grid, low % cells, axis), np.take(grid, (low + 1) % cells, axis)
        grid = below * (1 - t) + above * t
    return grid


def _tint(rng: Rng, low: float, high: float, colourful: float) -> np.ndarray:
    return rng.uniform(low, high) * (1 + colourful * rng.uniform(-1, 1, 3))


def _wood_tint(rng: Rng) -> np.ndarray:
    red = rng.uniform(0.28, 0.8)
    return red * np.array([1, rng.uniform(0.68, 0.86), rng.uniform(0.42, 0.7)])


def _plaster(rng: Rng) -> np.ndarray:
    bump = 0.5 * smooth_noise(rng, 16, 16) + 0.5 * smooth_noise(rng, 64, 64)
    return _tint(rng, 0.6, 0.93, 0.16) * (1 + rng.uniform(0.01, 0.04) * bump[..., None])


def _wallpaper(rng: Rng) -> np.ndarray:
    ground, ink = _tint(rng, 0.55, 0.9, 0.2), _tint(rng, 0.35, 0.85, 0.35)
    n = int(rng.choice([4, 6, 8]))
    y, x = np.mgrid[:PX, :PX] * (2 * np.pi * n / PX)
    shift = np.pi * (np.floor(y / (2 * np.pi)) % 2)
    dots = rng.random() < 0.5
    pattern = (np.cos(x + shift) * np.cos(y) if dots
               else np.cos(x + rng.uniform(0.5, 2) * np.sin(y)))
    mask = np.clip((pattern - rng.uniform(0.2, 0.6)) * 6, 0, 1)[..., None]
    return ground + (ink - ground) * mask * rng.uniform(0.3, 0.8)


def _stripes(rng: Rng) -> np.ndarray:
    ground, ink = _tint(rng, 0.6, 0.92, 0.15), _tint(rng, 0.45, 0.85, 0.25)
    x = np.arange(PX) * int(rng.choice([4, 6, 8])) / PX % 1
    mask = np.clip((np.abs(x - 0.5) - rng.uniform(0.1, 0.3)) * 30, 0, 1)
    return np.broadcast_to(ground + (ink - ground) * 0.6 * mask[:, None], (PX, PX, 3))


def _blocks(rng: Rng, rows: int, columns: int, offset: float, gap: int,
            tint: np.ndarray, joint: np.ndarray, spread: float) -> np.ndarray:
    """Rectangles of slightly different brightness with joints `gap` px wide."""
    y, x = np.mgrid[:PX, :PX]
    row = y * rows // PX
    across = (x + (row * offset * PX / columns).astype(int)) % PX
    shade = 1 + spread * rng.uniform(-1, 1, (rows, columns))[row, across * columns // PX]
    in_joint = (y % (PX // rows) < gap) | (across % (PX // columns) < gap)
    return np.where(in_joint[..., None], joint, tint * shade[..., None])


def _bricks(rng: Rng) -> np.ndarray:
    clay = np.array([rng.uniform(0.5, 0.75), 0.4, 0.33])
    image = _blocks(rng, 16, 4, 0.5, 1, clay, _tint(rng, 0.55, 0.75, 0.05), 0.2)
    return image * (1 + 0.06 * smooth_noise(rng, 64, 64)[..., None])


def _tiles(rng: Rng) -> np.ndarray:
    n = int(rng.choice([2, 4]))
    image = _blocks(rng, n, n, 0, 2, _tint(rng, 0.45, 0.9, 0.12), _tint(rng, 0.35, 0.7, 0.05), 0.05)
    return image * (1 + 0.04 * smooth_noise(rng, 8, 8)[..., None])


def _wall_tiles(rng: Rng) -> np.ndarray:
    rows, tint = int(rng.choice([4, 8])), _tint(rng, 0.6, 0.95, 0.15)
    offset = float(rng.choice([0, 0.5]))
    return _blocks(rng, rows, 4, offset, 1, tint, tint * rng.uniform(0.7, 0.9), 0.04)


def _grain(rng: Rng) -> np.ndarray:
    return 0.6 * smooth_noise(rng, 64, 4) + 0.4 * smooth_noise(rng, 32, 8)


def _planks(rng: Rng) -> np.ndarray:
    tint, rows = _wood_tint(rng), int(rng.choice([8, 16]))
    image = _blocks(rng, rows, 2, 0.5 * rng.random(), 1, tint, tint * 0.55, 0.15)
    return image * (1 + 0.1 * _grain(rng)[..., None])


def _parquet(rng: Rng) -> np.ndarray:
    tint = _wood_tint(rng)
    along = _blocks(rng, 16, 4, 0, 1, tint, tint * 0.6, 0.12) * (1 + 0.08 * _grain(rng)[..., None])
    y, x = np.mgrid[:PX, :PX] // (PX // 4)
    return np.where(((x + y) % 2 == 0)[..., None], along, along.swapaxes(0, 1))


def _carpet(rng: Rng) -> np.ndarray:
    pile = 0.18 * rng.uniform(-1, 1, (PX, PX, 1)) + 0.06 * smooth_noise(rng, 8, 8)[..., None]
    return _tint(rng, 0.25, 0.75, 0.3) * (1 + pile)


def _wood(rng: Rng) -> np.ndarray:
    return _wood_tint(rng) * (1 + 0.14 * _grain(rng)[..., None])


def _rug(rng: Rng) -> np.ndarray:
    y, x = np.mgrid[:PX, :PX] / PX - 0.5
    edge = np.maximum(np.abs(x), np.abs(y)) * 2
    distance = edge if rng.random() < 0.5 else np.abs(x) + np.abs(y)
    rings = np.floor(distance * rng.integers(3, 9)).astype(int)
    colours = np.stack([_tint(rng, 0.2, 0.8, 0.5) for _ in range(4)])
    image = colours[(rings + (edge > 0.88)) % 4]
    return image * (1 + 0.12 * rng.uniform(-1, 1, (PX, PX, 1)))


def _picture(rng: Rng) -> np.ndarray:
    y, x = np.mgrid[:PX, :PX] / PX
    image = np.ones((PX, PX, 3)) * _tint(rng, 0.4, 0.95, 0.4)
    horizon = rng.uniform(0.35, 0.7) + 0.1 * smooth_noise(rng, 4, 4) * (rng.random() < 0.7)
    image = np.where((y > horizon)[..., None], _tint(rng, 0.2, 0.8, 0.5), image)
    for _ in range(int(rng.integers(1, 7))):
        cx, cy, r = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.04, 0.25)
        if rng.random() < 0.5:
            inside = np.hypot(x - cx, y - cy) < r
        else:
            inside = (np.abs(x - cx) < r) & (np.abs(y - cy) < r / 2)
        image = np.where(inside[..., None], _tint(rng, 0.15, 0.9, 0.6), image)
    border = np.maximum(np.abs(x - 0.5), np.abs(y - 0.5)) > 0.43
    brush = 1 + 0.08 * smooth_noise(rng, 32, 32)[..., None]
    return np.where(border[..., None], _tint(rng, 0.8, 0.97, 0.03), image * brush)


def _poster(rng: Rng) -> np.ndarray:
    """A sheet with pictures, blocks of colour and lines of text."""
    y, x = np.mgrid[:PX, :PX] / PX
    image = np.broadcast_to(_tint(rng, 0.3, 1.0, 0.4), (PX, PX, 3))
    image = image * (1 - 0.4 * rng.random() * y[..., None])
    for _ in range(int(rng.integers(1, 6))):
        left, top, width, height = rng.random(4) * [0.7, 0.7, 0.6, 0.4] + [0.03, 0.03, 0.1, 0.05]
        inside = (x > left) & (x < left + width) & (y > top) & (y < top + height)
        ink = _tint(rng, 0.05, 0.9, 0.6)
        what = rng.integers(3)
        if what == 0:  # text
            words = smooth_noise(rng, 64, 24) > -0.3
            inside &= (y * rng.integers(14, 34) % 1 < 0.5) & words
        elif what == 1:
            ink = ink * (1 + 0.5 * smooth_noise(rng, 16, 16)[..., None])
        image = np.where(inside[..., None], ink, image)
    return image


def _terrazzo(rng: Rng) -> np.ndarray:
    image = np.broadcast_to(_tint(rng, 0.5, 0.9, 0.1), (PX, PX, 3))
    for _ in range(int(rng.integers(2, 5))):
        chips = smooth_noise(rng, 32, 32) > rng.uniform(0.35, 0.6)
        image = np.where(chips[..., None], _tint(rng, 0.15, 0.9, 0.3), image)
    return image


def _clouds(rng: Rng) -> np.ndarray:
    return sum(smooth_noise(rng, 2**k, 2**k) / 2**(k - 1) for k in range(1, 7))


def _concrete(rng: Rng) -> np.ndarray:
    return _tint(rng, 0.3, 0.8, 0.08) * (1 + rng.uniform(0.06, 0.2) * _clouds(rng)[..., None])


def _marble(rng: Rng) -> np.ndarray:
    veins = np.exp(-np.abs(_clouds(rng)) * rng.uniform(6, 20))[..., None]
    ground = _tint(rng, 0.2, 0.95, 0.12)
    return ground + (_tint(rng, 0.2, 0.9, 0.12) - ground) * veins * rng.uniform(0.4, 1)


def _plaid(rng: Rng) -> np.ndarray:
    x = np.arange(PX) / PX
    image = np.broadcast_to(_tint(rng, 0.3, 0.9, 0.4), (PX, PX, 3))
    for _ in range(int(rng.integers(1, 4))):
        ink, n, wide = _tint(rng, 0.2, 0.9, 0.5), rng.integers(2, 9), rng.uniform(0.15, 0.5)
        band = ((x * n + rng.random()) % 1 < wide) * 0.5
        cover = (band[:, None] + band[None])[..., None]
        image = image + (ink - image) * cover * 0.8
    return image * (1 + 0.08 * rng.uniform(-1, 1, (PX, PX, 1)))


def _view(rng: Rng) -> np.ndarray:
    """The view from a window: sky over green or grey ground."""
    y = np.mgrid[:PX, :PX][0] / PX
    sky = np.array([0.55, 0.72, 0.95]) * rng.uniform(0.75, 1.05) + rng.uniform(0, 0.25)
    image = sky + (0.97 - sky) * y[..., None]
    clouds = np.clip(smooth_noise(rng, 8, 4) + 0.5 * smooth_noise(rng, 16, 8), 0, 1)[..., None]
    image = image + (1 - image) * clouds * 0.7
    ground = _tint(rng, 0.25, 0.6, 0.1) * (np.array([0.8, 1.1, 0.6]) if rng.random() < 0.7 else 1)
    line = rng.uniform(0.45, 0.8) + 0.12 * smooth_noise(rng, 2, 8) + 0.03 * smooth_noise(rng, 2, 32)
    ground = ground * (1 + 0.25 * smooth_noise(rng, 32, 32)[..., None])
    return np.where((y > line)[..., None], ground, image)


_KINDS = {"plaster": _plaster, "wallpaper": _wallpaper, "stripes": _stripes, "bricks": _bricks,
          "tiles": _tiles, "wall_tiles": _wall_tiles, "planks": _planks, "parquet": _parquet,
          "carpet": _carpet, "wood": _wood, "rug": _rug, "picture": _picture, "view": _view,
          "poster": _poster, "terrazzo": _terrazzo, "concrete": _concrete, "marble": _marble,
          "plaid": _plaid}
