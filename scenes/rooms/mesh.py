"""A room as one triangle list for the renderer; what casts no shadow is last, glass at the end."""
from dataclasses import dataclass

import numpy as np

from scenes.furniture.pack import ModelMesh, Pack
from scenes.rooms.layout import CEILING, FLOOR, WALL_IDS, Room
from scenes.rooms.placement import GLASS, MIRROR, Part, Piece

VERTEX = np.dtype([("position", "<f4", 3), ("normal", "i1", 3), ("glow", "i1"), ("uv", "<f4", 2),
                   ("colour", "u1", 4), ("layer", "<u2"), ("id", "<u2")])  # colour: sRGB and gloss
# layers without a texture: 65535 plain, 65534 GLASS, 65533 MIRROR
_CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
_SIDES = np.array([(axis, sign) for axis in range(3) for sign in (-1, 1)])


@dataclass(frozen=True)
class Mirror:
    """The reflecting rectangle of a room."""
    corners: np.ndarray     # [4,3] m
    normal: np.ndarray      # [3], unit, towards the room

    @property
    def reflection(self) -> np.ndarray:
        """[4,4]: each point to its mirror image."""
        out = np.eye(4)
        out[:3, :3] -= 2 * np.outer(self.normal, self.normal)
        out[:3, 3] = 2 * (self.normal @ self.corners[0]) * self.normal
        return out


@dataclass(frozen=True)
class RoomMesh:
    vertices: np.ndarray    # [V] VERTEX, world metres
    triangles: np.ndarray   # [F,3] uint32
    casters: int            # so many of the first triangles cast shadows: not lamps and windows
    spans: np.ndarray       # [N,2] first triangle and number of triangles of pieces and shell
    shell: int              # index of the span of floor, ceiling and walls
    boxes: np.ndarray       # [N,2,3] m, around each span
    layers: np.ndarray      # [L,128,128,3] uint8, sRGB
    glass: int              # so many of the last spans are clear panes
    moving: dict[int, Piece]  # by span
    mirror: Mirror | None


def room_mesh(room: Room, pack: Pack) -> RoomMesh:
    """All surfaces of the room."""
    layers = list(room.textures)
    first_layer: dict[str, int] = {}
    casting: list[tuple[np.ndarray, ...]] = []      # vertices, triangles, box
    not_casting: list[tuple[np.ndarray, ...]] = []
    glass: list[tuple[np.ndarray, ...]] = []
    moving: dict[int, Piece] = {}                   # by place in not_casting
    for piece in room.pieces:
        if piece.model is None:
            part = _built(piece, [p for p in piece.parts if p.texture != GLASS])
            if panes := [p for p in piece.parts if p.texture == GLASS]:
                glass.append((*_built(piece, panes), piece.box))
        else:
            mesh = pack.mesh(piece.model.id)
            if piece.model.id not in first_layer:
                first_layer[piece.model.id] = len(layers)
                layers += mesh.textures
            part = _modelled(piece, mesh, first_layer[piece.model.id])
        if piece.moves:
            moving[len(not_casting)] = piece
        group = not_casting if piece.moves or piece.category in ("lamp", "window") else casting
        group.append((*part, piece.box))
    shell = (*_shell(room), np.array([[0, 0, 0], room.size]))
    vertices, triangles, boxes = zip(*casting, shell, *not_casting, *glass, strict=True)
    firsts = np.cumsum([0, *map(len, vertices)])
    counts = np.array([len(f) for f in triangles])
    offset = [f + np.uint32(at) for f, at in zip(triangles, firsts, strict=False)]
    return RoomMesh(np.concatenate(vertices), np.concatenate(offset),
                    casters=int(counts[:len(casting) + 1].sum()),
                    spans=np.stack([np.cumsum(counts) - counts, counts], 1), shell=len(casting),
                    boxes=np.stack(boxes), layers=np.stack(layers), glass=len(glass),
                    moving={len(casting) + 1 + i: piece for i, piece in moving.items()},
                    mirror=_mirror(room))


def _vertices(piece_id: int, positions: np.ndarray, normals: np.ndarray) -> np.ndarray:
    out = np.zeros(len(positions), VERTEX)
    out["position"], out["normal"], out["id"], out["layer"] = positions, normals, piece_id, 65535
    return out


def _turned(vectors: np.ndarray, piece: Piece) -> np.ndarray:
    return vectors @ piece.rotation.T.astype(np.float32)


def _placed(positions: np.ndarray, piece: Piece) -> np.ndarray:
    """From the piece's axes, whose origin is the middle of its underside, to the room's."""
    at = np.array([*piece.center, piece.bottom], np.float32)
    if not piece.tilt:
        return _turned(positions, piece) + at
    up = np.array([0, 0, piece.size[2] / 2], np.float32)
    return _turned(positions - up, piece) + up + at


def _modelled(piece: Piece, mesh: ModelMesh, first_layer: int) -> tuple[np.ndarray, np.ndarray]:
    normals = np.rint(_turned(mesh.normals.astype(np.float32), piece)).clip(-127, 127)
    out = _vertices(piece.id, _placed(mesh.positions, piece), normals)
    out["uv"] = mesh.uvs * np.array([1, -1], np.float32)  # row 0 of a picture is its top
    out["colour"] = mesh.colours
    layers = mesh.texture.astype(np.uint16) + first_layer
    out["layer"] = np.where(mesh.texture == 255, 65535, layers)
    out["glow"] = 30 if piece.model and piece.model.light else 0
    return out, mesh.triangles.astype(np.uint32)


def _built(piece: Piece, parts: list[Part]) -> tuple[np.ndarray, np.ndarray]:
    out = np.concatenate([_block(part) for part in parts])
    out["position"] = _placed(out["position"], piece)
    out["normal"] = np.rint(_turned(out["normal"].astype(np.float32), piece))
    out["id"] = piece.id
    return out, _quad_triangles(len(out))


def _mirror(room: Room) -> Mirror | None:
    for piece in room.pieces:
        for part in (p for p in piece.parts if p.texture == MIRROR):
            (x, y, z), (width, depth, height) = part.center, part.size
            across, up = _CORNERS.T * np.array([[width], [height]])
            corners = np.stack([x + across, np.full(4, y - depth / 2), z + up], 1)
            return Mirror(_placed(corners, piece), piece.rotation @ [0, -1, 0])
    return None


def _quad_triangles(vertices: int) -> np.ndarray:
    quads = np.arange(vertices, dtype=np.uint32).reshape(-1, 4)
    return quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)


def _block(part: Part) -> np.ndarray:
    """The 24 vertices of a box; the texture covers the front once, or repeats every `metres`."""
    size, center = np.array(part.size), np.array(part.center)
    faces = []
    for axis, sign in _SIDES:
        u, v = ((1, 2), (0, 2), (0, 1))[axis]
        local, normal = np.zeros((4, 3)), np.zeros((4, 3))
        local[:, axis], local[:, u], local[:, v] = sign / 2, _CORNERS[:, 0], _CORNERS[:, 1]
        normal[:, axis] = 127 * sign
        face = _vertices(0, local * size + center, normal)
        scale = size[[u, v]] / part.metres if part.metres else np.ones(2)
        face["uv"] = (_CORNERS * [1, -1] + 0.5) * scale
        faces.append(face)
    out = np.concatenate(faces)
    out["colour"][:, :3], out["colour"][:, 3] = np.array(part.colour) * 255, 20
    out["layer"] = part.texture & 65535
    out["glow"] = int(part.glow * 127)
    return out


def _shell(room: Room) -> tuple[np.ndarray, np.ndarray]:
    w, d, h = room.size
    flat = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    sides = {FLOOR: ([w, 0, 0], [0, d, 0], [0, 0, 0], [0, 0, 1]),
             CEILING: ([w, 0, 0], [0, d, 0], [0, 0, h], [0, 0, -1]),
             WALL_IDS["south"]: ([w, 0, 0], [0, 0, h], [0, 0, 0], [0, 1, 0]),
             WALL_IDS["north"]: ([w, 0, 0], [0, 0, h], [0, d, 0], [0, -1, 0]),
             WALL_IDS["west"]: ([0, d, 0], [0, 0, h], [0, 0, 0], [1, 0, 0]),
             WALL_IDS["east"]: ([0, d, 0], [0, 0, h], [w, 0, 0], [-1, 0, 0])}
    out = []
    for wall, (u, v, origin, normal) in sides.items():
        corners = flat[:, :1] * np.array(u) + flat[:, 1:] * np.array(v) + np.array(origin)  # [4,3]
        face = _vertices(wall, corners, np.tile(127 * np.array(normal), (4, 1)))
        material = room.shell[wall]
        lengths = np.array([np.linalg.norm(u), np.linalg.norm(v)])
        face["uv"] = flat * [1, -1] * lengths / material.metres
        face["colour"] = [255, 255, 255, int(255 * material.gloss)]
        face["layer"] = material.texture
        out.append(face)
    return np.concatenate(out), _quad_triangles(24)
