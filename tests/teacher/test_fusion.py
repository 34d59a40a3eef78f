"""The fusion variants: shapes, what each is by hand, and what a missing stream does."""
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from teacher.fusion import FUSIONS, fusion, grid_position
from teacher.language.config import Fusion

SEM, GEN = torch.randn(2, 5, 3, 4), torch.randn(2, 7, 3, 4)
GATES = ("token_gate", "paper_gate", "channel_gate", "residual_gate", "context_gated")


def streams(layer):
    """Raw and normalised projections, computed here, [B,H,W,D]."""
    raw = [
        layer.project_semantic(SEM.permute(0, 2, 3, 1)),
        layer.project_generative(GEN.permute(0, 2, 3, 1))
    ]
    return *raw, *(F.layer_norm(x, x.shape[-1:]) for x in raw)


def norm(x, layer):
    """LayerNorm written out."""
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / deviation * layer.weight + layer.bias


def perturbed(layer):
    """The layer with no weight at its initial 0 or 1, so that each counts in a comparison."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return layer.eval()


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
    allowed = ("norm_",) if name == "paper_gate" else ("norm_context", "project_context",
                                                       "context_scale")
    assert all(n.startswith(allowed) for n in unused), unused
    assert not unused or name in ("paper_gate", "context_gated")


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


@pytest.mark.parametrize("name", ["add", "weighted", "generative_only", "channel_concat",
                                  "sequence_concat"])
def test_a_blend_is_the_released_formula(name):
    """add, weighted and only blend the raw streams; concatenations blend normalised ones."""
    layer = perturbed(fusion(name, 5, 7, 8))
    if name == "generative_only":
        expected = layer.project(GEN.permute(0, 2, 3, 1))
    else:
        sem, gen = streams(layer)[:2]
    if name == "add":
        expected = sem + gen
    if name == "weighted":
        a, b = layer.weights.tolist()
        assert abs(a + b - 1) > 0.05
        expected = a / (a + b) * sem + b / (a + b) * gen
    if name.endswith("concat"):
        sem, gen = norm(sem, layer.norm_semantic), norm(gen, layer.norm_generative)
        expected = torch.cat([sem, gen], 1)
    if name == "channel_concat":
        expected = torch.cat([sem, gen], -1) @ layer.mix.weight.T + layer.mix.bias
    torch.testing.assert_close(layer(SEM, GEN)[0], expected.permute(0, 3, 1, 2))


@pytest.mark.parametrize(("name", "blocks"), [("cross_attention", 1), ("cross_attention_3", 3)])
def test_cross_attention_is_the_released_formula(name, blocks):
    """Query, key and value have norms of their own; positions are on queries and keys alone."""
    layer = perturbed(fusion(name, 5, 7, 8))
    assert len(layer.blocks) == blocks
    sem, gen = (x.flatten(1, 2) for x in streams(layer)[:2])          # [B,12,8]
    row, column = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    code = []
    for axis in (row, column):
        angles = axis.flatten()[:, None] * torch.tensor([1.0, 1e-2])  # 10000^(-i/2)
        code += [angles.sin(), angles.cos()]
    position = torch.cat(code, 1)                                     # [12,8]
    x = sem
    for block in layer.blocks:
        weights, biases = block.attend.in_proj_weight.chunk(3), block.attend.in_proj_bias.chunk(3)
        inputs = (norm(x, block.norm_query) + position, norm(gen, block.norm_key) + position,
                  norm(gen, block.norm_value))
        q, k, v = ((y @ w.T + b).unflatten(-1, (8, 1)).transpose(1, 2)  # eight heads of one
                   for y, w, b in zip(inputs, weights, biases, strict=True))
        attended = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(-2)
        x = x + attended @ block.attend.out_proj.weight.T + block.attend.out_proj.bias
        first, last = block.mlp[0], block.mlp[3]
        assert first.weight.shape == (32, 8)
        y = norm(x, block.norm_mlp) @ first.weight.T + first.bias
        y = y * (1 + torch.erf(y / 2**0.5)) / 2
        x = x + y @ last.weight.T + last.bias
    torch.testing.assert_close(layer(SEM, GEN)[0].flatten(2).mT, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("with_context", [True, False])
def test_the_context_gate_is_the_released_formula(with_context):
    layer = fusion("context_gated", 5, 7, 8)
    assert layer.gate_bias == -0.5 and layer.context_scale == 1
    layer = perturbed(layer)
    context = torch.randn(2, 8) if with_context else None
    raw_sem, raw_gen = streams(layer)[:2]
    sem, gen = norm(raw_sem, layer.norm_semantic), norm(raw_gen, layer.norm_generative)
    logits = torch.cat([sem, gen], -1) @ layer.gate.weight.T + layer.gate.bias + layer.gate_bias
    if with_context:
        first, last = layer.project_context[0], layer.project_context[2]
        y = norm(context, layer.norm_context) @ first.weight.T + first.bias
        y = (y / (1 + torch.exp(-y))) @ last.weight.T + last.bias
        logits = logits + layer.context_scale * y[:, None, None]
    g = 1 / (1 + torch.exp(-logits))
    fused, gate = layer(SEM, GEN, context)
    torch.testing.assert_close(fused, (g * sem + (1 - g) * gen).permute(0, 3, 1, 2))
    torch.testing.assert_close(gate, g.permute(0, 3, 1, 2))


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
    assert sum(p.numel() for p in layer.blocks.parameters()) == 3 * sum(
        p.numel() for p in fusion("cross_attention", 5, 7, 8).blocks.parameters())


def test_grid_positions_differ_everywhere():
    code = grid_position(3, 4, 18)
    assert code.shape == (12, 18)
    distance = torch.cdist(code, code) + 9 * torch.eye(12)
    assert distance.min() > 0.1


def test_wrong_use_is_one_clear_line():
    assert get_args(Fusion) == tuple(FUSIONS)
    with pytest.raises(ValueError, match="no variant 'gated'; there are: token_gate"):
        fusion("gated", 5, 7, 8)
    with pytest.raises(ValueError, match="needs a generative stream"):
        fusion("add", 5, 7, 8)(SEM, None)
