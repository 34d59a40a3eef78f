"""Furnished rooms: what is in them, how they are filmed, and whether a second renderer agrees."""
from itertools import combinations

import numpy as np
import pytest

from scenes.clip import SPLITS, Clip
from scenes.furniture.pack import CLASSES, Pack
from scenes.rooms.camera_path import FILMING, TO_WALL, sample_trajectory
from scenes.rooms.layout import FLOOR, KINDS, furnish
from scenes.rooms.mesh import room_mesh
from scenes.rooms.placement import overlap, support_surface
from scenes.rooms.source import MAX_STRUCTURE, MIN_DEPTH, STRUCTURE, RoomSource, render_clips
from tests.scenes.room_checks import same_instance_share, traced, unprojected

SIZE = 96


@pytest.fixture(scope="module")
def source() -> RoomSource:
    return RoomSource(train=8, val=3, test=3, frames=5, size=SIZE)


@pytest.fixture(scope="module")
def pack(source: RoomSource) -> Pack:
    return source.furniture


@pytest.fixture(scope="module")
def clips(source: RoomSource) -> list[Clip]:
    return [
        source.clip(i)
        for i in (*source.ids("train")[:4], source.ids("val")[0], source.ids("test")[0])
    ]


@pytest.fixture(scope="module")
def rooms(pack: Pack):
    return [furnish(split, seed, pack, kind) for seed, split in enumerate(SPLITS) for kind in KINDS]


def test_the_same_seed_is_the_same_clip_and_another_seed_is_not(source, clips):
    again = RoomSource(train=8, frames=5, size=SIZE).clip(clips[0].id)
    other = RoomSource(train=8, frames=5, size=SIZE, seed=1).clip(clips[0].id)
    for name in ("frames", "depth", "normals", "instances", "poses", "intrinsics"):
        assert np.array_equal(getattr(again, name), getattr(clips[0], name)), name
    assert again.objects == clips[0].objects
    assert not np.array_equal(other.frames, again.frames)


def test_number_of_rooms_does_not_change_a_clip(source, clips):
    assert np.array_equal(
        RoomSource(train=1, frames=5, size=SIZE).clip(clips[0].id).frames, clips[0].frames)


def test_splits_share_no_furniture_model_and_no_room(pack, rooms):
    used = {
        split: {p.model.id
                for r in rooms if r.split == split for p in r.pieces if p.model}
        for split in SPLITS
    }
    assert all(len(models) > 10 for models in used.values())
    for a, b in combinations(SPLITS, 2):
        assert not used[a] & used[b]
    assert all(p.model.split == room.split for room in rooms for p in room.pieces if p.model)
    assert len({room.size for room in rooms}) == len(rooms)


def test_every_split_has_every_class_of_furniture(pack):
    classes = {m.category for m in pack.models}
    assert classes <= set(CLASSES) and len(classes) >= 11
    for split in SPLITS:
        assert {m.category for m in pack.by_split[split]} == classes


def test_shipped_models_are_public_domain_and_small(pack):
    assert len(pack.models) > 100
    assert {m.licence for m in pack.models} == {"CC0-1.0"}


def test_every_kind_of_room_is_furnished(rooms):
    for room in rooms:
        standing = [p for p in room.pieces if p.category not in ("door", "window")]
        assert len(standing) >= 8, (room.kind, room.split)
        assert any(p.category == "lamp" for p in standing) and room.lights


def test_no_two_boxes_interpenetrate(rooms):
    for room in rooms:
        for a, b in combinations(room.pieces, 2):
            if a.resting_on != b.id and b.resting_on != a.id:
                assert not overlap(a.box, b.box), (room.kind, room.split, a.name, b.name)


def test_everything_stays_inside_the_room(rooms):
    for room in rooms:
        for piece in room.pieces:
            assert (piece.box[0] > -1e-6).all() and (piece.box[1]
                                                     < np.array(room.size) + 1e-6).all(), piece.name


def test_objects_rest_on_what_carries_them(rooms):
    carried = 0
    for room in rooms:
        by_id = {p.id: p for p in room.pieces}
        for piece in room.pieces:
            if piece.resting_on == FLOOR:
                assert piece.bottom == pytest.approx(0, abs=1e-6), piece.name
            elif piece.resting_on:
                level, _ = support_surface(by_id[piece.resting_on])
                assert piece.bottom == pytest.approx(level, abs=1e-6), piece.name
                carried += 1
            else:
                box, (w, d, h) = piece.box, room.size
                gaps = [box[0, 0], box[0, 1], w - box[1, 0], d - box[1, 1], h - box[1, 2]]
                assert min(gaps) < 0.02, f"{piece.name} hangs in the air"
    assert carried > 40


def test_a_ray_down_from_a_carried_object_meets_its_carrier(rooms, pack):
    import trimesh
    from trimesh.ray.ray_pyembree import RayMeshIntersector

    checked = 0
    for room in rooms[:6]:
        mesh = room_mesh(room, pack)
        owner = mesh.vertices["id"][mesh.triangles[:, 0]]
        for piece in room.pieces:
            if piece.resting_on <= FLOOR:
                continue
            carrier = mesh.triangles[owner == piece.resting_on]
            scene = RayMeshIntersector(
                trimesh.Trimesh(mesh.vertices["position"], carrier, process=False))
            start = np.array([[*piece.center, piece.bottom + 0.03]])
            points, _, _ = scene.intersects_location(start, [[0.0, 0.0, -1.0]], multiple_hits=False)
            assert len(points) and abs(points[0, 2] - piece.bottom) < 0.02, (room.kind, piece.name)
            checked += 1
    assert checked > 10


def test_a_second_renderer_sees_the_same_depth_and_instances(source, clips, pack):
    for clip in clips:
        split, number = clip.id.split("/")
        room = source.room(split, int(number[:5]))
        depth, ids = traced(room, pack, clip.poses[2], clip.intrinsics, SIZE)
        relative = np.abs(depth - clip.depth[2]) / np.maximum(depth, 1e-6)
        assert (relative < 1e-3).mean() >= 0.995, clip.id
        assert (ids == clip.instances[2]).mean() >= 0.995, clip.id


def test_depth_reprojects_onto_the_same_instance():
    clips = map(RoomSource(train=3, frames=9, size=224).clip, ("train/00000_0", "train/00002_0"))
    for clip in clips:
        for i, j in ((0, 8), (8, 0), (3, 5)):
            assert same_instance_share(clip, i, j) >= 0.98, (clip.id, i, j)


def test_normals_are_unit_face_the_camera_and_follow_depth(clips):
    for clip in clips:
        n = clip.normals.astype(float).transpose(0, 2, 3, 1) / 127
        assert np.abs(np.linalg.norm(n, axis=-1) - 1).max() < 0.012
        points = unprojected(clip.depth[0], np.eye(4), clip.intrinsics)  # camera axes
        assert ((points * n[0]).sum(-1) <= 1e-2).all()
        gradient = np.cross(points[1:-1, 2:] - points[1:-1, :-2],
                            points[2:, 1:-1] - points[:-2, 1:-1])
        gradient /= np.linalg.norm(gradient, axis=-1, keepdims=True)
        inner = n[0, 1:-1, 1:-1]
        z = clip.depth[0]
        middle = z[1:-1, 1:-1]
        down, across = z[2:, 1:-1] + z[:-2, 1:-1] - 2 * middle, z[1:-1,
                                                                  2:] + z[1:-1, :-2] - 2 * middle
        bend = np.maximum(np.abs(down), np.abs(across))
        smooth = bend < 0.002 * middle  # not across the edge of anything
        agree = np.abs((gradient * inner).sum(-1)[smooth])
        assert smooth.mean() > 0.5 and (agree > 0.98).mean() > 0.97, clip.id


def test_every_pixel_lies_in_the_box_of_its_object(clips):
    for clip in clips:
        by_id = {o.id: o for o in clip.objects}
        assert set(np.unique(clip.instances).tolist()) == set(by_id)
        points = unprojected(clip.depth[0], clip.poses[0], clip.intrinsics)
        for thing in by_id.values():
            local = points[clip.instances[0] == thing.id] - thing.center
            c, s = np.cos(thing.heading), np.sin(thing.heading)
            local = local @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
            assert (np.abs(local) <= np.array(thing.size) / 2 + 0.01).all(), (clip.id, thing.name)


def test_semantic_map_covers_every_pixel(clips):
    assert all((clip.categories(CLASSES) != 255).all() for clip in clips)


def test_clips_show_furniture_and_nothing_too_near(clips):
    for clip in clips:
        assert np.isin(clip.instances, STRUCTURE).mean() <= MAX_STRUCTURE
        assert clip.depth.min() >= MIN_DEPTH
        assert 60 < clip.frames.mean() < 200


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
def test_the_camera_walks_at_eye_height_clear_of_everything(rooms, frames):
    for room in rooms[::4]:
        track = sample_trajectory(room, frames, np.random.default_rng(0))
        eyes = track.poses[:, :3, 3]
        assert track.poses.shape == (frames, 4, 4)
        assert (eyes[:, :2] >= TO_WALL).all() and (eyes[:, :2]
                                                   <= np.array(room.size[:2]) - TO_WALL).all()
        low, high = FILMING["plain"].height
        assert (eyes[:, 2] > low - 0.06).all() and (eyes[:, 2] < high + 0.06).all()
        for piece in room.pieces:
            assert not ((eyes > piece.box[0]) & (eyes < piece.box[1])).all(1).any(), piece.name
        turns = track.poses[:, :3, :3]
        assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3)) and np.allclose(
            np.linalg.det(turns), 1)
        assert (np.linalg.norm(np.diff(eyes, axis=0), axis=1) < 0.25).all()


def test_nine_frames_move_about_half_a_metre_to_a_bit_over_one(rooms):
    moves, angles = [], []
    for seed, room in enumerate(rooms):
        poses = sample_trajectory(room, 9, np.random.default_rng(seed)).poses
        moves.append(np.linalg.norm(poses[-1, :3, 3] - poses[0, :3, 3]))
        angles.append(np.degrees(np.arccos(np.clip(poses[0, :3, 2] @ poses[-1, :3, 2], -1, 1))))
    assert min(moves) > 0.4 and max(moves) < 1.35
    assert min(angles) > 5 and max(angles) < 40


def test_workers_give_the_same_clips_in_the_same_order():
    source = RoomSource(train=3, clips_per_room=2, frames=2, size=48)
    ids = source.ids("train")
    here = list(render_clips(source, ids, 0))
    there = list(render_clips(source, ids, 2))
    assert [c.id for c in there] == ids == [c.id for c in here]
    for a, b in zip(here, there, strict=True):
        assert np.array_equal(a.depth, b.depth) and np.array_equal(a.instances, b.instances)


def test_a_worker_that_fails_says_why_in_one_line():
    source = RoomSource(train=2, frames=1, size=32)
    with pytest.raises(ValueError, match="no clip"):
        list(render_clips(source, ["train/00007_0", "train/00008_0"], 2))


def test_a_missing_pack_fails_before_any_worker():
    with pytest.raises(ValueError, match="no such pack"):
        RoomSource(pack="/nowhere/furniture.zip")


@pytest.mark.parametrize("wrong", ["train/99999_0", "train/00000_7", "nonsense", "holdout/00000_0"])
def test_an_unknown_id_is_refused(source, wrong):
    with pytest.raises(ValueError, match="no clip"):
        source.clip(wrong)


def test_no_egl_says_what_to_install(monkeypatch):
    import moderngl

    def fail(*args, **kwargs):
        raise Exception("(detect) libEGL.so not loaded")

    monkeypatch.setattr(moderngl, "create_context", fail)
    with pytest.raises(ValueError, match=r"no EGL device .*install libegl1 libgl1-mesa-dri"):
        RoomSource(train=1, size=32).clip("train/00000_0")


def test_a_missing_or_broken_pack_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such pack; make one with: vega3d scenes pack"):
        Pack.load(tmp_path / "none.zip")
    (tmp_path / "bad.zip").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"bad\.zip: not a furniture pack"):
        Pack.load(tmp_path / "bad.zip")


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"size": 0}, {"clips_per_room": 0},
                                   {"train": -1}, {"seed": -1}])
def test_senseless_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="rooms: got"):
        RoomSource(**wrong)
