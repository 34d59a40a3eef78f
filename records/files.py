"""Files: written atomically, identified by digests; and where converted weights are cached."""
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: scratch of killed processes stays
    fcntl = None  # type: ignore[assignment]


SCRATCH = ".vega3d-tmp-"      # scratch folders; nothing else that starts so is ours
NEW_SCRATCH = ".vega3d-new-"  # those that are not locked yet
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A scratch path on the same disk: renamed to `path` on success, removed on an error.

    The block may write a file there, or make a folder: a folder replaces only a missing or an empty
    one. Files get the permissions of the umask, whatever wrote them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _scratch_folder(path.parent) as folder:
        scratch = folder / path.name
        yield scratch
        if scratch.is_file() and not scratch.is_symlink():
            scratch.chmod(0o666 & ~_UMASK)
        scratch.replace(path)


def remove_stale_scratch(folder: Path) -> None:
    """Removes scratch folders of processes that were killed: those whose lock is free."""
    for scratch in folder.glob(f"{SCRATCH}*"):
        try:
            with (scratch / "lock").open() as lock:
                if _locked(lock):
                    shutil.rmtree(scratch)
        except OSError:
            continue  # not a folder of ours, or removed meanwhile


@contextmanager
def _scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` that holds a locked file `lock` until it is removed."""
    made = Path(tempfile.mkdtemp(prefix=NEW_SCRATCH, dir=parent))
    folder = made.with_name(f"{SCRATCH}{made.name.removeprefix(NEW_SCRATCH)}-{os.getpid()}")
    try:
        with (made / "lock").open("w") as lock:
            _locked(lock)           # before it has the name that remove_stale_scratch looks for
            made.rename(folder)
            yield folder
    finally:
        for name in (made, folder):
            shutil.rmtree(name, ignore_errors=True)


def _locked(file: IO[str]) -> bool:
    """Takes the file's lock, held until it is closed; False if another process holds it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_json(content: Any, path: Path) -> None:
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_json(path: Path, remedy: str, missing: str = "") -> Any:
    """Raises ValueError with the path and what to do if it is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path}: missing; {missing or remedy}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); {remedy}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that may be missing or broken; then {}."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """One JSON object a line."""
    with atomic_write(path) as scratch:
        scratch.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines that may be missing or end in a torn line."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def write_if_changed(text: str, path: Path) -> None:
    """Writes atomically, unless the file has this text."""
    if not path.is_file() or path.read_bytes() != text.encode():
        with atomic_write(path) as scratch:
            scratch.write_text(text)


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
