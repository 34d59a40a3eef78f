"""Diffusion generators as towers, from tiny random checkpoints in their official layouts."""
import json
import shutil
from math import log

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLTemporalDecoder,
    CogVideoXTransformer3DModel,
    DDPMScheduler,
    EulerDiscreteScheduler,
    LTXVideoTransformer3DModel,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from teacher.towers.generators import GENERATORS, DiffusionTower, load_generator, load_tower
from teacher.towers.prompt import Prompt, save_prompt

FRAMES = torch.rand(2, 2, 3, 224, 224, generator=torch.Generator().manual_seed(1))


MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


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


def save_svd(folder):
    torch.manual_seed(0)
    EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                           timestep_type="continuous", prediction_type="v_prediction",
                           use_karras_sigmas=True).save_pretrained(folder / "scheduler")
    AutoencoderKLTemporalDecoder(block_out_channels=(32, 32, 32, 32),
                                 down_block_types=("DownEncoderBlock2D", ) * 4,
                                 layers_per_block=1).save_pretrained(folder / "vae")
    UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", ) * 2 + ("DownBlockSpatioTemporal", ),
        up_block_types=("UpBlockSpatioTemporal", ) + ("CrossAttnUpBlockSpatioTemporal", ) * 2,
        layers_per_block=1, cross_attention_dim=16, num_attention_heads=(2, 2, 2),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24).save_pretrained(folder / "unet")
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, image_size=28, patch_size=14,
                         projection_dim=16)).save_pretrained(folder / "image_encoder")
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(
        {"image_mean": MEAN, "image_std": STD}))
    return folder


def save_ltx(folder):
    torch.manual_seed(0)
    vae = AutoencoderKLLTXVideo(latent_channels=8, block_out_channels=(8, 8, 8, 8),
                                decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1,) * 5,
                                decoder_layers_per_block=(1,) * 5)
    vae.latents_mean.fill_(0.2)
    vae.latents_std.fill_(0.5)
    vae.save_pretrained(folder / "vae")
    LTXVideoTransformer3DModel(in_channels=8, out_channels=8, num_attention_heads=2,
                               attention_head_dim=16, cross_attention_dim=32, num_layers=3,
                               caption_channels=16).save_pretrained(folder / "transformer")
    save_prompt(Prompt(torch.randn(1, 5, 16), 5), folder / "prompt.safetensors")
    return folder


def test_the_unet_is_read_where_it_enters_the_middle_block(tmp_path):
    tower = load_generator("unet", save_diffusion("unet", tmp_path), seed=5)
    assert tower.k == 250 and tower.features(FRAMES).shape == (2, 2, 32, 14, 14)
    frame = FRAMES[0, :1]
    z = tower.vae.encode(frame * 2 - 1).latent_dist.mode() * tower.vae.config.scaling_factor
    noise = torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(5 * 1009))[None]
    schedule = DDPMScheduler.from_pretrained(tmp_path / "scheduler")
    outputs = []
    tower.net.mid_block.register_forward_pre_hook(lambda m, args: outputs.append(args[0]))
    with torch.inference_mode():
        tower.net(schedule.add_noise(z, noise, torch.tensor([250])), torch.tensor([250]),
                  tower.prompt.padded())
    assert outputs[0].shape == (1, 32, 7, 7)
    wanted = F.adaptive_avg_pool2d(outputs[0], (14, 14))
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


def test_svd_is_read_where_it_enters_the_middle_block_and_sees_the_frame_it_is_conditioned_on(
        tmp_path):
    tower = load_generator("svd", save_svd(tmp_path), seed=5)
    assert tower.k == 250 and tower.dim == 64
    assert tower.features(FRAMES[:1]).shape == (1, 2, 64, 14, 14)
    frame = FRAMES[0, :1]
    still = tower.vae.encode(frame * 2 - 1).latent_dist.mode()  # [1,4,28,28]
    noise = torch.randn(still.shape[1:], generator=torch.Generator().manual_seed(5 * 1009))[None]
    scheduler = EulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler")
    alpha = scheduler.alphas_cumprod[250].item()
    sigma = ((1 - alpha) / alpha) ** 0.5  # noise over signal, as SVD's own scheduler counts it
    noised = (tower.vae.config.scaling_factor * still + sigma * noise) / (1 + sigma ** 2) ** 0.5
    image = F.interpolate(frame, (28, 28), mode="bicubic", antialias=True).clamp(0, 1)
    image = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    outputs = []
    hook = tower.net.mid_block.register_forward_pre_hook(
        lambda m, a, named: outputs.append(named["hidden_states"]), with_kwargs=True)
    with torch.inference_mode():
        embedding = tower.image_encoder(image).image_embeds
        tower.net(
            torch.cat([noised, still], 1)[:, None], torch.tensor(0.25 * log(sigma)),
            embedding[:, None], torch.tensor([[6.0, 127.0, 0.0]]))
    hook.remove()
    assert outputs[0].shape == (1, 64, 7, 7)
    wanted = F.adaptive_avg_pool2d(outputs[0], (14, 14))
    torch.testing.assert_close(tower.features(FRAMES[:1, :1])[0], wanted, rtol=1e-4, atol=1e-5)


def test_ltx_is_read_after_a_block_of_normalised_latents_and_the_end_of_text_alone(tmp_path):
    tower = load_generator("ltx", save_ltx(tmp_path), k=400)
    assert tower.block == 2 and tower.features(FRAMES[:1]).shape == (1, 2, 32, 14, 14)
    z = (tower.vae.encode(FRAMES[0, :1, :, None] * 2 - 1).latent_dist.mode() -
         0.2) / 0.5  # [1,8,1,7,7]
    noise = torch.randn(8, 7, 7, generator=torch.Generator().manual_seed(0))
    tokens = (0.6 * z.squeeze(2) + 0.4 * noise).flatten(2).transpose(1, 2)
    outputs, text = [], tower.prompt.embedding
    tower.net.transformer_blocks[2].register_forward_hook(lambda m, a, out: outputs.append(out))
    with torch.inference_mode():   # the pipeline passes the padding too, and masks it
        tower.net(tokens, text, torch.tensor([400]), torch.tensor([[1, 0, 0, 0, 0]]), num_frames=1,
                  height=7, width=7, rope_interpolation_scale=(8 / 25, 32, 32))
    wanted = F.adaptive_avg_pool2d(outputs[0].transpose(1, 2).unflatten(2, (7, 7)), (14, 14))
    torch.testing.assert_close(tower.features(FRAMES[:1, :1])[0], wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="0 to 2: the generator has 3 blocks"):
        load_generator("ltx", tmp_path, block=3)


@pytest.mark.parametrize(("kind", "save"), [("svd", save_svd), ("ltx", save_ltx)])
def test_gaps_another_architecture_and_a_level_out_of_range_are_one_line_each(kind, save, tmp_path):
    folder = save(tmp_path / "complete")
    with pytest.raises(ValueError, match=rf"{kind}: k is 1001, expected 0 \(clean\) to 1000"):
        load_generator(kind, folder, k=1001)
    with pytest.raises(ValueError,
                       match=r"no .*config\.json.*; expected a diffusers folder of cogvideox"):
        load_generator(
            "cogvideox",
            shutil.copytree(folder, tmp_path / "x", ignore=lambda *_: ["transformer", "unet"]))
    with pytest.raises(ValueError, match=r"vae/ is a Autoencoder\w+, expected Autoencoder"):
        wrong = shutil.copytree(folder, tmp_path / "wrong")
        save_other = {"svd": save_ltx, "ltx": save_svd}[kind](tmp_path / "other")
        shutil.rmtree(wrong / "vae")
        shutil.copytree(save_other / "vae", wrong / "vae")
        load_generator(kind, wrong)
    part = "unet" if kind == "svd" else "transformer"
    weights = folder / part / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:999])
    with pytest.raises(ValueError, match=f"not a complete {kind} checkpoint") as error:
        load_tower(f"{kind}:{folder}")
    assert "\n" not in str(error.value)
    assert set(GENERATORS) == {"unet", "svd", "cogvideox", "ltx"}
