"""FP8 products: their rounding, the tokens they give, and the gate."""
import pytest
import torch
from torch import nn

from teacher.fast.fp8 import FP8Linear, check_device, to_fp8
from teacher.towers.tap import Tap
from teacher.towers.wan import check_fp8, load_wan


def test_each_row_is_rounded_by_its_own_scale():
    rows = torch.tensor([[1e-6, -2e-6, 3e-6], [100.0, 300.0, -896.0], [0.0, 0.0, 0.0]])
    rounded, scale = to_fp8(rows)
    torch.testing.assert_close(rounded.float() * scale, rows, rtol=2**-4, atol=0)
    assert rounded.float().abs().amax(1).tolist() == [448, 448, 0]


def test_a_product_is_the_product_of_the_rounded_factors():
    linear = nn.Linear(64, 48).bfloat16()
    x = torch.randn(2, 8, 64).bfloat16()
    fp8 = FP8Linear(linear)
    rows, scale = to_fp8(x.flatten(0, 1))
    wanted = (rows.float() * scale) @ (fp8.rounded.float() * fp8.scale).T + linear.bias.float()
    torch.testing.assert_close(fp8(x).float(), wanted.view(2, 8, 48), rtol=1e-2, atol=1e-2)
    assert nn.functional.cosine_similarity(fp8.weight.float(), linear.weight.float()).min() > 0.998


def test_fp8_tokens_agree_with_bfloat16_and_have_a_key_of_their_own(tiny_wan):
    frames = torch.rand(1, 2, 3, 96, 128)
    towers = {name: load_wan(tiny_wan, Tap(block=2, seeds=1, precision=name))
              for name in ("bf16", "fp8")}
    a, b = (tower.features(frames).float() for tower in towers.values())
    cosine = torch.cosine_similarity(a, b, dim=2)
    assert not torch.equal(a, b) and cosine.mean() > 0.995
    assert towers["fp8"].spec["precision"] == "fp8" != towers["bf16"].spec["precision"]


def test_the_gate_refuses_tokens_that_rounding_has_moved(tiny_wan):
    tower = load_wan(tiny_wan, Tap(block=2, seeds=1, precision="fp8"))
    frames = torch.rand(1, 1, 3, 64, 64)
    check_fp8(tower, tiny_wan, frames)
    tower.transformer.blocks[1].ffn.net[2].scale.mul_(8)
    with pytest.raises(ValueError, match=r"fp8: tokens agree .* expected 0.999; set it to bf16"):
        check_fp8(tower, tiny_wan, frames)


def test_a_gpu_without_fp8_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(ValueError, match=r"8\.9 or 9\.0, this GPU has 8\.6; set .* bf16"):
        check_device(torch.device("cuda"))
    check_device(torch.device("cpu"))
