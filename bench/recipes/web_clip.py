"""The clip that `vega3d export web` bundles: a slow walk through one held-out room, all frames in
one WebP picture.

Made by: python -m bench.recipes.web_clip
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


def main(room: int = 4, take: int = 0, keyframes: int = 11, between: int = 3, side: int = 224,
         quality: int = 84, points: tuple[tuple[float, float],
                                          ...] = ((0.3, 0.6), (0.55, 0.35), (0.7, 0.7)),
         out: Path = CLIP) -> None:
    """Renders a room of the test split and writes OUT (its facts) and clip.webp beside it.

    Args:
        room: its number in the test split
        take: which of its camera paths
        keyframes: of the path
        between: frames added between two of them
        side: of a frame, px
        quality: of WebP, 0 to 100
        points: tapped for the visitor in the first frame, (x, y) from 0 to 1
        out: where the facts go
    """
    source = RoomSource(test=room + 1, size=side)
    shown, rng = source.room("test", room), np.random.default_rng([room, take])
    track = sample_trajectory(shown, keyframes, rng)
    poses = smooth(track.poses, between + 1)
    place = (shown, source.furniture)
    first = source.renderer.render(*place, poses[:1], track.intrinsics(side), 1.0, 0.0, 0)["frames"]
    exposure = float(np.clip((130 / max(float(first.mean()), 1.0)) ** 2.2, 0.25, 4.0))
    frames = source.renderer.render(*place, poses, track.intrinsics(side), exposure, 0.008,
                                    1)["frames"]
    rows = -(-len(frames) // COLUMNS)
    sheet = np.zeros((rows * side, COLUMNS * side, 3), np.uint8)
    for i, frame in enumerate(frames):
        y, x = divmod(i, COLUMNS)
        sheet[y * side:(y + 1) * side, x * side:(x + 1) * side] = frame.transpose(1, 2, 0)
    picture = out.with_name("clip.webp")
    with atomic_write(picture) as scratch:
        Image.fromarray(sheet).save(scratch, quality=quality, method=6)
    write_json(
        {
            "file": picture.name, "frames": len(frames), "columns": COLUMNS, "side": side,
            "frames_per_second": 10, "points": [list(point)
                                                for point in points], "room": f"test/{room}"
        }, out)
    print(f"{picture}: {len(frames)} frames, {picture.stat().st_size / 1e3:.0f} kB")


def smooth(poses: np.ndarray, steps: int) -> np.ndarray:
    """Camera poses [T,4,4] -> [(T-1)*steps+1,4,4]: straight between positions, the nearest rotation
    to the mean."""
    at = np.linspace(0, len(poses) - 1, (len(poses) - 1) * steps + 1)
    low = np.minimum(at.astype(int), len(poses) - 2)
    share = (at - low)[:, None, None]
    between = poses[low] * (1 - share) + poses[low + 1] * share
    left, _, right = np.linalg.svd(between[:, :3, :3])
    between[:, :3, :3] = left @ right
    return between


if __name__ == "__main__":
    tyro.cli(main)
