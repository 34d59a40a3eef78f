import torch

from teacher.probing.probe_set import probe_set, true_matches
from teacher.probing.probes import mlp, probe
from tests.fakes import FakeRooms


def sets(count=8):
    rooms = FakeRooms(train=count, test=4, frames=5)
    return tuple(
        probe_set([rooms.clip(i) for i in rooms.ids(s)], [0, 4]) for s in ("train", "test"))


def test_matches_follow_the_camera():
    clip = FakeRooms(frames=9).clip("train/000")  # slides 0.4 m right
    found = true_matches(clip, 0, 8).reshape(14, 14)
    assert (found >= 0).sum() > 50
    rows, columns = (found >= 0).nonzero()
    assert (found[rows, columns] // 14 == rows).all()  # nothing moves up or down
    assert (found[rows, columns] % 14 < columns).all()                     # everything moves left
    assert (true_matches(clip, 3, 3) == -1).all()  # what did not move proves nothing


def test_hidden_tokens_have_no_match():
    clip = FakeRooms(frames=9).clip("train/000")
    before = (true_matches(clip, 0, 8) >= 0).sum()
    clip.depth[8] = 0.5  # something steps right before the last camera
    assert (true_matches(clip, 0, 8) >= 0).sum() < before / 10


def test_features_that_hold_the_answer_probe_near_one_and_noise_near_nothing():
    train, test = sets()
    answers = [
        torch.cat([s.depth.log()[:, :, None], s.normals], 2).repeat(1, 1, 4, 1, 1)
        for s in (train, test)
    ]
    semantic = tuple(torch.randn(len(s.frames), 2, 16, 14, 14) for s in (train, test))
    good = probe(train, test, *[a + 0.01 * torch.randn_like(a) for a in answers], semantic)
    noise = probe(train, test, *semantic, tuple(answers))
    assert good["depth_r2_ridge"] > 0.95 and good["depth_r2_mlp"] > 0.9
    assert good["normal_cos"] > 0.98
    assert noise["depth_r2_ridge"] < good["depth_r2_ridge"] - 0.3
    assert noise["match_exact"] < 0.05
    assert min(good["depth_r2_fused"], noise["depth_r2_fused"]) > 0.95


def test_features_of_the_very_point_match_exactly():
    _, test = sets()
    x = torch.randn(len(test.frames), 2, 32, 14, 14)
    flat = x.flatten(3)
    for i, row in enumerate(test.matches):
        for token, target in enumerate(row.tolist()):
            if target >= 0:
                flat[i, 0, :, token] = flat[i, 1, :, target]
    found = probe(test, test, x, x, (x, x))
    assert found["match_exact"] > 0.95 and found["match_1"] >= found["match_exact"]


def test_the_mlp_stops_where_other_tokens_are_predicted_best():
    x = torch.randn(500, 30)
    y = torch.zeros(500, 4)
    y[:, 0] = x[:, 0] + torch.randn(500)
    truth = torch.zeros(400, 4)
    other = torch.randn(400, 30)
    truth[:, 0] = other[:, 0]

    def error(**options):
        return (mlp(x, y, other, 0, **options) - truth)[:, 0].square().mean()
    assert error(stop=(other, truth)) < 0.8 * error()  # of the last step, which has learnt noise
