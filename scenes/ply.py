"""Vertices of a binary PLY file, as ScanNet writes its meshes."""
from pathlib import Path

import numpy as np

_TYPES = {"char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4", "float": "<f4",
          "double": "<f8", "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4",
          "uint32": "<u4", "float32": "<f4", "float64": "<f8"}


def vertices(path: Path) -> np.ndarray:
    """Positions [V,3] float64, m. Raises ValueError if the file is no binary little-endian PLY, or is cut short."""
    data = path.read_bytes()
    head, found, body = data.partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    if not found or lines[:1] != [["ply"]] or ["format", "binary_little_endian", "1.0"] not in lines:
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
        raise ValueError(f"{path}: has no x, y and z for each of its {count} vertices (cut short?); download it again")
    rows = np.frombuffer(body, kind, count)
    return np.stack([rows[axis].astype(float) for axis in "xyz"], 1)
