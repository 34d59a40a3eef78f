"""`vega3d teacher probe` on a tiny generator: rows, columns and other towers."""
import math

import pytest
import torch

from teacher.config import ProbeConfig
from teacher.probing.sweep import heat_map, probe_grid
from teacher.towers.generators import load_tower
from tests.fakes import FakeRooms
from tests.teacher.test_image_encoders import save_encoder


def test_the_probe_has_a_row_for_every_tap_control_and_other_tower(tiny_wan, tmp_path, monkeypatch):
    # seconds each
    monkeypatch.setattr("teacher.probing.probes.mlp",
                        lambda x, y, x_test, seed: torch.zeros(len(x_test), 4))
    also = f"dinov2:{save_encoder('dinov2', tmp_path / 'dino')}"
    config = ProbeConfig(generator=tiny_wan, clips=2, modes=("image", ), levels=(200, ), averaged=2,
                         also=(also, ), device="cpu")
    rows = probe_grid(config, FakeRooms(val=2, test=2, frames=5))
    names = [row["features"] for row in rows]
    assert names[:6] == ["position only", "semantic encoder", "rgb patches", "vae latents",
                         "random-weights ViT-S", "dinov2"]
    position, semantic = rows[:2]  # nothing, and the same again, add nothing to the encoder
    for row in (position, semantic):
        assert row["depth_r2_fused"] == pytest.approx(semantic["depth_r2_ridge"], abs=0.01)
    assert semantic["depth_r2_ridge"] != pytest.approx(position["depth_r2_ridge"], abs=1e-2)
    for row in rows:
        assert (row["grid"], row["probe_clips"], row["test_clips"]) == (14, 2, 2)
        assert 0 < row["fov_low_deg"] <= row["fov_high_deg"] < 180
    taps = [r for r in rows if r["features"] == "generator, image"]
    assert [r["block"] for r in taps if r["seeds"] == 1] == [0, 1, 2]
    corr = {
        "corr_x100", "corr_random_x100", "corr_std_x100", "corr_auc", "corr_std_auc", "corr_pck"
    }
    for row in rows:
        assert corr <= set(row)
        assert all(row[c] is None for c in corr) == (row["features"] == "position only")
    averaged = [r for r in taps if r["seeds"] == 2]
    assert averaged and all(r["snr"] > 0 and math.isfinite(r["snr_median"]) for r in averaged)
    heat_map(rows, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["dinov2", "vgg:/tmp", "dinov2:"])
def test_another_tower_is_kind_and_folder(name):
    with pytest.raises(
            ValueError,
            match="expected KIND:FOLDER with KIND one of dinov2, dinov3, vjepa2, unet, svd, c"):
        load_tower(name)
