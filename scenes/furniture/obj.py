"""Reads OBJ and MTL models of a Sweet Home 3D library (a zip), as far as these use the formats."""
import io
import posixpath
import zipfile
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from records.images import decode_image, to_rgba


@dataclass
class Material:
    """How one group of triangles looks. Colours are sRGB in [0,1]; shine is the Blinn exponent."""
    colour: tuple[float, float, float] = (0.7, 0.7, 0.7)
    specular: float = 0.0
    shine: float = 30.0
    alpha: float = 1.0
    texture: str | None = None  # path inside the zip


@dataclass
class Mesh:
    """Triangles with one position, normal and texture coordinate a vertex."""
    positions: np.ndarray   # [V,3] float32
    normals: np.ndarray     # [V,3] float32, unit
    uvs: np.ndarray         # [V,2] float32, v upwards
    triangles: np.ndarray   # [F,3] int64
    parts: np.ndarray       # [F] int64, index into materials
    materials: list[Material] = field(default_factory=list)


def read_obj(archive: zipfile.ZipFile, path: str) -> Mesh:
    """Raises ValueError if the file holds no triangle."""
    vectors: dict[str, list] = {"v": [], "vt": [], "vn": []}
    corners: list[tuple[int, int, int]] = []  # (v, vt, vn) of three corners a triangle, -1 = none
    parts: list[int] = []
    materials: dict[str, Material] = {"": Material()}
    order, current = {"": 0}, 0
    for line in archive.read(path).decode("latin-1").replace("\\\n", " ").splitlines():
        word, *rest = line.split() or ("",)
        if word in vectors:
            vectors[word].append([float(x) for x in rest[:3 if word != "vt" else 2]])
        elif word == "f":
            face = [_corner(corner, vectors) for corner in rest]
            for i in range(1, len(face) - 1):
                corners += [face[0], face[i], face[i + 1]]
                parts.append(current)
        elif word == "usemtl":
            current = order.setdefault(" ".join(rest), len(order))
        elif word == "mtllib":
            materials |= _read_mtl(archive, posixpath.join(posixpath.dirname(path), " ".join(rest)))
    if not corners:
        raise ValueError(f"{path}: holds no triangle; leave it out of the pack")
    mesh = _index(vectors, np.array(corners), np.array(parts))
    mesh.materials = [materials.get(name, Material()) for name in order]
    return mesh


def read_texture(archive: zipfile.ZipFile, path: str) -> Image.Image | None:
    """RGB image, transparent parts in the mean colour; None if it is absent or unreadable."""
    try:
        image = to_rgba(decode_image(io.BytesIO(archive.read(path)), path), path)
    except (KeyError, OSError, ValueError):
        return None
    solid = np.asarray(image.resize((32, 32))).reshape(-1, 4).astype(float)
    mean = (solid[:, :3] * solid[:, 3:]).sum(0) / max(solid[:, 3].sum(), 1)
    ground = Image.new("RGBA", image.size, (*mean.astype(int).tolist(), 255))
    return Image.alpha_composite(ground, image).convert("RGB")


def _corner(text: str, vectors: dict[str, list]) -> tuple[int, int, int]:
    out = []
    for index, name in zip([*text.split("/"), "", ""][:3], ("v", "vt", "vn"), strict=True):
        i = int(index) if index else 0
        out.append(i - 1 if i > 0 else len(vectors[name]) + i if i < 0 else -1)
    return out[0], out[1], out[2]


def _index(vectors: dict[str, list], corners: np.ndarray, parts: np.ndarray) -> Mesh:
    """Merges equal corners into vertices; corners [3F,3], parts [F]."""
    v = np.array(vectors["v"], np.float32)
    vt = np.array(vectors["vt"] or [[0, 0]], np.float32)
    vn = np.array(vectors["vn"] or [[0, 0, 0]], np.float32)
    unique, inverse = np.unique(corners, axis=0, return_inverse=True)  # [V,3], [3F]
    triangles = inverse.reshape(-1, 3)
    p = v[unique[:, 0]]
    n = np.where(unique[:, 2:] >= 0, vn[unique[:, 2]], 0)
    t = np.where(unique[:, 1:2] >= 0, vt[unique[:, 1]], 0)
    faces = np.cross(p[triangles[:, 1]] - p[triangles[:, 0]],
                     p[triangles[:, 2]] - p[triangles[:, 0]])
    solid = np.linalg.norm(faces, axis=1) > 1e-12
    triangles, parts, faces = triangles[solid], parts[solid], faces[solid]
    missing = np.linalg.norm(n, axis=1, keepdims=True) < 0.1  # then the mean of the faces around
    smooth = np.zeros_like(p)
    for k in range(3):
        np.add.at(smooth, triangles[:, k], faces)
    n = np.where(missing, smooth, n)
    n = n / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-9)
    return Mesh(p, n.astype(np.float32), t.astype(np.float32), triangles, parts)


def _read_mtl(archive: zipfile.ZipFile, path: str) -> dict[str, Material]:
    try:
        text = archive.read(path).decode("latin-1")
    except KeyError:
        return {}
    materials: dict[str, Material] = {}
    material = Material()
    for line in text.splitlines():
        word, *rest = line.split() or ("",)
        if word == "newmtl":
            material = materials[" ".join(rest)] = Material()
        elif word == "Kd" and len(rest) >= 3:
            material.colour = (float(rest[0]), float(rest[1]), float(rest[2]))
        elif word == "Ks" and len(rest) >= 3:
            material.specular = min(sum(map(float, rest[:3])) / 3, 1.0)
        elif word == "Ns" and rest:
            material.shine = min(max(float(rest[0]), 2.0), 200.0)
        elif word == "d" and rest:
            material.alpha = float(rest[-1])
        elif word == "map_Kd" and rest:
            material.texture = posixpath.join(posixpath.dirname(path), rest[-1])
    return materials
