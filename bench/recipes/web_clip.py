"""The clip that `vega3d export web` bundles: a slow walk through a held-out room, as one WebP.

    python -m bench.recipes.web_clip
"""
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from export.web.page import CLIP
from records.files import atomic_write, write_json
from scenes.rooms.camera_path import sample_trajectory
from scenes.rooms.source import RoomSource

COLUMNS = 7
POINTS = ((0.3, 0.6), (0.55, 0.35), (0.7, 0.7))


def main(room: int = 4, take: int = 0, keyframes: int = 11, between: int = 3, side: int = 224,
         quality: int = 84, points: tuple[tuple[float, float], ...] = POINTS,
         out: Path = CLIP) -> None:
    """Renders a room of the test split and writes OUT (its facts) and clip.webp beside it.

    Args:
        room: its number in the test split
        take: which of its camera paths
        keyframes: of the path
        between: frames added between two of them
        side: of a frame, px
        quality: of WebP, 0 to 100
        points: matched in the first frame until the visitor taps others, (x, y) from 0 to 1
        out: where the facts go
    """
    source = RoomSource(test=room + 1, size=side)
    layout, rng = source.room("test", room), np.random.default_rng([room, take])
    trajectory = sample_trajectory(layout, keyframes, rng)
    poses, intrinsics = smooth(trajectory.poses, between + 1), trajectory.intrinsics(side)
    scene, render = (layout, source.furniture), source.renderer.render
    first = render(*scene, poses[:1], intrinsics, 1.0, 0.0, 0)["frames"]
    exposure = float(np.clip((130 / max(float(first.mean()), 1.0)) ** 2.2, 0.25, 4.0))
    frames = render(*scene, poses, intrinsics, exposure, 0.008, 1)["frames"]
    picture = out.with_name("clip.webp")
    with atomic_write(picture) as scratch:
        Image.fromarray(sheet(frames)).save(scratch, quality=quality, method=6)
    write_json({"file": picture.name, "frames": len(frames), "columns": COLUMNS, "side": side,
                "frames_per_second": 10, "points": [list(point) for point in points],
                "room": f"test/{room}"}, out)
    print(f"{picture}: {len(frames)} frames, {picture.stat().st_size / 1e3:.0f} kB")


def sheet(frames: np.ndarray) -> np.ndarray:
    """[T,3,S,S] -> one picture [rows*S,COLUMNS*S,3], black after the last frame."""
    side, rows = frames.shape[-1], -(-len(frames) // COLUMNS)
    picture = np.zeros((rows * side, COLUMNS * side, 3), np.uint8)
    for i, frame in enumerate(frames):
        y, x = divmod(i, COLUMNS)
        picture[y * side:(y + 1) * side, x * side:(x + 1) * side] = frame.transpose(1, 2, 0)
    return picture


def smooth(poses: np.ndarray, steps: int) -> np.ndarray:
    """[T,4,4] -> [(T-1)*steps+1,4,4]: positions by straight lines, rotations next to the mean."""
    at = np.linspace(0, len(poses) - 1, (len(poses) - 1) * steps + 1)
    low = np.minimum(at.astype(int), len(poses) - 2)
    share = (at - low)[:, None, None]
    between = poses[low] * (1 - share) + poses[low + 1] * share
    left, _, right = np.linalg.svd(between[:, :3, :3])
    between[:, :3, :3] = left @ right
    return between


if __name__ == "__main__":
    tyro.cli(main)
