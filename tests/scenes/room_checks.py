"""A second renderer for the tests: embree traces the room's triangles, without OpenGL."""
import numpy as np
import trimesh
from trimesh.ray.ray_pyembree import RayMeshIntersector

from scenes.furniture.pack import Pack
from scenes.rooms.layout import Room
from scenes.rooms.mesh import room_mesh


def traced(room: Room, pack: Pack, pose: np.ndarray, intrinsics: np.ndarray, size: int
           ) -> tuple[np.ndarray, np.ndarray]:
    """Depth [H,W] in metres along the optical axis and instance ids [H,W]; 0 where a ray hits
    nothing. Panes are not there, moving pieces are where a clip begins."""
    mesh = room_mesh(room, pack)
    opaque = mesh.triangles[:mesh.spans[:len(mesh.spans) - mesh.glass, 1].sum()]
    scene = RayMeshIntersector(trimesh.Trimesh(mesh.vertices["position"], opaque, process=False))
    u, v = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    rays = np.stack([(u - intrinsics[0, 2]) / intrinsics[0, 0],
                     (v - intrinsics[1, 2]) / intrinsics[1, 1],
                     np.ones_like(u)], -1).reshape(-1, 3)
    directions = rays @ pose[:3, :3].T
    origins = np.broadcast_to(pose[:3, 3], directions.shape)
    points, ray, triangle = scene.intersects_location(origins, directions, multiple_hits=False)
    depth, ids = np.zeros(size * size), np.zeros(size * size, int)
    depth[ray] = (points - pose[:3, 3]) @ pose[:3, 2]
    ids[ray] = mesh.vertices["id"][mesh.triangles[triangle, 0]]
    return depth.reshape(size, size), ids.reshape(size, size)


def unprojected(depth: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """World points [H,W,3] of a depth map."""
    v, u = np.indices(depth.shape) + 0.5
    rays = np.stack([(u - intrinsics[0, 2]) / intrinsics[0, 0],
                     (v - intrinsics[1, 2]) / intrinsics[1, 1],
                     np.ones_like(u)], -1)
    return (rays * depth[..., None]) @ pose[:3, :3].T + pose[:3, 3]


def same_instance_share(clip, i: int, j: int) -> float:
    """Of frame i's pixels visible in frame j, the share whose point has the same instance there.

    Visible: inside frame j and not behind its surface (2 % and 2 cm).
    """
    points = unprojected(clip.depth[i], clip.poses[i], clip.intrinsics)
    camera = (points - clip.poses[j, :3, 3]) @ clip.poses[j, :3, :3]
    pixels = camera @ clip.intrinsics.T
    u, v = (np.floor(pixels[..., k] / pixels[..., 2]).astype(int) for k in (0, 1))
    size = clip.depth.shape[1]
    inside = (camera[..., 2] > 0.05) & (u >= 0) & (v >= 0) & (u < size) & (v < size)
    u, v, z, ids = u[inside], v[inside], camera[..., 2][inside], clip.instances[i][inside]
    visible = np.abs(clip.depth[j][v, u] - z) < 0.02 + 0.02 * z
    same = clip.instances[j][v, u] == ids
    return float(same[visible].mean())
