"""The empty prompt: exported once, never encoded again, and its keys and values computed once."""
import shutil

import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from teacher.cli import VERBS
from teacher.towers.prompt import (
    PADDED_TO,
    Prompt,
    export_prompt,
    load_prompt,
    precompute_text_kv,
    save_prompt,
)
from teacher.towers.tap import Tap
from teacher.towers.wan import load_wan
from tests.fakes import save_tiny_text_encoder


def test_the_exported_prompt_is_the_encoder_s_embedding_of_nothing_without_padding(
        tiny_wan, tmp_path):
    from transformers import UMT5EncoderModel

    folder = save_tiny_text_encoder(shutil.copytree(tiny_wan, tmp_path / "wan"))
    out = export_prompt(str(folder), tmp_path / "prompt.safetensors")
    prompt = load_prompt(out)
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.bfloat16).eval()
    wanted = encoder(torch.tensor([[1]])).last_hidden_state.float()          # </s> alone
    torch.testing.assert_close(prompt.embedding, wanted)
    assert prompt.length == PADDED_TO and prompt.padded().shape == (
        1, 512, 32) and not prompt.padded()[:, 1:].any()
    shutil.copy(out, folder / "prompt.safetensors")
    shutil.rmtree(folder / "text_encoder")
    tower = load_wan(folder, Tap(block=0, seeds=1))
    assert tower.features(torch.rand(1, 1, 3, 224, 224)).isfinite().all()


def test_clip_s_padding_is_part_of_its_prompt(tmp_path):
    prompt = load_prompt(
        export_prompt(str(save_tiny_text_encoder(tmp_path, 16, "clip")),
                      tmp_path / "p.safetensors"))
    assert prompt.embedding.shape == (1, 7, 16) and prompt.length == 7


def test_the_prompt_verb_writes_where_the_extraction_looks(tiny_wan, tmp_path, capsys):
    folder = save_tiny_text_encoder(shutil.copytree(tiny_wan, tmp_path / "wan"))
    (folder / "prompt.safetensors").unlink()
    with pytest.raises(
            ValueError,
            match=r"has no prompt\.safetensors .* export it once with: vega3d teacher prompt"):
        load_wan(folder, Tap(block=0))
    VERBS["prompt"](str(folder))
    assert str(folder / "prompt.safetensors") in capsys.readouterr().out
    assert load_wan(folder, Tap(block=0)).prompt.length == PADDED_TO
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        VERBS["prompt"](str(tmp_path / "nowhere"))


def test_a_folder_without_a_text_encoder_is_one_line(tiny_wan, tmp_path):
    with pytest.raises(ValueError,
                       match="no tokenizer/ and text_encoder/ to export the prompt from") as error:
        export_prompt(str(tiny_wan), tmp_path / "prompt.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("long", "length"), [(1, 1), (1, 512), (3, 3), (3, 512), (511, 512)])
def test_keys_computed_once_give_the_whole_padded_prompt_s_features(long, length):
    torch.manual_seed(3)
    model = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=16, in_channels=4,
                                  out_channels=4, text_dim=32, freq_dim=16, ffn_dim=64,
                                  num_layers=2, rope_max_seq_len=32).eval()
    prompt = Prompt(2 * torch.randn(1, long, 32), length)
    z = torch.randn(2, 4, 1, 8, 8)
    inputs = {"hidden_states": z, "timestep": torch.tensor([300.0, 300.0]), "return_dict": False}
    with torch.inference_mode():
        wanted = model(encoder_hidden_states=prompt.padded().expand(2, -1, -1), **inputs)[0]
        fixed = precompute_text_kv(model, prompt)
        found = model(encoder_hidden_states=fixed.expand(2, -1, -1), **inputs)[0]
        again = model(encoder_hidden_states=torch.zeros(2, 1, 32), **inputs)[0]
    assert fixed.shape == (1, 1, 32)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again, found)  # what is passed is no longer read


def test_a_file_that_is_no_prompt_is_named(tmp_path):
    path = save_prompt(Prompt(torch.zeros(1, 2, 8), 2), tmp_path / "p.safetensors")
    assert set(load_file(path)) == {"prompt", "length"} and load_prompt(path).length == 2
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"p\.safetensors: not a prompt embedding"):
        load_prompt(path)


def test_padding_is_not_a_free_choice():
    embedding = torch.randn(1, 1, 8)
    padded = Prompt(embedding, 4).padded()
    assert torch.equal(padded, F.pad(embedding, (0, 0, 0, 3))) and Prompt(
        embedding, 1).padded().shape == (1, 1, 8)
