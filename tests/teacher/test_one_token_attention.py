"""The quick processors are Wan's own attentions: same velocities, same gradients."""
import pytest
import torch

from teacher.fast.wan_blocks import set_training_processors
from teacher.wan_nano.flow import FlowLoss, build_transformer


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
