"""Renders a room on EGL (a GPU's, or Mesa's on a CPU): colour, depth, instances and normals."""
from itertools import product
from typing import TypedDict

import moderngl
import numpy as np

from scenes.furniture.pack import Pack
from scenes.rooms import shaders
from scenes.rooms.layout import Light, Room
from scenes.rooms.mesh import RoomMesh, room_mesh

SHADOW_PX = 1024
SHADOW_REACH = 3.2  # tangent of half the shadow map's angle: 145 degrees
_CLIP_DISTANCE0 = 0x3000
_EVERYTHING = (0.0, 0.0, 0.0, 1.0)  # the plane that cuts nothing off
_AWAY = 1e6          # m, further than anything


class RenderedFrames(TypedDict):
    """T rendered frames."""
    frames: np.ndarray     # [T,3,H,W] uint8
    depth: np.ndarray      # [T,H,W] float32, m along the optical axis
    instances: np.ndarray  # [T,H,W] int32
    normals: np.ndarray    # [T,3,H,W] int8, 127 * unit, camera axes, of the visible triangle


class Renderer:
    """One room at a time in pictures of `size` px, square. Raises ValueError without EGL device.

    Depth, normal and instance of a mirror are those of its surface; those of a clear pane are of
    what is behind it.
    """

    def __init__(self, size: int = 224):
        self.size = size
        options = {"standalone": True, "backend": "egl"}
        try:
            self._gl = gl = moderngl.create_context(330, **options)  # type: ignore[arg-type]
        except Exception as error:  # glcontext raises bare Exception
            raise ValueError(f"render: no EGL device ({error}); install libegl1 libgl1-mesa-dri "
                             "(make setup), or bring your GPU's EGL library") from error
        gl.enable(moderngl.DEPTH_TEST)
        gl.enable_direct(_CLIP_DISTANCE0)  # for good: with Mesa 22 it is not off after a glDisable
        self._program = gl.program(shaders.VERTEX_SHADER, shaders.FRAGMENT_SHADER)
        self._shadow_program = gl.program(shaders.SHADOW_VERTEX, shaders.SHADOW_FRAGMENT)
        finish = gl.program(shaders.FULL_SCREEN, shaders.FINISH_SHADER)
        self._finish = gl.vertex_array(finish, [])
        self._shadow = gl.texture((SHADOW_PX, SHADOW_PX), 2, dtype="f4")
        self._shadow.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
        depth = gl.depth_renderbuffer((SHADOW_PX, SHADOW_PX))
        self._shadow_target = gl.framebuffer([self._shadow], depth)
        self._reflected = self._drawing(1)
        self._targets: dict[int, tuple[moderngl.Framebuffer, moderngl.Framebuffer]] = {}
        self._resources: list[moderngl.Buffer | moderngl.VertexArray | moderngl.TextureArray] = []
        self._room: Room | None = None

    @property
    def device(self) -> str:
        return str(self._gl.info["GL_RENDERER"])

    def render(self, room: Room, pack: Pack, poses: np.ndarray, intrinsics: np.ndarray,
               exposure: float = 1.0, noise: float = 0.0, seed: int = 0) -> RenderedFrames:
        """Frames of camera-to-world poses [T,4,4] (OpenCV axes) with intrinsics [3,3] px.

        Moving pieces are at rest in the first frame and at the end of their way in the last.
        exposure multiplies the light; noise in [0,1] is the half-width of the noise of that seed.
        """
        if self._room is not room:
            self._upload(room, pack)
            self._room = room
        size, t = self.size, len(poses)
        target, finished = self._target(t)
        target.use()
        target.viewport = frame_stack = (0, 0, size, size * t)
        self._gl.clear(depth=1.0)
        (fx, _, cx), (_, fy, cy) = 2 * intrinsics[:2] / size
        _set(self._program, exposure=exposure, lens=(fx, fy, cx - 1, cy - 1))
        for i, pose in enumerate(poses):
            moment = i / max(t - 1, 1)
            self._reflect(pose, intrinsics, moment)
            target.use()
            target.viewport = (0, size * i, size, size)
            _set(self._program, first_row=size * i)
            self._draw(target, pose, np.eye(4), intrinsics, moment)
        self._finish_colour(target, finished, noise, seed)
        read = target.read(components=4, attachment=1, dtype="u4", viewport=frame_stack)
        data = np.frombuffer(read, np.uint32)
        read = finished.read(components=3, viewport=frame_stack, alignment=1)
        colour = np.frombuffer(read, np.uint8)
        return _unpack(data.reshape(t, size, size, 4), colour.reshape(t, size, size, 3))

    def _draw(self, target: moderngl.Framebuffer, pose: np.ndarray, reflection: np.ndarray,
              intrinsics: np.ndarray, moment: float) -> None:
        """What a camera sees, or with the `reflection` of a mirror sees in it."""
        camera, mesh = reflection @ pose, self._mesh
        _write(self._program, "world_to_view", np.linalg.inv(pose) @ reflection)
        _set(self._program, world_turn=tuple(camera[:3, :3].T.reshape(-1)),
             eye=tuple(camera[:3, 3]))
        panes, on, off = len(mesh.spans) - mesh.glass, (True,) * 4, (False,) * 4
        spans = _in_view(camera, intrinsics, self.size, mesh)
        for span in (s for s in spans if s < panes):
            self._draw_span(span, moment)
        if spans and spans[-1] >= panes:
            target.depth_mask = False
            target.color_mask = on, off  # type: ignore[assignment]
            self._gl.enable(moderngl.BLEND)
            for span in (s for s in spans if s >= panes):
                self._draw_span(span, moment)
            self._gl.disable(moderngl.BLEND)
            target.depth_mask = True
            target.color_mask = on, on  # type: ignore[assignment]

    def _draw_span(self, span: int, moment: float) -> None:
        first, count = self._mesh.spans[span].tolist()
        piece = self._mesh.moving.get(span)
        if piece:
            _write(self._program, "move", piece.motion(moment))
        self._vertex_array.render(vertices=3 * count, first=3 * first)
        if piece:
            _write(self._program, "move", np.eye(4))

    def _reflect(self, pose: np.ndarray, intrinsics: np.ndarray, moment: float) -> None:
        """Draws what the room's mirror shows into its texture, if the camera sees the mirror."""
        mirror = self._mesh.mirror
        if mirror is None or (pose[:3, 3] - mirror.corners[0]) @ mirror.normal < 0.01:
            return
        corners = (mirror.corners - pose[:3, 3]) @ pose[:3, :3] @ intrinsics.T
        low, high = np.zeros(2), np.full(2, self.size)
        if (corners[:, 2] <= 0).all():
            return
        if (corners[:, 2] > 0.05).all():
            pixels = corners[:, :2] / corners[:, 2:]
            low, high = (np.clip(x, 0, self.size) for x in
                         (np.floor(pixels.min(0)), np.ceil(pixels.max(0))))
        if (low >= high).any():
            return
        target = self._reflected
        target.use()
        target.scissor = (*low.astype(int), *(high - low).astype(int))
        target.clear(depth=1.0)
        plane = (*mirror.normal, -float(mirror.normal @ mirror.corners[0]) - 0.001)
        _set(self._program, front=plane)
        self._draw(target, pose, mirror.reflection, intrinsics, moment)
        _set(self._program, front=_EVERYTHING)
        target.color_attachments[0].use(3)  # type: ignore[union-attr]

    def release(self) -> None:
        """Frees the room's GPU memory; the next render uploads it again."""
        for resource in reversed(self._resources):
            resource.release()
        self._resources, self._room = [], None

    def _target(self, frames: int) -> tuple[moderngl.Framebuffer, moderngl.Framebuffer]:
        """Where all frames are drawn, one below the other, and where their finished colour goes."""
        if frames not in self._targets:
            finished = self._gl.renderbuffer((self.size, self.size * frames), 4)
            self._targets[frames] = self._drawing(frames), self._gl.framebuffer([finished])
        return self._targets[frames]

    def _drawing(self, frames: int) -> moderngl.Framebuffer:
        """Colour, and depth bits, instance and normal."""
        shape, gl = (self.size, self.size * frames), self._gl
        outputs = [gl.texture(shape, 4), gl.texture(shape, 4, dtype="u4")]
        return gl.framebuffer(outputs, gl.depth_renderbuffer(shape))

    def _finish_colour(self, drawn: moderngl.Framebuffer, finished: moderngl.Framebuffer,
                       noise: float, seed: int) -> None:
        finished.use()
        self._gl.disable(moderngl.DEPTH_TEST)
        drawn.color_attachments[0].use(2)  # type: ignore[union-attr]
        _set(self._finish.program, picture=2, noise=noise, seed=seed & 0xFFFFFFFF,
             rows=float(self.size))
        self._finish.render(moderngl.TRIANGLES, vertices=3)
        self._gl.enable(moderngl.DEPTH_TEST)

    def _upload(self, room: Room, pack: Pack) -> None:
        self.release()
        mesh = self._mesh = room_mesh(room, pack)
        vertices = self._gl.buffer(mesh.vertices.tobytes())
        indices = self._gl.buffer(mesh.triangles.tobytes())
        layout = ("3f4 4i1 2f4 4f1 2u2", "position", "normal", "uv", "colour", "layer_id")
        self._vertex_array = self._gl.vertex_array(self._program, [(vertices, *layout)], indices)
        casting = self._gl.vertex_array(
            self._shadow_program, [(vertices, f"3f4 {mesh.vertices.itemsize - 12}x1", "position")],
            indices)
        textures = self._gl.texture_array((*mesh.layers.shape[2:0:-1], len(mesh.layers)), 3,
                                          mesh.layers.tobytes())
        textures.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
        textures.build_mipmaps()
        textures.use(0)
        self._resources = [vertices, indices, self._vertex_array, casting, textures]
        to_light = _look_along(room.lights[0])
        self._cast(casting, mesh.casters, to_light)
        self._set_lights(room, to_light)

    def _cast(self, casting: moderngl.VertexArray, triangles: int, to_light: np.ndarray) -> None:
        self._shadow_target.use()
        self._shadow_target.clear(red=12.0, green=144.0)
        _write(self._shadow_program, "world_to_light", to_light)
        _set(self._shadow_program, shadow_reach=SHADOW_REACH)
        casting.render(vertices=3 * triangles)
        self._shadow.build_mipmaps(max_level=2)
        self._shadow.use(1)

    def _set_lights(self, room: Room, to_light: np.ndarray) -> None:
        dark = Light((0, 0, 0), (0, 0, 0))
        four = [*room.lights, dark, dark, dark, dark][:4]
        _write(self._program, "world_to_light", to_light)
        _set(self._program, textures=0, shadow=1, shadow_reach=SHADOW_REACH,
             lights=len(room.lights), light_at=[light.position for light in four],
             light_colour=[light.colour for light in four], room=room.size,
             above=room.ambient[0], below=room.ambient[1], reflection=3,
             glow_strength=room.glow, front=_EVERYTHING)
        _write(self._program, "move", np.eye(4))


def _set(program: moderngl.Program, **uniforms: object) -> None:
    for name, value in uniforms.items():
        program[name].value = value  # type: ignore[union-attr]


def _write(program: moderngl.Program, name: str, matrix: np.ndarray) -> None:
    """A 4x4 uniform; GL keeps columns together."""
    program[name].write(matrix.T.astype("<f4").tobytes())  # type: ignore[union-attr]


def _in_view(pose: np.ndarray, intrinsics: np.ndarray, size: int, mesh: RoomMesh) -> list[int]:
    """Spans in view: nearest first, to shade no hidden pixels; the shell; glass, furthest first."""
    ends = np.array(list(product((0, 1), repeat=3)))                                         # [8,3]
    corners = mesh.boxes[:, ends, [0, 1, 2]]                                               # [N,8,3]
    x, y, z = np.moveaxis((corners - pose[:3, 3]) @ pose[:3, :3], -1, 0)                     # [N,8]
    reach = z * (size / 2 / intrinsics[0, 0])
    outside = ((x > reach).all(1) | (x < -reach).all(1) | (y > reach).all(1)
               | (y < -reach).all(1) | (z < 0).all(1))
    near = z.min(1)
    near[mesh.shell] = _AWAY
    panes = len(near) - mesh.glass
    near[panes:] = 2 * _AWAY - near[panes:]
    order = np.argsort(near)
    return order[~outside[order]].tolist()


def _look_along(light: Light) -> np.ndarray:
    """World to light [4,4]: z along the light's direction."""
    ahead = np.array(light.direction) / np.linalg.norm(light.direction)
    side = np.cross(ahead, [0.0, 1.0, 0.0] if abs(ahead[1]) < 0.9 else [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    turn = np.stack([side, np.cross(ahead, side), ahead])
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = turn, -turn @ np.array(light.position)
    return out


def _unpack(data: np.ndarray, colour: np.ndarray) -> RenderedFrames:
    normal = np.ascontiguousarray(data[..., 2]).view(np.int8).reshape(*data.shape[:3], 4)
    return {"frames": np.ascontiguousarray(colour.transpose(0, 3, 1, 2)),
            "depth": np.ascontiguousarray(data[..., 0]).view(np.float32),
            "instances": data[..., 1].astype(np.int32),
            "normals": np.ascontiguousarray(normal[..., :3].transpose(0, 3, 1, 2))}
