"""Other towers behind the same Protocol, from tiny random checkpoints in their official layouts."""
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    CogVideoXTransformer3DModel,
    DDPMScheduler,
    UNet2DConditionModel,
)
from transformers import (
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    VJEPA2Config,
    VJEPA2Model,
)

from records.files import spec_digest
from teacher.towers.generators import DiffusionTower, load_generator
from teacher.towers.image_encoders import ImageTower, load_encoder
from teacher.towers.prompt import Prompt, save_prompt

FRAMES = torch.rand(2, 2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_encoder(kind, folder):
    torch.manual_seed(0)
    if kind == "dinov2":
        model = Dinov2Model(Dinov2Config(**SMALL, image_size=224, patch_size=14))
    elif kind == "dinov3":
        model = DINOv3ViTModel(
            DINOv3ViTConfig(**SMALL, intermediate_size=32, image_size=224, patch_size=16,
                            num_register_tokens=4))
    else:
        model = VJEPA2Model(
            VJEPA2Config(**SMALL, crop_size=64, patch_size=16, frames_per_clip=4, tubelet_size=2,
                         pred_hidden_size=16, pred_num_attention_heads=2, pred_num_hidden_layers=1,
                         mlp_ratio=2))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    return folder


def save_diffusion(kind, folder, rotary=True):
    torch.manual_seed(0)
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    schedule.save_pretrained(folder / "scheduler")
    if kind == "unet":
        AutoencoderKL(block_out_channels=(8, 8, 8, 8),
                      down_block_types=("DownEncoderBlock2D", ) * 4,
                      up_block_types=("UpDecoderBlock2D", ) * 4,
                      norm_num_groups=4).save_pretrained(folder / "vae")
        UNet2DConditionModel(
            block_out_channels=(16, 16, 32), norm_num_groups=8, attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1, cross_attention_dim=16).save_pretrained(folder / "unet")
    else:
        AutoencoderKLCogVideoX(block_out_channels=(8, 8, 8, 8), latent_channels=4,
                               layers_per_block=1,
                               norm_num_groups=4).save_pretrained(folder / "vae")
        CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
            time_embed_dim=8, text_embed_dim=16, num_layers=3, max_text_seq_length=8,
            use_rotary_positional_embeddings=rotary).save_pretrained(folder / "transformer")
    save_prompt(Prompt(torch.randn(1, 2, 16), 8), folder / "prompt.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["dinov2", "dinov3", "vjepa2"])
def test_an_encoder_gives_14x14_tokens_of_each_frame_alone(kind, tmp_path):
    tower = load_encoder(kind, save_encoder(kind, tmp_path))
    features = tower.features(FRAMES)
    assert isinstance(tower,
                      ImageTower) and features.shape == (2, 2, 16, 14, 14) and tower.dim == 16
    torch.testing.assert_close(tower.features(FRAMES[1:, 1:]), features[1:, 1:], rtol=1e-4,
                               atol=1e-5)
    assert tower.features(torch.rand(1, 1, 3, 120, 200)).shape == (1, 1, 16, 14, 14)
    assert tower.spec["mean"] == [0.5] * 3 and spec_digest(tower.spec) != spec_digest(
        load_encoder(kind, tmp_path, side=448).spec)


def test_an_encoder_drops_class_and_registers_and_normalises_its_own_way(tmp_path):
    tower = load_encoder("dinov3", save_encoder("dinov3", tmp_path))
    out = tower.model(pixel_values=(FRAMES[0, :1] - 0.5) / 0.25).last_hidden_state
    assert out.shape == (1, 1 + 4 + 196, 16)
    torch.testing.assert_close(tower.features(FRAMES[:1, :1])[0, 0].flatten(1).T, out[0, 5:])


def test_another_encoder_or_half_a_one_is_refused(tmp_path):
    save_encoder("dinov2", tmp_path)
    with pytest.raises(ValueError, match="is a dinov2, expected dinov3"):
        load_encoder("dinov3", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ValueError, match="not a whole dinov2 checkpoint"):
        load_encoder("dinov2", tmp_path)
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_encoder("dinov2", tmp_path / "nowhere")


def test_the_unet_is_read_where_it_enters_the_middle_block(tmp_path):
    tower = load_generator("unet", save_diffusion("unet", tmp_path), seed=5)
    assert tower.k == 250 and tower.features(FRAMES).shape == (2, 2, 32, 14, 14)
    frame = FRAMES[0, :1]
    z = tower.vae.encode(frame * 2 - 1).latent_dist.mode() * tower.vae.config.scaling_factor
    noise = torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(5 * 1009))[None]
    schedule = DDPMScheduler.from_pretrained(tmp_path / "scheduler")
    taken = []
    tower.net.mid_block.register_forward_pre_hook(lambda m, args: taken.append(args[0]))
    with torch.inference_mode():
        tower.net(schedule.add_noise(z, noise, torch.tensor([250])), torch.tensor([250]),
                  tower.prompt.padded())
    assert taken[0].shape == (1, 32, 7, 7)
    wanted = F.adaptive_avg_pool2d(taken[0], (14, 14))
    torch.testing.assert_close(tower.features(FRAMES[:1, :1])[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rotary", [True, False])  # CogVideoX's 5B, its 2B
def test_cogvideox_is_read_after_a_block(tmp_path, rotary):
    folder = save_diffusion("cogvideox", tmp_path, rotary)
    tower = load_generator("cogvideox", folder)
    assert tower.block == 2 and tower.features(FRAMES[:1]).shape == (1, 2, 32, 14, 14)
    first = load_generator("cogvideox", folder, block=0).features(FRAMES[:1])
    assert not torch.allclose(first, tower.features(FRAMES[:1]))
    with pytest.raises(ValueError, match="0 to 2: the generator has 3 blocks"):
        load_generator("cogvideox", folder, block=3)


@pytest.mark.parametrize("kind", ["unet", "cogvideox"])
def test_a_generator_s_seeds_reproduce_and_its_gaps_are_named(kind, tmp_path):
    folder = save_diffusion(kind, tmp_path)
    one, two, both = (load_generator(kind, folder, seed=s, seeds=n).features(FRAMES[:1, :1])
                      for s, n in ((0, 1), (1, 1), (0, 2)))
    assert not torch.allclose(one, two)
    torch.testing.assert_close(both, (one + two) / 2, rtol=1e-4, atol=1e-5)
    assert isinstance(load_generator(kind, folder), DiffusionTower)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ValueError, match=r"no vae/config\.json; expected a diffusers folder of"):
        load_generator(kind, folder)
