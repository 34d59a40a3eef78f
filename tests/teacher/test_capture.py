"""A forward ends at the last block that is read, and only there."""
import pytest
import torch

from teacher.towers.capture import capture_blocks
from tests.fakes import tiny_transformer


def test_nothing_runs_above_the_last_block_that_is_read():
    model, ran = tiny_transformer(num_layers=3), []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    inputs = {"hidden_states": torch.randn(1, 4, 1, 8, 8), "timestep": torch.tensor([300.0]),
              "encoder_hidden_states": torch.zeros(1, 1, 32)}
    with torch.inference_mode():
        late, early, same = capture_blocks(model, [1, 0, 1], inputs)
    assert ran == [0, 1] and torch.equal(late, same) and not torch.equal(late, early)
    assert len(model.blocks[1]._forward_hooks) == 1  # ours is gone


def test_a_failure_inside_the_forward_is_not_mistaken_for_the_end():
    model = tiny_transformer()
    with pytest.raises(RuntimeError):
        capture_blocks(
            model, [1], {
                "hidden_states": torch.randn(1, 5, 1, 8, 8), "timestep": torch.tensor([300.0]),
                "encoder_hidden_states": torch.zeros(1, 1, 32)
            })
