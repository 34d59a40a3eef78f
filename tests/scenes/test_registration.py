"""Whether depth is registered to colour: rendered rooms, and the same with depth disturbed."""
import re
from dataclasses import replace

import numpy as np
import pytest

from scenes.clip import Clip
from scenes.rooms.source import RoomSource
from scenes.sources.registration import check_registration


@pytest.fixture(scope="module")
def rooms():
    source = RoomSource(train=8, val=0, test=0, frames=5, seed=5)
    clips = [source.clip(clip_id) for clip_id in source.ids("train")]
    return [Clip(clip.id, clip.frames, depth=clip.depth) for clip in clips]


def sampled(clips, zoom=1.0, across=0.0, down=0.0):
    """Depth as if its field of view were `zoom` times as wide and it lay px right of and below."""
    found = []
    for clip in clips:
        size = clip.depth.shape[1]
        rows, columns = (np.floor((np.arange(size) + 0.5 - size / 2 - off) * zoom + size / 2)
                         .astype(int) for off in (down, across))
        inside = ((rows >= 0) & (rows < size))[:, None] & ((columns >= 0) & (columns < size))
        depth = clip.depth[:, rows.clip(0, size - 1)[:, None], columns.clip(0, size - 1)]
        found.append(replace(clip, depth=depth * inside))
    return found


def of_other_frames(clips):
    return [replace(a, depth=b.depth) for a, b in zip(clips, [*clips[3:], *clips[:3]], strict=True)]


@pytest.mark.parametrize("size", [224, 160, 112])
def test_true_pairs_are_registered_at_every_size(rooms, size):
    at = np.arange(size) * 224 // size
    clips = [replace(clip, frames=clip.frames[:, :, at[:, None], at],
                     depth=clip.depth[:, at[:, None], at]) for clip in rooms]
    found = check_registration(clips)
    assert not found.wrong and found.note == ""


@pytest.mark.parametrize(("across", "down", "zoom"), [
    (8, 0, 1), (0, 20, 1), (-40, 0, 1), (30, 30, 1), (0, 0, 1.15), (0, 0, 0.85), (10, 0, 1.3)])
def test_a_shift_and_another_field_of_view_are_named(rooms, across, down, zoom):
    found = check_registration(sampled(rooms, zoom, across, down))
    assert found.wrong and "not registered to colour" in found.note
    measured = [float(number) for number in re.findall(r"[+-]\d+|\d\.\d+", found.note)]
    assert measured == pytest.approx([zoom * across, zoom * down, zoom], abs=2.1) and (
        measured[2] == pytest.approx(zoom, abs=0.05))


def test_an_offset_within_a_quarter_of_a_token_passes(rooms):
    assert check_registration(sampled(rooms, across=3)).note == ""


def test_px_are_of_the_frame(rooms):
    half = [replace(clip, frames=clip.frames[..., ::2, ::2], depth=clip.depth[:, ::2, ::2])
            for clip in sampled(rooms, across=20)]
    assert re.search(r"lie \+(9|10|11) px across", check_registration(half).note)


@pytest.mark.parametrize("disturb", [
    of_other_frames, lambda clips: sampled(clips, across=100),
    lambda clips: [replace(clip, frames=0 * clip.frames) for clip in clips],
    lambda clips: [replace(clip, depth=clip.depth[:, ::-1]) for clip in clips]])
def test_depth_of_another_view_is_noticed(rooms, disturb):
    found = check_registration(disturb(rooms))
    assert found.wrong and "not of the same view" in found.note


@pytest.mark.parametrize(("kind", "count"), [("one", 1), ("standing", 1), ("two", 10), ("flat", 0)])
def test_few_or_equal_frames_or_no_edges_cannot_tell(rooms, kind, count):
    one = replace(rooms[0], frames=rooms[0].frames[:1], depth=rooms[0].depth[:1])
    clips = {"one": [one], "two": rooms[:2], "standing": [one] * 60,
             "flat": [replace(clip, depth=np.full_like(clip.depth, 2)) for clip in rooms]}[kind]
    for disturbed in (clips, sampled(clips, across=20)):
        found = check_registration(disturbed)
        assert not found.wrong and found.note.startswith("cannot tell whether depth is registered")
        assert int(found.note.split()[-1]) <= count
