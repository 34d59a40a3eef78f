"""The fast path is the published classes' arithmetic: equal to them, compiled once, read no further
than the tap."""
import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from teacher.fast.frame_encoder import FirstConv, FrameConv, FrameEncoder
from teacher.fast.wan_blocks import compile_blocks, compile_forward, fast_kernels, fuse, rotate
from teacher.towers.base import NoiseBank
from teacher.towers.capture import capture_blocks
from teacher.towers.tap import Tap
from teacher.towers.wan import load_wan, normalise
from tests.fakes import save_tiny_5b


def tiny_transformer(**knobs) -> WanTransformer3DModel:
    torch.manual_seed(3)
    return WanTransformer3DModel(
        **{
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
            "text_dim": 32, "freq_dim": 16, "ffn_dim": 64, "num_layers": 2, "rope_max_seq_len": 32,
            **knobs
        }).eval()


@pytest.mark.parametrize("frames", [1, 3])
def test_a_fused_transformer_says_what_the_published_one_says(frames):
    model = tiny_transformer()
    inputs = {
        "hidden_states": torch.randn(2, 4, frames, 8, 12), "timestep": torch.tensor([300.0, 300.0]),
        "encoder_hidden_states": torch.randn(2, 3, 32)
    }
    fused = fuse(copy.deepcopy(model))
    assert not hasattr(fused.blocks[0].attn1, "to_q")
    with torch.inference_mode():
        wanted, found = (m(return_dict=False, **inputs)[0] for m in (model, fused))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_rotation_turns_each_pair_of_channels_by_its_angle():
    angle = torch.tensor([0.3, 1.1])
    x = torch.randn(1, 1, 1, 4)
    turned = torch.view_as_complex(x.unflatten(-1, (2, 2))) * torch.polar(torch.ones(2), angle)
    cos, sin = (f(angle).repeat_interleave(2).view(1, 1, 1, 4) for f in (torch.cos, torch.sin))
    torch.testing.assert_close(rotate(x, cos, sin), torch.view_as_real(turned).flatten(-2))


@pytest.mark.parametrize("five_b", [False, True])
def test_the_frame_encoder_is_the_3d_encoder_of_one_frame(tiny_wan, tmp_path, five_b):
    folder = save_tiny_5b(tmp_path) if five_b else tiny_wan
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    encoder = FrameEncoder(vae)
    frames = torch.rand(3, 3, 64, 96)
    with torch.inference_mode():
        wanted = normalise(vae.encode((frames * 2 - 1).unsqueeze(2)).latent_dist.mode(),
                           vae).squeeze(2)
        torch.testing.assert_close(encoder(frames), wanted, rtol=1e-4, atol=1e-5)
    first = encoder.encoder.conv_in
    assert isinstance(first,
                      FrameConv if five_b else FirstConv) and first.weight[0].numel() % 8 == 0
    flat = [m for m in encoder.modules() if isinstance(m, FrameConv)]
    assert len(flat) > 10 and all(m.weight.shape[1] % 8 == 0 for m in flat)
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in flat)


def test_only_the_last_slice_of_a_causal_kernel_is_read(tiny_wan):
    vae = AutoencoderKLWan.from_pretrained(tiny_wan / "vae", torch_dtype=torch.float32).eval()
    frames = torch.rand(1, 3, 64, 64)
    before = FrameEncoder(vae)(frames)
    vae.encoder.conv_in.weight.data[:, :, :-1] += 1
    torch.testing.assert_close(FrameEncoder(vae)(frames), before)
    vae.encoder.conv_in.weight.data[:, :, -1] += 1
    assert not torch.allclose(FrameEncoder(vae)(frames), before)


def test_all_blocks_share_one_program_for_any_number_of_frames(tiny_wan):
    torch._dynamo.reset()
    seen = []

    def count(graph, _inputs):
        seen.append(graph)
        return graph.forward

    plain, tower = (load_wan(tiny_wan, Tap(block=2, seeds=1)) for _ in range(2))
    compile_blocks(tower.transformer, count)
    for shape in ((2, 3), (5, 1)):
        frames = torch.rand(*shape, 3, 64, 96)
        torch.testing.assert_close(tower.features(frames), plain.features(frames), rtol=1e-4,
                                   atol=1e-5)
    assert len(seen) == 1
    tower.features(torch.rand(1, 2, 3, 96, 96))
    assert len(seen) == 2  # another size, another program


def test_the_whole_encoder_is_one_program(tiny_wan):
    torch._dynamo.reset()
    seen = []
    tower, frames = load_wan(tiny_wan, Tap(block=0, seeds=1)), torch.rand(1, 2, 3, 64, 64)
    wanted = tower.features(frames)
    tower.compile(lambda graph, _inputs: seen.append(graph) or graph.forward)
    torch.testing.assert_close(tower.features(frames), wanted, rtol=1e-4, atol=1e-5)
    convolutions = [n for n in seen[0].graph.nodes if n.target is torch.conv2d]
    assert tower.compiled and len(seen) == 2 and len(convolutions) > 10


def test_a_compiler_that_fails_is_one_line():
    torch._dynamo.reset()

    def broken(_graph, _inputs):
        raise RuntimeError("no C compiler\nat all")

    module = torch.nn.Linear(2, 2)
    compile_forward(module, broken)
    with pytest.raises(ValueError,
                       match=r"torch\.compile failed here .*set TORCH_COMPILE_DISABLE=1") as said:
        module(torch.rand(3, 2))
    assert "\n" not in str(said.value)


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


def test_noise_is_drawn_once_a_video_and_anew_for_another_size():
    bank, z = NoiseBank(), torch.zeros(3, 4, 1, 6, 6)
    first = bank.draw(7, [0, 1, 0], z)
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    torch.testing.assert_close(
        first[1], torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(7 * 1009 + 1)))
    assert torch.equal(bank.draw(7, [1], z[:1])[0],
                       first[1]) and not torch.equal(bank.draw(8, [1], z[:1])[0], first[1])
    assert bank.draw(7, [0], F.pad(z[:1], (0, 1))).shape == (1, 4, 1, 6, 7)


def test_kernel_choices_end_with_the_block():
    before = torch.backends.cudnn.benchmark
    with fast_kernels(True):
        assert torch.backends.cudnn.benchmark
        q = torch.randn(1, 1, 4, 8)
        assert F.scaled_dot_product_attention(q, q, q).isfinite().all()
    assert torch.backends.cudnn.benchmark == before
