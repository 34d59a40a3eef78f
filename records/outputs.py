"""Files that we wrote: only those, unchanged since, are replaced; `vega3d verify` checks them."""
from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from records import manifest
from records.files import (
    LOCK,
    SCRATCH,
    atomic_write,
    cache_folder,
    parse_json,
    read_object,
    sha256,
    write_json,
)

LIST = ".vega3d-files.json"
SCHEMA = 1
ROOT = Path(__file__).resolve().parents[1]
SHIPPED = (ROOT / "student" / "weights", ROOT / "teacher" / "weights", ROOT / "infer" / "model")


class OutputFolder:
    """A folder with a list of the files that were written through this class, by SHA-256.

    A file that is not in the list, or that was changed, belongs to the user and stays as it is.
    """

    def __init__(self, folder: Path):
        self.folder, self.list = folder, folder / LIST
        self.written: dict[str, list[str]] = _read(self.list)

    def check(self, names: Iterable[str], option: str) -> None:
        """Raises ValueError if one of `names` exists and is not ours; `option` names the remedy.
        FileExistsError if the folder is a file."""
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.folder))
        for name in names:
            path = self.folder / name
            if (path.exists() or path.is_symlink()) and not self._is_ours(name):
                raise ValueError(f"{path}: exists and was not written by this command, or was "
                                 f"changed since; move it, or choose another {option}")

    @contextmanager
    def write(self, name: str) -> Iterator[Path]:
        """A scratch path that becomes folder/name. Raises ValueError if that is not ours."""
        self.check([name], "folder")
        with atomic_write(self.folder / name) as scratch:
            yield scratch
            digest = sha256(scratch)
            # both digests until the rename, so that a kill between the two loses neither
            self._save({**self.written, name: [*self.written.get(name, []), digest]})
        self._save({**self.written, name: [digest]})

    def replace_with(self, source: Path, option: str) -> None:
        """Makes ours equal to the files below `source`; what else is in the folder stays.

        Raises ValueError, before anything is written, if a file to be replaced is not ours.
        """
        names = sorted(str(path.relative_to(source)) for path in source.rglob("*")
                       if path.is_file())
        earlier = [name for name in self.written if name not in names]
        self.check([*names, *earlier], option)
        digests = {name: sha256(source / name) for name in names}
        # both digests until all are there, so that a kill in between loses none
        self._save({**self.written, **{name: [*self.written.get(name, []), digest]
                                       for name, digest in digests.items()}})
        new = [name for name in names if not (self.folder / name).exists()]
        try:
            for name in names:
                with atomic_write(self.folder / name) as scratch:
                    shutil.copyfile(source / name, scratch)
        except OSError:  # a full disk: no half of a set
            self.remove(new)
            raise
        self._save({**self.written, **{name: [digest] for name, digest in digests.items()}})
        self.remove(earlier)

    def remove(self, names: Iterable[str]) -> None:
        """Deletes files of ours; others of these names stay."""
        for name in names:
            if self._is_ours(name):
                manifest.forget([self.folder / name])
                (self.folder / name).unlink()
        self._save({k: v for k, v in self.written.items() if k not in {*names}})

    def faults(self) -> list[str]:
        """A line for every file that is not as it was written."""
        return [f"{self.folder / name}: damaged, edited or missing (by {LIST})"
                for name in self.written if not self._is_ours(name)]

    def _is_ours(self, name: str) -> bool:
        path = self.folder / name
        return (name in self.written and path.is_file() and not path.is_symlink()
                and sha256(path) in self.written[name])

    def _save(self, written: dict[str, list[str]]) -> None:
        self.written = written
        write_json({"schema": SCHEMA, "files": written}, self.list)


def holds_files(folder: Path) -> bool:
    """Whether anything but scratch and a lock of ours is in the folder."""
    return any(not path.name.startswith((SCRATCH, LOCK)) for path in folder.iterdir())


def safe_name(name: str) -> str:
    """A visible file name of at most 100 A-Z a-z 0-9 . _ - that does not leave its folder."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).lstrip(".")[:100] or "_"


def printable(text: object, most: int = 200) -> str:
    """One line of at most `most` characters, without those that a terminal would obey."""
    line = " ".join(str(text)[:4 * most].split())
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)
    return shown if len(shown) <= most else f"{shown[:most - 1]}…"


def _read(path: Path) -> dict[str, list[str]]:
    manifest.check(path, "move its folder away")
    listed = read_object(path)
    if found := manifest.other_version(path, listed, ours=SCHEMA):
        raise ValueError(f"{found}; choose another folder")
    files = listed.get("files")
    return files if isinstance(files, dict) else {}


def verify(run: Path = Path("runs/latest"), /) -> None:
    """Check all files of a run, its clips, the converted encoder and the shipped weights.

    Prints a line for every file that is damaged or missing; exit code 2 if there is one.

    Args:
        run: a run folder of `vega3d distill run`, or another folder with a manifest.json
    """
    listed = manifest.count(run)
    if listed is None and not (run / "config.yaml").is_file():
        raise ValueError(f"{run}: no run here (no config.yaml, no manifest.json); "
                         "make one with: vega3d distill run")
    folders = [run, *manifest.used_folders(run), cache_folder(), *SHIPPED]
    faults = list(dict.fromkeys(line for folder in folders for line in folder_faults(folder)))
    for line in faults:
        print(line)
    if listed is None:
        print(f"{run}: has no {manifest.NAME} (made before there were any): only exported models, "
              f"features and pages were checked; the next vega3d distill run of it lists its files")
    if faults:
        raise ValueError(f"{run}: {len(faults)} files are damaged or missing")
    print(f"{run}: intact; {listed or 0} listed files, and those it uses")


def folder_faults(folder: Path) -> Iterator[str]:
    """By its manifest, by the lists of its feature stores, pages and bundles, and by sidecars."""
    yield from manifest.faults(folder)
    for log in sorted(folder.rglob("files.jsonl")):
        yield from _feature_faults(log)
    for page in sorted(folder.rglob(LIST)):
        yield from OutputFolder(page.parent).faults()
    for model in sorted(folder.rglob("*.onnx")) + sorted(folder.rglob("*.engine")):
        if found := manifest.fault(model):
            yield found


def _feature_faults(log: Path) -> Iterator[str]:
    rows = {}
    for number, line in enumerate(log.read_text(errors="replace").splitlines(), 1):
        try:
            row = parse_json(line)
            rows[row["clip"]] = row["sha256"], row["bytes"]
        except (ValueError, KeyError, TypeError):
            yield f"{log}: damaged (line {number})"
    for clip, (listed, size) in rows.items():
        path = log.parent / f"{clip}.safetensors"
        if not path.is_file() or not manifest.matches(path, listed, size):
            yield f"{path}: damaged or missing (by {log.name})"
    if not read_object(log.parent / manifest.NAME):
        yield f"{log.parent / manifest.NAME}: damaged or missing"


VERBS = {"": verify}
