"""Questions about made-up rooms whose answers are worked out here by other means, and about
rendered ones."""
import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import vega3d
from scenes.clip import Clip, SceneObject, Strided, save_clip
from scenes.questions.balance import balanced, question_set
from scenes.questions.baselines import Majority, TextOnly
from scenes.questions.nouns import noun_of
from scenes.questions.question import NO_BOXES, TASKS, Question, questions
from scenes.questions.scoring import summary
from scenes.rooms.source import RoomSource
from teacher.language.encode import read_room

SIDE = 40  # px; one thing fills a block of 5 x 5, well above the 0.4 % that counts as clear


def thing(number: int, name: str, x: float, y: float, z: float = 0.5, size=(0.4, 0.4, 1.0),
          heading: float = 0.0, category: str = "decor") -> SceneObject:
    return SceneObject(number, category, name, (x, y, z), size, heading)


def shown(things: list[SceneObject], first: dict[int, int] | None = None, frames: int = 1,
          few=()) -> Clip:
    """A clip in which each thing fills a block from its first frame on; those in `few` fill one
    pixel."""
    instances = np.ones((frames, SIDE, SIDE), np.int32)  # 1 is the floor
    for k, t in enumerate(things):
        v, u = divmod(k, SIDE // 5)
        block = (slice((first or {}).get(t.id, 0), None), slice(5 * v,
                                                                5 * v + 5), slice(5 * u, 5 * u + 5))
        instances[block] = 1 if t.id in few else t.id
        if t.id in few:
            instances[:, 5 * v, 5 * u] = t.id
    far = np.eye(4)
    # looking down from so high that all is in view
    far[:3, :3], far[:3, 3] = np.diag([1, -1, -1]), [2.5, 2.5, 50]
    return Clip("train/00000_0", np.zeros((frames, 3, SIDE, SIDE), np.uint8), instances=instances,
                intrinsics=np.array([[SIDE, 0, SIDE / 2], [0, SIDE, SIDE / 2], [0, 0, 1.0]]),
                poses=np.tile(far, (frames, 1, 1)), objects=things, room_size=(5.0, 4.0, 2.5))


NAMES = ("desk", "lamp", "sofa", "bed", "door", "piano", "tv", "rug", "clock", "radiator")


@pytest.fixture(scope="module")
def scattered() -> list[Clip]:
    """Sixteen rooms of ten different things at random, turned at random."""
    rng = np.random.default_rng(0)
    return [
        replace(
            shown([
                thing(10 + k, name, *rng.uniform(0.3, 4.7, 2), 0.5, tuple(rng.uniform(0.2, 0.7, 3)),
                      float(rng.uniform(-3, 3))) for k, name in enumerate(NAMES)
            ]), id=f"train/{i:05d}_0") for i in range(16)
    ]


@pytest.fixture(scope="module")
def rendered() -> list[Clip]:
    source = RoomSource(train=4, val=0, test=0, frames=3, size=112)
    return [source.clip(i) for i in source.ids("train")]


def where(clip: Clip) -> dict[str, complex]:
    """Noun -> its middle on the floor plan as a complex number."""
    return {noun_of(o.name): complex(*o.center[:2]) for o in clip.objects}


def degrees(at: complex, facing: complex, other: complex) -> float:
    return float(np.degrees(np.angle((other - at) / (facing - at))))


def right_option(question: Question) -> str:
    return next(o[3:] for o in question.options if o[0] == question.answer)


def test_the_same_seed_asks_the_same_questions_and_another_one_others(scattered):
    def asked(seed):
        return [(q.text, q.answer, q.options) for task in TASKS
                for q in questions(scattered[0], task, seed)]
    assert asked(0) == asked(0) and asked(0) != asked(1)


def test_a_task_that_does_not_exist_names_those_that_do(scattered):
    with pytest.raises(ValueError, match="no task 'vsi:counting'; there are vsi:object_counting"):
        questions(scattered[0], "vsi:counting")


def test_a_bare_video_cannot_be_asked_about():
    with pytest.raises(ValueError, match="lacks instances, poses, intrinsics, room_size"):
        questions(Clip("v", np.zeros((1, 3, 4, 4), np.uint8)), "ground")


def test_counts_are_of_what_is_shown_and_doubtful_nouns_are_not_asked_about():
    chairs = [
        thing(10 + k, name, k, 1)
        for k, name in enumerate(("chair", "oak chair", "chair with cushion"))
    ]
    clip = shown(
        [*chairs,
         thing(20, "lamp", 1, 3),
         thing(21, "desk lamp", 2, 3),
         thing(22, "sofa", 3, 3)], few=(21, ))
    counts = {q.text: q.answer for q in questions(clip, "vsi:object_counting")}
    assert counts == {
        "How many chair(s) are in this room?": "3", "How many sofa(s) are in this room?": "1"
    }


def test_distances_are_those_of_many_points_on_the_boxes(scattered):
    rng = np.random.default_rng(1)

    def points(o: SceneObject) -> np.ndarray:
        turn = np.exp(1j * o.heading)
        local = rng.uniform(-0.5, 0.5, (1500, 3))
        local[np.arange(1500), rng.integers(0, 3, 1500)] = rng.choice([-0.5, 0.5], 1500)
        flat = (local[:, 0] * o.size[0] + 1j * local[:, 1] * o.size[1]) * turn + complex(
            *o.center[:2])
        return np.c_[flat.real, flat.imag, local[:, 2] * o.size[2] + o.center[2]]

    asked = [(c, q) for c in scattered[:4] for q in questions(c, "vsi:object_abs_distance")]
    assert len(asked) >= 12
    for clip, question in asked:
        pair = re.search(r"between the (.+) and the (.+) \(in meters\)", question.text).groups()
        a, b = (next(points(o) for o in clip.objects if o.name == name) for name in pair)
        nearest = min(np.linalg.norm(a[i] - b, axis=1).min() for i in range(0, len(a), 2))
        assert question.number == pytest.approx(
            nearest, abs=0.12) and question.answer == f"{question.number:.1f}"


def test_sizes_are_the_longest_side_in_centimetres_of_things_seen_whole(scattered):
    clip = scattered[0]
    for question in questions(clip, "vsi:object_size_estimation"):
        name = re.search(r"of the (\w+), measured", question.text)[1]
        assert question.number == round(100 *
                                        max(next(o.size for o in clip.objects if o.name == name)))
    near = clip.poses.copy()
    near[:, 2, 3] = 1.1  # just above the things: no box fits into the picture
    close = replace(clip, poses=near)
    assert questions(
        clip, "vsi:object_size_estimation") and not questions(close, "vsi:object_size_estimation")


def test_the_room_has_its_floor_area(scattered):
    question, = questions(scattered[0], "vsi:room_size_estimation")
    assert (question.answer, question.number) == ("20.0", 20.0)


def test_the_right_option_is_clearly_closest_and_other_targets_have_others(scattered):
    for clip in scattered[:12]:
        at = where(clip)
        asked = questions(clip, "vsi:object_rel_distance")
        assert len({right_option(q) for q in asked}) == len(asked) != 1
        assert len({frozenset(o[3:] for o in q.options) for q in asked}) <= 1
        for question in asked:
            listed, target = re.search(r"objects \((.+)\) is the closest to the (.+)\?",
                                       question.text).groups()
            assert listed.split(", ") == [o[3:] for o in question.options]
            order = sorted(abs(at[o] - at[target]) for o in listed.split(", "))
            # middles, not closest points
            assert abs(at[right_option(question)] - at[target]) < order[0] + 0.8


@pytest.mark.parametrize(("level", "sectors"), [
    ("easy", {"left": (0, 180), "right": (-180, 0)}),
    ("medium", {"left": (0, 135), "right": (-135, 0), "back": (135, 225)}),
    ("hard", {"front-left": (0, 90), "back-left": (90, 180), "back-right": (180, 270),
              "front-right": (-90, 0)})])
def test_directions_hold_with_a_margin(scattered, level, sectors):
    said = Counter()
    for clip in scattered:
        at = where(clip)
        for question in questions(clip, f"vsi:object_rel_direction_{level}"):
            by, facing, other = re.match(
                r"If I am standing by the (.+) and facing the (.+), is the (.+?) to ",
                question.text).groups()
            low, high = sectors[right_option(question)]
            angle = (degrees(at[by], at[facing], at[other]) - low) % 360
            assert 10 < angle < high - low - 10 and by != "rug"
            assert sorted(o[3:] for o in question.options) == sorted(sectors)
            said[right_option(question)] += 1
    assert min(said.values()) > 10 and max(said.values()) < 1.6 * min(said.values())


def test_a_robot_that_turns_as_answered_faces_every_next_stop(scattered):
    turns = {"Turn Left": 90, "Turn Right": -90, "Turn Back": 180}
    found = 0
    for clip in scattered:
        at = where(clip)
        for question in questions(clip, "vsi:route_planning"):
            start, facing, end = re.search(
                r"beginning at the (.+) and facing the (.+?)\. You want to navigate to the (.+?)\.",
                question.text).groups()
            by = re.search(r"Go forward until the (.+?)\.", question.text)[1]
            stops = [(start, facing, by),
                     (by, None,
                      end)] if question.text.count("[please fill in]") == 3 else [(by, None, end)]

            def works(option, stops=stops, start=start, by=by, at=at):
                for turn, (here, ahead, next_) in zip(option.split(", "), stops, strict=True):
                    straight = at[ahead] if ahead else 2 * at[by] - at[start]
                    off = degrees(at[here], straight, at[next_]) - turns[turn]
                    if abs((off + 180) % 360 - 180) > 45:
                        return False
                return True
            assert [o[3:] for o in question.options if works(o[3:])] == [right_option(question)]
            found += 1
    assert found > 10


def test_no_route_leads_through_furniture():
    across = [
        thing(10, "desk", 0.5, 2),
        thing(11, "bed", 4, 2),
        thing(12, "sofa", 4, 3.6),
        thing(13, "lamp", 0.5, 3.6)
    ]
    def routes(things):
        return {(re.search(r"beginning at the (\w+)",
                           q.text)[1], re.search(r"until the (\w+)", q.text)[1])
                for seed in range(20)
                for q in questions(shown(things), "vsi:route_planning", seed)}
    assert ("desk", "bed") in routes(across)
    assert ("desk", "bed") not in routes([*across, thing(14, "box", 2.2, 2)])


def test_order_of_appearance_needs_each_clear_before_the_next_shows():
    things = [thing(10 + k, name, k, 1) for k, name in enumerate(("lamp", "sofa", "bed", "desk"))]
    asked = questions(shown(things, {10: 4, 11: 0, 12: 6, 13: 2}, frames=8),
                      "vsi:obj_appearance_order")
    assert [right_option(q) for q in asked] == ["sofa, desk, lamp, bed"]
    assert len(set(asked[0].options)) == 4
    assert not questions(shown(things, {10: 4, 11: 0, 12: 6, 13: 4}, frames=8),
                         "vsi:obj_appearance_order")


def test_the_right_letter_is_any_letter_equally_often(scattered):
    letters = Counter(q.answer for clip in scattered for seed in range(5)
                      for q in questions(clip, "vsi:object_rel_direction_hard", seed))
    total = letters.total()
    assert total > 200 and all(0.18 < letters[c] / total < 0.32 for c in "ABCD")


def test_descriptions_of_one_of_several_fit_no_other():
    rng = np.random.default_rng(3)
    checked = Counter()
    for _ in range(25):
        spots = rng.uniform(0.3, 4.7, (7, 2))
        names = ("chair", "chair", "chair", "desk", "sofa", "bed", "door")
        clip = shown([
            thing(10 + k, n, *xy, 0.5, (0.3, 0.3, float(rng.uniform(0.6, 1.2))))
            for k, (n, xy) in enumerate(zip(names, spots, strict=True))
        ])
        spot = dict(zip(("desk", "sofa", "bed", "door"), spots[3:], strict=True))
        for question in questions(clip, "ground"):
            target, = question.targets
            if question.kind == "multiple":
                assert target < 3
                chairs = question.boxes[:3]
                for word, best in (("closest to", min), ("farthest from", max)):
                    if anchor := re.search(rf"that is {word} the (\w+)\.", question.text):
                        away = [float(np.hypot(*(c[:2] - spot[anchor[1]]))) for c in chairs]
                        # box to box, where the test measures middle to middle of boxes 0.3 m wide
                        assert abs(away[target] - best(away)) < 0.15
                        checked[word] += 1
                if "the tallest of the chairs" in question.text:
                    assert chairs[target, 5] == chairs[:, 5].max()
                    checked["tallest"] += 1
            else:
                assert target >= 3 and f"{names[target]}" in question.text
    assert min(checked.values()) > 3 and len(checked) == 3


def test_places_in_descriptions_hold_for_what_is_meant_and_for_nothing_else(scattered):
    """All things differ, so a description of one of them is a statement about it; by middles and
    half diagonals."""
    checked = Counter()
    for clip in scattered[:9]:
        at, half = where(clip), {o.name: np.hypot(*o.size[:2]) / 2 for o in clip.objects}
        for question in (*questions(clip, "ground"), *questions(clip, "multi_ground")):
            noun = next((n for n in re.findall(r"\w+", question.text) if n in NAMES), None)
            if question.kind == "zt_wo_d" or noun is None:
                continue  # of a noun that is not here
            told = bool(question.targets)
            assert not told or clip.objects[question.targets[0]].name == noun
            for side, a, b in re.findall(
                    r"the (left|right) when standing by the (\w+) and facing the (\w+)",
                    question.text):
                angle = degrees(at[a], at[b], at[noun]) * (1 if side == "left" else -1)
                assert 15 < angle < 135 if told else not 20 < angle < 130
                checked[f"{side} {told}"] += 1
            for a in re.findall(r"next to the (\w+)", question.text):
                assert (abs(at[noun] - at[a]) < 0.36 + half[noun] +
                        half[a]) if told else abs(at[noun] - at[a]) > 0.8
                checked[f"next {told}"] += 1
            for a in re.findall(r"more than two meters away from the (\w+)", question.text):
                assert abs(at[noun] -
                           at[a]) > 2.2 if told else abs(at[noun] -
                                                         at[a]) < 1.8 + half[noun] + half[a]
                checked[f"far {told}"] += 1
            for a, b in re.findall(r"between the (\w+) and the (\w+)", question.text):
                along = (at[noun] - at[a]) / (at[b] - at[a])
                middling = 0.1 < along.real < 0.9 and abs(along.imag) * abs(at[b] - at[a]) < 0.6
                assert middling == told
                checked[f"between {told}"] += 1
    assert all(checked[f"{kind} True"] > 2 for kind in ("left", "right", "next", "far", "between"))
    assert sum(count for kind, count in checked.items() if kind.endswith("False")) > 5


def test_on_the_table_means_standing_on_it():
    table = thing(10, "table", 2, 2, 0.4, (1.2, 0.8, 0.8))
    small = (0.1, 0.1, 0.2)
    clip = shown([
        table,
        thing(11, "plant", 2.3, 2.1, 0.9, small),
        thing(12, "plant", 2.2, 2.1, 0.1, small),
        thing(13, "sofa", 4, 4),
        thing(14, "door", 0, 0)
    ])
    said = {
        q.text.split(" ", 1)[1]: q
        for seed in range(12)
        for q in questions(clip, "multi_ground", seed)
    }
    on = said["plant on the table."]
    assert on.targets == (1,) and on.kind == "st_w_d"


def test_kinds_of_targets_say_how_many_there_are_and_whether_others_distract(rendered):
    kinds = Counter()
    for clip in rendered:
        for question in questions(clip, "multi_ground"):
            noun = re.match(r"(?:Every|Any|Each) (.+?) (?:in the room|on|next|more|between)",
                            question.text)[1]
            same = [o for o in clip.objects if noun_of(o.name, o.center[2] - o.size[2] / 2) == noun
                    and (clip.instances == o.id).mean((1, 2)).max() >= 0.004]
            count = len(question.targets)
            assert question.kind[:2] == ("zt", "st", "mt")[min(count, 2)]
            if count < 2:
                assert question.kind.endswith("_w_d") == (len(same) > count)
            kinds[question.kind[:2]] += 1
    assert set(kinds) == {"zt", "st", "mt"}


def test_sentences_do_not_tell_how_many_are_meant(rendered):
    asked = [q for clip in rendered for q in questions(clip, "multi_ground")]
    starts = defaultdict(set)
    for question in asked:
        starts[question.text.split()[0]].add(question.kind[:2])
    assert len(asked) > 10 and all(re.match(r"(Every|Any|Each) ", q.text) for q in asked)
    assert max(map(len, starts.values())) > 1


def test_a_caption_has_several_wordings_and_its_box(rendered):
    asked = [q for clip in rendered for q in questions(clip, "caption")]
    assert asked and all(
        len(q.targets) == 1 and q.answer == q.answers[0] and len(set(q.answers)) == len(q.answers)
        for q in asked)
    assert max(len(q.answers) for q in asked) >= 3 and all("<coord>" in q.prompt for q in asked)


def test_answers_from_a_place_in_the_room_hold(scattered):
    checked = Counter()
    for clip in scattered:
        at = where(clip)
        for question in questions(clip, "situated"):
            by, facing = re.match(r"I am standing by the (\w+) and facing the (\w+)\.",
                                  question.text).groups()
            rest = question.text.split(". ", 1)[1]
            named = [n for n in re.findall(r"\w+", rest) if n in NAMES]
            if question.kind == "is":
                angle = degrees(at[by], at[facing], at[named[0]])
                inside = {
                    "left": 30 < angle < 130, "right": -130 < angle < -30, "me": abs(angle) > 145
                }
                assert (question.answer == "yes") == inside[re.search(r"(left|right|me)\?",
                                                                      rest)[1]]
            elif question.kind == "which":
                angle = degrees(at[by], at[facing], at[named[0]])
                assert question.answer == ("back" if abs(angle) > 145 else
                                           "left" if angle > 0 else "right")
            elif question.kind == "can":
                assert (question.answer == "yes") == (abs(degrees(at[by], at[facing], at[named[0]]))
                                                      < 45)
            elif question.kind == "others":
                assert question.answer in named and set(named) <= set(NAMES)
            checked[question.kind] += 1
    assert min(checked[k] for k in ("is", "which", "can", "others")) > 5


def test_only_things_that_are_clearly_seen_are_named(rendered):
    named = 0
    for clip in rendered:
        faint = {noun_of(o.name, o.center[2] - o.size[2] / 2) for o in clip.objects
                 if (clip.instances == o.id).mean((1, 2)).max() < 0.004}
        clear = {noun_of(o.name, o.center[2] - o.size[2] / 2) for o in clip.objects} - faint
        for question in (q for task in TASKS[:10] for q in questions(clip, task)):
            said = f"{question.text} {' '.join(question.options)} "
            assert not [
                noun for noun in faint - clear if re.search(rf"\b(the|many) {noun}\b", said)
            ]
            named += any(re.search(rf"\b{noun}\b", said) for noun in clear)
    assert named > 20


def test_the_prompt_is_worded_as_in_the_benchmarks():
    question = Question("c", "vsi:route_planning", "Where?", "A", None, ("A. left", "B. right"),
                        NO_BOXES, ())
    assert question.prompt == ("These are frames of a video.\nWhere?\nOptions:\nA. left\nB. right\n"
                               "Answer with the option's letter from the given choices directly.")
    counting = replace(question, task="vsi:object_counting", options=(), number=2.0)
    assert counting.prompt == ("These are frames of a video.\nWhere?\n"
                               "Please answer the question using a single word or phrase.")
    described = replace(question, task="multi_ground", options=(), text="Every chair.")
    assert described.prompt == (
        "Identify the object according to the following description.\nEvery chair.\nThere may "
        "be no corresponding object, or there may be one or more objects.")


def test_a_question_refuses_boxes_and_targets_that_do_not_fit():
    with pytest.raises(ValueError, match=r"boxes are \[1, 5\]"):
        Question("c", "ground", "x", None, None, (), np.zeros((1, 5), np.float32), ())
    with pytest.raises(ValueError, match=r"targets \(1,\) among 1 boxes"):
        Question("c", "ground", "x", None, None, (), np.zeros((1, 7), np.float32), (1,))


def test_more_draws_ask_more_of_what_there_is_more_of_and_nothing_twice(rendered):
    """The first draw stays as it is; a SceneView shared by tasks changes nothing."""
    tasks = ("vsi:object_counting", "vsi:object_abs_distance", "ground")
    for clip in rendered:
        one, many = (read_room(clip, tasks, 0, draws) for draws in (1, 4))
        asked = {task: [q for q in many.questions if q.task == task] for task in tasks}
        for task in tasks:
            first = questions(clip, task, 0)
            assert [q.text for q in first] == [q.text for q in one.questions if q.task == task]
            assert [q.text for q in asked[task]][:len(first)] == [q.text for q in first]
            assert len({q.text for q in asked[task]}) == len(asked[task])
        assert len(asked["vsi:object_counting"]) == sum(q.task == "vsi:object_counting"
                                                        for q in one.questions)
        assert len(asked["ground"]) > 1.5 * sum(q.task == "ground" for q in one.questions)
        for question, boxes in zip(many.questions, many.candidates, strict=True):
            np.testing.assert_array_equal(many.boxes[boxes], question.boxes.reshape(-1, 7))


def test_balancing_evens_out_common_answers_and_keeps_the_order():
    def numeric(n):
        return Question("c", "vsi:object_counting", f"{n}", str(n), float(n), (), NO_BOXES, ())
    asked = [numeric(n) for n in [1] * 60 + [2] * 30 + [3] * 10]
    kept = balanced(asked)
    assert Counter(q.number for q in kept) == {1.0: 10, 2.0: 10, 3.0: 10}
    # many answers: an even share is 3
    many = balanced([numeric(n) for n in [1] * 40 + list(range(2, 22))])
    assert Counter(q.number for q in many)[1.0] == 3 and len(many) == 23
    assert [asked.index(q) for q in kept] == sorted(asked.index(q)
                                                    for q in kept) and balanced(asked) == kept


def test_what_is_mostly_right_where_it_is_offered_is_dropped():
    rng = np.random.default_rng(0)
    nouns = ("table", "bed", "sofa", "lamp", "door", "tv", "rug", "desk")

    def asked(right):
        wrong = rng.permutation([n for n in nouns if n != right])[:3]
        order = rng.permutation([right, *wrong])
        return Question("c", "vsi:object_rel_distance", "?", "ABCD"[list(order).index(right)], None,
                        tuple(f"{c}. {n}" for c, n in zip("ABCD", order, strict=True)), NO_BOXES,
                        ())
    given_away = [asked("table") for _ in range(25)] + [asked(nouns[i % 8]) for i in range(80)]
    kept = balanced(given_away)

    def share(questions):
        return sum(right_option(q) == "table" for q in questions) / len(questions)

    assert len(given_away) / 2 <= len(kept) < len(given_away) and share(
        kept) < 0.6 * share(given_away)


def test_a_text_only_guesser_finds_what_the_words_give_away_and_a_constant_does_not():
    def asked(noun, answer):
        return Question("c", "situated", f"Is there a {noun}?", answer, None, (), NO_BOXES, (),
                        "is", (answer, ))
    known = [asked(noun, "yes" if noun in ("sofa", "lamp") else "no")
             for noun in ("sofa", "lamp", "bed", "desk", "door") for _ in range(30)]
    held = [asked("lamp", "yes"), asked("bed", "no"), asked("sofa", "yes"), asked("desk", "no")]
    for baseline, em in ((Majority(known), 0.5), (TextOnly(known), 1.0)):
        assert summary(held, [baseline.output(q) for q in held])["situated"]["em"] == em
    with pytest.raises(ValueError, match="no training question of task caption"):
        Majority(known).output(replace(held[0], task="caption"))


def test_guesses_of_boxes_numbers_and_letters_can_be_scored(scattered):
    tasks = ("ground", "multi_ground", "vsi:object_abs_distance", "vsi:object_rel_direction_hard")
    known, held = question_set(scattered[:4], tasks), question_set(scattered[4:8], tasks)
    for baseline in (Majority(known), TextOnly(known)):
        scores = summary(held, [baseline.output(q) for q in held])
        assert set(tasks) <= set(scores) and scores["vsi:object_abs_distance"]["unparsable"] == 0
        # nothing to be known from words
        assert scores["vsi:object_rel_direction_hard"]["accuracy"] < 0.7


def test_strided_clips_keep_every_nth_frame_of_everything(rendered):
    class One:
        key = "one"

        def ids(self, split):
            return [clip.id]

        def clip(self, clip_id):
            return clip
    clip = rendered[0]
    thin = Strided(One(), 2).clip(clip.id)
    for name in ("frames", "depth", "instances", "poses", "normals"):
        assert np.array_equal(getattr(thin, name), getattr(clip, name)[::2])
    assert {o.id
            for o in thin.objects} <= set(np.unique(clip.instances[::2])) and Strided(
                One(), 2).key == "one-every2"
    with pytest.raises(ValueError, match="step=0"):
        Strided(One(), 0)


def test_the_command_prints_questions_with_answers(tmp_path, capsys, monkeypatch):
    clip = shown([
        thing(10, "chair", 1, 1),
        thing(11, "chair", 2, 1),
        thing(12, "sofa", 3, 3),
        thing(13, "bed", 1, 4)
    ])
    save_clip(clip, tmp_path / "one.safetensors")
    monkeypatch.setattr("sys.argv", ["vega3d", "scenes", "ask", str(tmp_path / "one.safetensors")])
    vega3d.main()
    printed = capsys.readouterr().out
    assert "train/00000_0 shows 1 bed, 2 chair, 1 sofa" in printed
    assert "How many chair(s) are in this room?\n  -> 2" in printed
    assert "-> chair at (1.0, 1.0, 0.5) m" in printed
    save_clip(Clip("v", np.zeros((1, 3, 4, 4), np.uint8)), tmp_path / "bare.safetensors")
    monkeypatch.setattr("sys.argv", ["vega3d", "scenes", "ask", str(tmp_path / "bare.safetensors")])
    with pytest.raises(SystemExit, match="2"):
        vega3d.main()
    assert "clip v lacks instances, poses, intrinsics, room_size" in capsys.readouterr().err


def test_a_census_counts_every_task_and_scores_guessing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs" / "rooms_census.json"
    monkeypatch.setattr("sys.argv", [
        "vega3d", "scenes", "census", "--rooms", "3", "--held-out", "1", "--frames", "2",
        "--step", "2", "--size", "64", "--workers", "0"
    ])
    vega3d.main()
    rows = {row["task"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == set(
        TASKS) and rows["ground"]["per_100_rooms"] == 100 * rows["ground"]["questions"] / 3
    assert 0 <= rows["ground"]["text_only"] <= 1
    assert rows["vsi:room_size_estimation"]["constant"] > 0


def test_every_noun_of_the_shipped_furniture_is_an_everyday_word():
    names = {m.name for m in RoomSource().furniture.models}
    nouns = {noun_of(n) for n in names}
    assert len(nouns) < len(names) and {"chair", "sofa", "wardrobe", "refrigerator", "plant"
                                        } <= nouns
    for name, noun in (("osaka chair", "chair"), ("winchester armchair", "armchair"),
                       ("flower box", "plant"), ("chair with cushion", "chair"),
                       ("upper corner cabinet", "wall cabinet"), ("couch", "sofa")):
        assert noun_of(name) == noun
    assert noun_of("lamp", bottom=2.0) == "ceiling light" and noun_of("lamp") == "lamp"


def test_all_tasks_hold_together_on_a_rendered_room(rendered):
    for clip, task in product(rendered, TASKS):
        for question in questions(clip, task):
            assert question.clip_id == clip.id and question.task == task
            assert question.text and question.prompt
            if question.options:
                assert question.answer in [o[0] for o in question.options]
                assert len({o[3:] for o in question.options}) == len(question.options)
            if task in ("ground", "caption"):
                assert len(question.targets) == 1
                assert question.boxes.shape[1] == 7 and question.boxes.dtype == np.float32
