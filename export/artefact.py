"""Exported files: written atomically, with their facts in ONNX metadata and in a sidecar JSON."""
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from export.graph.index import copy_model
from records import manifest
from records.files import atomic_write, files_digest, read_object, sha256, to_json, write_json

Facts = dict[str, Any]
PACKAGE = Path(__file__).parent


def source_digest(folder: Path = PACKAGE) -> str:
    """A digest of every Python file under `folder`, for cache keys: edited code exports again."""
    return files_digest({path.relative_to(folder): path for path in folder.rglob("*.py")})


def save_onnx(model: onnx.ModelProto, path: Path, facts: Facts) -> Facts:
    """Writes the model with `facts` as its metadata, and its sidecar, whose facts it returns."""
    stamped = copy_model(model)
    onnx.helper.set_model_props(stamped, {key: _text(facts[key]) for key in sorted(facts)})
    return save_bytes(stamped.SerializeToString(deterministic=True), path, facts)


def save_bytes(content: bytes, path: Path, facts: Facts) -> Facts:
    """Writes `content` and then its sidecar: a file without one never counts as complete."""
    sidecar_path(path).unlink(missing_ok=True)
    with atomic_write(path) as scratch:
        scratch.write_bytes(content)
    sidecar = {"schema": 1, "file": path.name, "sha256": hashlib.sha256(content).hexdigest(),
               "size_mb": round(len(content) / 1e6, 3), **facts}
    write_json(sidecar, sidecar_path(path))
    return sidecar


def annotate(path: Path, **facts: Any) -> None:
    """Adds facts to the sidecar of a finished file: a verdict, a layer report."""
    manifest.check(sidecar_path(path), "export again")
    write_json({**read_object(sidecar_path(path)), **facts}, sidecar_path(path))


def damage(path: Path) -> str:
    """What is wrong with an exported file or its sidecar, by the run's manifest; "" if nothing."""
    return manifest.fault(sidecar_path(path)) or manifest.fault(path)


def up_to_date(path: Path, cache_key: str, log: Callable[[str], None]) -> Facts | None:
    """The sidecar of `path` if the file is complete and has this cache key; else None. `log` gets a
    line if one of the two is damaged."""
    if found := damage(path):
        log(f"{found}; making it again")
        return None
    sidecar = read_object(sidecar_path(path))
    if sidecar.get("cache_key") != cache_key or not path.is_file():
        return None
    return sidecar if sidecar.get("sha256") == sha256(path) else None


def discard(path: Path) -> None:
    """Removes an artefact, its sidecar, and every engine that was built from it."""
    for engine in path.parent.glob("*.engine") if path.suffix == ".onnx" else ():
        if read_object(sidecar_path(engine)).get("onnx") == path.name:
            discard(engine)
    paths = [path.with_name(path.name + suffix) for suffix in ("", ".json", ".layers.json")]
    if path.suffix == ".xml":  # OpenVINO's weights
        paths.append(path.with_suffix(".bin"))
    manifest.forget(paths)
    for each in paths:
        each.unlink(missing_ok=True)


def sidecar_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _text(fact: Any) -> str:
    return fact if isinstance(fact, str) else to_json(fact, sort_keys=True)
