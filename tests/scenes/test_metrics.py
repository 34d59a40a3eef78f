"""Scores against hand-computed cases, brute force, and numbers that the COCO caption evaluation
itself gave."""
from itertools import permutations

import numpy as np
import pytest

from scenes.boxes import gap, iou
from scenes.questions import metrics
from scenes.questions.captions import bleu, caption_scores, cider, meteor, rouge_l, scan2cap_words
from scenes.questions.question import NO_BOXES, Question
from scenes.questions.scoring import described_box, summary, values

BOX = np.array([[0, 0, 0, 2, 2, 2.0]])


def moved(by: float) -> np.ndarray:
    return BOX + np.eye(6)[:1] * by


def numeric(number: float, task: str = "vsi:object_size_estimation") -> Question:
    return Question("c", task, "How long?", f"{number:g}", number, (), NO_BOXES, ())


def choice(answer: str, task: str = "vsi:route_planning") -> Question:
    return Question("c", task, "Which?", answer, None, ("A. left", "B. right", "C. back"), NO_BOXES,
                    ())


def test_the_right_option_is_the_one_with_the_answers_letter():
    assert [choice(letter).right_option for letter in "ABC"] == [0, 1, 2]
    with pytest.raises(ValueError, match="question about c: the answer 'D' is none of the options"):
        choice("D").right_option  # noqa: B018
    with pytest.raises(ValueError, match="the answer '' is none"):
        choice("").right_option  # noqa: B018


def grounded(boxes, targets, kind="unique", task="ground", proposals=None) -> Question:
    return Question("c", task, "the chair", None, None, (), np.asarray(boxes, np.float32), targets,
                    kind, (), proposals)


# relative errors 0, 0.04, 0.11, 0.5 and 0.51: of the ten limits 0.5, 0.45 ... 0.05 those at or
# above are passed
@pytest.mark.parametrize(("output", "share"), [
    ("100", 1.0), ("104", 1.0), ("111", 0.8), ("150", 0.1), ("151", 0.0), ("-100", 0.0),
    ("nan", 0.0), ("about 100", 0.0), ("", 0.0)])
def test_mra_is_the_share_of_limits_that_the_relative_error_keeps(output, share):
    assert metrics.mra(metrics.number_in(output), 100.0) == pytest.approx(share)


def test_mra_refuses_a_truth_to_which_no_error_is_relative():
    with pytest.raises(ValueError, match="expected above 0"):
        metrics.mra(1.0, 0.0)


@pytest.mark.parametrize(("said", "word"), [
    ("A. chair", "A"), ("b", "b"), ("4.\n", "4."), ("4.", "4"), (" 4", ""), ("\n4 m", "4"),
    ("3.5 meters", "3.5"), ("", "")])
def test_only_the_first_word_of_an_output_counts(said, word):
    """As VSI-Bench's own evaluation: nothing is read of an output with a leading space."""
    assert metrics.first_word(said) == word == said.split(" ")[0].rstrip(".").strip()


def test_letters_match_in_either_case_and_the_words_of_an_option_do_not():
    assert values(choice("B"), "b. right") == {"accuracy": 1.0, "unparsable": 0.0}
    assert values(choice("B"), "A") == {"accuracy": 0.0, "unparsable": 0.0}
    assert values(choice("B"), "right") == {"accuracy": 0.0, "unparsable": 1.0}


def test_outputs_that_cannot_be_read_score_zero_and_are_counted():
    asked = [numeric(100), numeric(100), choice("A"), choice("A")]
    scores = summary(asked, ["100", "a hundred", "A", "the first"])
    assert scores["vsi:object_size_estimation"] == {"n": 2, "mra": 0.5, "unparsable": 1}
    assert scores["vsi:route_planning"] == {"n": 2, "accuracy": 0.5, "unparsable": 1}


def test_the_three_directions_count_as_one_type_in_the_mean_of_vsi_bench():
    asked = [
        choice("A", f"vsi:object_rel_direction_{level}") for level in ("easy", "medium", "hard")
    ]
    scores = summary(
        [*asked, numeric(1), choice("A", "vsi:object_rel_distance")], ["A", "A", "B", "1", "B"])
    assert scores["vsi"] == {"mean": pytest.approx((2 / 3 + 1 + 0) / 3), "types": 3}


def test_iou_equals_counting_points_of_the_upright_boxes():
    rng = np.random.default_rng(0)
    a, b = (np.c_[rng.uniform(-1, 1, (4, 3)),
                  rng.uniform(0.5, 2, (4, 3)),
                  rng.uniform(-3, 3, 4)] for _ in range(2))
    points = rng.uniform(-3, 3, (400_000, 3))

    def inside(box):  # the axis-aligned box around the turned one, from its corners
        x, y, z, w, d, h, t = box
        turned = [
            np.array([np.cos(t) * i * w - np.sin(t) * j * d,
                      np.sin(t) * i * w + np.cos(t) * j * d]) / 2 for i in (-1, 1) for j in (-1, 1)
        ]
        half = np.append(np.max(turned, 0), h / 2)
        return (np.abs(points - [x, y, z]) <= half).all(1)

    for i, p in enumerate(a):
        for j, q in enumerate(b):
            both, either = (inside(p) & inside(q)).sum(), (inside(p) | inside(q)).sum()
            assert iou(a, b)[i, j] == pytest.approx(both / either, abs=0.02)


def test_gap_equals_the_nearest_of_many_points_of_turned_boxes():
    rng = np.random.default_rng(1)

    def make_texture(box):
        x, y, z, w, d, h, t = box
        local = rng.uniform(-0.5, 0.5, (4000, 3))
        local[np.arange(4000), rng.integers(0, 3, 4000)] = rng.choice([-0.5, 0.5], 4000)
        u, v, s = (local * [w, d, h]).T
        return np.c_[x + np.cos(t) * u - np.sin(t) * v, y + np.sin(t) * u + np.cos(t) * v, z + s]

    for _ in range(5):
        p, q = (np.array([
            *rng.uniform(-1, 1, 2),
            rng.uniform(0, 3), *rng.uniform(0.2, 1, 3),
            rng.uniform(-3, 3)
        ]) for _ in range(2))
        q[:2] += 2.5
        points = make_texture(p)[:, None] - make_texture(q)[None, ::4]
        assert gap(p, q) == pytest.approx(np.linalg.norm(points, axis=-1).min(), abs=0.06)
    assert gap(p, p) == 0


def test_acc_at_iou_splits_unique_from_multiple():
    half = moved(1 / 3) # IoU with BOX: (5/3) / (7/3) = 0.714
    quarter = moved(1) # 1 / 3
    asked = [grounded(BOX, (0,)), grounded(BOX, (0,), "multiple"), grounded(BOX, (0,), "multiple")]
    scores = summary(asked, [half, quarter, quarter + 5])["ground"]
    assert scores["acc@0.25"] == pytest.approx(2 / 3) and scores["acc@0.5"] == pytest.approx(1 / 3)
    assert scores["acc@0.25/unique"] == 1 and scores["acc@0.25/multiple"] == 0.5
    assert scores["acc@0.5/multiple"] == 0 and scores["unparsable"] == 0


def test_f1_matches_like_the_best_of_all_permutations():
    rng = np.random.default_rng(2)
    for _ in range(30):
        p, g = rng.integers(1, 5, 2)
        predicted, truth = (np.c_[rng.uniform(0, 1.2, (n, 3)), np.ones((n, 3))] for n in (p, g))
        overlaps = np.zeros((4, 4))
        overlaps[:p, :g] = iou(predicted, truth)
        best = max(permutations(range(4)),
                   key=lambda order: sum(overlaps[i, j] for i, j in enumerate(order)))
        for limit in (0.25, 0.5):
            right = sum(overlaps[i, j] >= limit for i, j in enumerate(best))
            assert metrics.f1(predicted, truth, limit) == pytest.approx(2 * right / (p + g))


def test_one_prediction_cannot_serve_two_targets():
    assert metrics.f1(BOX, np.r_[BOX, BOX], 0.25) == pytest.approx(2 / 3)


def test_zero_targets_score_only_when_nothing_is_predicted():
    asked = [
        grounded(BOX, (), "zt_w_d", "multi_ground"),
        grounded(BOX, (), "zt_wo_d", "multi_ground"),
        grounded(BOX, (0, ), "st_wo_d", "multi_ground")
    ]
    scores = summary(asked, [BOX[:0], BOX, BOX[:0]])["multi_ground"]
    assert scores["f1@0.25/zt_w_d"] == 1 and scores["f1@0.25/zt_wo_d"] == 0 and scores[
        "f1@0.25/st_wo_d"] == 0


def test_boxes_without_volume_score_zero_and_are_counted():
    flat = np.array([[0, 0, 0, 2, 2, 0.0]])
    assert values(grounded(BOX, (0,)), flat) == {"acc@0.25": 0, "acc@0.5": 0, "unparsable": 1}
    assert values(grounded(flat, (0,)), flat)["acc@0.25"] == 0
    assert values(grounded(BOX, (0,)), BOX * np.nan)["unparsable"] == 1


def test_candidates_are_taken_until_their_softmax_adds_up():
    # softmax of (0, 0, -0.07, -1) / 0.07 is about (0.42, 0.42, 0.16, 0): the first alone passes
    # 0.4, not 0.5
    scores = np.array([0.5, 0.5, 0.43, -0.5])
    assert metrics.select_boxes(scores) == [0] and metrics.select_boxes(scores, total=0.5) == [0, 1]
    assert metrics.select_boxes(np.array([0.1, 0.2, 0.3])) == []
    assert metrics.select_boxes(np.array([0.1, 0.3, 0.2]), total=0.3) == [1]


@pytest.mark.parametrize(("raw", "clean"), [
    ("The  Table.", "table"), ("2", "two"), ("a chai", "chair"), ("TV", "TV"),
    ("backwards", "backward"),
    ("none", "zero"), ("10 o' clock", "ten o'clock"), ("rigth", "right"), ("table1", "table"),
    ("an apple and the pear", "apple and pear")])
def test_answers_are_cleaned_as_sqa3d_does(raw, clean):
    assert metrics.clean_answer(raw) == clean


def test_exact_and_refined_match():
    assert metrics.exact_match("The chair.", ["chair"]) == 1 and metrics.exact_match(
        "brown chair", ["chair"]) == 0
    assert metrics.exact_match("Chair", ["chair"], clean=False) == 0
    assert metrics.refined_match("brown chair", ["chair"]) == 1
    assert metrics.refined_match("to the left", ["left side"]) == 0
    assert metrics.refined_match("", ["chair"]) == 0 and metrics.exact_match("", ["chair"]) == 0


# what pycocoevalcap 1.2 (Bleu(4), Rouge, Cider) returned for these sentences
SAID = [
    "sos this is a brown chair . it is next to the table . eos", "sos a white lamp on the desk eos",
    "sos eos", "sos the the the sofa is grey and it sits under the window eos",
    "sos round table eos", "the"
]
MEANT = [["sos this is a brown wooden chair . it is to the left of the table . eos",
          "sos a chair next to the table eos"],
         ["sos the lamp is on the desk . eos"], ["sos a black bin in the corner eos"],
         ["sos the sofa is grey . it is under the window . eos", "sos grey sofa eos",
          "sos a couch below the window eos"],
         ["sos round table eos"], ["a"]]
BLEU = [0.6853557887919651, 0.5939575184612914, 0.5185149503463269, 0.4069468884355147]
ROUGE = [0.9715585893060297, 0.6984732824427481, 0.3609467455621302, 0.7457212713936432, 1.0, 0.0]
CIDER = [3.3202929346836174, 3.178661950431722, 0.10746146017082212, 1.6538587742735824, 10.0, 0.0]


def test_caption_scores_are_those_of_the_coco_evaluation():
    said, meant = [s.split() for s in SAID], [[r.split() for r in rs] for rs in MEANT]
    assert bleu(said, meant) == pytest.approx(BLEU, rel=1e-9)
    assert [rouge_l(s, r)
            for s, r in zip(said, meant, strict=True)] == pytest.approx(ROUGE, rel=1e-9)
    assert cider(said, meant) == pytest.approx(CIDER, rel=1e-9)
    scores = caption_scores(SAID, MEANT)
    assert scores["bleu4"] == pytest.approx(BLEU[3]) and scores["cider"] == pytest.approx(
        np.mean(CIDER))


def test_meteor_by_hand():
    # 3 of 3 words match, one by its stem, in one chunk: F = 1, penalty 0.5 * (1/3)^3
    assert meteor(["the", "cats", "sat"], [["the", "cat", "sat"]]) == pytest.approx(1 - 0.5 / 27)
    assert meteor(["a", "dog"], [["the", "cat"]]) == 0


def test_scan2cap_counts_a_caption_as_empty_where_its_box_is_off():
    assert scan2cap_words("A chair, brown.") == "sos a chair , brown . eos"
    said = ["a brown chair"] * 2
    asked = [
        Question("c", "caption", "", s, None, (), BOX.astype(np.float32), (0, ), "", (s, ))
        for s in said
    ]
    whole = summary(asked, said)["caption"]
    cut = summary(asked, said, overlaps=[0.6, 0.4])["caption"]
    assert whole["bleu4"] == pytest.approx(1, abs=1e-6) and cut["bleu4@0.5"] < 0.8


def test_the_described_box_is_the_proposal_nearest_to_the_truth():
    proposals = np.r_[moved(5), moved(1), BOX]
    box, overlap = described_box(grounded(proposals, (2,), task="caption", proposals=2))
    assert box[0] == 1 and overlap == pytest.approx(1 / 3)


def test_scanqa_is_compared_letter_by_letter_and_scored_as_captions_too():
    question = Question("c", "qa", "What?", "brown chair", None, (), NO_BOXES, (), "",
                        ("brown chair", "the chair"))
    other = Question("c", "qa", "Where?", "left", None, (), NO_BOXES, (), "", ("left",))
    scores = summary([question, question, other], ["brown chair", "Brown chair", "left."])["qa"]
    assert scores["em"] == pytest.approx(1 / 3) and scores["em_refined"] == 1
    # "Brown" is another word; the full stop is taken off
    assert scores["cider"] > 0 and 0.7 < scores["bleu1"] < 1


@pytest.mark.parametrize(("output", "message"), [(BOX, "expected text"), ("A", "expected boxes")])
def test_an_output_of_the_wrong_sort_is_refused(output, message):
    question = choice("A") if isinstance(output, np.ndarray) else grounded(BOX, (0,))
    with pytest.raises(ValueError, match=message):
        values(question, output)


def test_as_many_outputs_as_questions_are_needed():
    with pytest.raises(ValueError, match="got 1 outputs for 2 questions"):
        summary([choice("A")] * 2, ["A"])
    with pytest.raises(ValueError, match="expected one set of one or more"):
        caption_scores(["a chair"], [[]])
