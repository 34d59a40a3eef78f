"""The probes behind the questions: they find what is in the features, and nothing in noise."""
from dataclasses import replace

import numpy as np
import torch

from bench.question_probes import APART, PROBES, _accuracies, _r2, _told
from tests.language_fakes import made_up_room


def piles(what: str, seed: int, told: bool):
    rng = np.random.default_rng(seed)
    out = []
    for i in range(40):
        room = made_up_room(f"train/{i:05d}_0", number=3)
        frames = len(room.points)
        points = rng.uniform(-3, 3, (frames, 14, 14, 3)).astype(np.float32)
        room = replace(room, points=points)
        x = torch.from_numpy(points if told else rng.normal(size=points.shape).astype(np.float32)).permute(0, 3, 1, 2)
        out.append(PROBES[what](room, x, rng))
    return out


def test_distances_are_read_off_features_that_hold_the_points_and_not_off_noise():
    told, noise = (_r2(*_told(piles("token_distance", 0, told), piles("token_distance", 1, told)))
                   for told in (True, False))
    assert told > 0.5 and noise < 0.1, (told, noise)


def test_things_are_known_by_the_mean_of_their_own_tokens():
    room = made_up_room("train/00000_0", number=3)
    x = torch.zeros(len(room.points), 2, 14, 14)
    x[:, 0, :7, :7] = 1                                               # the first box's quarter, in every frame
    found = PROBES["thing_size"](room, x, np.random.default_rng(0))
    assert len(found) == int((room.inside.sum(1) > 0).sum())
    share = [float(inside.reshape(-1, 14, 14)[:, :7, :7].sum()) for inside in room.inside if inside.any()]
    np.testing.assert_allclose([known[0] for known, _ in found], share, atol=1e-3)
    sizes = [max(box[3:6]) for box, inside in zip(room.boxes, room.inside, strict=True) if inside.any()]
    np.testing.assert_allclose([size for _, size in found], np.log(sizes), rtol=1e-6)


def test_things_are_as_far_apart_as_the_closest_points_of_their_boxes():
    room = made_up_room("train/00000_0", number=3)                    # 0.8 m wide, a metre from one middle to the next
    far = [np.exp(d) for _, d in PROBES["thing_distance"](room, torch.zeros(2, 1, 14, 14), np.random.default_rng(0))]
    np.testing.assert_allclose(sorted(far), [1.2, 1.2, 2.2], rtol=1e-5)
    assert APART > 0.2                                                # neighbours are too near each other


def test_accuracies_are_those_of_vsi_bench():
    truth = torch.tensor([2.0, 4.0]).log()
    found = _accuracies(torch.tensor([2.0, 4.9]).log(), truth, ["a", "b"])
    assert found == {("a", 0): 1.0, ("b", 1): 0.6}                    # 22.5 % off: right up to a confidence of 0.75
