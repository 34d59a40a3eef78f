"""The ground head, its loss, and the tokens of a box."""
import numpy as np
import pytest
import torch

from teacher.language.grounding import (
    GroundHead,
    box_tokens,
    ground_loss,
    mask_padding,
    place_and_area,
    region_weights,
)


def test_logits_are_cosines_over_the_temperature():
    head = GroundHead(6)
    query, objects = torch.randn(2, 3, 6), torch.randn(2, 3, 4, 6)
    logits = head(query, objects)
    assert logits.shape == (2, 3, 5) and logits.abs().max() <= 1 / 0.07 + 1e-4
    one = torch.cosine_similarity(head.query_proj(query[1, 2]), head.object_proj(objects[1, 2, 3]),
                                  dim=0) / 0.07
    torch.testing.assert_close(logits[1, 2, 3], one)
    torch.testing.assert_close(
        logits[0, 0, 4],
        torch.cosine_similarity(head.query_proj(query[0, 0]), head.object_proj(head.none), dim=0)
        / 0.07)


def test_the_loss_is_infonce_by_hand():
    logits = torch.tensor([[2.0, 1.0, -1.0, 0.5], [0.0, 3.0, 7.0, 1.0]])
    targets = torch.tensor([[True, True, False], [False, False, False]])
    # the last candidate of the second is padding
    valid = torch.tensor([[True, True, True], [True, True, False]])
    first = -np.log((np.e**2 + np.e) / (np.e**2 + np.e + np.e**-1 + np.e**0.5))
    second = -np.log(np.e / (1 + np.e**3 + np.e))  # no target: "none of them" is right
    assert float(ground_loss(logits, targets, valid)) == pytest.approx((first + second) / 2,
                                                                      rel=1e-5)


def test_padding_is_never_chosen():
    logits = mask_padding(torch.tensor([9.0, 1.0, 0.0]), torch.tensor([False, True]))
    assert logits.argmax() == 1 and logits[0] == -torch.inf


def plane() -> np.ndarray:
    """A floor of 1 cm pixels: 8 x 8 of them span [0,8) cm, one frame; the last pixel is unknown."""
    x, y = np.meshgrid(np.arange(8) + 0.5, np.arange(8) + 0.5)
    points = np.stack([x, y, np.zeros_like(x)], -1)[None].astype(np.float32) / 100
    points[0, 7, 7] = np.nan
    return points


def test_a_box_is_represented_by_the_tokens_mostly_inside_it():
    boxes = np.array([[0.02, 0.02, 0, 0.04, 0.04, 0.1, 0],  # exactly the first of 2 x 2 tokens
                      [0.03, 0.02, 0, 0.06, 0.04, 0.1, 0],        # and half of the second
                      [0.005, 0.005, 0, 0.01, 0.01, 0.1, 0],  # one pixel: the token that it touches
                      [9.0, 0, 0, 1, 1, 1, 0]], np.float32)       # elsewhere
    tokens = region_weights(torch.from_numpy(box_tokens(plane(), boxes, 2, margin=1e-4))[None])[0]
    np.testing.assert_allclose(tokens, [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]],
                               atol=1e-5)


def test_small_objects_weigh_tokens_by_their_share():
    # 2 pixels of two tokens each; no heading
    box = np.array([[0.04, 0.01, 0, 0.02, 0.02, 0.1]], np.float32)
    shares = box_tokens(plane(), box, 2, margin=1e-4)
    np.testing.assert_allclose(shares, [[2 / 16, 2 / 16, 0, 0]], atol=1e-5)
    np.testing.assert_allclose(region_weights(torch.from_numpy(shares)[None])[0],
                               [[0.5, 0.5, 0, 0]], atol=1e-5)


def test_place_and_area_of_a_mask():
    inside = torch.zeros(1, 3, 2, 14, 14)
    inside[0, 0, 1, 4:6, 0] = 1   # two tokens of the second frame
    inside[0, 1, :, 13, 13] = 0.5  # half a token of both
    found = place_and_area(inside.flatten(2), 2)[0]
    first = [0.5, np.log(2 / 196), 5 * 2 / 14 - 1, 1 / 14, 0.5 * 2 / 14 - 1, 0]
    second = [0, np.log(0.5 / 196), 13.5 * 2 / 14 - 1, 0, 13.5 * 2 / 14 - 1, 0]
    np.testing.assert_allclose(found[:2], [first, second], atol=1e-5)
    assert not found[2].any()


def test_a_heading_turns_the_box():
    long = np.array([[0.04, 0.04, 0, 0.08, 0.02, 0.1, 0]], np.float32)
    turned = long + np.array([0, 0, 0, 0, 0, 0, np.pi / 4], np.float32)
    flat, slanted = (box_tokens(plane(), b, 8, margin=1e-4)[0].reshape(8, 8) > 0
                     for b in (long, turned))
    assert flat[3:5].all() and not flat[[0, 1, 6, 7]].any()
    # +45 degrees: x grows with y
    assert slanted[1, 1] and slanted[6, 6] and not slanted[1, 6] and not slanted[6, 1]


def test_a_box_without_volume_is_named():
    with pytest.raises(ValueError, match=r"number 1 has no volume"):
        box_tokens(plane(), np.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 0, 1]], np.float32), 2)
