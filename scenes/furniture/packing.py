"""Packs a furniture library into one small zip: fewer triangles, 16-bit positions, 128 px textures.

A model's split is frozen in assets/splits.json, the same in every pack. Recolours of one geometry
share a split; each split has every class of the public-domain models.
"""
import io
import json
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import fast_simplification
import numpy as np
from PIL import Image

from records.files import atomic_write
from scenes.clip import SPLITS, Split
from scenes.furniture.catalogue import CC0, Entry, read_catalogue
from scenes.furniture.obj import Mesh, read_obj, read_texture
from scenes.furniture.pack import TEXTURE_PX, TOP_CELLS

SPLITS_FILE = Path(__file__).parents[1] / "assets" / "splits.json"
SOURCE = "Debian package sweethome3d-furniture 1.8-1, https://www.sweethome3d.com/importModels.jsp"
_PATTERN: tuple[Split, ...] = ("train", "test", "val", "train", "train")  # 60/20/20
_MAX_RAW_TRIANGLES = 120_000
_CARRIERS = {"table", "storage", "appliance", "decor", "bed", "sanitary"}


def pack_library(library: Path, out: Path, licence: Literal["cc0", "all"] = "cc0",
                 max_triangles: int = 5000,
                 report: Callable[[str], None] = lambda line: None) -> int:
    """Writes the pack; returns the number of models. Pieces below a metre get fewer triangles."""
    splits = assign_splits(library, licence)
    rows: list[dict[str, Any]] = []
    with (atomic_write(out) as scratch,
          zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as pack):
        for archive, entries in read_catalogue(library, licence):
            for entry in entries:
                try:
                    mesh = _to_room_axes(read_obj(archive, entry.path), entry)
                except ValueError as error:
                    report(f"left out {entry.id}: {error}")
                    continue
                budget = int(max_triangles * min(1.0, max(0.2, max(entry.size) / 0.9)))
                split, small = splits[entry.id], simplify(mesh, budget)
                rows.append(_write_model(pack, archive, entry, small, split))
                report(f"{entry.id}: {len(mesh.triangles)} -> {rows[-1]['triangles']} triangles, "
                       f"{split}")
        manifest = json.dumps({"schema": 1, "source": SOURCE, "models": rows}, indent=0)
        _write_bytes(pack, "manifest.json", manifest.encode())
        _write_bytes(pack, "NOTICE", notice(rows).encode())
    return len(rows)


def notice(rows: Iterable[dict[str, Any]]) -> str:
    """The attribution that the licences ask for."""
    makers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        makers[row["licence"], row["creator"]].append(f"{row['name']} ({row['id'].split('/')[-1]})")
    lines = ["Furniture models packed for vega3d-edge.", f"Source: {SOURCE}.",
             "Changed: triangles reduced, textures scaled down, format converted.", ""]
    for (licence, creator), names in sorted(makers.items()):
        lines.append(f"{licence}, {creator}: {', '.join(sorted(names))}")
    return "\n".join([*lines, "", "CC0-1.0: https://creativecommons.org/publicdomain/zero/1.0/",
                      "CC-BY-3.0: https://creativecommons.org/licenses/by/3.0/",
                      "CC-BY-3.0-US: https://creativecommons.org/licenses/by/3.0/us/", ""])


def assign_splits(library: Path, licence: Literal["cc0", "all"] = "all") -> dict[str, Split]:
    """Every model's split: that of SPLITS_FILE; others 60/20/20 within their class and role."""
    frozen: dict[str, Split] = {
        i: split for split, ids in json.loads(SPLITS_FILE.read_text()).items() for i in ids}
    entries: list[Entry] = []
    shapes: dict[str, str] = {}
    for archive, found in read_catalogue(library, licence):
        entries += found
        for entry in found:
            lines = re.findall(rb"^v\s+([^\r\n]*)", archive.read(entry.path), re.MULTILINE)
            vertices = b"\n".join(b" ".join(line.split()) for line in lines)
            shapes[entry.id] = sha256(vertices).hexdigest()
    by_shape: dict[str, Split] = {shapes[e.id]: frozen[e.id] for e in entries if e.id in frozen}
    have = Counter(key for e in entries if e.id in frozen for key in _counted(e, frozen[e.id]))
    for entry in sorted(entries, key=lambda e: (e.licence != CC0, e.role, e.id)):
        if shapes[entry.id] not in by_shape:
            by_shape[shapes[entry.id]] = _neediest(have, entry)
            have.update(_counted(entry, by_shape[shapes[entry.id]]))
    return {entry.id: by_shape[shapes[entry.id]] for entry in entries}


def _counted(entry: Entry, split: Split) -> list[tuple[str, Split]]:
    return [(entry.category, split), (f"{entry.category}/{entry.role}", split)]


def _neediest(have: Counter[tuple[str, Split]], entry: Entry) -> Split:
    """The split that the pattern gives next, to class and role; one without the class is first."""
    def need(split: Split) -> float:
        score = 0.0
        for key, weight in ((entry.category, 1.0), (f"{entry.category}/{entry.role}", 1.01)):
            total = 1 + sum(have[key, s] for s in SPLITS)
            wanted = sum(_PATTERN[i % len(_PATTERN)] == split for i in range(total))
            score += weight * min(wanted - have[key, split], 1)
        return score + 2 * (have[entry.category, split] == 0 and have[entry.category, "train"] > 0)
    return max(SPLITS, key=need)


def _to_room_axes(mesh: Mesh, entry: Entry) -> Mesh:
    """From OBJ's axes (Y up, front +Z) to ours (Z up, front -Y), scaled to the catalogue's size."""
    visible = np.array([m.alpha >= 0.12 for m in mesh.materials])[mesh.parts]
    mesh.triangles, mesh.parts = mesh.triangles[visible], mesh.parts[visible]
    if not 0 < len(mesh.triangles) <= _MAX_RAW_TRIANGLES:
        raise ValueError(f"{len(mesh.triangles)} triangles that are not clear glass")
    turn = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]) @ entry.rotation
    p, n = mesh.positions @ turn.T, mesh.normals @ turn.T
    low, high = p[mesh.triangles].min((0, 1)), p[mesh.triangles].max((0, 1))
    scale = np.array(entry.size) / np.maximum(high - low, 1e-9)
    n = n / scale
    n = n / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-9)
    p = (p - low) * scale - [entry.size[0] / 2, entry.size[1] / 2, 0]
    mesh.positions, mesh.normals = p.astype(np.float32), n.astype(np.float32)
    return mesh


def simplify(mesh: Mesh, max_triangles: int) -> Mesh:
    """At most about `max_triangles` triangles with 3F vertices; unchanged if few already.

    Positions move (quadric edge collapse); corners keep their normal, texture and part.
    """
    if len(mesh.triangles) <= max_triangles:
        return mesh
    span = np.ptp(mesh.positions, axis=0).max()
    grid = np.round(mesh.positions / span * 1e5).astype(np.int64)  # welds to 1/100000 of the size
    _, first, welded = np.unique(grid, axis=0, return_index=True, return_inverse=True)
    points, faces = mesh.positions[first] / span, welded.reshape(-1)[mesh.triangles]
    solid = _solid(faces)
    faces = faces[solid]
    points, fins = _fins(points, faces, mesh.parts[solid])
    with_fins = np.concatenate([faces, fins])
    target = round(max_triangles * len(with_fins) / len(faces))
    _, _, collapses = fast_simplification.simplify(points, with_fins, target_count=target, agg=3,
                                                   return_collapses=True)
    points, _, merged = fast_simplification.replay_simplification(points, with_fins, collapses)
    kept = _solid(merged[faces])
    solid[solid] = kept
    corners = mesh.triangles[solid].reshape(-1)
    positions = points[merged[faces[kept].reshape(-1)]] * span
    return replace(mesh, positions=positions.astype(np.float32), normals=mesh.normals[corners],
                   uvs=mesh.uvs[corners], triangles=np.arange(len(corners)).reshape(-1, 3),
                   parts=mesh.parts[solid])


def _fins(points: np.ndarray, faces: np.ndarray,
          parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles upright on every open edge and every edge between two materials, and the points
    [N+K,3] with their tips: their planes keep these edges where they are. Else flat sheets go."""
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1)  # [3F,2], face i owns 3i..3i+2
    order = np.lexsort(edges.T)
    a, b, part = *edges[order].T, parts[order // 3]
    same = np.concatenate([[False], (a[1:] == a[:-1]) & (b[1:] == b[:-1])])
    group = np.cumsum(~same) - 1
    first = np.flatnonzero(~same)
    other = np.zeros(len(first), bool)
    np.logical_or.at(other, group, part != part[first][group])
    chosen = first[(np.bincount(group) == 1) | other]
    a, b, face = a[chosen], b[chosen], faces[order[chosen] // 3]
    normal = np.cross(points[face[:, 1]] - points[face[:, 0]],
                      points[face[:, 2]] - points[face[:, 0]])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    length = np.linalg.norm(points[b] - points[a], axis=1, keepdims=True)
    tips = (points[a] + points[b]) / 2 + normal * length
    return np.concatenate([points, tips]), np.stack([a, b, len(points) + np.arange(len(a))], 1)


def _solid(faces: np.ndarray) -> np.ndarray:
    """Which triangles [F,3] have three different vertices."""
    return (faces != np.roll(faces, -1, 1)).all(1)


def _write_model(pack: zipfile.ZipFile, archive: zipfile.ZipFile, entry: Entry, mesh: Mesh,
                 split: Split) -> dict[str, Any]:
    materials, images = _materials(mesh, archive)
    unit = mesh.positions / np.array(entry.size) + [0.5, 0.5, 0]
    corner = mesh.triangles.reshape(-1)
    part = np.repeat(mesh.parts, 3)
    has_uv = np.array([m[4] != 255 for m in materials])[part]
    uvs = _near_origin(mesh.uvs[corner].astype(np.float64), has_uv).astype(np.float16)
    columns = np.concatenate([  # one row a corner, all integers
        np.round(np.clip(unit[corner], 0, 1) * 65535), np.round(mesh.normals[corner] * 127),
        uvs.view(np.uint16), part[:, None]], axis=1).astype(np.int64)
    vertices, first, inverse = np.unique(columns, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as the triangles meet them: small deltas
    vertices, rank = vertices[order], np.argsort(order)
    width = np.uint16 if len(vertices) <= 65536 else np.uint32
    indices = rank[inverse.reshape(-1)].astype(width)
    p = vertices[:, :3].astype(np.uint16)
    data = np.diff(p, axis=0, prepend=np.uint16(0)).T.astype(np.uint16).tobytes()
    data += vertices[:, 3:6].astype(np.int8).T.tobytes()
    if images:
        data += vertices[:, 6:8].astype(np.uint16).T.tobytes()
    data += vertices[:, 8].astype(np.uint8).tobytes()
    data += np.diff(indices, prepend=width(0)).astype(width).tobytes()
    _write_bytes(pack, f"{entry.id}.bin", data)
    for i, image in enumerate(images):
        _write_bytes(pack, f"{entry.id}.{i}.jpg", _jpeg(image), zipfile.ZIP_STORED)
    support, top = None, b""
    if entry.category in _CARRIERS:
        support, top = find_support(mesh.positions[mesh.triangles], entry)
    return {
        "id": entry.id, "name": entry.name, "category": entry.category, "role": entry.role,
        "size": [round(s, 4) for s in entry.size], "elevation": entry.elevation, "support": support,
        "top": top.hex(), "light": entry.category == "lamp", "creator": entry.creator,
        "licence": entry.licence, "split": split, "vertices": len(vertices),
        "triangles": len(indices) // 3, "materials": materials, "textures": len(images)}


def _materials(mesh: Mesh, archive: zipfile.ZipFile) -> tuple[list[list[int]], list[Image.Image]]:
    """Rows (red, green, blue, specular, texture or 255), and the textures."""
    images: dict[str, Image.Image] = {}
    rows = []
    for material in mesh.materials:
        path, texture, colour = material.texture, 255, material.colour
        if path and path not in images and (image := read_texture(archive, path)):
            images[path] = image
        if path in images:
            texture, colour = list(images).index(path), (1.0, 1.0, 1.0)
        rows.append([*(int(255 * min(max(c, 0), 1)) for c in colour),
                     int(255 * material.specular), texture])
    return rows, list(images.values())


def _near_origin(uvs: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Texture coordinates without each triangle's whole repeats: float16 is exact to 1/1000."""
    triangles = np.where(used[:, None], uvs, 0).reshape(-1, 3, 2)
    return (triangles - np.floor(triangles.min(1, keepdims=True))).reshape(-1, 2).clip(-64, 64)


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    scale = min(1, TEXTURE_PX / max(image.size))
    image.resize([max(4, round(s * scale)) for s in image.size],
                 Image.Resampling.BOX).save(out, "JPEG", quality=78)
    return out.getvalue()


def find_support(corners: np.ndarray, entry: Entry) -> tuple[float | None, bytes]:
    """Height of the largest level surface of triangles [F,3,3] m, and its cells [16,16], packed."""
    fine = TOP_CELLS * 3
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.abs(normal[:, 2]) / 2
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(area), 80_000, p=(area + 1e-12) / (area + 1e-12).sum())
    a, b = np.sort(rng.random((2, len(chosen), 1)), axis=0)
    points = corners[chosen, 0] * a + corners[chosen, 1] * (b - a) + corners[chosen, 2] * (1 - b)
    cell = ((points[:, :2] / entry.size[:2] + 0.5) * fine).astype(int).clip(0, fine - 1)
    height = np.zeros((fine, fine))
    np.maximum.at(height, (cell[:, 0], cell[:, 1]), points[:, 2])
    counts, edges = np.histogram(height, bins=np.arange(0.05, entry.size[2] + 0.03, 0.01))
    if not len(counts):
        return None, b""
    level = edges[counts.argmax()] + 0.005
    level = float(np.median(height[np.abs(height - level) < 0.008]))
    filled = (np.abs(height - level) < 0.008).reshape(TOP_CELLS, 3, TOP_CELLS, 3).all((1, 3))
    if filled.mean() * entry.size[0] * entry.size[1] < 0.02:
        return None, b""
    return round(level, 4), np.packbits(filled).tobytes()


def _write_bytes(pack: zipfile.ZipFile, name: str, data: bytes,
                 how: int = zipfile.ZIP_DEFLATED) -> None:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # the same bytes whenever it is packed
    info.compress_type = how
    pack.writestr(info, data, compresslevel=9)
