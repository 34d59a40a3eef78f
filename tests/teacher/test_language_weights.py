"""State sharded by FSDP is gathered and scattered without a change to the training."""
from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from teacher.language.weights import GatheredOptimizer, gather, scatter


@pytest.fixture
def group(tmp_path):
    """One process, which shards like several: every weight becomes a DTensor."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def start():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def step(model, optimizer, n: int) -> None:
    optimizer.zero_grad()
    model(torch.full((3, 4), float(n))).square().sum().backward()
    optimizer.step()


def test_a_sharded_optimizer_is_saved_complete_and_resumes(group):
    model, optimizer = start()
    for n in range(3):
        step(model, optimizer, n)
    weights = {n: gather(p).detach().clone() for n, p in model.named_parameters()}
    saved = deepcopy(GatheredOptimizer(optimizer).state_dict())
    assert all(isinstance(p, DTensor) for p in model.parameters())
    assert not any(isinstance(v, DTensor) for one in saved["state"].values() for v in one.values())
    assert saved["state"][0]["exp_avg"].shape == (8, 4)

    other, again = start()
    with torch.no_grad():
        for n, p in other.named_parameters():
            p.copy_(scatter(weights[n], p))
    GatheredOptimizer(again).load_state_dict(saved)
    for m, o in ((model, optimizer), (other, again)):
        step(m, o, 5)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(gather(a), gather(b), rtol=0, atol=0)


def test_plain_tensors_pass_untouched():
    x = torch.ones(2)
    assert gather(x) is x and scatter(x, torch.zeros(2)) is x
