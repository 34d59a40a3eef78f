"""A camera in a box of textured walls, recorded with exact depth, in every layout that is read."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (160, 120)
CAMERA = np.array([[120.0, 0, 80], [0, 120, 60], [0, 0, 1]])
DEPTH_CAMERA = np.array([[140.0, 0, 82], [0, 140, 58], [0, 0, 1]])
HALF_M = np.array([2.0, 1.25, 3.0])  # of the box


def poses(count: int) -> np.ndarray:
    """[T,4,4] camera to world: 4 cm to the right and 3 ahead, turning by a degree, each frame."""
    found = np.tile(np.eye(4), (count, 1, 1))
    for i, pose in enumerate(found):
        a = np.radians(i)
        pose[:3, :3] = [[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]
        pose[[0, 2], 3] = 0.04 * i - 0.4, 0.03 * i
    return found


def view(pose: np.ndarray, camera: np.ndarray = CAMERA) -> tuple[np.ndarray, np.ndarray]:
    """Colour uint8 [120,160,3] and depth [120,160] m."""
    columns, rows = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    rays = np.linalg.inv(camera) @ np.stack([columns.ravel(), rows.ravel(), np.ones(columns.size)])
    world = pose[:3, :3] @ rays
    with np.errstate(divide="ignore"):
        reach = (np.sign(world) * HALF_M[:, None] - pose[:3, 3:]) / world    # to each pair of walls
    depth = reach.min(0)
    points = pose[:3, 3:] + world * depth
    tiles = np.floor(points * 4).astype(int)
    wall = reach.argmin(0)
    noise = np.random.default_rng(0).integers(40, 255, (3, 64, 64))
    shade = noise[:, (tiles[0] * 7 + tiles[1] * 13 + wall * 5) % 64, (tiles[2] + tiles[1]) % 64]
    return shade.T.reshape(*SIZE[::-1], 3).astype(np.uint8), depth.reshape(SIZE[::-1])


def save(root: Path, layout: str, count: int = 12, per_metre: float | None = None,
         at: Sequence[np.ndarray] | None = None, depth_camera: np.ndarray | None = None,
         scale: float = 1.0, inverted: bool = False) -> Path:
    """A recording in the layout `tum`, `7scenes`, `scannet` or `plain`; scale: of all lengths;
    inverted: with poses from world to camera."""
    unit = per_metre or (5000 if layout == "tum" else 1000)
    root.mkdir(parents=True)
    lines: dict[str, list[str]] = {"rgb": [], "depth": [], "groundtruth": ["# time x y z q"]}
    for i, pose in enumerate(poses(count) if at is None else at):
        colour = view(pose)[0]
        depth = np.round(view(pose, CAMERA if depth_camera is None else depth_camera)[1]
                         * unit * scale).astype(np.uint16)
        pose = pose.copy()
        pose[:3, 3] *= scale
        pose = np.linalg.inv(pose) if inverted else pose
        names = {"tum": (f"rgb/{i}.png", f"depth/{i}.png"), "plain": (f"images/{i}.png",
                 f"depth/{i}.png"), "scannet": (f"color/{i}.jpg", f"depth/{i}.png"),
                 "7scenes": (f"frame-{i:06d}.color.png", f"frame-{i:06d}.depth.png")}[layout]
        for name in names:
            (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(colour).save(root / names[0], quality=98)
        Image.fromarray(depth).save(root / names[1])
        if layout == "tum":
            a = np.arctan2(pose[0, 2], pose[0, 0]) / 2
            lines["rgb"].append(f"{i / 30:.4f} {names[0]}")
            lines["depth"].append(f"{i / 30 + 0.005:.4f} {names[1]}")
            x, y, z = pose[:3, 3]
            lines["groundtruth"].append(f"{i / 30 - 0.004:.4f} {x} {y} {z} 0 {np.sin(a)} 0 "
                                        f"{np.cos(a)}")
        elif layout == "7scenes":
            np.savetxt(root / f"frame-{i:06d}.pose.txt", pose)
        elif layout == "scannet":
            (root / "pose").mkdir(exist_ok=True)
            np.savetxt(root / "pose" / f"{i}.txt", pose)
        else:
            lines.setdefault("poses", []).append(" ".join(map(str, pose.ravel())))
    for name, rows in lines.items():
        if layout == "tum" or name == "poses":
            (root / f"{name}.txt").write_text("\n".join(rows) + "\n")
    _save_cameras(root, layout, depth_camera)
    return root


def _save_cameras(root: Path, layout: str, depth_camera: np.ndarray | None) -> None:
    if layout == "scannet":
        (root / "intrinsic").mkdir()
        for name, camera in (("color", CAMERA),
                             ("depth", CAMERA if depth_camera is None else depth_camera)):
            square = np.eye(4)
            square[:3, :3] = camera
            np.savetxt(root / "intrinsic" / f"intrinsic_{name}.txt", square)
        return
    np.savetxt(root / "K.txt", CAMERA)
    if depth_camera is not None:
        np.savetxt(root / "K_depth.txt", depth_camera)
