"""The fusion variants: shapes, what each is by hand, and what a missing stream does."""
import pytest
import torch
import torch.nn.functional as F

from teacher.fusion import FUSIONS, fusion, grid_position

SEM, GEN = torch.randn(2, 5, 3, 4), torch.randn(2, 7, 3, 4)
GATES = ("token_gate", "paper_gate", "channel_gate", "residual_gate")


def streams(layer):
    """Raw and normalised projections, computed here, [B,H,W,D]."""
    raw = [
        layer.project_semantic(SEM.permute(0, 2, 3, 1)),
        layer.project_generative(GEN.permute(0, 2, 3, 1))
    ]
    return *raw, *(F.layer_norm(x, x.shape[-1:]) for x in raw)


@pytest.mark.parametrize("name", FUSIONS)
def test_every_variant_gives_one_grid_and_gradients(name):
    layer = fusion(name, 5, 7, 8).eval()
    fused, gate = layer(SEM, GEN)
    assert fused.shape == (2, 8, 6 if name == "sequence_concat" else 3, 4)
    assert (gate is not None) == (name in GATES)
    if gate is not None:
        assert gate.shape == (2, 1, 3, 4) and gate.min() > 0 and gate.max() < 1
    # a plain sum of a layer norm has no gradient
    (fused * torch.randn_like(fused)).sum().backward()
    unused = [n for n, p in layer.named_parameters() if p.grad is None]
    assert all(n.startswith("norm_")
               for n in unused) and (not unused or name == "paper_gate"), unused


@pytest.mark.parametrize("name", ["token_gate", "channel_gate", "paper_gate", "residual_gate"])
def test_a_gate_is_its_formula(name):
    layer = fusion(name, 5, 7, 8)
    raw_sem, raw_gen, sem, gen = streams(layer)
    g = torch.sigmoid(torch.cat([sem, gen], -1) @ layer.gate.weight.T + layer.gate.bias)
    assert g.shape[-1] == (8 if name == "channel_gate" else 1)
    blend = {"token_gate": g * sem + (1 - g) * gen, "channel_gate": g * sem + (1 - g) * gen,
             "paper_gate": g * raw_sem + (1 - g) * raw_gen,
             "residual_gate": raw_sem + 0.2 * (g * raw_sem + (1 - g) * raw_gen - raw_sem)}[name]
    fused, gate = layer(SEM, GEN)
    torch.testing.assert_close(fused, blend.permute(0, 3, 1, 2))
    torch.testing.assert_close(gate, g.mean(-1)[:, None])


@pytest.mark.parametrize("name", ["add", "weighted", "channel_concat", "sequence_concat"])
def test_a_blend_is_its_formula(name):
    layer = fusion(name, 5, 7, 8)
    _, _, sem, gen = streams(layer)
    expected = {
        "add": lambda: sem + gen, "weighted": lambda: (sem + gen) / 2,
        "channel_concat": lambda: torch.cat([sem, gen], -1) @ layer.mix.weight.T + layer.mix.bias,
        "sequence_concat": lambda: torch.cat([sem, gen], 1)
    }[name]()
    torch.testing.assert_close(layer(SEM, GEN)[0], expected.permute(0, 3, 1, 2))


def test_single_streams_ignore_the_other():
    alone = fusion("semantic_only", 5, 7, 8)
    torch.testing.assert_close(alone(SEM, GEN)[0], alone(SEM, None)[0])
    geometry = fusion("generative_only", 5, 7, 8)
    torch.testing.assert_close(geometry(SEM, GEN)[0], geometry(torch.zeros_like(SEM), GEN)[0])
    assert not torch.allclose(geometry(SEM, GEN)[0], geometry(SEM, GEN.flip(0))[0])


def test_the_gate_without_a_second_stream_is_the_normalised_first():
    layer = fusion("token_gate", 5, 7, 8)
    fused, gate = layer(SEM, None)
    torch.testing.assert_close(fused, streams(layer)[2].permute(0, 3, 1, 2))
    assert (gate == 1).all()


def test_cross_attention_reads_all_of_its_own_frame_and_no_other():
    layer = fusion("cross_attention_3", 5, 7, 8).eval()
    other = GEN.clone()
    other[0, :, 2, 3] += 5
    a, b = layer(SEM, GEN)[0], layer(SEM, other)[0]
    # every query of that frame sees the changed token
    assert ((a[0] - b[0]).abs().amax(0) > 0).all()
    torch.testing.assert_close(a[1], b[1])
    assert sum(p.numel() for p in layer.asks.parameters()) == 3 * sum(
        p.numel() for p in fusion("cross_attention", 5, 7, 8).asks.parameters())


def test_grid_positions_differ_everywhere():
    code = grid_position(3, 4, 18)
    assert code.shape == (12, 18)
    distance = torch.cdist(code, code) + 9 * torch.eye(12)
    assert distance.min() > 0.1


def test_wrong_use_is_one_clear_line():
    with pytest.raises(ValueError, match="no variant 'gated'; there are: token_gate"):
        fusion("gated", 5, 7, 8)
    with pytest.raises(ValueError, match="needs a generative stream"):
        fusion("add", 5, 7, 8)(SEM, None)
