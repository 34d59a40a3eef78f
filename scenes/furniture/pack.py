"""Furniture models, packed small: what each is, how big, what it can carry, and its triangles."""
import io
import zipfile
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from records.files import parse_json, regular_file
from records.images import decode_image, to_rgb
from records.manifest import other_version
from scenes.clip import SPLITS, Split

CLASSES: tuple[str, ...] = ("wall", "floor", "ceiling", "door", "window", "chair", "sofa", "table",
                            "bed", "storage", "lamp", "appliance", "sanitary", "electronics",
                            "plant", "rug", "decor", "tableware")
CC0_PACK = Path(__file__).parents[1] / "assets" / "furniture_cc0.zip"
TEXTURE_PX = 128
TOP_CELLS = 16


@dataclass(frozen=True)
class FurnitureModel:
    """One piece of furniture. Metres, Z up, front at -Y; the box is centred on the floor."""
    id: str
    name: str
    category: str                       # one of CLASSES
    role: str                           # where recipes put it; furniture.catalogue.RULES
    size: tuple[float, float, float]    # width, depth, height
    elevation: float                    # of its underside above the floor, where it hangs on a wall
    support: float | None               # height of the surface that can carry things; None = none
    top: np.ndarray  # [16,16] bool, cells [x,y] of the footprint where that surface is
    light: bool
    creator: str
    licence: str
    split: Split


@dataclass(frozen=True)
class ModelMesh:
    """A model's triangles in its own axes."""
    positions: np.ndarray   # [V,3] float32, m
    normals: np.ndarray     # [V,3] int8, 127 * unit
    uvs: np.ndarray         # [V,2] float32
    colours: np.ndarray     # [V,4] uint8: sRGB, specular
    texture: np.ndarray     # [V] uint8, index into textures, 255 = none
    triangles: np.ndarray   # [F,3] int32
    textures: tuple[np.ndarray, ...]  # each [128,128,3] uint8


class Pack:
    """The models of one packed zip; meshes are read on first use and cached."""

    def __init__(self, data: bytes, name: str):
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
            self.manifest: dict[str, Any] = parse_json(self._zip.read("manifest.json").decode())
            other = other_version(name, self.manifest)
            self.models = () if other else tuple(_model(row) for row in self.manifest["models"])
        except (zipfile.BadZipFile, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{name}: not a furniture pack ({error}); make one with: vega3d "
                             "scenes pack") from error
        if other:
            raise ValueError(f"{other}; make one with: vega3d scenes pack")
        self.digest = sha256(data).hexdigest()[:16]
        self._rows = {row["id"]: row for row in self.manifest["models"]}
        self._meshes: dict[str, ModelMesh] = {}

    @classmethod
    def load(cls, path: Path | None = None) -> "Pack":
        """The pack at `path`, by default the committed one. Raises ValueError if it is no pack."""
        path = path or CC0_PACK
        if not path.is_file():
            raise ValueError(f"{path}: no such pack; make one with: vega3d scenes pack --out "
                             + quote(str(path)))
        return cls(regular_file(path).read_bytes(), str(path))

    @cached_property
    def by_split(self) -> dict[Split, tuple[FurnitureModel, ...]]:
        by_split: dict[Split, tuple[FurnitureModel, ...]] = dict.fromkeys(SPLITS, ())
        for model in self.models:
            by_split[model.split] += (model,)
        return by_split

    def mesh(self, model_id: str) -> ModelMesh:
        if model_id not in self._meshes:
            self._meshes[model_id] = self._read_mesh(self._rows[model_id])
        return self._meshes[model_id]

    def _read_mesh(self, row: dict[str, Any]) -> ModelMesh:
        data, v, f = self._zip.read(f"{row['id']}.bin"), row["vertices"], row["triangles"]
        width = np.uint16 if v <= 65536 else np.uint32
        columns = np.frombuffer(data, np.uint16, v * 3).reshape(3, v)  # deltas that wrap
        positions = np.cumsum(columns, axis=1, dtype=np.uint16).T / np.float32(65535)  # [V,3]
        at = v * 6
        normals = np.frombuffer(data, np.int8, v * 3, at).reshape(3, v).T
        at += v * 3
        uvs = np.zeros((v, 2), np.float32)
        if row["textures"]:
            uvs = np.frombuffer(data, np.float16, v * 2, at).reshape(2, v).T.astype(np.float32)
            at += v * 4
        material = np.array(row["materials"], np.uint8)[np.frombuffer(data, np.uint8, v, at)]
        steps = np.frombuffer(data, width, f * 3, at + v)
        triangles = np.cumsum(steps, dtype=width).astype(np.int32).reshape(-1, 3)
        positions = (positions - np.array([0.5, 0.5, 0], np.float32)) * np.float32(row["size"])
        textures = tuple(self._texture(f"{row['id']}.{i}.jpg") for i in range(row["textures"]))
        return ModelMesh(positions, np.ascontiguousarray(normals), uvs, material[:, :4],
                         material[:, 4], triangles, textures)

    def _texture(self, path: str) -> np.ndarray:
        image = to_rgb(decode_image(io.BytesIO(self._zip.read(path)), path), path)
        return np.asarray(image.resize((TEXTURE_PX, TEXTURE_PX)))


def _model(row: dict[str, Any]) -> FurnitureModel:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["top"]), np.uint8)).astype(bool)
    top = bits if bits.size else np.zeros(TOP_CELLS**2, bool)
    facts = {f.name: row[f.name] for f in fields(FurnitureModel)}
    return FurnitureModel(**facts | {"size": tuple(row["size"]),
                                     "top": top.reshape(TOP_CELLS, TOP_CELLS)})
