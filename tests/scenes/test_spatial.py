"""Camera distances and depth orders, worked out here by hand, and where the pointers are."""
import re
from dataclasses import replace

import numpy as np
import pytest

from scenes.questions.question import POINTER, questions
from scenes.questions.stored import load_questions, save_questions
from scenes.questions.visibility import SceneView
from teacher.language.dataset import load_rooms, save_rooms
from teacher.language.encode import log_number, read_room, right_candidates
from tests.scenes.test_questions import NAMES, SIDE, shown, thing

DEPTHS = dict(zip(NAMES, (2.0, 2.5, 3.4, 3.0, 5.0, 4.4, 4.0, 6.0, 6.5, 9.0), strict=True))


@pytest.fixture(scope="module")
def clip():
    """Two frames of ten things in blocks of 5 x 5 pixels, eight a row, each at its own depth; in
    the second frame 0.2 m farther. The piano fills 5 x 10."""
    things = [thing(10 + k, name, 0.4 * k, 1.0) for k, name in enumerate(NAMES)]
    made = shown(things, frames=2)
    made.instances[:, 5:10, 30:40] = 15  # the piano, below all but clock and radiator
    depth = np.full((2, SIDE, SIDE), 12.0, np.float32)
    for item in things:
        for frame in range(2):
            depth[frame][made.instances[frame] == item.id] = DEPTHS[item.name] + 0.2 * frame
    depth[0, 0, 0] = 40.0  # one pixel of the desk shows through: the median ignores it
    return replace(made, depth=depth)


def distance(clip, number: int, frame: int) -> float:
    rows, columns = np.nonzero(clip.instances[frame] == number)
    ray = np.sqrt(((columns + 0.5 - SIDE / 2) / SIDE) ** 2 + ((rows + 0.5 - SIDE / 2) / SIDE) ** 2
                  + 1)
    return float(np.median(ray * clip.depth[frame, rows, columns]))


def test_camera_distances_are_medians_over_the_mask_in_the_named_frame(clip):
    found = questions(clip, "camera_distance")
    assert len(found) == 8
    for question in found:
        (noun, number, frame), = question.mentions
        assert f"In frame {frame + 1}, " in question.text and f"the {noun} " in question.text
        assert question.number == pytest.approx(distance(clip, number, frame), abs=0.005)
        assert question.pointed_prompt.count(POINTER) == 1
        assert f"of the {noun} {POINTER} (in meters)" in question.pointed_prompt
    assert {q.mentions[0][2] for q in found} == {0, 1}
    assert not questions(replace(clip, depth=None), "camera_distance")


def test_depth_orders_are_of_the_gaps_asked_for_and_point_in_the_options_order(clip):
    found = questions(clip, "depth_order", seed=3)
    assert found and {q.kind for q in found} >= {"counter", "prior"}
    for question in found:
        assert len({frame for _, _, frame in question.mentions}) == 1
        at = [distance(clip, number, frame) for _, number, frame in question.mentions]
        assert 0.29 <= abs(at[0] - at[1]) <= 0.81
        assert question.answer == "AB"[int(at[1] < at[0])]
        assert [o[3:] for o in question.options] == [noun for noun, _, _ in question.mentions]
        pointed = re.findall(rf"(\w+) {POINTER}", question.pointed_prompt)
        assert pointed == [noun for noun, _, _ in question.mentions]


def test_counter_prior_pairs_are_lower_yet_farther_or_larger_yet_farther(clip):
    """The piano (4.4 m) is lower and larger than the tv (4.0 m), and farther."""
    kinds = {}
    for seed in range(40):
        for question in questions(clip, "depth_order", seed):
            kinds[frozenset(noun for noun, _, _ in question.mentions)] = question.kind
    assert kinds[frozenset(("piano", "tv"))] == "counter"
    assert kinds[frozenset(("desk", "lamp"))] == "neutral"  # one row, one size
    assert kinds[frozenset(("piano", "door"))] == "prior"   # lower, larger and nearer


def test_the_closest_of_one_noun_is_told_by_pointers_and_each_of_a_pair_is_right_once():
    desks = [thing(10, "desk", 0, 0), thing(11, "desk", 4, 0), thing(12, "desk", 0, 0.5)]
    others = [thing(20, "lamp", 1, 0), thing(21, "sofa", 2, 0), thing(22, "bed", 3, 0)]
    right = {"lamp": 10, "bed": 11}  # the sofa is as far from both
    answers = set()
    for seed in range(20):
        found = questions(shown([*desks[:2], *others]), "same_noun_closest", seed)
        assert {q.mentions[2][0] for q in found} == set(right) and len(found) == 2
        for question in found:
            noun = question.mentions[2][0]
            assert question.options == ("A. desk", "B. desk")
            assert question.mentions["AB".index(question.answer)][1] == right[noun]
            pointed = re.findall(rf"(\w+) {POINTER}", question.pointed_prompt)
            assert pointed == ["desk", "desk", noun]
            answers.add(question.answer)
    assert answers == {"A", "B"}
    # closest to both others
    assert not questions(shown([*desks[:2], thing(20, "lamp", 1, 0)]), "same_noun_closest")
    pairs = {frozenset(number for _, number, _ in q.mentions[:2])
             for q in questions(shown([*desks, *others]), "same_noun_closest")}
    assert pairs == {frozenset((10, 11)), frozenset((11, 12))}  # 10 and 12 are too alike
    room = read_room(replace(shown([*desks[:2], *others]),
                             depth=np.full((1, SIDE, SIDE), 49.0, np.float32)),
                     ("same_noun_closest",), 0)
    assert all(len(set(rows)) == 3 for rows in room.mentions) and len(room.questions) == 2


def test_several_objects_are_mentioned_in_a_frame_that_shows_all(clip):
    only = shown([thing(10, "desk", 0, 0), thing(11, "lamp", 1, 0), thing(12, "bed", 3, 0)],
                 first={11: 1, 12: 2}, frames=3)
    only.instances[2][only.instances[2] == 10] = 1  # the desk leaves when the bed comes
    view = SceneView(only)
    desk, lamp, bed = view.objects
    assert view.mentions(desk, lamp) == (("desk", 10, 1), ("lamp", 11, 1))
    assert view.mentions(bed, desk) == (("bed", 12, 2), ("desk", 10, 0))


def test_mentions_of_vsi_questions_follow_the_text(clip):
    for task in ("vsi:object_abs_distance", "vsi:object_rel_distance",
                 "vsi:object_rel_direction_easy", "vsi:object_rel_direction_hard"):
        for question in questions(clip, task):
            pointed = question.pointed_prompt
            nouns = re.findall(rf"(\w+) {POINTER}", pointed)
            assert nouns == [noun for noun, _, _ in question.mentions] and nouns
            assert pointed.replace(f" {POINTER}", "") == question.prompt


def test_regions_are_the_masks_and_candidates_are_jittered(clip, tmp_path):
    room = read_room(clip, ("camera_distance", "ground"), 0)
    objects = len(NAMES)
    for question, mentions in zip(room.questions, room.mentions, strict=True):
        for (_, number, frame), row in zip(question.mentions, mentions, strict=True):
            share = room.inside[row].astype(float).reshape(2, 14, 14)
            assert not share[1 - frame].any() and not room.boxes[row].any()
            area = (clip.instances[frame] == number).mean()
            assert share[frame].mean() == pytest.approx(area, rel=0.35)  # cells are 2 or 3 px
        if question.task == "ground":
            assert question.proposals == objects and len(question.boxes) == 2 * objects
            wanted = question.targets[0] - objects
            assert right_candidates(question) == (wanted,)
            assert not np.allclose(question.boxes[wanted], question.boxes[wanted + objects])
    save_rooms([room], tmp_path / "rooms.safetensors")
    back, = load_rooms(tmp_path / "rooms.safetensors")
    assert back.mentions == room.mentions and back.focal == room.focal
    assert [q.mentions for q in back.questions] == [q.mentions for q in room.questions]
    np.testing.assert_array_equal(back.camera, room.camera)
    save_questions({clip.id: room.questions[:2]}, tmp_path)
    stored = load_questions(tmp_path)[clip.id]
    assert [q.mentions for q in stored] == [q.mentions for q in room.questions[:2]]


def test_sizes_are_asked_in_centimetres_and_learned_in_metres():
    question, = questions(shown([thing(10, "desk", 2.5, 2, size=(1.2, 0.6, 0.7))]),
                          "vsi:object_size_estimation")
    assert question.number == 120 and log_number(question) == pytest.approx(np.log(1.2))
