"""Files that are never seen half-written, and what identifies them."""
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A scratch name in the same folder, renamed to `path` if the block ends well, removed if it
    does not.

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


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: Any) -> str:
    """A short key of anything JSON can hold: equal parts give equal keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
