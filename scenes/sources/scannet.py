"""ScanNet v2 scenes as clips, from the folders that its own tools and EmbodiedScan's frame
extraction write.

ROOT/scannetv2_SPLIT.txt                            one scene a line
ROOT/posed_images/SCENE/00000.jpg .png .txt         colour, depth (mm), camera to world; every tenth
frame or so ROOT/posed_images/SCENE/intrinsic.txt depth_intrinsic.txt
ROOT/scans/SCENE/SCENE.txt                          its axisAlignment
ROOT/scans/SCENE/SCENE_vh_clean_2.ply               mesh; with the next two: where each object is
ROOT/scans/SCENE/SCENE_vh_clean_2.0.010000.segs.json SCENE.aggregation.json
"""
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scenes.clip import Clip, SceneObject, Split

_MILLIMETRE = 1e-3
_CLASSES = {  # words of ScanNet's labels -> scenes.furniture.CLASSES; what is not here is decor
    "wall": "wall", "floor": "floor", "ceiling": "ceiling", "door": "door", "window": "window",
    "chair": "chair", "stool": "chair", "bench": "chair", "couch": "sofa", "sofa": "sofa",
    "table": "table", "desk": "table", "nightstand": "table", "bed": "bed", "cabinet": "storage",
    "shelf": "storage", "bookshelf": "storage", "dresser": "storage", "wardrobe": "storage",
    "closet": "storage", "counter": "storage", "lamp": "lamp", "refrigerator": "appliance",
    "oven": "appliance", "microwave": "appliance", "radiator": "appliance", "toilet": "sanitary",
    "sink": "sanitary", "bathtub": "sanitary", "shower": "sanitary", "tv": "electronics",
    "monitor": "electronics", "computer": "electronics", "printer": "electronics", "plant": "plant",
    "rug": "rug", "mat": "rug", "cup": "tableware", "bottle": "tableware"
}


class ScanNet:
    """Clips of `frames` frames spread evenly over each scene, squashed to `size` px square as
    VEGA-3D does.

    World axes are the aligned ones. Depth is looked up where each colour pixel's ray meets the
    depth picture. Ids are SPLIT/SCENE; an object's id is ScanNet's objectId + 1, as in its 2D
    instance pictures. Raises ValueError naming what is missing.
    """

    def __init__(self, root: Path | str, frames: int = 32, size: int = 384):
        self.root, self.frames, self.size = Path(root), frames, size
        if frames < 1 or size < 1:
            raise ValueError(f"scannet: got frames={frames}, size={size}, expected both at least 1")
        if not any(self.root.glob("scannetv2_*.txt")):
            raise ValueError(
                f"{self.root}: has no scannetv2_train.txt, scannetv2_val.txt or "
                "scannetv2_test.txt; copy them from ScanNet's repository (Tasks/Benchmark)")

    def ids(self, split: Split) -> list[str]:
        """The scenes of the split whose frames are here."""
        path = self.root / f"scannetv2_{split}.txt"
        names = path.read_text().split() if path.is_file() else []
        return [f"{split}/{name}" for name in names if (self.root / "posed_images" / name).is_dir()]

    def clip(self, clip_id: str) -> Clip:
        scene = clip_id.rpartition("/")[2]
        folder = self.root / "posed_images" / scene
        poses = self._poses(folder, scene)
        at = np.unique(np.linspace(0, len(poses) - 1, self.frames).round().astype(int))
        names = [sorted(poses)[i] for i in at]
        colour, depth = _matrix(folder / "intrinsic.txt"), _matrix(folder / "depth_intrinsic.txt")
        pictures = [_picture(folder / f"{name}.jpg") for name in names]
        width, height = pictures[0].size
        if any(p.size != (width, height) for p in pictures):
            raise ValueError(f"{folder}: its pictures differ in size; extract the scene again")
        square = (self.size, self.size)
        scale = np.diag([self.size / width, self.size / height, 1.0])
        small = scale @ colour[:3, :3]
        return Clip(
            id=clip_id, frames=np.stack([
                np.asarray(p.resize(square, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
                for p in pictures
            ]), depth=np.stack([
                _depth(folder / f"{name}.png", depth[:3, :3], small, self.size) for name in names
            ]), intrinsics=small, poses=np.stack([poses[name] for name in names]),
            objects=self.objects(scene))

    def objects(self, scene: str) -> list[SceneObject]:
        """Everything ScanNet annotates in the scene, with its axis-aligned box; empty where it has
        no annotation."""
        return [SceneObject(number + 1, _class(label), label, (x, y, z), (w, d, h))
                for number, (label, (x, y, z, w, d, h)) in self.annotated_boxes(scene).items()]

    def annotated_boxes(self, scene: str) -> dict[int, tuple[str, list[float]]]:
        """objectId -> label and box (centre, size; m)."""
        return _annotated(self.root / "scans" / scene, scene)

    def has(self, scene: str) -> bool:
        """Whether the scene's annotation is here."""
        return (self.root / "scans" / scene / f"{scene}.aggregation.json").is_file()

    def _poses(self, folder: Path, scene: str) -> dict[str, np.ndarray]:
        """Frame name -> aligned camera to world [4,4]; frames whose pose was lost are left out."""
        if not folder.is_dir():
            raise ValueError(
                f"scannet: no frames of {scene}: expected {folder}; extract them from its .sens "
                "file"
            )
        turn = _alignment(self.root / "scans" / scene / f"{scene}.txt")
        found = {p.stem: _matrix(p) for p in sorted(folder.glob("[0-9]*.txt"))}
        whole = {name: turn @ pose for name, pose in found.items() if np.isfinite(pose).all()}
        if not whole:
            raise ValueError(
                f"{folder}: none of {len(found)} frames has a pose; extract the scene again")
        return whole


def _depth(path: Path, camera: np.ndarray, colour: np.ndarray, size: int) -> np.ndarray:
    """[size,size] float32 metres for the pixels of a colour camera; 0 = unknown."""
    try:
        raw = np.asarray(Image.open(path)).astype(np.float32) * _MILLIMETRE
    except (OSError, SyntaxError) as error:
        raise ValueError(
            f"{path}: not a readable depth picture ({error}); extract the scene again") from error
    at = np.arange(size) + 0.5
    u = np.floor((at - colour[0, 2]) / colour[0, 0] * camera[0, 0] + camera[0, 2]).astype(int)
    v = np.floor((at - colour[1, 2]) / colour[1, 1] * camera[1, 1] + camera[1, 2]).astype(int)
    inside = ((v >= 0) & (v < raw.shape[0]))[:, None] & ((u >= 0) & (u < raw.shape[1]))[None]
    return np.where(inside, raw[np.ix_(v.clip(0, raw.shape[0] - 1), u.clip(0, raw.shape[1] - 1))],
                    0).astype(np.float32)


def _picture(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(
            f"{path}: not a readable picture ({error}); extract the scene again") from error


def _matrix(path: Path) -> np.ndarray:
    try:
        return np.array(path.read_text().split(), float).reshape(4, 4)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: not a 4 x 4 matrix ({error}); extract the scene again") from error


def _alignment(path: Path) -> np.ndarray:
    """The axisAlignment of SCENE.txt [4,4]; test scenes have none, and stay as they are."""
    if not path.is_file():
        raise ValueError(
            f"{path}: missing, and with it the scene's axis alignment; download the scan's .txt "
            "file"
        )
    for line in path.read_text().splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "axisAlignment":
            return np.array(value.split(), float).reshape(4, 4)
    return np.eye(4)


@lru_cache(maxsize=4096)
def _annotated(folder: Path, scene: str) -> dict[int, tuple[str, list[float]]]:
    names = (f"{scene}.aggregation.json", f"{scene}_vh_clean_2.0.010000.segs.json")
    if not (folder / names[0]).is_file():
        return {}
    groups, segments = (_json(folder / name) for name in names)
    points = read_ply_vertices(folder / f"{scene}_vh_clean_2.ply")
    turn = _alignment(folder / f"{scene}.txt")
    points = points @ turn[:3, :3].T + turn[:3, 3]                                           # [V,3]
    of = np.asarray(segments["segIndices"])                                                  # [V]
    if len(of) != len(points):
        raise ValueError(
            f"{folder}: {len(of)} segment indices for {len(points)} vertices; download the scan "
            "again"
        )
    out = {}
    for group in groups["segGroups"]:
        mine = points[np.isin(of, group["segments"])]
        if len(mine):
            low, high = mine.min(0), mine.max(0)
            out[int(group["objectId"])] = (str(group["label"]),
                                           [*((low + high) / 2).tolist(), *(high - low).tolist()])
    return out


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path}: missing; download the scan's annotation") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); download it again") from error


def _class(label: str) -> str:
    return next((c for word in reversed(label.lower().split()) if (c := _CLASSES.get(word))),
                "decor")


_TYPES = {
    "char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4",
    "float": "<f4", "double": "<f8", "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2",
    "int32": "<i4", "uint32": "<u4", "float32": "<f4", "float64": "<f8"
}


def read_ply_vertices(path: Path) -> np.ndarray:
    """Positions [V,3] float64, m. Raises ValueError if the file is no binary little-endian PLY, or
    is cut short."""
    data = path.read_bytes()
    head, found, body = data.partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    if not found or lines[:1] != [["ply"]] or ["format", "binary_little_endian", "1.0"
                                               ] not in lines:
        raise ValueError(f"{path}: not a binary little-endian PLY file; download it again")
    first = next((i for i, line in enumerate(lines) if line[:2] == ["element", "vertex"]), None)
    if first is None or any(line[:1] == ["element"] for line in lines[:first]):
        raise ValueError(f"{path}: its first element is not the vertices; download it again")
    fields = []
    for line in lines[first + 1:]:
        if line[:1] != ["property"] or line[1] not in _TYPES:
            break
        fields.append((line[2], _TYPES[line[1]]))
    kind, count = np.dtype(fields), int(lines[first][2])
    if not {"x", "y", "z"} <= {name for name, _ in fields} or len(body) < count * kind.itemsize:
        raise ValueError(
            f"{path}: has no x, y and z for each of its {count} vertices (cut short?); download it "
            "again"
        )
    rows = np.frombuffer(body, kind, count)
    return np.stack([rows[axis].astype(float) for axis in "xyz"], 1)
