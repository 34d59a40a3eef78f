import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from scenes.rooms.source import RoomSource
from teacher.config import PretrainConfig
from teacher.towers.checkpoints import generator_folder
from teacher.towers.efficientnet import SemanticEncoder
from teacher.towers.tap import Tap
from teacher.towers.wan import load_wan
from teacher.training.checkpoint import Checkpoint
from teacher.wan_nano import pretrain as module
from teacher.wan_nano.alignment import AlignedFlowLoss, AlignmentTarget, FlowData
from teacher.wan_nano.flow import FlowLoss, build_transformer, flow_batch, sample, shifted
from teacher.wan_nano.loop import read_metrics
from teacher.wan_nano.pretrain import pretrain
from teacher.wan_nano.samples import write_card, write_samples
from teacher.wan_nano.vae import build_vae, crops, reconstruction_psnr
from tests.fakes import FakeRooms

TINY = PretrainConfig(clips=3, held_out=2, frames=5, vae_steps=4, vae_batch=1, vae_crop=32,
                      flow_steps=4, flow_batch=1, save_every=2, workers=0)


@pytest.fixture(autouse=True)
def small_models(monkeypatch):
    """The shipped sizes, narrowed: what is tested is the training, not its result."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    monkeypatch.setattr(
        module, "build_vae", lambda: AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=
            [False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4))
    monkeypatch.setattr(
        module, "build_transformer", lambda width, depth: WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=
            32, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32))
    monkeypatch.setattr("scenes.rooms.source.render_clips", lambda source, ids, workers:
                        (source.clip(i) for i in ids))


def test_shipped_sizes_are_what_the_card_says():
    vae, transformer = build_vae(), build_transformer()
    count = sum(p.numel() for m in (vae, transformer) for p in m.parameters())
    assert 2.4e6 < sum(p.numel() for p in vae.parameters()) < 2.6e6
    assert 2 * count < 26e6  # bytes in bfloat16


def test_an_untrained_transformer_predicts_zero_so_the_first_loss_is_the_targets_power():
    loss = FlowLoss(build_transformer())
    z = torch.randn(2, 16, 1, 28, 28)
    noise = torch.randn_like(z)
    assert loss(z, noise, torch.tensor([0.2, 0.9])).item() == pytest.approx(
        (noise - z).square().mean().item())


def test_the_settings_name_the_rooms_that_were_rendered():
    rooms = module.rendered(RoomSource(train=7, seed=70, style="mixed"))
    assert len(rooms.pop("furniture_digest")) > 10
    assert rooms == {"rooms": 7, "render_seed": 70, "style": "mixed"}
    assert module.rendered(FakeRooms()) == {}


def test_noise_levels_gather_around_the_tap():
    latents = torch.zeros(5, 4, 1, 28, 28)
    spread = flow_batch(latents, 512, seed=0, step=1)[2]
    focused = flow_batch(latents, 512, seed=0, step=1, focus=0.7)[2]
    inside = [((t >= 0.3) & (t <= 0.7)).float().mean().item() for t in (spread, focused)]
    assert inside[0] < 0.6 and inside[1] > 0.75 and (focused > 0.75).any()
    assert torch.equal(focused, flow_batch(latents, 512, seed=0, step=1, focus=0.7)[2])
    assert not torch.equal(focused, flow_batch(latents, 512, seed=0, step=3, focus=0.7)[2])


def test_clips_and_single_frames_alternate_with_equal_tokens():
    data = object.__new__(FlowData)
    data.config, data.target = replace(TINY, flow_batch=2), None
    data.clips, data.images = torch.zeros(5, 4, 3, 28, 28), torch.ones(9, 4, 1, 28, 28)
    z, noise, t = data.batch(seed=0, step=0)
    assert z.shape == noise.shape == (2, 4, 3, 28, 28) and (z == 0).all()
    z, noise, t = data.batch(seed=0, step=1)
    assert z.shape == (6, 4, 1, 28, 28) and (z == 1).all()
    assert t.shape == (6,) and ((t > 0) & (t < 1)).all()
    assert torch.equal(noise, data.batch(0, 1)[1]) and not torch.equal(noise, data.batch(0, 3)[1])


class Identity(torch.nn.Module):
    """A block as the loss sees it: tokens [B,N,D] out."""

    def forward(self, tokens):
        return tokens


class OneBlock(torch.nn.Module):
    """Predicts zero velocity and runs given tokens through its only block."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens, self.blocks = tokens, torch.nn.ModuleList([Identity()])
        self.config = SimpleNamespace(num_attention_heads=1, attention_head_dim=tokens.shape[-1])

    def forward(self, hidden_states, **_):
        self.blocks[0](self.tokens)
        return (torch.zeros_like(hidden_states),)


def test_alignment_is_the_cosine_of_projected_tokens_where_t_is_in_range():
    torch.manual_seed(0)
    tokens = torch.randn(2, 2 * 4, 64)                                   # [B,F*N,D]
    loss = AlignedFlowLoss(OneBlock(tokens), 0, weight=0.5, t_range=(0.2, 0.6))
    z, noise = torch.zeros(2, 16, 2, 4, 4), torch.ones(2, 16, 2, 4, 4)
    target = loss.projector(tokens).detach()                              # [B,F*N,112]
    grid = target.unflatten(1, (2, 2, 2)).permute(0, 1, 4, 2, 3)          # [B,F,112,2,2]
    total, parts = loss(z, noise, torch.tensor([0.3, 0.5]), grid)
    torch.testing.assert_close(parts, torch.tensor([1.0, 0.0]), atol=1e-5, rtol=0)
    total, parts = loss(z, noise, torch.tensor([0.3, 0.9]), torch.stack([-grid[0], grid[1]]))
    torch.testing.assert_close(parts, torch.tensor([1.0, 2.0]), atol=1e-5, rtol=0)
    assert total.item() == pytest.approx(2.0, abs=1e-5)
    assert loss(z, noise, torch.tensor([0.7, 0.9]), grid)[1][1] == 0      # nothing in range


def test_targets_are_the_encoders_features_of_each_latents_last_frame():
    frames = torch.randint(255, (2, 5, 3, 224, 224), dtype=torch.uint8)
    target, encoder = AlignmentTarget(frames, torch.device("cpu")), SemanticEncoder()
    assert target.features.shape == (4, 2, 112, 14, 14)                  # mirrored clips behind
    for row, frame in (((0, 1), frames[0, 4]), ((3, 0), frames[1, 0].flip(-1))):
        expected = encoder(frame[None].float() / 255)[0]
        torch.testing.assert_close(target.features[row].float(), expected, atol=2e-2, rtol=2e-2)
    assert torch.equal(target.of_images(torch.tensor([7]))[0, 0], target.of_clips(
        torch.tensor([3]))[0, 1])


def test_an_aligned_training_logs_both_losses_and_the_held_out_one(tmp_path):
    config = replace(TINY, out=tmp_path / "nano", align="efficientnet-lite0", align_block=1)
    folder = pretrain(config, FakeRooms(train=3, test=2, frames=5))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    flow = [row for row in rows if row["stage"] == "flow"]
    assert {"loss", "align", "held_out_clips", "held_out_images"} <= flow[-1].keys()
    assert 0 < flow[-1]["align"] < 2
    names = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert not [name for name in names if "projector" in name]


@pytest.mark.parametrize(("wrong", "message"), [
    ({"width": 100}, "multiple of 64"),
    ({"align": "efficientnet-lite0", "align_block": 10}, "expected 0 to 9"),
    ({"t_focus": 1.5}, "t_focus is 1.5"), ({"t_range": (0.7, 0.3)}, "low < high"),
])
def test_values_out_of_range_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**wrong)


def test_the_aligned_block_is_one_of_those_that_are_trained(tmp_path):
    assert PretrainConfig(depth=2).align_block == 5  # nothing is aligned: not used
    for name, config in (("vae", {}), ("transformer", {"num_layers": 7})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    assert PretrainConfig(init=tmp_path, align="efficientnet-lite0", align_block=6)
    with pytest.raises(ValueError, match="align_block is 7, expected 0 to 6"):
        PretrainConfig(init=tmp_path, align="efficientnet-lite0", align_block=7)
    (tmp_path / "transformer" / "config.json").unlink()  # of a VAE alone: a new one of `depth`
    assert PretrainConfig(init=tmp_path, align="efficientnet-lite0", align_block=7)


def test_crops_depend_on_the_step_alone():
    frames = torch.randint(255, (4, 5, 3, 64, 64), dtype=torch.uint8)
    first, second = (crops(frames, 3, 32, seed=1, step=i) for i in (0, 1))
    assert first.shape == (3, 5, 3, 32, 32)
    assert torch.equal(crops(frames, 3, 32, seed=1, step=1), second)
    assert not torch.equal(first, second)


def test_psnr_of_a_known_error():
    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(1))

        def encode(self, x):
            mode = type("D", (), {"mode": lambda self: x})()
            return type("E", (), {"latent_dist": mode})

        def decode(self, z):
            return type("O", (), {"sample": z + 0.2})

    frames = torch.randint(255, (2, 1, 3, 8, 8), dtype=torch.uint8)
    found = reconstruction_psnr(Shifted(), frames, torch.device("cpu"))
    # 10 log10(4 / .04)
    torch.testing.assert_close(found, torch.full((2,), 20.0), atol=1e-3, rtol=0)


def test_sampling_follows_the_velocity_to_the_data():
    class Straight(torch.nn.Module):
        """The exact velocity of a flow whose data is one point, 3: (x - 3) / t."""
        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(1))

        def forward(self, hidden_states, timestep, encoder_hidden_states, return_dict):
            return ((hidden_states - 3) / (timestep / 1000).view(-1, 1, 1, 1, 1),)

    out = sample(Straight(), (2, 4, 1, 4, 4), torch.device("cpu"), steps=50)
    torch.testing.assert_close(out, torch.full_like(out, 3), atol=0.1, rtol=0)


def test_pretraining_writes_a_generator_that_loads_with_its_card_and_samples(tmp_path):
    rooms = FakeRooms(train=3, test=2, frames=5)
    config = replace(TINY, out=tmp_path / "nano")
    folder = pretrain(config, rooms)
    assert load_wan(folder, Tap(block=1,
                                seeds=1)).features(torch.rand(1, 1, 3, 224,
                                                              224)).shape == (1, 1, 32, 14, 14)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {r["stage"] for r in rows} == {"vae", "flow"} and any("psnr_db_mean" in r for r in rows)
    write_samples(folder, rooms, config, rows=1)
    write_card(folder, config)
    assert (folder / "samples.png").stat().st_size > 1000 and "dB" in (folder /
                                                                       "README.md").read_text()


def test_training_continues_from_a_generator_and_its_card_says_so(tmp_path):
    rooms = FakeRooms(train=3, test=2, frames=5)
    first = pretrain(replace(TINY, out=tmp_path / "a"), rooms)
    config = replace(TINY, out=tmp_path / "b", init=first, vae_steps=0, flow_steps=6)
    second = pretrain(config, rooms)
    a, b = (load_file(f / "vae" / "diffusion_pytorch_model.safetensors") for f in (first, second))
    assert all(torch.equal(a[k], b[k]) for k in a)
    a, b = (json.loads((f / "vae" / "config.json").read_text()) for f in (first, second))
    assert a["latents_mean"] == b["latents_mean"] != [0.0] * 4
    a, b = (load_file(f / "transformer" / "diffusion_pytorch_model.safetensors")
            for f in (first, second))
    moved = max((a[k].float() - b[k].float()).abs().max() for k in a)
    assert 0 < moved < 0.05  # six steps away, not a new start: a fresh draw is 0.1 and more away
    write_card(second, config)
    card = (second / "README.md").read_text()
    settings = json.loads((second / "pretrain.json").read_text())
    assert (settings["width"], settings["depth"]) == (32, 2)  # of what was trained, not the options
    for text in ("channels; 4 steps of", "10 steps of", "Of these steps 4 and 4 were made"):
        assert text in card


def test_continuing_from_the_first_blocks_of_a_generator_is_said(tmp_path, capsys):
    rooms = FakeRooms(train=3, test=2, frames=5)
    first = pretrain(replace(TINY, out=tmp_path / "a"), rooms)
    settings = json.loads((first / "pretrain.json").read_text())
    (first / "pretrain.json").write_text(json.dumps(settings | {"depth": 5}))
    capsys.readouterr()
    config = replace(TINY, out=tmp_path / "b", init=first, vae_steps=0)
    second = pretrain(config, rooms)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert len(notes) == 1 and "holds the first 2 of its 5 blocks" in notes[0]
    assert "generator of 2 is trained" in notes[0] and "read block 4" in notes[0]
    assert json.loads((second / "pretrain.json").read_text())["depth"] == 2
    write_card(second, config)
    card = " ".join((second / "README.md").read_text().split())
    assert "It had 5 blocks, of which this one continues the first 2" in card
    third = replace(TINY, init=second)  # all its blocks are there
    assert third.blocks_before() == third.blocks() == 2
    shipped = replace(TINY, init=generator_folder("wan-nano"))
    assert (shipped.blocks(), shipped.blocks_before()) == (7, 12)


def test_continuing_from_no_generator_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no generator"):
        PretrainConfig(init=tmp_path)
    with pytest.raises(ValueError, match="--init"):
        PretrainConfig(vae_steps=0)


def test_more_tokens_see_more_noise_and_the_ends_stay():
    t = torch.linspace(0, 1, 11)
    assert torch.equal(shifted(t, (1, 16, 16)), t)                       # 64 tokens
    frame, clip = shifted(t, (1, 28, 28)), shifted(t, (3, 28, 28))       # 196 and 588
    assert frame[5].item() == pytest.approx(1.75 / 2.75)  # sqrt(196/64) = 1.75 in the odds of t
    assert (clip[1:-1] > frame[1:-1]).all() and (frame[1:-1] > t[1:-1]).all()
    assert frame[[0, -1]].tolist() == clip[[0, -1]].tolist() == [0, 1]


def test_a_killed_pretraining_resumes_to_the_same_weights(tmp_path, monkeypatch):
    rooms = FakeRooms(train=3, test=2, frames=5)
    expected = pretrain(replace(TINY, out=tmp_path / "a"), rooms)
    saved = Checkpoint.save

    def killing(self, step):
        saved(self, step)
        if self.path.name.startswith("flow") and step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", killing)
    with pytest.raises(KeyboardInterrupt):
        pretrain(replace(TINY, out=tmp_path / "b"), rooms)
    monkeypatch.setattr(Checkpoint, "save", saved)
    resumed = pretrain(replace(TINY, out=tmp_path / "b"), rooms)
    rows = [[(row["stage"], row.get("step")) for row in read_metrics(folder)]
            for folder in (expected, resumed)]
    assert rows[0] == rows[1]
    frames = torch.rand(1, 1, 3, 224, 224)
    torch.testing.assert_close(
        *(load_wan(f, Tap(block=1, seeds=1)).features(frames) for f in (expected, resumed)),
        rtol=1e-3, atol=1e-3)


def test_a_clip_length_the_vae_would_cut_is_refused():
    with pytest.raises(ValueError, match="expected 4n\\+1"):
        PretrainConfig(frames=8)
