"""ScanNet v2 scenes as clips, from folders of its own tools and EmbodiedScan's frame extraction.

ROOT/scannetv2_SPLIT.txt                        one scene a line
ROOT/posed_images/SCENE/00000.jpg .png .txt     colour, depth (mm), camera to world; every tenth
                                                frame or so
ROOT/posed_images/SCENE/intrinsic.txt depth_intrinsic.txt
ROOT/scans/SCENE/SCENE.txt                      its axisAlignment
ROOT/scans/SCENE/SCENE_vh_clean_2.ply           mesh; with the next two: where each object is
ROOT/scans/SCENE/SCENE_vh_clean_2.0.010000.segs.json SCENE.aggregation.json
"""
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from records.files import read_json, read_text, regular_file
from scenes.clip import Clip, SceneObject, Split
from scenes.sources.rgbd import Recording, read_frames, read_pose

_CLASSES = {  # words of ScanNet's labels -> scenes.furniture.pack.CLASSES; all others are decor
    "wall": "wall", "floor": "floor", "ceiling": "ceiling", "door": "door", "window": "window",
    "chair": "chair", "stool": "chair", "bench": "chair", "couch": "sofa", "sofa": "sofa",
    "table": "table", "desk": "table", "nightstand": "table", "bed": "bed", "cabinet": "storage",
    "shelf": "storage", "bookshelf": "storage", "dresser": "storage", "wardrobe": "storage",
    "closet": "storage", "counter": "storage", "lamp": "lamp", "refrigerator": "appliance",
    "oven": "appliance", "microwave": "appliance", "radiator": "appliance", "toilet": "sanitary",
    "sink": "sanitary", "bathtub": "sanitary", "shower": "sanitary", "tv": "electronics",
    "monitor": "electronics", "computer": "electronics", "printer": "electronics", "plant": "plant",
    "rug": "rug", "mat": "rug", "cup": "tableware", "bottle": "tableware"}


class ScanNet:
    """Clips of `frames` frames spread evenly over each scene, squashed to `size` px as in VEGA-3D.

    World axes are the aligned ones. Depth is read where each colour pixel's ray meets the depth
    picture. Ids are SPLIT/SCENE; an object's id is objectId + 1, as in ScanNet's 2D instance
    pictures. Raises ValueError naming what is missing.
    """

    def __init__(self, root: Path | str, frames: int = 32, size: int = 384):
        self.root, self.frames, self.size = Path(root), frames, size
        if frames < 1 or size < 1:
            raise ValueError(f"scannet: got frames={frames}, size={size}, expected both at least 1")
        if not any(self.root.glob("scannetv2_*.txt")):
            raise ValueError(f"{self.root}: has no scannetv2_train.txt, _val.txt or _test.txt; "
                             "copy them from ScanNet's repository (Tasks/Benchmark)")

    def ids(self, split: Split) -> list[str]:
        """The scenes of the split whose frames are here."""
        path = self.root / f"scannetv2_{split}.txt"
        names = read_text(path).split() if path.is_file() else []
        return [f"{split}/{name}" for name in names if (self.root / "posed_images" / name).is_dir()]

    def clip(self, clip_id: str) -> Clip:
        scene = clip_id.rpartition("/")[2]
        folder = self.root / "posed_images" / scene
        poses = self._poses(folder, scene)
        at = np.unique(np.linspace(0, len(poses) - 1, self.frames).round().astype(int))
        names = np.array(sorted(poses))[at].tolist()
        colour, depth = (read_pose(folder / f"{kind}intrinsic.txt")[:3, :3]
                         for kind in ("", "depth_"))
        recording = Recording([folder / f"{name}.jpg" for name in names],
                              [folder / f"{name}.png" for name in names], colour, depth,
                              np.stack([poses[name] for name in names]))
        return replace(read_frames(recording, clip_id, self.size), objects=self.objects(scene))

    def objects(self, scene: str) -> list[SceneObject]:
        """Every annotated object of the scene, with its axis-aligned box."""
        return [SceneObject(number + 1, _class(label), label, (x, y, z), (w, d, h))
                for number, (label, (x, y, z, w, d, h)) in self.annotated_boxes(scene).items()]

    def annotated_boxes(self, scene: str) -> dict[int, tuple[str, list[float]]]:
        """objectId -> label and box (centre, size; m)."""
        return _annotated_boxes(self.root / "scans" / scene, scene)

    def has(self, scene: str) -> bool:
        """Whether the scene's annotation is here."""
        return (self.root / "scans" / scene / f"{scene}.aggregation.json").is_file()

    def _poses(self, folder: Path, scene: str) -> dict[str, np.ndarray]:
        """Frame name -> aligned camera to world [4,4], without frames that lost tracking."""
        if not folder.is_dir():
            raise ValueError(f"scannet: no frames of {scene}: expected {folder}; extract them from "
                             "its .sens file")
        align = _alignment(self.root / "scans" / scene / f"{scene}.txt")
        poses = {p.stem: read_pose(p) for p in sorted(folder.glob("[0-9]*.txt"))}
        valid = {name: align @ pose for name, pose in poses.items() if np.isfinite(pose).all()}
        if not valid:
            raise ValueError(f"{folder}: none of {len(poses)} frames has a pose; extract it again")
        return valid


def _alignment(path: Path) -> np.ndarray:
    """The axisAlignment of SCENE.txt [4,4]; the identity for test scenes, which have none."""
    if not path.is_file():
        raise ValueError(f"{path}: missing, and with it the scene's axis alignment; download the "
                         "scan's .txt file")
    for line in read_text(path).splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "axisAlignment":
            return np.array(value.split(), float).reshape(4, 4)
    return np.eye(4)


@lru_cache(maxsize=4096)
def _annotated_boxes(folder: Path, scene: str) -> dict[int, tuple[str, list[float]]]:
    names = (f"{scene}.aggregation.json", f"{scene}_vh_clean_2.0.010000.segs.json")
    if not (folder / names[0]).is_file():
        return {}
    groups, segments = (read_json(folder / name, "download it again",
                                  "download the scan's annotation") for name in names)
    points = read_ply_vertices(folder / f"{scene}_vh_clean_2.ply")
    align = _alignment(folder / f"{scene}.txt")
    points = points @ align[:3, :3].T + align[:3, 3]                                         # [V,3]
    segment_of = np.asarray(segments["segIndices"])                                          # [V]
    if len(segment_of) != len(points):
        raise ValueError(f"{folder}: {len(segment_of)} segment indices for {len(points)} vertices; "
                         "download the scan again")
    out = {}
    for group in groups["segGroups"]:
        members = points[np.isin(segment_of, group["segments"])]
        if len(members):
            low, high = members.min(0), members.max(0)
            box = [*((low + high) / 2).tolist(), *(high - low).tolist()]
            out[int(group["objectId"])] = (str(group["label"]), box)
    return out


def _class(label: str) -> str:
    found = (_CLASSES.get(word) for word in reversed(label.lower().split()))
    return next(filter(None, found), "decor")


_PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4",
    "float": "<f4", "double": "<f8", "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2",
    "int32": "<i4", "uint32": "<u4", "float32": "<f4", "float64": "<f8"}


def read_ply_vertices(path: Path) -> np.ndarray:
    """Positions [V,3] float64, m. Raises ValueError unless it is a complete little-endian PLY."""
    data = regular_file(path).read_bytes()
    head, found, body = data.partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    encoding = ["format", "binary_little_endian", "1.0"]
    if not found or lines[:1] != [["ply"]] or encoding not in lines:
        raise ValueError(f"{path}: not a binary little-endian PLY file; download it again")
    first = next((i for i, line in enumerate(lines) if line[:2] == ["element", "vertex"]), None)
    if first is None or any(line[:1] == ["element"] for line in lines[:first]):
        raise ValueError(f"{path}: its first element is not the vertices; download it again")
    fields = []
    for line in lines[first + 1:]:
        if line[:1] != ["property"] or line[1] not in _PLY_TYPES:
            break
        fields.append((line[2], _PLY_TYPES[line[1]]))
    kind, count = np.dtype(fields), int(lines[first][2])
    if not {"x", "y", "z"} <= {name for name, _ in fields} or len(body) < count * kind.itemsize:
        raise ValueError(f"{path}: has no x, y and z for each of its {count} vertices (cut "
                         "short?); download it again")
    rows = np.frombuffer(body, kind, count)
    return np.stack([rows[axis].astype(float) for axis in "xyz"], 1)
