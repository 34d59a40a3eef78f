"""A training that diverges stops with one line and writes nothing."""
import pytest
import torch
from safetensors import safe_open
from torch import nn

from teacher.training.checkpoint import Checkpoint, clip_and_step, save_finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_on_a_loss_that_is_not_finite_stops_before_the_weights_change(bad):
    layer = nn.Linear(2, 1)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.AdamW(layer.parameters())
    (layer(torch.ones(1, 2)).sum() * bad).backward()
    with pytest.raises(ValueError, match=r"the gradient is (nan|inf); lower the learning rate"):
        clip_and_step(optimizer, layer.parameters())
    assert torch.equal(layer.weight, before)


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"w\.safetensors: a is not finite"):
        save_finite({"a": torch.tensor([1.0, float("nan")])}, tmp_path / "w.safetensors")
    layer = nn.Linear(2, 1)
    nn.init.constant_(layer.bias, float("inf"))
    with pytest.raises(ValueError, match="bias is not finite"):
        Checkpoint(tmp_path / "c.safetensors", {"layer": layer},
                   torch.optim.AdamW(layer.parameters()), "key").save(1)
    assert not list(tmp_path.iterdir())


def test_equal_weights_and_metadata_give_equal_bytes(tmp_path):
    state, metadata = {"a": torch.ones(3), "b": torch.ones(2)}, {f"k{i}": '"é"' for i in range(9)}
    contents = set()
    for i in range(5):
        save_finite(state, tmp_path / f"{i}.safetensors", metadata)
        contents.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(contents) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert file.metadata() == metadata and torch.equal(file.get_tensor("b"), torch.ones(2))
