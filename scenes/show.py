"""Contact sheet of a clip: a column a frame; rows of colour, depth, instances and normals."""
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from records.files import atomic_write
from scenes.clip import Clip

_LINE, _MARGIN = 14, 6
_MARK = ("Software", "vega3d scenes show")


def contact_sheet(clip: Clip, most: int = 9) -> Image.Image:
    """RGB image of at most `most` evenly spaced frames, with a row for each array the clip has."""
    count = len(clip.frames)
    chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
    rows = [clip.frames[chosen].transpose(0, 2, 3, 1)]  # [T,H,W,3] each
    if clip.depth is not None:
        rows.append(_depth_colours(clip.depth[chosen]))
    if clip.instances is not None:
        rows.append(instance_colours(clip.instances[chosen]))
    if clip.normals is not None:
        rows.append(_normal_colours(clip.normals[chosen]))
    sheet = np.concatenate([np.concatenate(list(row), 1) for row in rows], 0)
    return _captioned(sheet, clip)


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Writes a PNG marked as ours. Raises ValueError if `path` is a picture of something else."""
    if path.exists() and not _is_sheet(path):
        raise ValueError(f"{path}: exists and is not a contact sheet; choose another --out")
    marks = PngInfo()
    marks.add_text(*_MARK)
    with atomic_write(path) as scratch:
        sheet.save(scratch, format="PNG", pnginfo=marks)


def _is_sheet(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return picture.info.get(_MARK[0]) == _MARK[1]
    except OSError:
        return False


def instance_colours(instances: np.ndarray) -> np.ndarray:
    """[...] ids -> [...,3] uint8; the same id has the same colour in every clip, 0 is black."""
    ids = instances.astype(np.uint32)
    mixed = (ids * np.uint32(2654435761)) ^ (ids * np.uint32(40503) << np.uint32(7))
    colours = np.stack([(mixed >> s) & 255 for s in (8, 16, 24)], -1) * 200 // 255 + 55
    return np.where((ids > 0)[..., None], colours, 0).astype(np.uint8)


def _depth_colours(depth: np.ndarray) -> np.ndarray:
    """Near is warm, far is cold; black is unknown."""
    valid = depth > 0
    low, high = np.quantile(depth[valid], [0.01, 0.99]) if valid.any() else (0.0, 1.0)
    scaled = 1 - np.clip((depth - low) / max(high - low, 1e-6), 0, 1)
    return (colormaps["turbo"](scaled)[..., :3] * valid[..., None] * 255).astype(np.uint8)


def _normal_colours(normals: np.ndarray) -> np.ndarray:
    """x right is red, y up is green, towards the camera is blue."""
    n = normals.transpose(0, 2, 3, 1).astype(np.float32) / 127 * [1, -1, -1]
    return ((n + 1) * 127.5).astype(np.uint8)


def _captioned(sheet: np.ndarray, clip: Clip) -> Image.Image:
    facts = [clip.id]
    if clip.room_size:
        facts.append("room {:.1f} x {:.1f} x {:.1f} m".format(*clip.room_size))
    if clip.depth is not None and (clip.depth > 0).any():
        valid = clip.depth[clip.depth > 0]
        facts.append(f"depth {valid.min():.2f} to {valid.max():.2f} m")
    width = sheet.shape[1]
    columns = max(1, width // 190)
    lines = 1 + -(-len(clip.objects) // columns)
    page = Image.new("RGB", (width, sheet.shape[0] + lines * _LINE + 2 * _MARGIN), "white")
    page.paste(Image.fromarray(sheet))
    draw = ImageDraw.Draw(page)
    top = sheet.shape[0] + _MARGIN
    draw.text((_MARGIN, top), "   ".join(facts), fill="black")
    for i, item in enumerate(clip.objects):
        x, y = _MARGIN + i % columns * (width // columns), top + (1 + i // columns) * _LINE
        colour = tuple(int(c) for c in instance_colours(np.array([item.id]))[0])
        draw.rectangle((x, y + 2, x + 9, y + 11), fill=colour)
        draw.text((x + 14, y), f"{item.name} ({item.category})", fill="black")
    return page
