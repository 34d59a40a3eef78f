"""The student's heads: shapes and ranges of their outputs, and their file."""
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from records.files import sha256
from student.config import SHIPPED_BY_SIZE, HeadsShape
from student.heads import (
    FILE,
    HeadOutputs,
    Heads,
    fit_pca,
    heads_scores,
    load_heads,
    save_heads,
)

FIRST = HeadsShape(in_dim=32, width=16, descriptor_dim=8)  # of the first edition
SHAPE = replace(FIRST, canonical_focal=224.0)
FRAMES = torch.rand(2, 3, 224, 224)


def run(heads: Heads, features: torch.Tensor) -> HeadOutputs:
    return HeadOutputs(*heads(features, FRAMES[:len(features)]))



@pytest.mark.parametrize(("shape", "side"), [(FIRST, 56), (SHAPE, 112)])
def test_outputs_have_the_promised_shapes_and_ranges(shape, side):
    outputs = run(Heads(shape), 5 * torch.randn(2, 32, 14, 14))
    assert [list(a.shape) for a in outputs[:4]] == [[2, 1, side, side], [2, 3, 56, 56],
                                                    [2, 8, 28, 28], [2, 3, 14, 14]]
    assert outputs.depth.min() > 0.0999 and outputs.depth.max() < 50.01
    assert outputs.colours.min() >= 0 and outputs.colours.max() <= 1
    for unit in (outputs.normals, outputs.descriptors):
        assert (unit.norm(dim=1) - 1).abs().max() < 0.01
    if shape is FIRST:
        assert outputs.confidence is None and shape.outputs == outputs._fields[:4]
    else:
        assert shape.outputs == outputs._fields
        assert outputs.confidence.shape == outputs.depth.shape
        assert outputs.confidence.min() >= 0 and outputs.confidence.max() <= 1


def test_scale_is_one_number_a_frame_and_the_rest_of_depth_has_mean_one():
    heads, x = Heads(SHAPE), torch.randn(2, 32, 14, 14)
    before = run(heads, x).depth.log()
    with torch.no_grad():
        heads.depth.scale[2].bias += 0.5
        heads.depth.coarse.bias += 3.0  # the map's own mean does not count
    after = run(heads, x).depth.log()
    torch.testing.assert_close(after, before + 0.5, atol=1e-4, rtol=1e-4)


def test_depth_sees_edges_finer_than_a_token():
    heads, x = Heads(SHAPE), torch.randn(1, 32, 14, 14)
    changed = FRAMES[:1].clone()
    changed[..., 100:104, 100:104] = 0
    difference = (HeadOutputs(*heads(x, changed)).depth / run(heads, x).depth).log()[0, 0]
    near = torch.zeros(112, 112, dtype=torch.bool)
    near[46:56, 46:56] = True
    rest = difference[~near].median()  # the mean over the map moved a little
    assert (difference[near] - rest).abs().max() > 20 * (difference[~near] - rest).abs().max()


def test_descriptors_do_not_depend_on_position_but_depth_does():
    heads, x = Heads(SHAPE), torch.randn(1, 32, 14, 14)
    for head in (heads.depth, heads.normals):
        torch.nn.init.normal_(head.positions)
    here, moved = run(heads, x), run(heads, x.roll(2, dims=3))
    # away from the padding's reach and from the seam of the roll
    assert torch.allclose(moved.descriptors[..., 12:16, 14:18], here.descriptors[..., 12:16, 10:14],
                          atol=1e-5)
    assert not torch.allclose(moved.depth[..., 28:36, 56:72], here.depth[..., 28:36, 40:56],
                              atol=1e-3)


def test_colours_are_the_three_principal_components():
    heads = Heads(SHAPE)
    spread = torch.ones(32)
    spread[[3, 7, 11]] = torch.tensor([9.0, 6.0, 4.0])
    x = torch.randn(20, 32, 14, 14) * spread.view(1, -1, 1, 1) + 5
    fit_pca(heads, x)
    weight = heads.colours.weight[:, :, 0, 0].abs()
    assert weight.argmax(1).tolist() == [3, 7, 11]
    inside = heads.colours(x)
    assert 0.97 < ((inside >= 0) & (inside <= 1)).float().mean() < 0.99  # 1st to 99th percentile


def test_heads_load_as_saved_and_only_for_their_student(tmp_path):
    for shape in (FIRST, SHAPE):
        heads = Heads(replace(shape, student="abc")).eval()
        save_heads(heads, tmp_path, {"delta1": 0.5})
        again, x = load_heads(tmp_path, "abc"), torch.randn(1, 32, 14, 14)
        pairs = zip(heads(x, FRAMES[:1]), again(x, FRAMES[:1]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) and again.shape == heads.shape
    assert heads_scores(tmp_path) == {"delta1": 0.5}
    with pytest.raises(ValueError, match="was trained on student abc, expected def; train them"):
        load_heads(tmp_path, "def")


@pytest.mark.parametrize("damage", [None, b"", b"not safetensors at all", "other network"])
def test_missing_or_broken_heads_are_one_line(tmp_path, damage):
    if damage == "other network":
        save_file({"x": torch.zeros(1)}, tmp_path / FILE, metadata={"shape": '{"in_dim": 32}'})
    elif damage is not None:
        (tmp_path / FILE).write_bytes(damage)
    with pytest.raises(ValueError, match="train them with: vega3d distill heads") as raised:
        load_heads(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("folder", SHIPPED_BY_SIZE.values(), ids=SHIPPED_BY_SIZE)
def test_the_shipped_heads_are_those_of_the_shipped_student(folder):
    # else train them again: its card says how
    assert load_heads(folder, sha256(folder / "student.safetensors"))
    scores = heads_scores(folder)
    assert scores["match_descriptor"] > 2 * scores["match_rgb"] > 4 * scores["match_chance"]
