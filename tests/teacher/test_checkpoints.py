"""Which generator, in which size, precision and layout; and the error of a broken one."""
import json
import re
import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

from teacher.towers.checkpoints import (
    PUBLISHED,
    block_count,
    expert,
    generator_folder,
    hub_answers,
    is_hub_id,
    load_parts,
    prompt_file,
    split_revision,
)
from teacher.towers.tap import Tap
from teacher.towers.wan import load_wan
from tests.fakes import save_tiny_5b, save_tiny_wan

FRAMES = torch.rand(1, 1, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def test_the_true_1p3b_has_1419_million_parameters_and_the_published_key_names():
    with torch.device("meta"):
        model = WanTransformer3DModel(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960,
                                      num_layers=30, text_dim=4096, freq_dim=256, in_channels=16,
                                      out_channels=16)
    state = model.state_dict()
    assert sum(v.numel() for v in state.values()) == 1_418_996_800
    per_block = sum(v.numel() for k, v in state.items() if k.startswith("blocks.7."))
    assert per_block == 46_440_704
    # of diffusion_pytorch_model.safetensors.index.json: a block's 27 names, and 15 outside
    within = {k.removeprefix("blocks.0.") for k in state if k.startswith("blocks.0.")}
    attention = {
        f"{a}.{n}"
        for a in ("attn1", "attn2")
        for n in ("norm_q.weight", "norm_k.weight", *(f"{m}.{p}"
                                                      for m in ("to_q", "to_k", "to_v", "to_out.0")
                                                      for p in ("weight", "bias")))
    }
    assert within == attention | {
        "scale_shift_table", "norm2.weight", "norm2.bias", "ffn.net.0.proj.weight",
        "ffn.net.0.proj.bias", "ffn.net.2.weight", "ffn.net.2.bias"
    }
    assert {k
            for k in state if not k.startswith("blocks.")} == {
                "scale_shift_table", "patch_embedding.weight", "patch_embedding.bias",
                "proj_out.weight", "proj_out.bias",
                *(f"condition_embedder.{m}.{p}"
                  for m in ("time_embedder.linear_1", "time_embedder.linear_2", "time_proj",
                            "text_embedder.linear_1", "text_embedder.linear_2")
                  for p in ("weight", "bias"))
            }


def test_only_the_blocks_up_to_the_tap_are_loaded_and_they_are_the_file_s(tiny_wan):
    full = WanTransformer3DModel.from_pretrained(tiny_wan / "transformer")
    parts = load_parts(tiny_wan, 1, "fp32")
    assert block_count(tiny_wan) == 3 and len(parts.transformer.blocks) == 2
    for name, value in parts.transformer.state_dict().items():
        torch.testing.assert_close(value, full.state_dict()[name].float())


def test_names_are_hub_ids_and_folders_are_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path))
    for name, hub in PUBLISHED.items():
        assert str(generator_folder(name)) == hub and is_hub_id(Path(hub))
        assert prompt_file(
            Path(hub)) == tmp_path / "prompts" / f"{hub.replace('/', '--')}.safetensors"
    assert generator_folder("wan-nano").is_dir()
    for local in (tmp_path, Path("/a/b"), Path("../a"), Path("a")):
        assert not is_hub_id(local)


def test_a_hub_id_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch, tiny_wan):
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
            ValueError,
            match=r"no such folder, and as a hub id no prompt.safetensors .* vega3d teacher"):
        load_wan("wan2.1-t2v-1.3b")
    prompt = prompt_file(generator_folder("wan2.1-t2v-1.3b"))
    prompt.parent.mkdir()
    shutil.copy(tiny_wan / "prompt.safetensors", prompt)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
            ValueError,
            match=r"cannot be read from the hub or its cache .* local diffusers folder") as error:
        load_wan("wan2.1-t2v-1.3b")
    assert "\n" not in str(error.value)


def test_the_hub_answers_where_something_listens_and_it_is_not_switched_off(monkeypatch):
    try:
        with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # 501: an answer
            url = f"http://127.0.0.1:{server.server_port}"
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
            Thread(target=server.handle_request).start()
            hub_answers.cache_clear()
            assert split_revision("me/wan")[1] == {"revision": "main", "local_files_only": False}
        hub_answers.cache_clear()
        assert split_revision("me/wan@v2")[1] == {"revision": "v2", "local_files_only": True}
    finally:
        hub_answers.cache_clear()


def test_a_hub_id_takes_a_revision_and_the_tower_s_spec_differs(tmp_path, monkeypatch, tiny_wan):
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--me--wan"
    commits = {"main": "a" * 40, "refs/pr/1": "b" * 40}
    for name, commit in commits.items():
        shutil.copytree(tiny_wan, repository / "snapshots" / commit)
        ref = repository / "refs" / name
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    other = WanTransformer3DModel.from_pretrained(tiny_wan / "transformer")
    with torch.no_grad():
        other.blocks[0].scale_shift_table += 1
    other.save_pretrained(repository / "snapshots" / commits["refs/pr/1"] / "transformer")
    towers = {}
    for name in ("me/wan", "me/wan@main", "me/wan@refs/pr/1", f"me/wan@{commits['refs/pr/1']}"):
        prompt = prompt_file(generator_folder(name))
        assert prompt.parent == tmp_path / "cache" / "prompts"
        prompt.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_wan / "prompt.safetensors", prompt)
        towers[name] = load_wan(name, Tap(block=1, seeds=1))
    plain, main, branch, pinned = towers.values()
    assert plain.spec == main.spec == load_wan(tiny_wan, Tap(block=1, seeds=1)).spec
    assert branch.spec == pinned.spec and branch.spec["weights"] != plain.spec["weights"]
    assert not torch.allclose(plain.features(FRAMES), branch.features(FRAMES))
    torch.testing.assert_close(branch.features(FRAMES), pinned.features(FRAMES))
    shutil.copy(prompt, prompt_file(generator_folder("me/wan@gone")))
    with pytest.raises(ValueError, match=r"me/wan@gone: cannot be read from the hub or its cache"):
        load_wan("me/wan@gone")


def test_a_published_name_takes_a_revision_and_a_folder_named_with_an_at_sign_is_a_folder(tmp_path):
    for name, hub in PUBLISHED.items():
        assert str(generator_folder(f"{name}@v1.0")) == f"{hub}@v1.0"
        for where, revision in ((f"{hub}@v1.0", "v1.0"), (hub, "main")):
            found, options = split_revision(where)
            assert found == hub and options["revision"] == revision
    folder = tmp_path / "mine@home"
    folder.mkdir()
    assert split_revision(folder) == (str(folder), {}) and not is_hub_id(folder)


def test_bf16_is_near_fp32_and_in_the_spec(tiny_wan):
    one, half = (load_wan(tiny_wan, Tap(block=1, seeds=1, precision=p)) for p in ("fp32", "bf16"))
    assert half.spec == {**one.spec, "precision": "bfloat16"}
    assert half.transformer.blocks[0].ffn.net[2].weight.dtype == torch.bfloat16
    # diffusers' float32 islands
    assert half.transformer.blocks[0].scale_shift_table.dtype == torch.float32
    a, b = one.features(FRAMES), half.features(FRAMES)
    assert b.dtype == torch.float32
    assert torch.cosine_similarity(a, b, dim=2).min() > 0.999


def test_wan22_5b_has_32_px_tokens_and_its_frames_are_resized_to_them(tmp_path):
    tower = load_wan(save_tiny_5b(tmp_path), Tap(block=1, seeds=1))
    assert tower.pixels_per_token == 32
    assert tower.resize(torch.rand(1, 3, 200, 330)).shape == (1, 3, 192, 320)
    assert tower.features(torch.rand(1, 1, 3, 448, 448)).shape == (1, 1, 32, 14, 14)


def test_vace_reads_the_frames_as_its_control(tiny_wan, tmp_path):
    torch.manual_seed(0)
    vace = WanVACETransformer3DModel(num_attention_heads=2, attention_head_dim=16, in_channels=4,
                                     out_channels=4, text_dim=32, freq_dim=16, ffn_dim=64,
                                     num_layers=3, rope_max_seq_len=32, vace_layers=[0, 2],
                                     vace_in_channels=2 * 4 + 64)
    folder = shutil.copytree(tiny_wan, tmp_path / "vace")
    vace.save_pretrained(folder / "transformer")
    tower = load_wan(folder, Tap(block=1, seeds=1, k=1000))
    assert len(tower.transformer.vace_blocks) == 1  # the hint of block 2 comes after the tap
    one, other = tower.features(FRAMES), tower.features(1 - FRAMES)
    # pure noise, yet the control tells
    assert one.shape == (1, 1, 32, 14, 14) and not torch.allclose(one, other)


@pytest.fixture
def two_experts(tiny_wan, tmp_path):
    """As Wan2.2-A14B: another transformer below the boundary."""
    folder = shutil.copytree(tiny_wan, tmp_path / "two-experts")
    other = save_tiny_wan(tmp_path / "other", seed=7)
    shutil.copytree(other / "transformer", folder / "transformer_2")
    index = {"_class_name": "WanPipeline", "boundary_ratio": 0.875,
             "transformer": ["diffusers", "WanTransformer3DModel"],
             "transformer_2": ["diffusers", "WanTransformer3DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_of_two_experts_the_one_of_the_noise_level_is_tapped(two_experts, tiny_wan):
    high, low = (WanTransformer3DModel.from_pretrained(two_experts / part).state_dict()
                 for part in ("transformer", "transformer_2"))
    name = "patch_embedding.weight"
    assert not torch.equal(high[name], low[name])
    for k, weights in ((1000, high), (875, high), (874, low), (0, low)):
        tower = load_wan(two_experts, Tap(block=1, k=k, seeds=1))
        tapped = tower.transformer.state_dict()[name]
        assert torch.equal(tapped, weights[name].view_as(tapped)), k
    one, two = (load_wan(two_experts, Tap(block=1, k=k)).spec["weights"] for k in (900, 300))
    assert one != two and one == load_wan(tiny_wan, Tap(block=1)).spec["weights"]
    index = json.loads((two_experts / "model_index.json").read_text())
    (two_experts / "model_index.json").write_text(json.dumps({**index, "boundary_ratio": 0.9}))
    assert expert(two_experts, 899) == "transformer_2" and expert(two_experts, 900) == "transformer"
    paper = Tap(block=1, k=900, geometry="paper")  # its nearest timestep is another
    assert expert(two_experts, paper.time[0]) == (
        "transformer" if paper.time[0] >= 900 else "transformer_2")


def test_two_experts_without_a_boundary_are_refused(two_experts, tiny_wan):
    index = json.loads((two_experts / "model_index.json").read_text())
    (two_experts / "model_index.json").write_text(json.dumps({**index, "boundary_ratio": None}))
    with pytest.raises(ValueError, match=r"boundary_ratio in model_index\.json is None"):
        load_wan(two_experts, Tap(block=1))
    (two_experts / "model_index.json").unlink()
    with pytest.raises(ValueError, match=r"cannot read its model_index\.json"):
        load_wan(two_experts, Tap(block=1))
    single = {**index, "boundary_ratio": None, "transformer_2": [None, None]}  # as Wan2.1 has it
    (two_experts / "model_index.json").write_text(json.dumps(single))
    shutil.rmtree(two_experts / "transformer_2")
    assert expert(two_experts, 100) == expert(tiny_wan, 100) == "transformer"


def test_a_search_over_levels_reads_each_from_its_expert(two_experts, tmp_path):
    from teacher.config import SearchConfig
    from teacher.probing.tap_search import search
    from tests.fakes import FakeRooms

    rooms = FakeRooms(train=2, val=2, test=2, frames=1)
    config = SearchConfig(generator=str(two_experts), clips=2, modes=("image",), levels=(300, 900),
                          mlp=False, resamples=1, device="cpu")
    clips = lambda split: [rooms.clip(i) for i in rooms.ids(split)]  # noqa: E731
    rows = search(config, clips, "key", tmp_path / "a").rows
    shutil.rmtree(two_experts / "transformer_2")
    shutil.copytree(two_experts / "transformer", two_experts / "transformer_2")
    same = search(config, clips, "key", tmp_path / "b").rows

    def scores(found, t):
        return sorted(row["depth_r2_ridge"] for row in found if row["t"] == t)

    assert scores(rows, 0.9) == scores(same, 0.9) and scores(rows, 0.3) != scores(same, 0.3)


@pytest.mark.parametrize("what", ["architecture", "vae", "image_to_video", "prompt_width",
                                  "missing_weight", "shard"])
def test_an_unusable_checkpoint_is_refused_with_the_reason(tiny_wan, tmp_path, what):
    folder = shutil.copytree(tiny_wan, tmp_path / "bad")
    part = folder / ("vae" if what == "vae" else "transformer")
    config = json.loads((part / "config.json").read_text())
    message = {
        "architecture": r"transformer/ is a CogVideoXTransformer3DModel, expected "
                        r"WanTransformer3DModel or",
        "vae": "vae/ is a AutoencoderKL, expected AutoencoderKLWan",
        "image_to_video": r"reads 8 channels, its VAE gives 4 \(an image-to-video checkpoint\?\)",
        "prompt_width": r"is 16 wide, .* reads 32; export its own with: vega3d teacher prompt",
        "missing_weight": r"transformer/: lacks 1 weights, blocks\.0\.attn1\.to_q\.bias first",
        "shard": "not a complete Wan checkpoint"
    }[what]
    if what in ("architecture", "vae"):
        name = {"architecture": "CogVideoXTransformer3DModel", "vae": "AutoencoderKL"}[what]
        (part / "config.json").write_text(json.dumps({**config, "_class_name": name}))
    elif what == "image_to_video":
        keep = {k: v for k, v in config.items() if not k.startswith("_")}
        WanTransformer3DModel(**{**keep, "in_channels": 8}).save_pretrained(part)
    elif what == "prompt_width":
        from safetensors.torch import save_file
        save_file({"prompt": torch.zeros(1, 1, 16)}, folder / "prompt.safetensors")
    else:
        from safetensors.torch import load_file, save_file
        weights = part / "diffusion_pytorch_model.safetensors"
        state = load_file(weights)
        if what == "missing_weight":
            del state["blocks.0.attn1.to_q.bias"]
            save_file(state, weights, metadata={"format": "pt"})
        else:
            model = WanTransformer3DModel.from_pretrained(part)
            weights.unlink()
            model.save_pretrained(part, max_shard_size="100KB")
            shards = sorted(part.glob("*-of-*.safetensors"))
            assert len(shards) > 1
            shards[0].write_bytes(shards[0].read_bytes()[:5000])
    with pytest.raises(ValueError, match=message) as error:
        load_wan(folder, Tap(block=1))
    assert not re.search(r"\n", str(error.value))
