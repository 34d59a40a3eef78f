"""Camera trajectories of a hand-held phone: short walks and orbits, with shake."""
from dataclasses import dataclass

import numpy as np

from scenes.rooms.layout import Room
from scenes.rooms.placement import Piece

FRAME_S = 0.2               # seconds between frames
TO_WALL = 0.3               # m, least distance from walls
_NEAREST = 0.4              # m: no box nearer than this along the optical axis
_GRID, _TRIES = 14, 120
_FLAT = ("rug", "door", "window", "wall", "ceiling")  # no target of a camera


@dataclass(frozen=True)
class Filming:
    """Ranges of a style's cameras."""
    height: tuple[float, float] = (1.2, 1.75)       # m above the floor
    fov: tuple[float, float] = (55.0, 80.0)         # degrees across the picture
    pitch: tuple[float, float] = (-24.0, 2.0)       # degrees
    roll: float = 0.0                               # degrees, largest
    aim: tuple[float, float] | None = (0.4, 1.0)    # m above the floor; None: the target's height
    close_ups: float = 0.0                          # share of clips of a small thing
    to_box: tuple[float, float] = (0.2, 0.3)        # m, least distance sideways, up and down
    furnished: float = 0.42                         # share of the picture
    seen: int = 4                                   # pieces


FILMING = {"plain": Filming(),
           "filmed": Filming((0.3, 1.7), (35.0, 95.0), (-60.0, 15.0), 15.0, None, 0.4, (0.1, 0.1),
                             0.15, 3)}


@dataclass(frozen=True)
class Trajectory:
    poses: np.ndarray  # [T,4,4] camera to world, OpenCV axes (x right, y down, z ahead)
    tan_half: float    # tangent of half the field of view
    furnished: float   # estimated share of the picture that shows neither floor, wall nor ceiling

    def intrinsics(self, size: int) -> np.ndarray:
        """[3,3] for a square picture, pixel centres at +0.5."""
        f = size / 2 / self.tan_half
        return np.array([[f, 0, size / 2], [0, f, size / 2], [0, 0, 1.0]])


def sample_trajectory(room: Room, frames: int, rng: np.random.Generator,
                      filming: Filming = FILMING["plain"]) -> Trajectory:
    """The first collision-free path that shows enough furniture, else the one that shows most.

    Nine frames move 0.5 to 1.2 m and turn 10 to 35 degrees; others in proportion.
    """
    boxes, size = np.stack([p.box for p in room.pieces]), np.array(room.size)  # [N,2,3], [3]
    furniture = np.array([p.category not in ("wall", "ceiling") for p in room.pieces])
    targets = [p for p in room.pieces if p.bottom < 1.0 and p.category not in _FLAT]
    small = [p for p in room.pieces if p.bottom < 1.6 and p.category not in _FLAT
             for _ in range(10 if p.moves else max(p.size) < 0.5)]
    weights = np.array([np.prod(p.size) ** 0.5 + 0.05 for p in targets])
    best: Trajectory | None = None
    wide: float | None = None
    for i in range(_TRIES):
        if filming.aim is None and i % 30 == 0:  # not in each try: wide views keep distance rarely
            wide = rng.uniform(*filming.fov)
        target = targets[rng.choice(len(targets), p=weights / weights.sum())] if targets else None
        share = (frames - 1) / 8 * min(1.0, 2 * (1 - i / _TRIES))  # crowded rooms: shorter walks
        if filming.close_ups and small and rng.random() < filming.close_ups:
            target = small[rng.integers(len(small))]
        poses = _move(room, target, frames, share, rng, filming)
        if poses is None or not _clear(poses[:, :3, 3], boxes, size, filming):
            continue
        tan_half = float(np.tan(np.radians(wide or rng.uniform(*filming.fov)) / 2))
        checked = poses[sorted({0, frames // 2, frames - 1})]
        nearest, furnished, seen = _preview(checked, tan_half, boxes, size, furniture)
        if nearest >= _NEAREST and (best is None or furnished > best.furnished):
            best = Trajectory(poses, tan_half, furnished)
        if nearest >= _NEAREST and furnished > filming.furnished and seen >= filming.seen:
            return Trajectory(poses, tan_half, furnished)
    if best is None:
        raise ValueError(
            f"trajectory: no clear camera path in {room.kind} room {room.split}/{room.seed} of "
            f"{room.size[0]:.1f} x {room.size[1]:.1f} m; use fewer pieces or another seed")
    return best


def _move(room: Room, target: Piece | None, frames: int, share: float, rng: np.random.Generator,
          filming: Filming) -> np.ndarray | None:
    """One path, `share` as long as that of nine frames; None if it starts too near or too far."""
    start, aim = (_view if filming.aim is None else _wide_view)(room, target, rng, filming)
    away = float(np.hypot(*(aim - start)[:2]))
    if not (0.9 if filming.aim else 0.25) < away < 4.5:
        return None
    if filming.aim is None:
        share *= min(1.0, away / 1.5)  # a hand that films a table top moves less
    u = np.linspace(0, 1, frames)  # then uneven speed
    u = u + 0.06 * np.sin(2 * np.pi * u + rng.uniform(0, 2 * np.pi)) * np.sin(np.pi * u)
    yaw = np.arctan2(aim[1] - start[1], aim[0] - start[0])
    way = float(rng.uniform(0.55, 1.1)) * share
    turn = np.radians(rng.uniform(11, 33)) * rng.choice([-1, 1]) * share
    if rng.random() < 0.45:  # orbit: the eye stays on the aim
        least, most = np.radians(11 * share), np.radians(33 * share)
        turn = float(np.sign(turn)) * float(np.clip(way / away, least, most))
        angle = yaw + np.pi + turn * u
        eye = np.stack([aim[0] + away * np.cos(angle), aim[1] + away * np.sin(angle),
                        np.full(frames, start[2])], 1)
        looking = angle + np.pi
    else:  # walk: mostly ahead, looking round
        aside = rng.choice([0, np.pi / 2, -np.pi / 2, np.pi], p=[0.6, 0.15, 0.15, 0.1])
        heading = yaw + aside + rng.normal(0, 0.4)
        curve = heading + rng.normal(0, 0.25) * (u - 0.5)
        ahead = np.stack([np.cos(curve), np.sin(curve), np.zeros(frames)], 1)
        eye = start + way * u[:, None] * ahead
        looking = yaw + turn * (u - 0.5)
    looking = looking + rng.normal(0, 0.08)
    pitch = np.clip(np.arctan2(aim[2] - start[2], away), *np.radians(filming.pitch))
    pitch = pitch + rng.normal(0, 0.03)
    eye = eye + _shake(frames, rng, np.array([0.004, 0.004, 0.008]))
    sway = _shake(frames, rng, np.radians([0.35, 0.3, 0.3]))
    roll = rng.normal(0, 0.012)
    if filming.roll:
        roll = np.radians(rng.triangular(-filming.roll, 0, filming.roll))
    return _poses(eye, looking + sway[:, 0], pitch + sway[:, 1], roll + sway[:, 2])


def _wide_view(room: Room, target: Piece | None, rng: np.random.Generator,
               filming: Filming) -> tuple[np.ndarray, np.ndarray]:
    """Eye and aim [3]: from anywhere in the room towards a target."""
    w, d, _ = room.size
    start = np.array([rng.uniform(TO_WALL, w - TO_WALL), rng.uniform(TO_WALL, d - TO_WALL),
                      rng.uniform(*filming.height)])
    assert filming.aim
    aim = np.array([*(target.center if target else (w / 2, d / 2)), rng.uniform(*filming.aim)])
    aim[:2] += rng.normal(0, 0.25, 2)
    return start, aim


def _view(room: Room, target: Piece | None, rng: np.random.Generator,
          filming: Filming) -> tuple[np.ndarray, np.ndarray]:
    """Eye and aim [3]: near a small target, further from a large one, at its own height."""
    aim = np.array([room.size[0] / 2, room.size[1] / 2, 0.8])
    away = float(rng.uniform(0.9, 4.5))
    if target:
        aim, size = target.middle, max(target.size)
        away = float(rng.uniform(0.4, 1.2) if size < 0.5 else rng.uniform(0.5, 2.5) + size / 2)
        aim = aim + rng.normal(0, 0.15, 3) * [1, 1, 0.6]
    angle = rng.uniform(-np.pi, np.pi)
    height = rng.uniform(*filming.height)
    level = float(np.sqrt(max(away**2 - (height - aim[2])**2, 0.25**2)))
    return np.array([aim[0] + level * np.cos(angle), aim[1] + level * np.sin(angle), height]), aim


def _shake(frames: int, rng: np.random.Generator, scale: np.ndarray) -> np.ndarray:
    """[T,3]: three slow sinusoids each, like hand and gait."""
    t = np.arange(frames)[:, None, None] * FRAME_S
    hertz = np.array([0.4, 0.9, 1.7])[:, None] * rng.uniform(0.8, 1.2, (3, 3))
    phase = rng.random((3, 3))
    waves = np.sin(2 * np.pi * (hertz * t + phase)) * np.array([1, 0.6, 0.3])[:, None]
    return waves.sum(1) * scale


def _poses(eye: np.ndarray, yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """[T,4,4] from positions [T,3] and angles [T] in radians; pitch up is positive."""
    ahead = np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], 1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros_like(yaw)], 1)
    down = np.cross(ahead, right)
    c, s = np.cos(roll)[:, None], np.sin(roll)[:, None]
    out = np.tile(np.eye(4), (len(eye), 1, 1))
    out[:, :3] = np.stack([c * right + s * down, c * down - s * right, ahead, eye], 2)
    return out


def _clear(eyes: np.ndarray, boxes: np.ndarray, room: np.ndarray, filming: Filming) -> bool:
    """Whether every eye [T,3] keeps its distance from walls and boxes."""
    low = np.array([TO_WALL, TO_WALL, filming.height[0] - 0.05])
    high = np.array([*(room[:2] - TO_WALL), filming.height[1] + 0.05])
    if (eyes < low).any() or (eyes > high).any():
        return False
    aside, upright = filming.to_box
    margin = np.array([aside, aside, upright])
    above, below = eyes[:, None] > boxes[:, 0] - margin, eyes[:, None] < boxes[:, 1] + margin
    return not bool((above & below).all(2).any())  # [T,N]


def _preview(poses: np.ndarray, tan_half: float, boxes: np.ndarray, room: np.ndarray,
             furniture: np.ndarray) -> tuple[float, float, int]:
    """Coarse ray casting: nearest depth in m, least share of pixels on pieces, visible pieces."""
    at = ((np.arange(_GRID) + 0.5) / _GRID * 2 - 1) * tan_half
    rays = np.stack([*np.meshgrid(at, at), np.ones((_GRID, _GRID))], -1).reshape(-1, 3)      # [R,3]
    nearest, share, seen = np.inf, 1.0, set()
    with np.errstate(divide="ignore", invalid="ignore"):
        for pose in poses:
            directions = rays @ pose[:3, :3].T                                               # [R,3]
            slabs = (boxes[None] - pose[:3, 3]) / directions[:, None, None]  # [R,N,2,3]
            enter, leave = slabs.min(2).max(2), slabs.max(2).min(2)                          # [R,N]
            enter = np.where((enter < leave) & (leave > 0), np.maximum(enter, 0), np.inf)
            to_wall = ((directions > 0) * room - pose[:3, 3]) / directions
            hit = enter.min(1)
            nearest = min(nearest, float(hit.min()), float(to_wall.min()))
            nearest_piece = enter.argmin(1)
            shown = (hit < np.inf) & furniture[nearest_piece]
            share = min(share, float(shown.mean()))
            seen |= set(nearest_piece[shown].tolist())
    return nearest, share, len(seen)
