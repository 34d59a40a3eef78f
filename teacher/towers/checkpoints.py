"""Reading checkpoints; and which Wan: wan-nano, a published one by name or hub id, or a folder.

The hub is reached by `from_pretrained` alone, for a hub id: OWNER/NAME, or OWNER/NAME@REVISION with
a branch, tag or commit (and by `tiny_vae`). Its cache is read where it does not answer, and with
HF_HUB_OFFLINE=1.
"""
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.utils import logging
from safetensors import SafetensorError

from records import manifest
from records.files import cache_folder, files_digest
from teacher.towers.prompt import Prompt, load_prompt

NANO = Path(__file__).parents[1] / "weights" / "wan-nano"
PUBLISHED = {
    "wan2.1-t2v-1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "wan2.1-t2v-14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "wan2.1-vace-1.3b": "Wan-AI/Wan2.1-VACE-1.3B-diffusers",
    "wan2.1-vace-14b": "Wan-AI/Wan2.1-VACE-14B-diffusers",
    "wan2.2-ti2v-5b": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    "wan2.2-t2v-a14b": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
}
# what unreadable files raise
DAMAGE = (OSError, KeyError, TypeError, RuntimeError, ValueError, SafetensorError)
_CLASSES = {"WanTransformer3DModel": WanTransformer3DModel,
            "WanVACETransformer3DModel": WanVACETransformer3DModel}


def load_complete(model_class: Any, where: Path | str, optional: str | None = None,
                  **options: Any) -> Any:
    """from_pretrained of safetensors; ValueError if weights lack, but names matching `optional`."""
    name, hub = split_revision(where)
    model, info = model_class.from_pretrained(name, use_safetensors=True, output_loading_info=True,
                                              **hub, **options)
    missing = sorted(name for name in info["missing_keys"]
                     if optional is None or not re.search(optional, name))
    if missing:
        raise ValueError(f"lacks {len(missing)} weights, {missing[0]} first")
    return model


def first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def reading_parts(where: Path | str, fault: str) -> Iterator[None]:
    """What unreadable files raise in the block becomes ValueError: "where: `fault` (…)"."""
    try:
        yield
    except DAMAGE as error:
        raise ValueError(f"{where}: {fault} ({first_line(error)[:200]})") from error


@dataclass
class Parts:
    """What a tower consists of. The transformer holds only the blocks up to the tap."""
    vae: AutoencoderKLWan
    transformer: WanTransformer3DModel
    prompt: Prompt
    digest: str


def load_parts(where: Path, block: int, precision: str, timestep: float = 1000.0) -> Parts:
    """The VAE, the prompt, and the transformer up to and with `block` (0-based).

    timestep: that it is run at, 0 to 1000, which decides between two experts.
    Raises ValueError naming what is missing, of another architecture, or damaged.
    """
    _check_parts(where)
    part = expert(where, timestep)
    config = _config(where, part, _CLASSES)
    _config(where, "vae", {"AutoencoderKLWan": AutoencoderKLWan})
    check_block(block, config["num_layers"])
    dtype = _dtype(config, precision)
    trim: dict[str, Any] = {"num_layers": block + 1}
    if "vace_layers" in config:
        trim["vace_layers"] = [i for i in config["vace_layers"] if i <= block]
    vae = _load(AutoencoderKLWan, where, "vae", dtype, {})
    transformer = _load(_CLASSES[config["_class_name"]], where, part, dtype, trim)
    if transformer.config.in_channels != vae.config.z_dim:
        raise ValueError(
            f"{where}: its transformer reads {transformer.config.in_channels} channels, its VAE "
            f"gives {vae.config.z_dim} (an image-to-video checkpoint?); use a text-to-video one")
    prompt = load_prompt(prompt_file(where))
    if prompt.embedding.shape[2] != transformer.config.text_dim:
        raise ValueError(
            f"{prompt_file(where)}: is {prompt.embedding.shape[2]} wide, {where} reads "
            f"{transformer.config.text_dim}; export its own with: vega3d teacher prompt "
            + quote(str(where)))
    folder = cached_file(where, "transformer/config.json").parents[1] if is_hub_id(where) else where
    return Parts(vae, transformer, prompt, weights_digest(folder, prompt_file(where), part))


def expert(where: Path, timestep: float) -> str:
    """The folder of the transformer that denoises at `timestep`, 0 to 1000.

    Wan2.2-A14B has two: transformer/ from 1000 x boundary_ratio of its model_index.json on (0.875,
    image to video 0.9), transformer_2/ below. Raises ValueError if that cannot be told.
    """
    try:
        name, options = split_revision(where)
        index = DiffusionPipeline.load_config(name, **options)
    except DAMAGE as error:
        index = {}
        if (where / "transformer_2").is_dir() or re.search("A14B", where.name, re.IGNORECASE):
            raise ValueError(f"{where}: cannot read its model_index.json, which says where its two "
                             f"experts part ({first_line(error)[:200]})") from error
    if not (index.get("transformer_2") or [None])[0] and not (where / "transformer_2").is_dir():
        return "transformer"
    boundary = index.get("boundary_ratio")
    if not isinstance(boundary, float | int) or not 0 <= boundary <= 1:
        raise ValueError(f"{where}: has two experts, but boundary_ratio in model_index.json is "
                         f"{boundary!r}, expected 0 to 1")
    return "transformer" if timestep >= 1000 * boundary else "transformer_2"


def weights_digest(folder: Path, prompt: Path, transformer: str = "transformer") -> str:
    """16 hex digits over the weights and configs in vae/ and `transformer`, and the prompt."""
    paths = [path for part in ("vae", transformer) for path in (folder / part).iterdir()]
    files = {path.relative_to(folder): path for path in paths
             if path.suffix in (".safetensors", ".json")}
    for path in files.values():
        manifest.check(path, f"get {folder} again")
    return files_digest(files | {Path("prompt.safetensors"): prompt})


def generator_folder(name: str) -> Path:
    """wan-nano's folder, a local folder, or a hub id (a path of two parts that is not on disk)."""
    if name == "wan-nano":
        if not NANO.is_dir():
            raise ValueError("wan-nano: its weights come with a checkout of the repository, not "
                             "with the wheel; install from one: pip install -e '.[train]'")
        return NANO
    return Path(published(name, PUBLISHED))


def published(name: str, hub_ids: dict[str, str]) -> str:
    """The hub id that `name` stands for, if any, with the name's @REVISION; else `name`."""
    short, at, revision = name.partition("@")
    hub_id = hub_ids.get(short.lower())
    return f"{hub_id}{at}{revision}" if hub_id else name


def is_hub_id(where: Path | str) -> bool:
    """Whether this is no file or folder but OWNER/NAME, or OWNER/NAME@REVISION."""
    name = str(where)
    return (not Path(where).exists() and name[0] != "."
            and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) is not None)


def split_revision(where: Path | str) -> tuple[str, dict[str, Any]]:
    """`from_pretrained`'s name and options: of a hub id its `revision`, by default main, and
    `local_files_only`. Raises ValueError for what is neither here nor a hub id: `from_pretrained`
    would ask the hub for it."""
    if is_hub_id(where):
        name, _, revision = str(where).partition("@")
        return name, {"revision": revision or "main", "local_files_only": not hub_answers()}
    if not Path(where).exists():
        raise ValueError(f"{where}: no such folder")
    return str(where), {}


@cache
def hub_answers() -> bool:
    """Whether the hub can be reached, tried once: without it its client would retry for 23 s."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except (HTTPError, OSError):  # the latter with HF_HUB_OFFLINE=1
        return False
    return True


def prompt_file(where: Path) -> Path:
    """The empty prompt's embedding: in a local checkpoint's folder, in our cache for a hub id."""
    if is_hub_id(where):
        return cache_folder() / "prompts" / f"{str(where).replace('/', '--')}.safetensors"
    return where / "prompt.safetensors"


def block_count(where: Path) -> int:
    """How many blocks the generator's transformer has, from its config alone."""
    return _config(where, "transformer", _CLASSES)["num_layers"]


def check_block(block: int, count: int) -> None:
    if not 0 <= block < count:
        raise ValueError(
            f"tap.block is {block}, expected 0 to {count - 1}: the generator has {count} blocks")


def _check_parts(where: Path) -> None:
    hub = is_hub_id(where)
    parts = {"prompt.safetensors": prompt_file(where)}
    if not hub:
        parts |= {p: where / p for p in ("transformer/config.json", "vae/config.json")}
    missing = [name for name, path in parts.items() if not path.is_file()]
    for path in parts.values():
        manifest.check(path, f"get {where} again")
    if missing == ["prompt.safetensors"]:
        raise ValueError(
            f"{where}: {'no such folder, and as a hub id' if hub else 'has'} no prompt.safetensors "
            "(the empty-prompt embedding); export it once with: vega3d teacher prompt "
            + quote(str(where)))
    if missing:
        raise ValueError(
            f"{where}: no {', '.join(missing)}; expected a name "
            f"({', '.join(['wan-nano', *PUBLISHED])}), a hub id, or a diffusers Wan folder with "
            "vae/, transformer/ and prompt.safetensors")


def _config(where: Path, part: str, classes: dict[str, Any]) -> dict[str, Any]:
    try:
        name, options = split_revision(where)
        config = next(iter(classes.values())).load_config(name, subfolder=part, **options)
    except DAMAGE as error:
        raise ValueError(_unreadable(where, error, part)) from error
    if config.get("_class_name") not in classes:
        raise ValueError(
            f"{where}: {part}/ is a {config.get('_class_name')}, expected {' or '.join(classes)}")
    return config


def _load(kind: Any, where: Path, part: str, dtype: torch.dtype, trim: dict[str, Any]) -> Any:
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # diffusers warns of every weight above the tap
    try:
        return load_complete(kind, where, subfolder=part, torch_dtype=dtype, **trim)
    except DAMAGE as error:
        raise ValueError(_unreadable(where, error, part)) from error
    finally:
        logging.set_verbosity(level)


def _unreadable(where: Path, error: Exception, part: str) -> str:
    line = first_line(error)
    if is_hub_id(where):
        return (f"{where}: cannot be read from the hub or its cache ({line[:200]}); go online "
                "once, or give a local diffusers folder")
    return f"{where}: not a complete Wan checkpoint ({part}/: {line})"


def _dtype(config: dict[str, Any], precision: str) -> torch.dtype:
    if precision != "auto":
        return torch.float32 if precision == "fp32" else torch.bfloat16
    width = config["num_attention_heads"] * config["attention_head_dim"]
    weights = config["num_layers"] * width * (8 * width + 2 * config["ffn_dim"])
    return torch.bfloat16 if weights >= 100e6 else torch.float32  # small: no gain


def cached_file(where: Path | str, file: str) -> Path:
    """A hub id's `file` in the hub's cache, below a folder that is named by the commit."""
    from huggingface_hub import try_to_load_from_cache

    name, options = split_revision(where)
    found = try_to_load_from_cache(name, file, revision=options.get("revision"))
    if not isinstance(found, str):
        raise ValueError(f"{where}: is not in the hub's cache; give a local folder")
    return Path(found)
