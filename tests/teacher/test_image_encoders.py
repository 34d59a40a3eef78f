"""Image encoders from tiny random checkpoints in their official layouts."""
import json

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    VJEPA2Config,
    VJEPA2Model,
)

from records.files import spec_digest
from teacher.towers.image_encoders import ImageTower, load_encoder, load_siglip

FRAMES = torch.rand(2, 2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 42, "patch_size": 14
}


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
    with pytest.raises(ValueError, match="not a complete dinov2 checkpoint"):
        load_encoder("dinov2", tmp_path)
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_encoder("dinov2", tmp_path / "nowhere")


def save_tiny(folder, with_text: bool):
    torch.manual_seed(0)
    vision = SiglipVisionModel(SiglipVisionConfig(**SIZES))
    if not with_text:
        vision.save_pretrained(folder)
        return vision
    text = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 4, "projection_size": 16}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=SIZES))
    model.save_pretrained(folder)
    return model.vision_model


# a vision tower alone, and the published image-and-text model
@pytest.mark.parametrize("with_text", [False, True])
def test_features_are_the_last_layer_but_one(tmp_path, with_text):
    model = save_tiny(tmp_path, with_text).eval()
    tower = load_siglip(str(tmp_path))
    frames = torch.rand(2, 3, 3, 42, 42)  # the tower's own size: nothing is resized
    got = tower.features(frames)
    assert got.shape == (2, 3, 16, 14, 14) and tower.dim == 16
    with torch.no_grad():
        hidden = model(pixel_values=frames[1, 2:] * 2 - 1, output_hidden_states=True).hidden_states
    assert len(hidden) == 4
    grid = hidden[2][0].T.reshape(16, 3, 3)
    expected = F.interpolate(grid[None], (14, 14), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(got[1, 2], expected, atol=1e-5, rtol=1e-4)


def test_a_siglip_from_the_hub_is_named_by_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--me--siglip"
    (repository / "refs").mkdir(parents=True)
    for revision, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        save_tiny(repository / "snapshots" / commit, False)
        (repository / "refs" / revision).write_text(commit)
    for name, commit in (("me/siglip", "a"), ("me/siglip@v2", "b")):
        assert load_siglip(name).spec["weights"] == f"me/siglip@{commit * 40}"


def test_what_is_no_siglip_is_named(tmp_path):
    with pytest.raises(ValueError, match="no SigLIP vision tower"):
        load_siglip(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(ValueError, match="is a dinov2, expected a siglip"):
        load_siglip(str(tmp_path))
