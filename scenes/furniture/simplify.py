"""Fewer triangles, same shape: rounds of quadric edge collapse (Garland & Heckbert 1997)."""
from dataclasses import replace

import numpy as np

from scenes.furniture.obj import Mesh

_BORDER = 4.0  # weight of the planes that keep open borders and material borders where they are


def simplify(mesh: Mesh, max_triangles: int) -> Mesh:
    """At most about `max_triangles` triangles with 3F vertices; unchanged if few already.

    Positions move; corners keep their normal, texture coordinate and part.
    """
    if len(mesh.triangles) <= max_triangles:
        return mesh
    span = np.ptp(mesh.positions, axis=0).max()
    grid = np.round(mesh.positions / span * 1e5).astype(np.int64)  # welds to 1/100000 of the size
    _, first, welded = np.unique(grid, axis=0, return_index=True, return_inverse=True)
    points = mesh.positions[first].astype(np.float64) / span            # [N,3]
    corners = mesh.triangles  # [F,3] into the mesh's vertices
    faces, parts = welded.reshape(-1)[corners], mesh.parts              # [F,3], [F]
    faces, corners, parts = _without_flat(faces, corners, parts)
    quadrics = _quadrics(points, faces, parts)                          # [N,4,4]
    rng = np.random.default_rng(0)
    for _ in range(120):
        excess = len(faces) - max_triangles
        if excess <= 0:
            break
        remap, points, quadrics = _collapse(points, faces, quadrics, excess, rng)
        faces, corners, parts = _without_flat(remap[faces], corners, parts)
    flat = corners.reshape(-1)
    return replace(mesh, positions=(points[faces.reshape(-1)] * span).astype(np.float32),
                   normals=mesh.normals[flat], uvs=mesh.uvs[flat],
                   triangles=np.arange(len(flat)).reshape(-1, 3), parts=parts)


def _without_flat(faces: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    solid = (faces != np.roll(faces, -1, 1)).all(1)
    return tuple(a[solid] for a in (faces, *others))


def _normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """[F,3], length = twice the area."""
    return np.cross(points[faces[:, 1]] - points[faces[:, 0]],
                    points[faces[:, 2]] - points[faces[:, 0]])


def _plane_products(unit: np.ndarray, on: np.ndarray, weight: np.ndarray) -> np.ndarray:
    plane = np.concatenate([unit, -(unit * on).sum(1, keepdims=True)], 1)          # [K,4]
    return plane[:, :, None] * plane[:, None, :] * weight[:, None, None]           # [K,4,4]


def _quadrics(points: np.ndarray, faces: np.ndarray, parts: np.ndarray) -> np.ndarray:
    normal = _normals(points, faces)
    area = np.linalg.norm(normal, axis=1)
    unit = normal / np.maximum(area, 1e-15)[:, None]
    out = np.zeros((len(points), 4, 4))
    product = _plane_products(unit, points[faces[:, 0]], area)
    for k in range(3):
        np.add.at(out, faces[:, k], product)
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1)  # [3F,2], face i owns 3i..3i+2
    key = edges[:, 0] * len(points) + edges[:, 1]
    owner = np.repeat(np.arange(len(faces)), 3)
    with_part = np.unique(np.stack([key, parts[owner]], 1), axis=0)  # one row a (edge, material)
    keys, materials = np.unique(with_part[:, 0], return_counts=True)
    _, inverse, uses = np.unique(key, return_inverse=True, return_counts=True)
    border = (uses[inverse] == 1) | (materials[np.searchsorted(keys, key)] > 1)    # [3F]
    a, b = edges[border].T
    along = points[b] - points[a]
    across = np.cross(along, unit[owner[border]])
    length = np.linalg.norm(across, axis=1)
    product = _plane_products(across / np.maximum(length, 1e-15)[:, None], points[a],
                              _BORDER * length**2)
    np.add.at(out, a, product)
    np.add.at(out, b, product)
    return out


def _collapse(points: np.ndarray, faces: np.ndarray, quadrics: np.ndarray, excess: int,
              rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One round: the cheapest edges that share no vertex become points. Also returns remap [N]."""
    edges = np.unique(np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1), axis=0)
    a, b = edges.T
    q = quadrics[a] + quadrics[b]                                                  # [E,4,4]
    target, cost = _targets(points[a], points[b], q)
    cost *= rng.uniform(1, 2, len(cost))  # refused edges do not block neighbours in every round
    order = np.argsort(cost, kind="stable")[:max(excess, len(cost) // 3)]
    rank = np.full(len(cost), len(cost))
    rank[order] = np.arange(len(order))
    best = np.full(len(points), len(cost))
    np.minimum.at(best, a, rank)
    np.minimum.at(best, b, rank)
    cheapest = (best[a[order]] == rank[order]) & (best[b[order]] == rank[order])
    chosen = order[cheapest][:max(excess // 2, 1)]
    for _ in range(2):  # the second time without the edges that folded a triangle the first time
        chosen = chosen[_keeps_orientation(points, faces, a[chosen], b[chosen], target[chosen])]
    remap = np.arange(len(points))
    remap[b[chosen]] = a[chosen]
    points, quadrics = points.copy(), quadrics.copy()
    points[a[chosen]] = target[chosen]
    quadrics[a[chosen]] = q[chosen]
    return remap, points, quadrics


def _targets(a: np.ndarray, b: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each edge's cheapest point, within its length of the middle, and the cost."""
    middle = (a + b) / 2
    length = ((a - b) ** 2).sum(1)
    trace = np.trace(q[:, :3, :3], axis1=1, axis2=2) + 1e-12
    system = q[:, :3, :3] + 1e-3 * trace[:, None, None] * np.eye(3)
    gradient = np.einsum("eij,ej->ei", q[:, :3, :3], middle) + q[:, :3, 3]
    step = -np.linalg.solve(system, gradient[..., None])[..., 0]
    limit = np.sqrt(length) / np.maximum(np.linalg.norm(step, axis=1), 1e-15)
    step *= np.minimum(1, limit)[:, None]
    target = middle + step                                                         # [E,3]
    at = np.concatenate([target, np.ones((len(target), 1))], 1)
    return target, np.einsum("ei,eij,ej->e", at, q, at) + 1e-7 * length * length


def _keeps_orientation(points: np.ndarray, faces: np.ndarray, a: np.ndarray, b: np.ndarray,
                       target: np.ndarray) -> np.ndarray:
    """Which of the edges fold no triangle over if all of them collapse."""
    remap, moved = np.arange(len(points)), points.copy()
    remap[b] = a
    moved[a] = target
    before, after = _normals(points, faces), _normals(moved, remap[faces])
    bad = np.zeros(len(points), bool)
    bad[faces[(before * after).sum(1) < 0]] = True
    return ~(bad[a] | bad[b])
