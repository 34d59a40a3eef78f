"""Filmed rooms: exact labels of slanted walls, mirrors, clear panes and moving things."""
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from distill.correspondence import matching_cells
from scenes.clip import Clip, load_clip, save_clip
from scenes.rooms import layout
from scenes.rooms.layout import Room, furnish
from scenes.rooms.placement import GLASS, Arrangement, Piece
from scenes.rooms.source import RoomSource
from teacher.data.dataset import camera_fields
from tests.scenes.room_checks import same_instance_share, traced, unprojected

SIZE = 96


@pytest.fixture(scope="module")
def source() -> RoomSource:
    return RoomSource(train=1000, frames=3, size=SIZE, style="filmed")


@pytest.fixture(scope="module")
def clips(source) -> list[Clip]:
    return [source.clip(i) for i in source.ids("train")[:10]]


def room_with(source: RoomSource, wanted) -> tuple[Room, Piece]:
    for seed in count():
        room = furnish("train", seed, source.furniture, style="filmed")
        if found := next(filter(wanted, room.pieces), None):
            return room, found


def looking_at(point: np.ndarray, eye: np.ndarray) -> np.ndarray:
    ahead = (point - eye) / np.linalg.norm(point - eye)
    right = np.cross(ahead, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(ahead, right), ahead, eye], 1)
    return pose


def camera(degrees: float) -> np.ndarray:
    f = SIZE / 2 / np.tan(np.radians(degrees) / 2)
    return np.array([[f, 0, SIZE / 2], [0, f, SIZE / 2], [0, 0, 1]])


def view_of(piece: Piece, room: Room, away: float) -> np.ndarray:
    """A camera `away` from its front or back, whichever is in the room."""
    for sign in (1, -1):
        eye = piece.middle + sign * away * (piece.rotation @ [0.1, -1, 0])
        if (eye[:2] > 0.1).all() and (eye[:2] < np.array(room.size[:2]) - 0.1).all():
            return looking_at(piece.middle, eye)
    raise AssertionError(f"no place before {piece.name}")


def test_the_style_is_part_of_the_key_and_the_same_seed_is_the_same_clip(source, clips):
    assert source.key != RoomSource(train=1000, frames=3, size=SIZE).key
    again = RoomSource(train=3, frames=3, size=SIZE, style="filmed").clip(clips[2].id)
    for name in ("frames", "depth", "normals", "instances", "poses", "intrinsics"):
        assert np.array_equal(getattr(again, name), getattr(clips[2], name)), name


def test_every_second_room_of_the_mixed_style_is_filmed(source):
    mixed = RoomSource(train=4, frames=3, size=SIZE, style="mixed")
    plain = RoomSource(train=4, frames=3, size=SIZE)
    assert len({one.key for one in (mixed, plain, source)}) == 3
    for number, of in ((0, plain), (1, source)):
        clip_id = f"train/{number:05d}_0"
        assert np.array_equal(mixed.clip(clip_id).frames, of.clip(clip_id).frames)


def test_cameras_film_as_a_hand_does(clips):
    fov, roll = [], []
    for clip in clips:
        fov.append(np.degrees(2 * np.arctan(SIZE / 2 / clip.intrinsics[0, 0])))
        turns = clip.poses[:, :3, :3]
        roll.append(np.degrees(np.arctan2(turns[0, 2, 0], -turns[0, 2, 1])))
        assert (np.degrees(np.arcsin(turns[:, 2, 2])) > -70).all()
        assert (clip.poses[:, 2, 3] > 0.2).all() and (clip.poses[:, 2, 3] < 1.8).all()
        assert clip.depth.min() > 0.17 and np.median(clip.depth, (1, 2)).min() >= 0.35
        assert clip.room_size is None
        assert 40 < clip.frames.mean() < 215
    assert 34 < min(fov) < 50 and 75 < max(fov) < 96
    assert 4 < max(np.abs(roll)) < 17


def test_a_second_renderer_sees_the_same_depth_and_instances(source, clips):
    for clip in clips[:5]:
        room = source.room("train", int(clip.id[6:11]))
        depth, ids = traced(room, source.furniture, clip.poses[0], clip.intrinsics, SIZE)
        relative = np.abs(depth - clip.depth[0]) / np.maximum(depth, 1e-6)
        assert (relative < 1e-3).mean() >= 0.99 and (ids == clip.instances[0]).mean() >= 0.99


def test_static_depth_reprojects_onto_the_same_instance(clips):
    for clip in clips:
        assert same_instance_share(replace(clip, depth=clip.static_depth), 0, 2) >= 0.96, clip.id


def test_some_rooms_are_no_boxes_and_their_solids_are_walls(source):
    names = set()
    for seed in range(40):
        room = furnish("train", seed, source.furniture, style="filmed")
        solids = [o for o in room.objects if o.name in ("inner wall", "slope", "beam")]
        assert {o.category for o in solids} <= {"wall", "ceiling"}
        names |= {o.name for o in solids}
    assert names == {"inner wall", "slope", "beam"}


def test_a_mirror_has_the_depth_of_its_plane_and_the_colour_of_what_it_reflects(source):
    room, mirror = room_with(source, lambda p: p.name == "mirror")
    normal = mirror.rotation @ [0, -1, 0]
    pose, k = view_of(mirror, room, 1.2), camera(40)
    out = source.renderer.render(room, source.furniture, pose[None], k)
    points = unprojected(out["depth"][0], pose, k)
    at = (out["normals"][0].transpose(1, 2, 0) / 127) @ pose[:3, :3].T @ normal  # not the frame's
    shown = (out["instances"][0] == mirror.id) & (at > 0.98)
    inside = np.abs((points - mirror.middle) @ normal) < 0.02
    assert shown.sum() > 200 and inside[shown].all()
    chosen = np.argwhere(shown)[::max(1, shown.sum() // 30)]
    rays = points[tuple(chosen.T)] - pose[:3, 3]
    rays -= 2 * (rays @ normal)[:, None] * normal
    eyes = points[tuple(chosen.T)] + 0.01 * normal
    poses = np.stack([looking_at(eye + ray, eye) for eye, ray in zip(eyes, rays, strict=True)])
    seen = source.renderer.render(room, source.furniture, poses, camera(4))["frames"]
    seen = seen[:, :, SIZE // 2, SIZE // 2].astype(float)
    reflected = out["frames"][0][:, *chosen.T].T.astype(float)
    assert (np.abs(seen * 0.94 - reflected).max(1) < 25).mean() > 0.7
    assert np.std(reflected, 0).max() > 5  # not one colour


def test_glass_shows_and_is_labelled_as_what_is_behind_it(source):
    room, screen = room_with(source, lambda p: p.name == "glass screen")
    clear = tuple(replace(p, parts=tuple(q for q in p.parts if q.texture != GLASS))
                  for p in room.pieces)
    pose = view_of(screen, room, 0.9)
    out, without = (source.renderer.render(r, source.furniture, pose[None], camera(60))
                    for r in (room, replace(room, pieces=clear)))
    for name in ("depth", "instances", "normals"):
        assert np.array_equal(out[name], without[name]), name
    change = np.abs(out["frames"].astype(int) - without["frames"]).max(1)
    assert (change > 2).mean() > 0.2


def test_a_moving_thing_is_where_its_motion_says_and_is_masked(source):
    room, piece = room_with(source, lambda p: p.moves and p.travel[2] == 0)
    poses = np.stack([looking_at(piece.middle + np.array(piece.travel) / 2,
                                 np.array([*(np.array(room.size[:2]) / 2), 1.5]))] * 3)
    k = camera(90)
    out = source.renderer.render(room, source.furniture, poses, k)
    visible = [o for o in room.objects if (out["instances"] == o.id).any()]
    clip = Clip("x", **out, intrinsics=k, poses=poses, objects=visible)
    thing, = (o for o in visible if o.id == piece.id)
    assert thing.surface == "moving"
    moved = []
    for i, moment in enumerate((0, 0.5, 1)):
        points = unprojected(clip.depth[i], poses[i], k)[clip.instances[i] == piece.id]
        back = np.linalg.inv(piece.motion(moment))
        local = (points @ back[:3, :3].T + back[:3, 3] - piece.middle) @ piece.rotation
        assert len(local) > 5 and (np.abs(local) <= np.array(piece.size) / 2 + 0.01).all()
        assert (np.abs(points - thing.center) <= np.array(thing.size) / 2 + 0.01).all()
        moved.append(points.mean(0))
    assert np.linalg.norm(moved[2] - moved[0]) > 0.5 * np.linalg.norm(piece.travel)
    assert (clip.static_depth[clip.instances == piece.id] == 0).all()
    assert (camera_fields(clip)["pixel_depth"].numpy()[clip.instances == piece.id] == 0).all()
    cells = matching_cells(clip, 0, 2, SIZE)
    hidden = np.isin(clip.instances[0], [o.id for o in visible if o.surface != "fixed"])
    assert np.isnan(cells[hidden.reshape(-1)]).all() and not np.isnan(cells).all()


def test_surfaces_are_stored_with_a_clip(clips, tmp_path):
    objects = [replace(clips[0].objects[0], surface="moving"), *clips[0].objects[1:]]
    save_clip(replace(clips[0], objects=objects), tmp_path / "a.safetensors")
    assert load_clip(tmp_path / "a.safetensors").objects == objects


def test_a_room_without_lamp_and_window_has_a_weak_light_in_its_middle(source):
    dark = Arrangement((4.0, 3.0, 2.5), np.random.default_rng(0), source.furniture, "train", 1, 2)
    (light, ), _ = layout._lights(dark, "filmed")
    assert light.position == (2.0, 1.5, 2.38) and 0 < sum(light.colour) < 1
