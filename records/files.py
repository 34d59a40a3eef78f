"""Files: written atomically, identified by digests; and where converted weights are cached."""
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A scratch name in the same folder: renamed to `path` on success, removed on an error.

    The block may write a file there, or make a folder: a folder replaces only a missing or an empty
    one.
    """
    scratch = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        scratch.replace(path)
    finally:
        if scratch.is_dir() and not scratch.is_symlink():
            shutil.rmtree(scratch)
        scratch.unlink(missing_ok=True)


def write_json(content: Any, path: Path) -> None:
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def cache_folder() -> Path:
    """Where converted third-party weights live: $VEGA3D_CACHE, else ~/.cache/vega3d-edge."""
    return Path(os.environ.get("VEGA3D_CACHE") or Path.home() / ".cache" / "vega3d-edge")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: Any) -> str:
    """A short key of anything JSON can hold: equal parts give equal keys."""
    return _short(json.dumps(parts, sort_keys=True, default=str).encode())


def spec_digest(spec: dict) -> str:
    """A tower's spec as 16 hex digits: the key of everything computed from it."""
    return _short(json.dumps(spec, sort_keys=True).encode())


def files_digest(files: Mapping[Path, Path]) -> str:
    """16 hex digits over the names (keys, sorted as paths) and contents of several files."""
    return _short(b"".join(
        str(name).encode() + bytes.fromhex(sha256(path)) for name, path in sorted(files.items())))


def folder_digest(folder: Path) -> str:
    """`files_digest` of every safetensors and JSON file below a folder."""
    return files_digest({path.relative_to(folder): path for path in folder.rglob("*")
                         if path.suffix in (".safetensors", ".json")})


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
