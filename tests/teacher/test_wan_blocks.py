"""Fused blocks and training processors equal the published classes' arithmetic."""
import copy

import pytest
import torch

from teacher.fast.wan_blocks import (
    apply_rotary_emb,
    compile_blocks,
    fuse_blocks,
    set_training_processors,
)
from teacher.towers.tap import Tap
from teacher.towers.wan import load_wan
from teacher.wan_nano.flow import FlowLoss, build_transformer
from tests.fakes import tiny_transformer


@pytest.mark.parametrize("frames", [1, 3])
def test_a_fused_transformer_equals_the_published_one(frames):
    model = tiny_transformer()
    inputs = {
        "hidden_states": torch.randn(2, 4, frames, 8, 12), "timestep": torch.tensor([300.0, 300.0]),
        "encoder_hidden_states": torch.randn(2, 3, 32)
    }
    fused = copy.deepcopy(model)
    fuse_blocks(fused)
    assert not hasattr(fused.blocks[0].attn1, "to_q")
    with torch.inference_mode():
        wanted, found = (m(return_dict=False, **inputs)[0] for m in (model, fused))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_rotation_turns_each_pair_of_channels_by_its_angle():
    angle = torch.tensor([0.3, 1.1])
    x = torch.randn(1, 1, 1, 4)
    turned = torch.view_as_complex(x.unflatten(-1, (2, 2))) * torch.polar(torch.ones(2), angle)
    cos, sin = (f(angle).repeat_interleave(2).view(1, 1, 1, 4) for f in (torch.cos, torch.sin))
    wanted = torch.view_as_real(turned).flatten(-2)
    torch.testing.assert_close(apply_rotary_emb(x, cos, sin), wanted)


def test_all_blocks_share_one_program_for_any_number_of_frames(tiny_wan):
    torch._dynamo.reset()
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    plain, tower = (load_wan(tiny_wan, Tap(block=2, seeds=1)) for _ in range(2))
    compile_blocks(tower.transformer, count)
    for shape in ((2, 3), (5, 1)):
        frames = torch.rand(*shape, 3, 64, 96)
        torch.testing.assert_close(tower.features(frames), plain.features(frames), rtol=1e-4,
                                   atol=1e-5)
    assert len(graphs) == 1
    tower.features(torch.rand(1, 2, 3, 96, 96))
    assert len(graphs) == 2  # another size, another program


def test_same_loss_and_gradients_as_diffusers_processors() -> None:
    torch.manual_seed(0)
    transformer = build_transformer()
    for p in transformer.parameters():  # adaLN-zero would hide the attention
        p.data += 0.05 * torch.randn_like(p)
    loss, batch = FlowLoss(transformer).double(), [
        torch.randn(2, 16, 3, 8, 8).double() for _ in range(2)
    ]
    batch.append(torch.rand(2).double())
    loss(*batch).backward()
    wanted = {n: p.grad.clone() for n, p in transformer.named_parameters() if p.grad is not None}
    expected = loss(*batch).item()
    transformer.zero_grad()
    set_training_processors(transformer)
    out = loss(*batch)
    out.backward()
    assert out.item() == pytest.approx(expected, rel=1e-6)
    for name, p in transformer.named_parameters():
        if p.grad is None:
            assert not p.requires_grad and wanted[name].abs().max() < 1e-9, name
        else:
            torch.testing.assert_close(p.grad, wanted[name], rtol=1e-4, atol=1e-8, msg=name)


def test_refuses_a_longer_prompt() -> None:
    transformer = set_training_processors(build_transformer())
    with pytest.raises(ValueError, match="one token"):
        transformer(torch.zeros(1, 16, 1, 4, 4), torch.zeros(1), torch.zeros(1, 2, 32))
