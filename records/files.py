"""Files: written atomically, read within limits, identified by digests; the cache folder."""
from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from records import manifest

try:
    import fcntl
except ImportError:  # Windows: scratch of killed processes stays
    fcntl = None  # type: ignore[assignment]


SCRATCH = ".vega3d-tmp-"  # scratch folders; nothing else that starts so is ours
LOCK = ".vega3d-lock"     # of a run that is in use
MAX_JSON = 2**25          # bytes; a result file has 0.1 % of that
sha256 = manifest.sha256
LARGE_JSON = 2**28        # bytes of a file of lines
MAX_DEPTH = 100           # levels of lists and objects
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
          stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
made_folders: list[Path] = []  # by `make_folder`; vega3d.main removes what is empty at the end
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_write(path: Path, listed: bool = True) -> Iterator[Path]:
    """A scratch path on the same disk: renamed to `path` on success, removed on an error.

    The block writes a file there, with the umask's permissions, or a folder, which replaces only a
    missing or empty one. listed: in the manifest of the run that the path is in, if any; False for
    files of which there may be millions.
    """
    listed = listed and path.suffix in manifest.LISTED
    with naming(path), _scratch_folder(path.parent) as folder:
        scratch = folder / path.name
        yield scratch
        if scratch.is_file() and not scratch.is_symlink():
            scratch.chmod(0o666 & ~_UMASK)
        if listed:
            manifest.forget([path])  # a kill leaves it unlisted, never with another's digest
        scratch.replace(path)
    if listed:
        manifest.record([path])


def remove_stale_scratch(folder: Path, below: bool = False) -> None:
    """Removes scratch folders, also `below`, that are empty or whose process was killed."""
    for scratch in list((folder.rglob if below else folder.glob)(f"{SCRATCH}*")):
        with suppress(OSError), manifest.folder_lock(scratch.parent, exclusive=True):
            if not any(scratch.iterdir()):
                scratch.rmdir()
                continue
            with (scratch / "lock").open() as lock:  # without one it is not a folder of ours
                if _locked(lock):
                    _remove(scratch)


@contextmanager
def exclusive(folder: Path, command: str, make: bool = False) -> Iterator[None]:
    """Holds the folder's lock file, which names this process; its death frees it.

    Raises ValueError naming the holder. The first process of an `accelerate launch` holds it for
    all. A folder that is missing or cannot be written to is not locked. make: makes it, and removes
    it if it is empty at the end.
    """
    made = make_folder(folder) if make else []
    path, file = folder.resolve() / LOCK, None
    if fcntl is not None and not int(os.environ.get("RANK", "0")):
        with suppress(OSError):
            file = _take_lock(path)
    try:
        if file is not None:
            file.truncate()
            with suppress(OSError):  # a full disk: it is locked without a name
                holder = f"{command} (process {os.getpid()} on {platform.node()})\n"
                os.write(file.fileno(), holder.encode())
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)
            file.close()
        remove_empty(made)


def _take_lock(path: Path) -> IO[str]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        file = os.fdopen(descriptor, "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return file
        except BlockingIOError as error:
            holder = file.read().strip() or "another process"
            raise ValueError(f"{path.parent}: in use by {holder}; wait until it has ended") \
                from error
        except FileNotFoundError:
            pass  # the holder ended, and removed it, in between
        file.close()


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Whether this process has the lock file; that of a process that dies is free again. True too
    on Windows and on a network disk without locks."""
    make_folder(path.parent)
    taken = True
    with path.open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                taken = False
            except OSError:
                pass
        yield taken


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of writing that names no file, as a full disk's, or a scratch one, names `path`."""
    try:
        yield
    except Exception as error:
        if (isinstance(error, OSError) and error.errno
                and SCRATCH in f"{error.filename or SCRATCH}{error.filename2}"):  # of a copy: both
            raise OSError(error.errno, error.strerror, str(path)) from error
        if type(error).__name__ == "SafetensorError":  # safetensors is not imported here
            raise ValueError(f"{path}: cannot be written ({error})") from error
        raise


@contextmanager
def _scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder, with a locked file `lock`, in `parent`; removed, as are empty new parents."""
    made = make_folder(parent)
    with manifest.folder_lock(parent):  # until it has its own lock
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH, suffix=f"-{os.getpid()}", dir=parent))
        lock = (folder / "lock").open("w")
        _locked(lock)
    try:
        with lock:
            yield folder
    finally:
        _remove(folder)
        remove_empty(made)


def _remove(scratch: Path) -> None:
    """The lock last: without it what a killed removal leaves would not count as ours."""
    for path in [path for path in scratch.glob("*") if path.name != "lock"]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.rmtree(scratch, ignore_errors=True)


def _locked(file: IO[str]) -> bool:
    """Takes the file's lock, held until it is closed; False if another process holds it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Unreadable(ValueError):
    """A file is damaged or of another kind than its name says; others may be good."""


def regular_file(path: Path) -> Path:
    """`path`. Raises Unreadable for a pipe, socket, device or folder: reading one may not end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise Unreadable(f"{path}: is {_KINDS.get(stat.S_IFMT(mode), 'special')}, expected a file")
    return path


def must_exist(path: Path, remedy: str) -> None:
    """Raises ValueError for a path that is missing; for commands, before they import torch."""
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; {remedy}")


@contextmanager
def reading(path: Path, expected: str, remedy: str) -> Iterator[None]:
    """Errors of the block, which decodes `path`, become ValueError: "path: not `expected` …".

    So do a path that is no regular file and one that differs from its manifest (records.manifest);
    a missing or unreadable one stays an OSError.
    """
    try:
        manifest.check(regular_file(path), remedy)
        yield
    except Exception as error:
        named = (isinstance(error, OSError) and error.filename) or str(path) in str(error)
        if named or isinstance(error, MemoryError):
            raise
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{path}: not {expected} ({reason[:200]}); {remedy}") from error


def read_text(path: Path, limit: int = MAX_JSON) -> str:
    """UTF-8 of at most `limit` bytes. Raises ValueError, naming the file, for anything else."""
    with regular_file(path).open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path}: has more than {limit / 1e6:.1f} MB, expected less")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 (byte {error.start})") from error


def to_json(content: Any, **options: Any) -> str:
    """json.dumps, strict: NaN and infinity, which JSON does not have, become null."""
    try:
        return json.dumps(content, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(content), allow_nan=False, **options)


def parse_json(text: str) -> Any:
    """Strict JSON. Raises ValueError for other text, a key given twice, NaN, numbers that float64
    or int64 cannot hold, and more than MAX_DEPTH levels."""
    try:
        content = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_number,
                             parse_float=_number, parse_int=_integer)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from error
    level = [content]
    for _ in range(MAX_DEPTH):
        level = list(_children(level))
    if level:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return content


def write_json(content: Any, path: Path) -> None:
    with atomic_write(path) as scratch:
        scratch.write_text(to_json(content, indent=2, sort_keys=True) + "\n")


def read_json(path: Path, remedy: str, missing: str = "", limit: int = MAX_JSON,
              kind: type = object, schema: int | None = None) -> Any:
    """Raises ValueError with the path and what to do if it is missing, is not strict JSON of `kind`
    (dict or list), differs from its manifest, or has a `schema` of another version of ours."""
    manifest.check(path, remedy)
    try:
        text = read_text(path, limit)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: missing; {missing or remedy}") from error
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); {remedy}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path}: is a {type(content).__name__}, expected a {kind.__name__}; "
                         f"{remedy}")
    if schema and (found := manifest.other_version(path, content, ours=schema)):
        raise ValueError(f"{found}; use that version, or {remedy}")
    return content


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that may be missing or broken; then {}."""
    try:
        content = parse_json(read_text(path))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """One JSON object a line."""
    with atomic_write(path) as scratch:
        scratch.write_text("".join(to_json(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines that may be missing or end in a torn line."""
    rows = []
    for line in read_text(path, LARGE_JSON).splitlines() if path.exists() else []:
        with suppress(ValueError):
            rows.append(parse_json(line))
    return [row for row in rows if isinstance(row, dict)]


def write_if_changed(text: str, path: Path) -> None:
    """Writes atomically, unless the file has this text."""
    if not path.is_file() or path.read_bytes() != text.encode():
        with atomic_write(path) as scratch:
            scratch.write_text(text)


def unique_keys(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dict; raises ValueError for a key that is there twice."""
    out: dict[Any, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the key {key!r} is there twice")
        out[key] = value
    return out


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:20]} is not finite")
    return value


def _integer(text: str) -> int:
    if len(text) > 18 and (len(text) > 20 or not -2**63 <= int(text) < 2**64):
        raise ValueError(f"the number {text[:20]}… has {len(text)} digits")
    return int(text)


def _children(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, (dict, list)):
            yield from item.values() if isinstance(item, dict) else item


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_folder(folder: Path) -> list[Path]:
    """Makes it and its parents; returns those that are new, for `remove_empty`, innermost first."""
    folder = folder.absolute()
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    made_folders[:0] = new
    return new


def remove_empty(folders: Sequence[Path] = made_folders) -> None:
    """Removes those that are empty; by default of all that this process made."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def prepare_folder(folder: Path) -> None:
    """Makes `folder`, removes dead scratch files and proves it writable. Raises OSError."""
    make_folder(folder)
    remove_stale_scratch(folder)
    with naming(folder), tempfile.TemporaryFile(prefix=SCRATCH, dir=folder) as probe:
        probe.write(b"0")


def cache_folder() -> Path:
    """Our cache: $VEGA3D_CACHE, else vega3d-edge in $XDG_CACHE_HOME, else in ~/.cache."""
    if ours := os.environ.get("VEGA3D_CACHE"):
        return Path(ours)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vega3d-edge"


def digest(*parts: Any) -> str:
    """16 hex digits of anything that JSON or str() can hold."""
    return _short(json.dumps(parts, sort_keys=True, default=str).encode())


def spec_digest(spec: dict) -> str:
    """A tower's spec as 16 hex digits: the key of everything computed from it."""
    return _short(json.dumps(spec, sort_keys=True).encode())


def files_digest(files: Mapping[Path, Path]) -> str:
    """16 hex digits over the names (keys, sorted as paths) and contents of several files."""
    names = sorted(files)
    found = manifest.read([files[name] for name in names])
    return _short(b"".join(
        str(name).encode() + bytes.fromhex(sha) for name, (_, sha) in zip(names, found)))


def folder_digest(folder: Path) -> str:
    """`files_digest` of every safetensors and JSON file below a folder."""
    return files_digest({path.relative_to(folder): path for path in folder.rglob("*")
                         if path.suffix in (".safetensors", ".json")})


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
