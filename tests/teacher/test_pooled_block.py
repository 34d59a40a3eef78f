"""Pooling before the last product equals pooling after the block, on every grid, in fewer rows."""
import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel

from teacher.fast.pooled_block import PooledBlock, pooling_windows
from teacher.fast.wan_blocks import fuse_blocks
from teacher.towers.capture import capture_blocks, swapped_block
from teacher.towers.prompt import Prompt, precompute_text_kv
from teacher.towers.tap import Tap
from teacher.towers.wan import load_wan


def blocks(count: int, text: int = 3):
    """(published, its prompt, fused, its prompt): one random transformer, twice."""
    torch.manual_seed(5)
    models = [
        WanTransformer3DModel(num_attention_heads=2, attention_head_dim=16, in_channels=4,
                              out_channels=4, text_dim=32, freq_dim=16, ffn_dim=64,
                              num_layers=count).eval() for _ in range(2)
    ]
    models[1].load_state_dict(models[0].state_dict())
    prompt = Prompt(torch.randn(1, text, 32), text + 5)
    fuse_blocks(models[1])
    return models[0], prompt.padded(), models[1], precompute_text_kv(models[1], prompt)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("grid", [(15, 26), (30, 20), (17, 29), (14, 20), (9, 31), (28, 28)])
@torch.inference_mode()
def test_a_pooled_block_is_the_published_block_averaged(grid, frames):
    high, wide = grid
    plain, padded, ours, text = blocks(1)
    z = torch.randn(2, 4, frames, 2 * high, 2 * wide)
    outputs = []
    plain.blocks[0].register_forward_hook(lambda _m, _i, out: outputs.append(out))
    plain(z, torch.full((2,), 300.0), padded.expand(2, -1, -1))
    # latent frames above each other
    picture = outputs[0].unflatten(1, (frames * high, wide)).permute(0, 3, 1, 2)
    wanted = torch.cat([
        F.adaptive_avg_pool2d(part, 14) for part in picture.unflatten(2, (frames, high)).unbind(2)
    ])

    pooled = PooledBlock(ours.blocks[0], high, wide)
    with swapped_block(ours.blocks, 0, pooled):
        found = capture_blocks(ours, [0], {"hidden_states": z, "timestep": torch.full((1,), 300.0),
                                    "encoder_hidden_states": text})
    assert ours.blocks[0] is pooled.block
    # [F*N,14*14,D], as wanted's
    ours_first = found[0].unflatten(0, (2, frames)).transpose(0, 1).flatten(0, 1)
    torch.testing.assert_close(
        ours_first.transpose(1, 2).unflatten(2, (14, 14)), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [(14, 14), (15, 26), (30, 52), (9, 31)])
def test_windows_are_those_of_adaptive_pooling(grid):
    x, windows = torch.rand(5, *grid), pooling_windows(*grid)
    assert set(windows.unique().tolist()) <= {0.0, 1.0}
    by_sum = x.flatten(1) @ windows.T / windows.sum(1)
    torch.testing.assert_close(by_sum.unflatten(1, (14, 14)), F.adaptive_avg_pool2d(x, 14))


@pytest.mark.parametrize("mode,shape", [("image", (2, 2)), ("video", (2, 5))])
def test_a_tap_s_features_are_those_of_a_deeper_tower_s_lower_block(tiny_wan, mode, shape):
    """Block 1 is the last that runs for one, so pooled inside; for the other block 2 is."""
    frames = torch.rand(*shape, 3, 240, 272)
    ours, deeper = (load_wan(tiny_wan, Tap(block=b, seeds=2, frames=mode)) for b in (1, 2))
    wanted = deeper.block_features(frames, [1, 2])[0]
    assert set(ours._pooled) == set() and set(deeper._pooled) == {(2, 15, 17)}
    torch.testing.assert_close(ours.features(frames), wanted, rtol=1e-5, atol=1e-5)
    assert set(ours._pooled) == {(1, 15, 17)}


def test_the_last_product_meets_196_tokens_a_frame_and_only_where_there_are_more(tiny_wan):
    tower, rows = load_wan(tiny_wan, Tap(block=1, seeds=1)), []
    last = tower.transformer.blocks[1].ffn.net[2].weight
    linear = F.linear

    def count(x, weight, bias=None):
        rows.extend([x.shape[1]] if weight is last else [])
        return linear(x, weight, bias)

    for side in (448, 224, 160):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "linear", count)
            tower.features(torch.rand(1, 2, 3, side, side))
    assert rows == [196, 196, 100]  # 28x28, 14x14, 10x10


def test_a_compiled_tower_pools_in_one_program_a_size(tiny_wan):
    torch._dynamo.reset()
    graphs, frames = [], torch.rand(1, 3, 3, 240, 272)
    plain, tower = (load_wan(tiny_wan, Tap(block=1, seeds=1)) for _ in range(2))
    tower.compile(lambda graph, _inputs: graphs.append(graph) or graph.forward)
    for count in (2, 3):
        torch.testing.assert_close(tower.features(frames[:, :count]),
                                   plain.features(frames[:, :count]), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 3  # the encoder, a block, the last
    tower.features(torch.rand(1, 2, 3, 272, 240))  # as many tokens, other windows
    assert len(tower._pooled) == 2
    torch.testing.assert_close(tower.features(frames), plain.features(frames), rtol=1e-4, atol=1e-5)


def test_bf16_rounds_no_more_than_before(tiny_wan):
    frames = torch.rand(1, 2, 3, 240, 272)
    exact = load_wan(tiny_wan, Tap(block=1, seeds=1)).features(frames)
    half = load_wan(tiny_wan, Tap(block=1, seeds=1, precision="bf16")).features(frames)
    after = load_wan(tiny_wan, Tap(block=2, seeds=1,
                                   precision="bf16")).block_features(frames, [1, 2])[0]
    error, before = ((x - exact).norm() / exact.norm() for x in (half, after))
    assert error <= 1.05 * before and before > 0
