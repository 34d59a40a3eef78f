"""The student's heads: shapes and ranges of their outputs, and their file."""
import pytest
import torch
from safetensors.torch import save_file

from records.files import sha256
from student.config import SHIPPED, HeadsShape
from student.heads import FILE, Heads, fit_pca, heads_scores, load_heads, match_loss, save_heads

SHAPE = HeadsShape(in_dim=32, width=16, descriptor_dim=8)


def test_outputs_have_the_promised_shapes_and_ranges():
    outputs = Heads(SHAPE)(5 * torch.randn(2, 32, 14, 14))
    assert [list(a.shape) for a in outputs] == [[2, 1, 56, 56], [2, 3, 56, 56], [2, 8, 28, 28],
                                                [2, 3, 14, 14]]
    assert outputs.depth.min() > 0.0999 and outputs.depth.max() < 50.01
    assert outputs.colours.min() >= 0 and outputs.colours.max() <= 1
    for unit in (outputs.normals, outputs.descriptors):
        assert (unit.norm(dim=1) - 1).abs().max() < 0.01


def test_descriptors_do_not_depend_on_position_but_depth_does():
    heads, x = Heads(SHAPE), torch.randn(1, 32, 14, 14)
    for head in (heads.depth, heads.normals):
        torch.nn.init.normal_(head.positions)
    here, moved = heads(x), heads(x.roll(2, dims=3))
    inner = slice(14, 18)  # away from the padding's reach and from the seam of the roll
    assert torch.allclose(moved.descriptors[..., 12:16, 14:18], here.descriptors[..., 12:16, 10:14],
                          atol=1e-5)
    assert not torch.allclose(moved.depth[..., inner, 28:36], here.depth[..., inner, 20:28],
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
    heads = Heads(HeadsShape(in_dim=32, width=16, descriptor_dim=8, student="abc")).eval()
    save_heads(heads, tmp_path, {"delta1": 0.5})
    again, x = load_heads(tmp_path, "abc"), torch.randn(1, 32, 14, 14)
    assert all(torch.equal(a, b) for a, b in zip(heads(x), again(x), strict=True))
    assert heads_scores(tmp_path) == {"delta1": 0.5}
    with pytest.raises(ValueError, match="was trained on student abc, expected def; train them"):
        load_heads(tmp_path, "def")


def test_match_loss_is_small_only_at_the_true_cells():
    torch.manual_seed(0)
    view = torch.nn.functional.normalize(torch.randn(1, 16, 6, 6), dim=1)
    row, column = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    true = torch.stack([column, row], -1).reshape(1, 36, 2)
    exact = match_loss(view.flatten(2), view, true)
    assert exact < 0.1 < 1 < match_loss(view.flatten(2), view, true.flip(1))
    unseen = torch.full_like(true, float("nan"))
    assert match_loss(view.flatten(2), view, unseen) == 0
    half = true.clone()
    half[:, ::2] = float("nan")  # only what is seen counts
    assert match_loss(view.flatten(2)[..., 1::2], view, true[:, 1::2]) == pytest.approx(
        match_loss(view.flatten(2), view, half).item())


@pytest.mark.parametrize("damage", [None, b"", b"not safetensors at all", "other network"])
def test_missing_or_broken_heads_are_one_line(tmp_path, damage):
    if damage == "other network":
        save_file({"x": torch.zeros(1)}, tmp_path / FILE, metadata={"shape": '{"in_dim": 32}'})
    elif damage is not None:
        (tmp_path / FILE).write_bytes(damage)
    with pytest.raises(ValueError, match="train them with: vega3d distill heads") as raised:
        load_heads(tmp_path)
    assert "\n" not in str(raised.value)


def test_the_shipped_heads_are_those_of_the_shipped_student():
    # else train them again: its card says how
    assert load_heads(SHIPPED, sha256(SHIPPED / "student.safetensors"))
    scores = heads_scores(SHIPPED)
    assert scores["match_descriptor"] > 2 * scores["match_rgb"] > 4 * scores["match_chance"]
