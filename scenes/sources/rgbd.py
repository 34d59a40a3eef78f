"""A folder of recorded RGB-D frames along one camera path, in one of four layouts.

TUM RGB-D     rgb.txt, depth.txt (time, file), groundtruth.txt; depth in 1/5000 m
7-Scenes      frame-000000.color.png, .depth.png, .pose.txt
ScanNet       color/0.jpg, depth/0.png, pose/0.txt, intrinsic/intrinsic_color.txt, _depth.txt
plain         images/ (or rgb/, color/, colour/) and depth/ with equal names, K.txt (or
              intrinsics.txt: the colour camera's 3x3 matrix, px), poses.txt (camera to world, a
              4x4 matrix a line)

Depth is 16 bit, in millimetres but for TUM's, 0 or 65535 where unknown. Where the depth camera has
a matrix of its own (K_depth.txt in any layout), depth is moved to the colour camera's pixels.
"""
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from records.files import read_text
from records.images import read_image, read_rgb
from scenes.clip import Clip
from scenes.sources.registration import inverted_poses, likelier_unit, moved_to_colour

COLOUR = ("images", "rgb", "color", "colour")
INTRINSICS = ("K.txt", "intrinsics.txt", "intrinsic/intrinsic_color.txt")
DEPTH_INTRINSICS = ("K_depth.txt", "intrinsic/intrinsic_depth.txt")
EXPECTED = "rgb.txt and depth.txt, frame-*.color.png, color/ and intrinsic/, or images/ and depth/"
Box = tuple[int, int, int, int]
_INVALID = 65535
_NO_CAMERA = ("has no camera matrix (K.txt), so no matches and no flicker; a focal length is "
              "assumed (53 degrees across)")
_SAME_TIME_S = 0.02
_TUM_CAMERAS = {  # fx, fy, cx, cy of 640x480; https://cvg.cit.tum.de/data/datasets/rgbd-dataset
    "freiburg1": (517.3, 516.5, 318.6, 255.3), "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6), "": (525.0, 525.0, 319.5, 239.5)}
_SEVEN_SCENES = (525.0, 525.0, 320.0, 240.0), (585.0, 585.0, 320.0, 240.0)  # colour, depth


@dataclass(frozen=True)
class Recording:
    """The files of T frames, and their cameras; no picture is opened yet."""
    colour: Sequence[Path]
    depth: Sequence[Path]
    camera: np.ndarray | None        # [3,3] of the colour pictures, px
    depth_camera: np.ndarray | None  # [3,3]; None: depth is seen by the colour camera
    poses: np.ndarray | None         # [T,4,4] camera to world
    per_metre: float = 1000.0
    notes: Sequence[str] = ()        # what was assumed

    def subset(self, at: np.ndarray) -> "Recording":
        return replace(self, colour=[self.colour[i] for i in at], depth=[self.depth[i] for i in at],
                       poses=None if self.poses is None else self.poses[at])


def read_recording(root: Path, size: int = 224, most: int | None = None,
                   per_metre: float | None = None) -> tuple[Clip, Sequence[str]]:
    """At most `most` frames, evenly spaced, as the middle square at `size` px; and what was
    assumed.

    per_metre: of the values of depth, if not the layout's. intrinsics and poses are None without a
    camera matrix. Raises ValueError naming what lacks or cannot be read; if no pixel has a depth,
    if poses are probably world to camera, or, unless per_metre is given, if depth is probably
    stored in another unit than the layout's.
    """
    recording = find_recording(root)
    count, unit = len(recording.depth), per_metre or recording.per_metre
    recording = recording.subset(np.linspace(0, count - 1, min(most or count, count)).astype(int))
    width, height = read_rgb(recording.colour[0]).size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    clip = read_frames(replace(recording, per_metre=unit), root.name, size,
                       (left, top, left + side, top + side))
    if not np.any(clip.depth):
        raise ValueError(f"{root}: no pixel has a depth")
    if why := inverted_poses(clip, unit):
        raise ValueError(f"{root}: its poses are probably world to camera: {why}; expected camera "
                         "to world: invert each pose")
    if not per_metre and (found := likelier_unit(clip, unit)):
        raise ValueError(f"{root}: depth is probably stored in another unit, {found[0]:g} values "
                         f"a metre: {found[1]}; give --depth-unit {found[0]:g}, or "
                         f"--depth-unit {unit:g} if it is right")
    return clip, recording.notes


def read_frames(recording: Recording, name: str, size: int, box: Box | None = None) -> Clip:
    """Its pictures, or `box` (left, top, right, bottom) of each, at size x size px."""
    whole = read_rgb(recording.colour[0]).size
    left, top, right, bottom = box = box or (0, 0, *whole)
    camera = recording.camera
    if camera is not None:
        _check_camera(camera, whole, recording.colour[0])
        camera = camera.copy()
        camera[:2, 2] -= left, top
        camera = np.diag([size / (right - left), size / (bottom - top), 1.0]) @ camera
    frames, depths = [], []
    for colour, path in zip(recording.colour, recording.depth, strict=True):
        picture = read_rgb(colour)
        depth = _depth(path, recording.per_metre)
        _check_sizes(path, picture.size, depth, whole, recording)
        frames.append(np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box)))
        if recording.depth_camera is None or camera is None:
            depths.append(_cut(depth, whole, box, size))
        else:
            depths.append(moved_to_colour(depth, recording.depth_camera, camera, size))
    return Clip(name, np.stack(frames).transpose(0, 3, 1, 2), depth=np.stack(depths),
                intrinsics=camera, poses=None if camera is None else recording.poses)


def is_recording(root: Path) -> bool:
    """Whether `find_recording` is meant to open the folder."""
    return (root / "rgb.txt").is_file() or (root / "depth").is_dir() or any(
        root.glob("frame-*.color.png"))


def find_recording(root: Path) -> Recording:
    """The frames of a folder in whichever layout it has. Raises ValueError if in none."""
    if (root / "rgb.txt").is_file() and (root / "depth.txt").is_file():
        found = _tum(root)
    elif any(root.glob("frame-*.color.png")):
        found = _seven_scenes(root)
    else:
        found = _named_alike(root)
    if not found.depth:
        raise ValueError(f"{root}: has no frames with colour and depth")
    camera, depth_camera = _camera(root, INTRINSICS), _camera(root, DEPTH_INTRINSICS)
    if camera is not None:
        found = replace(found, camera=camera, depth_camera=None, notes=())
    _check_rigid(found, root)
    return found if depth_camera is None else replace(found, depth_camera=depth_camera)


def _tum(root: Path) -> Recording:
    colour, depth = (_timed(root / f"{name}.txt") for name in ("rgb", "depth"))
    times = np.array([time for time, _ in depth])
    poses = [(time, _quaternion_pose(root, values)) for time, values in
             (_timed(root / "groundtruth.txt") if (root / "groundtruth.txt").is_file() else [])]
    frames = []
    for time, values in colour if depth else []:
        near = int(np.abs(times - time).argmin())
        at, pose = min(poses, key=lambda each: abs(each[0] - time), default=(time, np.eye(4)))
        if max(abs(times[near] - time), abs(at - time)) <= _SAME_TIME_S:
            frames.append((root / values[0], root / depth[near][1][0], pose))
    name = next((name for name in _TUM_CAMERAS if name and name in root.name), "")
    note = f"has no K.txt: TUM's camera is taken ({name or 'the default one'})"
    return Recording([frame[0] for frame in frames], [frame[1] for frame in frames],
                     _matrix(*_TUM_CAMERAS[name]), None,
                     np.stack([frame[2] for frame in frames]) if poses and frames else None,
                     5000.0, (note,))


def _seven_scenes(root: Path) -> Recording:
    colour = sorted(root.glob("frame-*.color.png"), key=_number)
    stems = [path.name.removesuffix(".color.png") for path in colour]
    depth = [root / f"{stem}.depth.png" for stem in stems]
    camera, depth_camera = (_matrix(*values) for values in _SEVEN_SCENES)
    note = "has no K.txt: 7-Scenes' cameras are taken (colour 525 px, depth 585 px)"
    return _tracked(Recording(colour, depth, camera, depth_camera, None, notes=(note,)),
                    [root / f"{stem}.pose.txt" for stem in stems])


def _named_alike(root: Path) -> Recording:
    folder = next((root / name for name in COLOUR if (root / name).is_dir()), None)
    if folder is None or not (root / "depth").is_dir():
        raise ValueError(f"{root}: not a folder of RGB-D frames; expected {EXPECTED}")
    depth = sorted((root / "depth").glob("*.png"), key=_number)
    by_name = {path.stem: path for path in folder.iterdir() if path.is_file()}
    if lacking := [path.name for path in depth if path.stem not in by_name]:
        raise ValueError(f"{root}: {lacking[0]} of depth/ has no picture of its name in "
                         f"{folder.name}/")
    if not depth:
        raise ValueError(f"{root}: depth/ holds no .png files")
    found = Recording([by_name[path.stem] for path in depth], depth, None, None,
                      _poses(root / "poses.txt", len(depth)), notes=(_NO_CAMERA,))
    if not (root / "pose").is_dir():
        return found
    return _tracked(found, [root / "pose" / f"{path.stem}.txt" for path in depth])


def _tracked(found: Recording, files: Sequence[Path]) -> Recording:
    """With a pose a file; frames that lost tracking (a pose that is not finite) are left out."""
    if not any(file.is_file() for file in files):
        return found
    poses = np.stack([read_pose(file) for file in files])
    valid = np.flatnonzero(np.isfinite(poses).all((1, 2)))
    return replace(found, poses=poses).subset(valid)


def _check_rigid(found: Recording, root: Path) -> None:
    """Each pose turns and moves, and neither scales nor mirrors: its inverse is used."""
    for i, pose in enumerate(() if found.poses is None else found.poses):
        turn = pose[:3, :3]
        if not (np.allclose(turn @ turn.T, np.eye(3), atol=1e-2) and np.linalg.det(turn) > 0
                and np.isfinite(pose).all() and np.allclose(pose[3], (0, 0, 0, 1))):
            raise ValueError(f"{root}: the pose of {found.colour[i].name} is not a rotation and a "
                             "position; expected camera to world, 0 0 0 1 in its last row")


def _check_camera(camera: np.ndarray, size: tuple[int, int], picture: Path) -> None:
    focal, middle = np.diag(camera)[:2] / max(size), camera[:2, 2] / size
    if not ((focal > 0.1) & (focal < 20) & (middle > 0.1) & (middle < 0.9)).all():
        raise ValueError(f"{picture}: is {size[0]}x{size[1]}, but the camera matrix is of another "
                         f"picture (focal length {camera[0, 0]:.5g} px, middle {camera[0, 2]:.5g}, "
                         f"{camera[1, 2]:.5g}); give the colour camera's, in px, as K.txt")


def _check_sizes(path: Path, size: tuple[int, int], depth: np.ndarray, first: tuple[int, int],
                 recording: Recording) -> None:
    width, height = first
    alike = abs(depth.shape[1] * height - depth.shape[0] * width) <= 0.02 * depth.size
    if size != first or not (alike or recording.depth_camera is not None):
        raise ValueError(f"{path}: is {depth.shape[1]}x{depth.shape[0]}, its picture "
                         f"{size[0]}x{size[1]}, expected {width}x{height}; register depth to the "
                         "colour camera first, or give its matrix as K_depth.txt")


def _cut(depth: np.ndarray, picture: tuple[int, int], box: Box, size: int) -> np.ndarray:
    """The box's depth at `size` px, of a picture with the colour's field of view."""
    (width, height), (left, top, right, bottom) = picture, box
    at = np.arange(size) + 0.5
    rows = (top + at * (bottom - top) / size) * depth.shape[0] / height
    columns = (left + at * (right - left) / size) * depth.shape[1] / width
    return depth[np.ix_(rows.astype(int), columns.astype(int))]


def _timed(path: Path) -> list[tuple[float, list[str]]]:
    """Lines `time value …`."""
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    try:
        return [(float(line[0]), [*line[1:], ""]) for line in lines if not line[0].startswith("#")]
    except ValueError as error:
        raise ValueError(f"{path}: a line does not begin with a time ({error})") from error


def _quaternion_pose(root: Path, values: Sequence[str]) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    try:
        turned = Rotation.from_quat(np.array(values[3:7], float)).as_matrix()
        position = np.array(values[:3], float)
    except ValueError as error:
        raise ValueError(f"{root / 'groundtruth.txt'}: a line is not time, position (3) and "
                         f"quaternion (4): {error}") from error
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turned, position
    return pose


def _number(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.stem)
    return (int(digits[-1]) if digits else 0), path.stem


def _depth(path: Path, per_metre: float) -> np.ndarray:
    """[H,W] float32 metres, 0 = unknown."""
    raw = np.asarray(read_image(path))
    if raw.ndim != 2 or raw.dtype.kind not in "iu" or raw.dtype == np.uint8:
        raise ValueError(f"{path}: not a depth picture (it is {raw.dtype}); expected 16-bit "
                         "PNG, in millimetres")
    raw = np.where(raw >= _INVALID, 0, raw)
    return (raw / per_metre).astype(np.float32)


def _matrix(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _camera(root: Path, names: Sequence[str]) -> np.ndarray | None:
    """[3,3] float64, of the uncropped pictures; None without one of these files."""
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is None:
        return None
    values = _numbers(path)
    if (values.shape not in ((3, 3), (4, 4)) or not np.isfinite(values).all()
            or min(np.diag(values)) <= 0 or values[2, :3].tolist() != [0, 0, 1]):
        raise ValueError(f"{path}: not a camera matrix (focal lengths above 0 px); expected three "
                         "lines of three numbers, 0 0 1 the last")
    return values[:3, :3].copy()


def _poses(path: Path, frames: int) -> np.ndarray | None:
    """[T,4,4]; None without the file."""
    if not path.is_file():
        return None
    values = _numbers(path)
    if values.shape != (frames, 16):
        raise ValueError(f"{path}: holds {values.shape[0]} x {values.shape[1]} numbers, expected a "
                         f"4x4 matrix (16) on a line for each of the {frames} frames")
    return values.reshape(-1, 4, 4)


def read_pose(path: Path) -> np.ndarray:
    """[4,4]; not finite where tracking was lost."""
    values = _numbers(path)
    if values.shape != (4, 4):
        raise ValueError(f"{path}: holds {' x '.join(map(str, values.shape))} numbers, expected "
                         "4 x 4")
    return values


def _numbers(path: Path) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file without numbers
            return np.loadtxt(read_text(path).splitlines(), ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path}: not a table of numbers ({error})") from error
