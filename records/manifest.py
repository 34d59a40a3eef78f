"""FOLDER/manifest.json: size and SHA-256 of the files below, so that damage is seen on use.

`records.files.atomic_write` lists what it writes in the nearest manifest above the file; `check`
refuses a listed file that differs. A file that no manifest lists is not checked.
"""
from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: two processes that list files at once may lose an entry
    fcntl = None  # type: ignore[assignment]

NAME = "manifest.json"
STATUS = "status.json"  # of records.events: not listed, as it changes while a run works
# what later stages read; pictures and texts may be edited
LISTED = {".safetensors", ".json", ".jsonl", ".yaml", ".onnx", ".engine", ".tflite", ".xml", ".bin",
          ".mjs", ".gz"}
RESTORE = "restore it, or delete it and run: vega3d distill run"
SCHEMA = 1
_MARKS = ('"vega3d_manifest"', '"content_sha256"')  # either tells ours from another's manifest.json
_LARGEST = 2**28       # bytes of a manifest
_RECENT = 100_000_000  # ns: a file may change again without a new time
Stamp = tuple[int, int, int]  # bytes, mtime in ns, inode
Written = tuple[Stamp, str]   # of a file as it was written, and its SHA-256
_digests: dict[str, tuple[Stamp, str]] = {}


@dataclass
class _Manifest:
    """files: by path from the folder, {sha256, size, mtime_ns}; uses: other folders' paths."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    uses: list[str] = field(default_factory=list)


_manifests: dict[str, tuple[Stamp, _Manifest | None]] = {}


def create(folder: Path, paths: Iterable[Path] = (), uses: Iterable[Path] = ()) -> None:
    """Starts a manifest where there is none, and lists those of `paths` that it lacks.

    uses: other folders with manifests, which `vega3d verify` checks too.
    """
    near = [os.path.relpath(used, folder) if used.absolute().is_relative_to(
        folder.absolute().parent) else str(used.absolute()) for used in uses]
    manifest = _read(folder)
    if manifest is None or not set(near) <= set(manifest.uses):
        with _changing(folder, new=True) as manifest:
            manifest.uses += [used for used in near if used not in manifest.uses]
    record(path for path in paths if path.is_file() and _entry(path) is None)


def files_below(folder: Path) -> list[Path]:
    """Those that a manifest of the folder may list; a feature store has a list of its own."""
    return [path for path in sorted(folder.rglob("*"))
            if path.suffix in LISTED and path.is_file() and not path.name.startswith(".")
            and path not in (folder / NAME, folder / STATUS)
            and not (path.suffix == ".safetensors" and any(
                (folder / inner / "files.jsonl").is_file()
                for inner in path.relative_to(folder).parents))]


def record(paths: Iterable[Path], written: Mapping[Path, Written] | None = None) -> None:
    """Lists files, as they are now, in the nearest manifest above each, if there is one.

    written: as for `read`. A file that another process changes meanwhile is left to that one.
    """
    for folder, names in _by_folder(paths).items():
        found = read([folder / name for name in names], written)
        with _changing(folder) as manifest:
            for name, (now, sha256) in zip(names, found):
                if (path := folder / name).is_file() and stamp(path) == now:
                    manifest.files[name] = {"sha256": sha256, "size": now[0], "mtime_ns": now[1]}


def forget(paths: Iterable[Path]) -> None:
    """Takes files out of the nearest manifest: before they are replaced or removed."""
    for folder, names in _by_folder(paths).items():
        manifest = _read(folder)
        if manifest and any(name in manifest.files for name in names):
            with _changing(folder) as manifest:
                for name in names:
                    manifest.files.pop(name, None)


def check(path: Path, remedy: str) -> None:
    """Raises ValueError, naming the file, if it differs from its manifest or its sidecar."""
    if found := fault(path):
        raise ValueError(f"{found}; {remedy}")


def fault(path: Path, quick: bool = False) -> str:
    """What is wrong with a file; "" if it is intact, missing or not listed.

    The digest is computed once a process; quick: only if size or time are not as listed. Exported
    models are also compared with the sidecar beside them.
    """
    if not path.is_file():
        return ""
    entry = _entry(path)
    if entry and not matches(path, entry["sha256"], entry["size"],
                             entry.get("mtime_ns") if quick else None):
        return f"{path}: damaged (its SHA-256 is not the one in {NAME})"
    exported = (".onnx", ".engine", ".tflite", ".xml")
    return _sidecar_fault(path) if path.suffix in exported else ""


def is_listed(path: Path) -> bool:
    """Whether the file is there and in a manifest."""
    return path.is_file() and _entry(path) is not None


def matches(path: Path, sha256: str, size: int, mtime_ns: int | None = None) -> bool:
    """Whether a file has this size and digest; with its listed time, the digest is believed."""
    facts = path.stat()
    if facts.st_size != size:
        return False
    return facts.st_mtime_ns == mtime_ns or digest(path) == sha256


def digest(path: Path) -> str:
    """The file's SHA-256, computed again only if size, time or inode changed."""
    now = stamp(path)
    cached = _digests.get(str(path))
    if cached is not None and cached[0] == now:
        return cached[1]
    found = sha256(path)
    if time.time_ns() - now[1] > _RECENT:
        _digests[str(path)] = now, found
    return found


def read(paths: Sequence[Path], written: Mapping[Path, Written] | None = None) -> list[Written]:
    """Stamp and SHA-256 of each, on all cores. Those of `written` (by absolute path) that are still
    as they were written are not read."""
    def one(path: Path) -> Written:
        now, listed = stamp(path), (written or {}).get(path.absolute())
        return listed if listed and listed[0] == now else (now, digest(path))

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, paths))


def sha256(path: Path) -> str:
    computed = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            computed.update(chunk)
    return computed.hexdigest()


def faults(folder: Path) -> list[str]:
    """A line for every file of the folder's manifest that is damaged or missing."""
    paths = [folder / name for name in (_read(folder) or _Manifest()).files]
    read([path for path in paths if path.is_file()])  # on all cores; `fault` finds the digests
    missing = [f"{path}: missing" for path in paths  # checkpoints go when their training ends
               if not path.is_file() and ".ckpt." not in path.name]
    return sorted([*filter(None, map(fault, paths)), *missing])


def used_folders(folder: Path) -> list[Path]:
    manifest = _read(folder)
    return [folder / used for used in manifest.uses] if manifest else []


def count(folder: Path) -> int | None:
    """How many files the folder's manifest lists; None without one."""
    manifest = _read(folder)
    return None if manifest is None else len(manifest.files)


def other_version(where: Path | str, content: Any, key: str = "schema", ours: int = 1) -> str:
    """What to say of a file of ours whose `key` is another version's number; else ""."""
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, int) or found == ours:
        return ""
    return (f"{where}: was written by another version of vega3d-edge ({key} {found}, this one "
            f"reads {ours})")


def _by_folder(paths: Iterable[Path]) -> dict[Path, list[str]]:
    """Names below the nearest folder with a manifest; paths without one are left out."""
    found: dict[Path, list[str]] = {}
    for path in map(Path.absolute, paths):
        if (folder := _folder_of(path)) is not None:
            found.setdefault(folder, []).append(path.relative_to(folder).as_posix())
    return found


def _sidecar_fault(path: Path) -> str:
    sidecar = path.with_name(path.name + ".json")
    if not sidecar.is_file():
        return ""
    try:
        facts = json.loads(sidecar.read_text() if sidecar.stat().st_size < _LARGEST else "")
    except (OSError, ValueError, RecursionError):
        return f"{sidecar}: damaged (not JSON)"
    if found := other_version(sidecar, facts):
        return found
    listed = facts.get("sha256") if isinstance(facts, dict) else None
    if isinstance(listed, str) and listed != digest(path):
        return f"{path}: damaged (its SHA-256 is not the one in {sidecar.name})"
    return ""


def _entry(path: Path) -> dict[str, Any] | None:
    """As the path is written, else where its links lead."""
    for way in dict.fromkeys((path.absolute(), Path(os.path.realpath(path)))):
        folder = _folder_of(way)
        manifest = _read(folder) if folder else None
        if folder and manifest and (
                entry := manifest.files.get(way.relative_to(folder).as_posix())):
            return entry
    return None


def _folder_of(path: Path) -> Path | None:
    return next((folder for folder in path.parents if _read(folder) is not None), None)


def _read(folder: Path) -> _Manifest | None:
    """None if there is none of ours. Raises ValueError if it is damaged or another version's."""
    path = folder / NAME
    try:
        now = stamp(path)
    except OSError:
        return None
    cached = _manifests.get(str(path))
    if cached is None or cached[0] != now:
        cached = _manifests[str(path)] = now, _parse(path)
    return cached[1]


def _parse(path: Path) -> _Manifest | None:
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > _LARGEST:
        return None
    text = path.read_text(errors="replace")
    if not any(mark in text for mark in _MARKS):
        return None
    content: Any = None
    with suppress(ValueError, RecursionError):
        content = json.loads(text)
    if found := other_version(path, content, "vega3d_manifest", SCHEMA):
        raise ValueError(f"{found}; use that version")
    with suppress(TypeError, KeyError, AttributeError):
        manifest = _Manifest(content["files"], content["uses"])
        complete = all({"sha256", "size"} <= entry.keys() for entry in manifest.files.values())
        if complete and content["content_sha256"] == _content_sha256(manifest):
            return manifest
    raise ValueError(f"{path}: damaged; {RESTORE}")


def _content_sha256(manifest: _Manifest) -> str:
    return hashlib.sha256(json.dumps(vars(manifest), sort_keys=True).encode()).hexdigest()


@contextmanager
def _changing(folder: Path, new: bool = False) -> Iterator[_Manifest]:
    """The manifest as it is now; written when the block ends. One process at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder, exclusive=True):
        path = folder / NAME
        before = _read(folder)
        manifest = _Manifest(dict(before.files), list(before.uses)) if before else _Manifest()
        yield manifest
        if before is None and not (new and not path.exists()):
            return  # removed meanwhile, or another program's
        content = {"vega3d_manifest": SCHEMA, "content_sha256": _content_sha256(manifest),
                   **vars(manifest)}
        scratch = path.with_name(f".vega3d-{NAME}.new")
        try:
            scratch.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
            scratch.replace(path)
        except OSError as error:
            scratch.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def folder_lock(folder: Path, exclusive: bool = False) -> Iterator[None]:
    """Waits for other processes in such a block of the folder: all, or those with exclusive."""
    if fcntl is None:  # Windows, which opens no folder either
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network disk without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def stamp(path: Path) -> Stamp:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ino
