"""The paper's semantic encoder from a tiny checkpoint in the official layouts."""
import pytest
import torch
import torch.nn.functional as F
from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

from teacher.towers.siglip import load_siglip

SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 42, "patch_size": 14
}


def save_tiny(folder, whole: bool):
    torch.manual_seed(0)
    vision = SiglipVisionModel(SiglipVisionConfig(**SIZES))
    if not whole:
        vision.save_pretrained(folder)
        return vision
    text = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 4, "projection_size": 16}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=SIZES))
    model.save_pretrained(folder)
    return model.vision_model


# a vision tower alone, and the published image-and-text model
@pytest.mark.parametrize("whole", [False, True])
def test_features_are_the_last_layer_but_one(tmp_path, whole):
    model = save_tiny(tmp_path, whole).eval()
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


def test_what_is_no_siglip_is_named(tmp_path):
    with pytest.raises(ValueError, match="no SigLIP vision tower"):
        load_siglip(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(ValueError, match="is a dinov2, expected a siglip"):
        load_siglip(str(tmp_path))
