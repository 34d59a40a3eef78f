"""The clip that `vega3d export web` bundles: a slow walk through a held-out room, as one WebP.

    python -m bench.recipes.web_clip
"""
import numpy as np
from PIL import Image

from export.web.page import CLIP
from records.files import atomic_write, write_json
from scenes.rooms.camera_path import sample_trajectory
from scenes.rooms.source import RoomSource

ROOM, KEYFRAMES, BETWEEN = 4, 11, 3  # of the test split; of its camera path; frames between two
SIDE, COLUMNS, QUALITY = 224, 7, 84  # px of a frame; frames a row; of WebP
POINTS = [[0.3, 0.6], [0.55, 0.35], [0.7, 0.7]]  # matched until the visitor taps others


def main() -> None:
    source = RoomSource(test=ROOM + 1, size=SIDE)
    layout, rng = source.room("test", ROOM), np.random.default_rng([ROOM, 0])
    trajectory = sample_trajectory(layout, KEYFRAMES, rng)
    poses, intrinsics = smooth(trajectory.poses, BETWEEN + 1), trajectory.intrinsics(SIDE)
    scene, render = (layout, source.furniture), source.renderer.render
    first = render(*scene, poses[:1], intrinsics, 1.0, 0.0, 0)["frames"]
    exposure = float(np.clip((130 / max(float(first.mean()), 1.0)) ** 2.2, 0.25, 4.0))
    frames = render(*scene, poses, intrinsics, exposure, 0.008, 1)["frames"]
    picture = CLIP.with_name("clip.webp")
    with atomic_write(picture) as scratch:
        Image.fromarray(sheet(frames)).save(scratch, quality=QUALITY, method=6)
    write_json({"file": picture.name, "frames": len(frames), "columns": COLUMNS, "side": SIDE,
                "frames_per_second": 10, "points": POINTS, "room": f"test/{ROOM}"}, CLIP)
    print(f"{picture}: {len(frames)} frames, {picture.stat().st_size / 1e3:.0f} kB")


def sheet(frames: np.ndarray) -> np.ndarray:
    """[T,3,S,S] -> one picture [rows*S,COLUMNS*S,3], black after the last frame."""
    black = np.zeros((-len(frames) % COLUMNS, *frames.shape[1:]), np.uint8)
    rows = np.concatenate([frames, black]).reshape(-1, COLUMNS, 3, SIDE, SIDE)
    return rows.transpose(0, 3, 1, 4, 2).reshape(-1, COLUMNS * SIDE, 3)


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
    main()
