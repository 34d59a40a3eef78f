"""A file that is shipped: written beside and renamed, its facts inside it (ONNX metadata) and in a
JSON next to it."""
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import onnx

from records.files import atomic_write, sha256, write_json

Facts = dict[str, Any]


def prepare_folder(folder: Path) -> None:
    """Makes `folder` and proves it writable: minutes of work must not end at a read-only disk.
    Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for scratch in folder.glob(".*.*"):
        owner = re.search(r"\.(\d+)\.", scratch.name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            scratch.unlink()  # left by a process that was killed outright
    probe = folder / f".writable.{os.getpid()}"
    probe.write_bytes(b"")
    probe.unlink()


def save_onnx(model: onnx.ModelProto, path: Path, facts: Facts) -> Facts:
    """Writes the model with `facts` as its metadata, and path.json with the same facts, its sha256
    and its size.

    The same model and facts give the same bytes. Returns what the JSON holds.
    """
    stamped = onnx.ModelProto()
    stamped.CopyFrom(model)
    onnx.helper.set_model_props(stamped, {key: _text(facts[key]) for key in sorted(facts)})
    return save_bytes(stamped.SerializeToString(deterministic=True), path, facts)


def save_bytes(content: bytes, path: Path, facts: Facts) -> Facts:
    """Writes `content` and its sidecar. The sidecar goes last: a file without one is never taken
    for a finished one."""
    sidecar_path(path).unlink(missing_ok=True)
    with atomic_write(path) as scratch:
        scratch.write_bytes(content)
    sidecar = {"schema": 1, "file": path.name, "sha256": hashlib.sha256(content).hexdigest(),
               "size_mb": round(len(content) / 1e6, 3), **facts}
    write_json(sidecar, sidecar_path(path))
    return sidecar


def annotate(path: Path, **facts: Any) -> None:
    """Adds to the sidecar of a finished file what was learnt about it later: a verdict, a layer
    report."""
    write_json({**_read(sidecar_path(path)), **facts}, sidecar_path(path))


def up_to_date(path: Path, cache_key: str) -> Facts | None:
    """The sidecar of `path`, if the file is whole and was made from the same inputs (`cache_key`);
    else None."""
    sidecar = _read(sidecar_path(path))
    whole = sidecar.get("cache_key") == cache_key and path.is_file() and sidecar.get(
        "sha256") == sha256(path)
    return sidecar if whole else None


def discard(path: Path) -> None:
    """Removes an artefact, its sidecar, and every engine that was built from it, as far as they
    exist."""
    for engine in path.parent.glob("*.engine") if path.suffix == ".onnx" else ():
        if _read(sidecar_path(engine)).get("onnx") == path.name:
            discard(engine)
    for suffix in ("", ".json", ".layers.json"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def sidecar_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read(sidecar: Path) -> Facts:
    """What a sidecar holds; nothing, if it is missing or broken."""
    try:
        facts = json.loads(sidecar.read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _text(fact: Any) -> str:
    return fact if isinstance(fact, str) else json.dumps(fact, sort_keys=True)
