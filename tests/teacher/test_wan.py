"""The Wan tower: the tap of the published classes, noise, frame modes, sizes and the spec."""
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from records.files import spec_digest
from student.config import SHIPPED
from student.vit import load_student
from teacher.fast.frame_encoder import FrameConv
from teacher.towers.controls import VAELatents
from teacher.towers.prompt import Prompt, save_prompt
from teacher.towers.tap import Tap, paper_time, stored_tap
from teacher.towers.wan import load_wan, normalise_latents

FRAMES = torch.rand(2, 5, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def test_tap_after_early_exit_equals_a_hook_on_the_full_transformer(tiny_wan):
    tap = Tap(block=1, k=300, seeds=1, seed=7, noise="fresh")
    vae = AutoencoderKLWan.from_pretrained(tiny_wan / "vae", torch_dtype=torch.float32)
    full = WanTransformer3DModel.from_pretrained(tiny_wan / "transformer",
                                                 torch_dtype=torch.float32)
    assert len(full.blocks) == 3
    frames = FRAMES[0, :2]
    raw = vae.encode(frames[:, :, None] * 2 - 1).latent_dist.mode()  # [2,4,1,28,28]
    z = normalise_latents(raw, vae)
    draws = [torch.Generator().manual_seed(7 * 1009 + i) for i in (0, 1)]
    noise = torch.stack([torch.randn(z.shape[1:], generator=draw) for draw in draws])
    outputs = []
    full.blocks[1].register_forward_hook(lambda m, i, out: outputs.append(out))
    with torch.inference_mode():
        full(hidden_states=0.7 * z + 0.3 * noise, timestep=torch.tensor([300.0, 300.0]),
             encoder_hidden_states=torch.zeros(2, 1, 32))
    wanted = outputs[0].transpose(1, 2).unflatten(2, (14, 14))
    tower = load_wan(tiny_wan, tap)
    assert len(tower.transformer.blocks) == 2
    torch.testing.assert_close(tower.features(frames[None])[0], wanted, rtol=1e-4, atol=1e-5)


def test_single_frame_convolutions_give_exactly_the_3d_encoder(tiny_wan):
    plain = AutoencoderKLWan.from_pretrained(tiny_wan / "vae", torch_dtype=torch.float32)
    tower = load_wan(tiny_wan, Tap(block=0))
    assert sum(isinstance(m, FrameConv) for m in tower.encoder.modules()) > 10
    for t in (1, 5):
        x = FRAMES[:1, :t]
        raw = plain.encode((x * 2 - 1).transpose(1, 2)).latent_dist.mode()
        wanted = normalise_latents(raw, plain)
        torch.testing.assert_close(tower.latents(x), wanted, rtol=1e-4, atol=1e-5)


def test_latents_are_normalised_per_channel(tiny_wan):
    tower = load_wan(tiny_wan, Tap(block=0))
    raw = tower.vae.encode((FRAMES[:1, :1] * 2 - 1).transpose(1, 2)).latent_dist.mode()
    torch.testing.assert_close(tower.latents(FRAMES[:1, :1]), (raw - 0.1) / 0.5)


def test_features_do_not_depend_on_the_batch(tiny_wan):
    tower = load_wan(tiny_wan, Tap(block=1, seeds=2))
    torch.testing.assert_close(
        tower.features(FRAMES)[1:], tower.features(FRAMES[1:]), rtol=1e-4, atol=1e-5)


def test_seeds_reproduce_and_are_averaged(tiny_wan):
    one, two, both = (load_wan(tiny_wan, Tap(block=1, seeds=n, seed=s)).features(FRAMES[:1, :1])
                      for n, s in ((1, 0), (1, 1), (2, 0)))
    assert not torch.allclose(one, two)
    torch.testing.assert_close(both, (one + two) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        load_wan(tiny_wan, Tap(block=1, seeds=1)).features(FRAMES[:1, :1]), one)


def test_fresh_noise_differs_between_frames_and_is_kept_in_a_longer_clip(tiny_wan):
    tower = load_wan(tiny_wan, Tap(block=1, seeds=1, noise="fresh"))
    still = FRAMES[:1, :1].expand(-1, 3, -1, -1, -1)
    features = tower.features(still)
    assert not torch.allclose(features[:, 0], features[:, 1])
    torch.testing.assert_close(tower.features(still[:, :2]), features[:, :2], rtol=1e-4, atol=1e-5)


def test_shared_noise_gives_equal_frames_equal_features(tiny_wan):
    still = FRAMES[:1, :1].expand(-1, 3, -1, -1, -1)
    fresh, shared = (load_wan(tiny_wan, Tap(block=1, seeds=2, noise=noise)).features(still)
                     for noise in ("fresh", "shared"))
    torch.testing.assert_close(shared[:, 0], shared[:, 2])
    torch.testing.assert_close(shared[:, 0], fresh[:, 0])  # the first frame's draws are shared


def test_the_noise_knob_leaves_old_specs_and_video_mode_as_they_were(tiny_wan):
    fresh, shared = (Tap(block=1, noise=noise) for noise in ("fresh", "shared"))
    assert "noise" not in fresh.spec(torch.float32)
    assert shared.spec(torch.float32) == fresh.spec(torch.float32) | {"noise": "shared"}
    video = [replace(tap, frames="video").spec(torch.float32) for tap in (fresh, shared)]
    assert video[0] == video[1] and "noise" not in video[0]
    assert stored_tap({"block": 1, "k": 300}) == Tap(block=1, k=300, noise="fresh")


def test_no_noise_means_no_seed_and_pure_noise_means_no_image(tiny_wan):
    clean = [
        load_wan(tiny_wan, Tap(block=0, k=0, seeds=1, seed=s)).features(FRAMES[:1, :1])
        for s in (0, 1)
    ]
    torch.testing.assert_close(*clean)
    pure = load_wan(tiny_wan, Tap(block=0, k=1000, seeds=1)).features(FRAMES[:, :1])
    torch.testing.assert_close(pure[0], pure[1])


def test_image_mode_sees_frames_alone_and_video_mode_shares_a_latent(tiny_wan):
    changed = FRAMES[:1].clone()
    changed[:, 0] = 0
    image = load_wan(tiny_wan, Tap(block=1, frames="image", seeds=1))
    torch.testing.assert_close(image.features(FRAMES[:1])[:, 1:], image.features(changed)[:, 1:])
    video = load_wan(tiny_wan, Tap(block=1, frames="video", seeds=1))
    a, b = video.features(FRAMES[:1]), video.features(changed)
    assert a.shape == (1, 5, 32, 14, 14) and not torch.allclose(a[:, 1:], b[:, 1:])
    assert torch.equal(a[:, 1], a[:, 4]) and not torch.allclose(a[:, 0], a[:, 1])


def test_every_knob_changes_the_spec(tiny_wan, tmp_path):
    tap = Tap(block=1)
    others = [
        replace(tap, block=0),
        replace(tap, k=250),
        replace(tap, frames="video"),
        replace(tap, seeds=3),
        replace(tap, seed=5),
        replace(tap, geometry="paper"),
        replace(tap, side=112),
        replace(tap, tail="pad"),
        replace(tap, precision="bf16")
    ]
    digests = {spec_digest(load_wan(tiny_wan, t).spec) for t in (tap, *others)}
    digests.add(spec_digest(load_wan(tiny_wan, tap, random_weights=True).spec))
    assert len(digests) == len(others) + 2


def test_knobs_at_their_defaults_leave_the_shipped_student_its_key():
    teacher = load_student(SHIPPED).config.teacher
    assert spec_digest(load_wan(tap=Tap()).spec) == teacher
    assert spec_digest(load_wan(tap=Tap(precision="fp32")).spec) == teacher


def test_a_clip_whose_tail_would_be_dropped_is_refused_or_padded_as_asked(tiny_wan):
    tap = Tap(block=0, frames="video", seeds=1)
    four = FRAMES[:1, :4]
    with pytest.raises(ValueError, match=r"got 4 frames, expected 4n\+1"):
        load_wan(tiny_wan, tap).features(four)
    padded = load_wan(tiny_wan, replace(tap, tail="pad")).features(four)
    assert padded.shape == (1, 4, 32, 14, 14)
    by_hand = load_wan(tiny_wan, tap).features(torch.cat([four, four[:, 3:]], 1))
    torch.testing.assert_close(padded, by_hand[:, :4])


def test_a_tap_out_of_range_is_refused(tiny_wan):
    with pytest.raises(ValueError, match="0 to 2: the generator has 3 blocks"):
        load_wan(tiny_wan, Tap(block=3))
    for bad in ({"k": -1}, {"k": 1001}, {"seeds": 0}):
        with pytest.raises(ValueError, match="expected"):
            Tap(**bad)


def test_a_checkpoint_that_lacks_a_part_is_named(tiny_wan, tmp_path):
    with pytest.raises(ValueError,
                       match=r"prompt\.safetensors, transformer/config\.json, vae/config\.json"):
        load_wan(tmp_path)
    copy = shutil.copytree(tiny_wan, tmp_path / "half")
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a complete Wan checkpoint"):
        load_wan(copy, Tap(block=0))


def test_vae_latents_control_is_two_by_two_latents_a_cell(tiny_wan):
    tower = load_wan(tiny_wan, Tap(block=0))
    features = VAELatents(tower).features(FRAMES[:1, :2])
    assert features.shape == (1, 2, 16, 14, 14)
    z = tower.latents(FRAMES[:1, :1])[0, :, 0]
    torch.testing.assert_close(features[0, 0, :4, 3, 5], z[0, 6:8, 10:12].flatten())


def test_frames_of_any_size_become_14x14_tokens(tiny_wan):
    tower = load_wan(tiny_wan, Tap(block=0, seeds=1))
    assert tower.features(torch.rand(1, 1, 3, 220, 300)).shape == (1, 1, 32, 14, 14)
    small = load_wan(tiny_wan, Tap(block=0, seeds=1, side=64))
    assert small.features(torch.rand(1, 1, 3, 100, 90)).shape == (1, 1, 32, 14, 14)


def test_a_larger_grid_is_averaged_to_14x14(tiny_wan):
    tower = load_wan(tiny_wan, Tap(block=1, k=0, seeds=1))
    frames, outputs = torch.rand(1, 1, 3, 448, 448), []
    hook = tower.transformer.blocks[0].register_forward_hook(lambda m, i, out: outputs.append(out))
    pooled = tower.block_features(frames, [0, 1])[0, 0, 0]
    hook.remove()
    grid = outputs[0][0].T.unflatten(1, (28, 28))
    torch.testing.assert_close(pooled, F.avg_pool2d(grid, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_paper_geometry_gives_the_released_path_s_features(tiny_wan, tmp_path, monkeypatch,
                                                           precision):
    """The released way, step by step: frames through the 3D VAE one by one, all blocks, prompt
    padded to 512."""
    # the true size costs minutes here
    monkeypatch.setattr("teacher.towers.base.PAPER_SIZES", {720: (64, 112)})
    folder = shutil.copytree(tiny_wan, tmp_path / "wan")
    prompt = Prompt(torch.randn(1, 1, 32), 512)
    save_prompt(prompt, folder / "prompt.safetensors")
    frames = torch.rand(3, 3, 48, 64)
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    full = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    square = F.interpolate(frames, (384, 384), mode="bicubic", antialias=True).clamp(0, 1)
    x = F.interpolate(square, (112, 112), mode="bilinear")[:, :, 24:88] * 2 - 1
    z = torch.cat([(vae.encode(one[None, :, None]).latent_dist.mode() - 0.1) / 0.5
                   for one in x])  # [3,4,1,8,14]
    noise = torch.stack(
        [torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(i)) for i in range(3)])
    sigma, outputs = paper_time(300)[1], []
    full.blocks[1].register_forward_hook(lambda m, i, out: outputs.append(out))
    with torch.inference_mode():
        full(hidden_states=(1 - sigma) * z + sigma * noise, timestep=torch.full((3,), 299),
             encoder_hidden_states=prompt.padded().expand(3, -1, -1))
    wanted = F.adaptive_avg_pool2d(outputs[0].transpose(1, 2).unflatten(2, (4, 7)), (14, 14))
    tap = Tap(block=1, k=300, seeds=1, geometry="paper", precision=precision, noise="fresh")
    found = load_wan(folder, tap).features(frames[None])[0]
    if precision == "fp32":
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    assert F.cosine_similarity(found, wanted, dim=1).min() > 0.999
