"""The tiny VAE's encoder: the published formula, its scales, its key, and what is refused."""
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from distill.config import RunConfig, anchored, load_config
from records.files import spec_digest
from teacher.towers.controls import VAELatents
from teacher.towers.tap import Tap, stored_tap
from teacher.towers.tiny_vae import TinyEncoder, published_shapes
from teacher.towers.wan import load_wan
from teacher.wan_nano.pretrain import save_generator

FRAMES = torch.rand(3, 3, 48, 64, generator=torch.Generator().manual_seed(1))


def published_latents(weights, frames):
    """Each frame four times, all steps at once, layer by layer: [N,3,H,W] -> [N,16,H/8,W/8]."""
    def conv(x, name, **options):
        return F.conv2d(x, weights[f"encoder.{name}.weight"], weights.get(f"encoder.{name}.bias"),
                        **options)

    x = conv(frames.repeat_interleave(4, 0), "0", padding=1).relu()
    for start, steps in ((2, 2), (7, 2), (12, 1)):
        x = conv(x.reshape(-1, steps * 64, *x.shape[2:]), f"{start}.conv")
        x = conv(x, f"{start + 1}", padding=1, stride=2)
        for block in range(start + 2, start + 5):
            clips = x.unflatten(0, (len(frames), -1))
            past = F.pad(clips, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1].flatten(0, 1)
            y = conv(torch.cat([x, past], 1), f"{block}.conv.0", padding=1).relu()
            y = conv(y, f"{block}.conv.2", padding=1).relu()
            x = (conv(y, f"{block}.conv.4", padding=1) + x).relu()
    return conv(x, "17", padding=1)


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * torch.tensor(shape[1:]).prod() ** -0.5
            for name, shape in published_shapes().items()}


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """A random Wan with the latents of Wan2.1."""
    folder = tmp_path_factory.mktemp("wan21")
    torch.manual_seed(0)
    save_generator(
        folder, AutoencoderKLWan(base_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1),
        WanTransformer3DModel(num_attention_heads=2, attention_head_dim=16, in_channels=16,
                              out_channels=16, text_dim=32, freq_dim=16, ffn_dim=64, num_layers=2,
                              rope_max_seq_len=32))
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory, weights):
    path = tmp_path_factory.mktemp("tiny") / "taew2_1.safetensors"
    save_file(weights | {"decoder.1.weight": torch.zeros(1)}, path)
    return path


def test_one_pass_gives_what_the_published_code_gives_for_four_copies_of_a_frame(weights):
    wanted = published_latents(weights, FRAMES)
    assert wanted.std() > 0.1 and wanted.shape == (3, 16, 6, 8)
    encoder = TinyEncoder(weights)
    torch.testing.assert_close(encoder(FRAMES), wanted, rtol=1e-4, atol=1e-5)
    half = encoder.bfloat16()(FRAMES)
    assert half.dtype == torch.float32
    assert F.cosine_similarity(half, wanted).min() > 0.999


def test_the_tower_reads_normalised_latents_from_either_file(generator, file, weights, tmp_path):
    vae = AutoencoderKLWan.from_pretrained(generator / "vae")
    mean, std = (torch.tensor(vae.config[f"latents_{part}"]).view(1, -1, 1, 1)
                 for part in ("mean", "std"))
    raw = tmp_path / "lighttaew2_1.safetensors"
    shutil.copy(file, raw)
    wanted = published_latents(weights, FRAMES)
    for path, latents in ((file, wanted), (raw, (wanted - mean) / std)):
        tower = load_wan(generator, Tap(block=1, seeds=1, vae=str(path)))
        torch.testing.assert_close(tower.latents(FRAMES[:, None]).squeeze(2), latents, rtol=1e-4,
                                   atol=1e-4)


def test_features_of_compiled_and_plain_towers_agree(generator, file):
    tap = Tap(block=1, seeds=1, vae=str(file))
    frames = torch.rand(1, 3, 3, 224, 224)
    plain, compiled = load_wan(generator, tap), load_wan(generator, tap)
    compiled.compile("eager")
    found = plain.features(frames)
    assert found.shape == (1, 3, 32, 14, 14)
    torch.testing.assert_close(compiled.features(frames), found, rtol=1e-4, atol=1e-5)
    own = load_wan(generator, replace(tap, vae="wan")).features(frames)
    assert not torch.allclose(found, own, rtol=0.1, atol=0.1)


def test_the_weights_and_their_scale_are_in_the_key_and_nothing_is_without_the_option(
        generator, file, weights, tmp_path):
    plain = load_wan(generator, Tap(block=1))
    assert "vae" not in plain.spec and "vae" not in VAELatents(plain).spec
    assert stored_tap({"block": 1}) == Tap(block=1, noise="fresh")
    moved, light = tmp_path / "taew2_1.safetensors", tmp_path / "lighttaew2_1.safetensors"
    shutil.copy(file, moved)
    shutil.copy(file, light)
    other = tmp_path / "other" / "taew2_1.safetensors"
    other.parent.mkdir()
    save_file(weights | {"encoder.17.bias": weights["encoder.17.bias"] + 1}, other)
    specs = [load_wan(generator, Tap(block=1, vae=str(path))).spec
             for path in (file, moved, light, other)]
    assert specs[0] == specs[1] and specs[0] == plain.spec | {"vae": specs[0]["vae"]}
    assert len({spec_digest(spec) for spec in (plain.spec, *specs)}) == 4
    tower = load_wan(generator, Tap(block=1, vae=str(file)))
    assert VAELatents(tower).spec["vae"] == specs[0]["vae"]


def test_what_is_no_tiny_vae_or_no_generator_for_one_is_one_line(generator, file, tiny_wan,
                                                                 tmp_path, monkeypatch):
    for name in ("taew2_1.pth", "Wan", "lighttaew2_2", "some/folder"):
        with pytest.raises(ValueError, match=r"tap\.vae is .* expected wan, taew2_1"):
            Tap(vae=name)
    with pytest.raises(ValueError, match=r"reads single frames; set tap\.frames to image"):
        Tap(vae="taew2_1", frames="video")
    for where in (tiny_wan, "wan-nano"):
        with pytest.raises(ValueError, match=r"this generator has another; set it to wan"):
            load_wan(where, Tap(block=1, vae=str(file)))
    wrong = tmp_path / "taew2_1.safetensors"
    with pytest.raises(ValueError, match="no such file"):
        load_wan(generator, Tap(block=1, vae=str(wrong)))
    for damage in ({"encoder.0.weight": torch.zeros(64, 12, 3, 3)}, {"encoder.0.weight": None}):
        content = {name: value for name, value in (load_file(file) | damage).items()
                   if value is not None}
        save_file(content, wrong)
        with pytest.raises(ValueError, match=r"not a TAEHV .*encoder\.0\.weight") as error:
            load_wan(generator, Tap(block=1, vae=str(wrong)))
        assert "\n" not in str(error.value)
    wrong.write_bytes(b"pickle")
    with pytest.raises(ValueError, match="not a TAEHV"):
        load_wan(generator, Tap(block=1, vae=str(wrong)))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"tap\.vae taew2_1: cannot be read from the hub") as error:
        load_wan(generator, Tap(block=1, vae="taew2_1"))
    assert "\n" not in str(error.value)


def test_a_name_is_read_from_the_hub_s_cache(generator, file, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--lightx2v--Autoencoders"
    for folder in ("refs", f"snapshots/{'a' * 40}"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    shutil.copy(file, repository / "snapshots" / ("a" * 40))
    named, local = (load_wan(generator, Tap(block=1, vae=vae)) for vae in ("taew2_1", str(file)))
    assert named.spec == local.spec


def test_a_run_s_config_names_it_and_a_local_file_is_found_from_another_folder(file, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"teacher:\n  tap:\n    vae: {file.name}\n")
    config = load_config(path)
    assert isinstance(config, RunConfig) and config.teacher.tap.vae == file.name
    assert anchored(config, file.parent).teacher.tap.vae == str(file)
    assert anchored(config, tmp_path).teacher.tap.vae == file.name
