"""The feature store: a frozen tower's features of each clip, on disk, for one configuration.

One safetensors file a clip, float16 [T,D,14,14], in a folder named by the digest of the tower's
spec. Files are written atomically; files.jsonl holds the SHA-256 of each.
"""
import hashlib
import json
import os
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import BytesIO
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load, save
from torch import Tensor

from records import manifest
from records.files import (
    atomic_write,
    fcntl,
    naming,
    parse_json,
    read_text,
    spec_digest,
    to_json,
    write_json,
)
from records.progress import Progress
from scenes.clip import Source, check_shapes, frames_of
from scenes.sources.remote import RemoteFolder, url_of
from teacher.data.file_list import FileList
from teacher.towers.base import GRID, Tower
from teacher.training.processes import is_main

FORMAT = 1
POLL_SECONDS = 0.5    # between looks at a store that other processes complete
GROUP_BYTES = 2**28  # of uint8 frames on the GPU at once, where float32 takes four times that

Transfer = tuple[Tensor, torch.cuda.Event | None]  # on its way to the CPU until the event


class FeatureStore:
    """Features by clip id; opened by the tower's spec: another spec opens another folder."""

    def __init__(self, root: Path, spec: dict, source_key: str):
        self.spec = {"format": FORMAT, "grid": GRID, "dtype": "float16", "source": source_key,
                     **spec}
        self.key = spec_digest(self.spec)
        self.folder = root / f"{spec['tower']}-{self.key}"
        self._log, self._seen = self.folder / "files.jsonl", 0  # bytes of it that were read
        self._files, self._verified = FileList(), set[str]()
        self._open()

    def _open(self) -> None:
        spec_file = self.folder / "manifest.json"
        if spec_file.is_file():
            _check_spec(read_text(spec_file), self.spec, str(spec_file))
        if found := manifest.fault(self._log):
            print(f"{found}; features that do not match it are extracted again")
        self.refresh()

    def __contains__(self, clip_id: str) -> bool:
        """Whether its features are there and intact, by size and time if those are as written."""
        if (listed := self._files.get(clip_id)) is None:
            return False
        try:
            facts = os.stat(path := f"{self.folder}/{clip_id}.safetensors")
        except FileNotFoundError:
            return False
        sha256, size, mtime_ns = listed
        if (facts.st_size, facts.st_mtime_ns) == (size, mtime_ns):
            return True
        return stat.S_ISREG(facts.st_mode) and manifest.matches(Path(path), sha256.hex(), size)

    def prepare(self, missing: Sequence[str]) -> None:
        """Makes the folder that features of these clips are put into."""
        if not (spec_file := self.folder / "manifest.json").is_file():
            write_json(self.spec, spec_file)

    def name_damaged(self, missing: Sequence[str]) -> None:
        """Says which of these clips, which no other process may be putting, have a wrong file."""
        for clip_id in missing:
            if (path := self._path(clip_id)).is_file() and self._files.get(clip_id):
                print(f"{path}: damaged (its SHA-256 is not the one in files.jsonl); "
                      "it is extracted again")

    def refresh(self) -> None:
        """Sees what other processes have put since."""
        if self._log.is_file():
            with self._log.open("rb") as file:
                file.seek(self._seen)
                self._seen += self._files.read(file)

    def put(self, clip_id: str, features: Tensor) -> None:
        """features [T,D,14,14], any float type, stored as float16. ValueError if not finite."""
        half = features.detach().to("cpu", torch.float16).contiguous()
        if not np.isfinite(half.numpy()).all():  # torch takes 30 times as long for float16
            raise ValueError(f"features of {clip_id}: not finite in float16 (largest magnitude "
                             f"{features.abs().max().item():.3g}); standardise the tower's output")
        data = save({"features": half})
        sha256 = hashlib.sha256(data)
        with atomic_write(self._path(clip_id), listed=False) as scratch:
            scratch.write_bytes(data)
            mtime_ns = scratch.stat().st_mtime_ns
            self._list({"clip": clip_id, "sha256": sha256.hexdigest(), "bytes": len(data),
                        "mtime_ns": mtime_ns})  # first: a file that is there is in the list
        self._files.add(clip_id, (sha256.digest(), len(data), mtime_ns))

    def _list(self, row: dict) -> None:
        manifest.forget([self._log])
        with naming(self._log), manifest.folder_lock(self.folder, exclusive=True), \
                self._log.open("a+b") as file:
            file.seek(start := max(0, file.tell() - 2**16))  # more than any row has
            file.truncate(start + file.read().rfind(b"\n") + 1)  # a killed process's part of a row
            file.write(to_json(row).encode() + b"\n")
        manifest.forget([self._log])  # a run that ended meanwhile may have listed it

    def get(self, clip_id: str) -> Tensor:
        """[T,D,14,14] float16. A file's first read checks its digest; ValueError if damaged."""
        if (listed := self._files.get(clip_id)) is None:
            raise ValueError(f"{self.folder}: has no features of clip {clip_id}; fill the store")
        data = self._read(clip_id)
        if clip_id not in self._verified:
            if listed[0] != (found := hashlib.sha256(data).digest()):
                self.refresh()  # another process may have extracted it again
            if found != (self._files.get(clip_id) or listed)[0]:
                path = self._path(clip_id)
                raise ValueError(f"{url_of(path) or path}: damaged (its SHA-256 is not the one in "
                                 "files.jsonl); delete it and run again")
            self._verified.add(clip_id)
        return load(data)["features"]

    def _read(self, clip_id: str) -> bytes:
        return self._path(clip_id).read_bytes()

    def _path(self, clip_id: str) -> Path:
        return self.folder / f"{clip_id}.safetensors"


class RemoteStore(FeatureStore):
    """A finished store at a URL that fsspec reads; listed once, never written."""

    def _open(self) -> None:
        self.remote = RemoteFolder(str(url_of(self.folder)), "a feature store")
        if not {"manifest.json", "files.jsonl"} <= self.remote.found.keys():
            raise ValueError(f"{self.remote.url}: no feature store of this teacher and these clips;"
                             " upload a run's features folder, or leave out --features")
        with self.remote.reading("a feature store"):
            spec = self.remote.read("manifest.json").decode()
            self._files.read(BytesIO(self.remote.read("files.jsonl")))
        _check_spec(spec, self.spec, f"{self.remote.url}/manifest.json")

    def __contains__(self, clip_id: str) -> bool:
        """Whether its features are there, by size."""
        found = self.remote.found.get(f"{clip_id}.safetensors", ("", -1))
        return found[1] == (self._files.get(clip_id) or (b"", None))[1]

    def prepare(self, missing: Sequence[str]) -> None:
        raise ValueError(f"{self.remote.url}: lacks {len(missing)} clips, such as {missing[0]}; "
                         "only a local store is completed: run without --features")

    def _read(self, clip_id: str) -> bytes:
        with self.remote.reading("features", name := f"{clip_id}.safetensors"):
            return self.remote.read(name)


def fill(store: FeatureStore, tower: Tower, source: Source, ids: Sequence[str],
         device: torch.device) -> None:
    """Extracts missing features and prints their size first; ValueError if the disk is too full.

    Processes that fill one store share the work. They may start, die and start again at any time.
    """
    store.refresh()
    missing = [i for i in ids if i not in store]
    if not missing:
        return
    store.prepare(missing)
    console = Console(stderr=True, quiet=not is_main())
    first = frames_of(source, missing[0])
    size = len(missing) * len(first) * tower.dim * GRID * GRID * 2
    if size > (free := shutil.disk_usage(store.folder).free):
        raise ValueError(
            f"{store.folder}: features need {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB "
            "free; use fewer clips or another folder")
    console.print(f"{store.spec['tower']}: {len(missing)} clips x {len(first)} frames, "
                  f"{size / 1e6:.0f} MB -> {store.folder}", markup=False, soft_wrap=True)
    group = max(1, min(16, GROUP_BYTES // first.nbytes)) if device.type == "cuda" else 1
    # groups by place, so that all processes divide alike
    groups = [ids[i:i + group] for i in range(0, len(ids), group)]
    with Progress(console=console) as progress, _Claims(store, groups) as claims:
        bar = progress.add_task(f"{store.spec['tower']} features", total=len(missing))
        while claims.left():
            _extract(store, tower, source, claims, device, partial(progress.advance, bar))
            time.sleep(POLL_SECONDS if claims.left() else 0)  # other processes have the rest


class _Claims:
    """The clips that this process extracts: each a byte of one file, locked meanwhile; the locks of
    a process that dies are free again. Processes may divide other clips into other groups."""

    def __init__(self, store: FeatureStore, groups: list[Sequence[str]]):
        self.store, self.groups = store, groups
        self.waiting: Iterator[Sequence[str]] = iter(())

    def __enter__(self) -> "_Claims":
        self.file = (self.store.folder / "claims.lock").open("w")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def left(self) -> bool:
        """Whether the store lacks features; those groups are tried once more."""
        self.store.refresh()
        self.groups = [g for g in self.groups if any(i not in self.store for i in g)]
        self.waiting = iter(self.groups)
        return bool(self.groups)

    def take(self) -> tuple[Sequence[str], list[str]] | None:
        """The clips claimed of a group, and those of them that the store lacks; None at the end."""
        for group in self.waiting:
            claimed = list(takewhile(self._lock, group))
            self.store.refresh()
            if missing := [i for i in claimed if i not in self.store]:
                self.store.name_damaged(missing)
                return claimed, missing
            self.release(claimed)
        return None

    def release(self, clip_ids: Sequence[str]) -> None:
        for clip_id in clip_ids if fcntl is not None else ():
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, zlib.crc32(clip_id.encode()))

    def _lock(self, clip_id: str) -> bool:
        try:
            if fcntl is not None:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1,
                            zlib.crc32(clip_id.encode()))
        except (BlockingIOError, PermissionError):  # another process has it
            return False
        return True


def _extract(store: FeatureStore, tower: Tower, source: Source, claims: _Claims,
             device: torch.device, advance: Callable[[int], None]) -> None:
    """Reads the next group, runs this one and writes the last one at the same time."""
    def read() -> tuple[Sequence[str], list[str], Tensor] | None:
        taken = claims.take()
        return (*taken, _read_frames(source, taken[1], device)) if taken else None

    def write(group: Sequence[str], ids: list[str], transfer: Transfer) -> None:
        features, copied = transfer
        if copied is not None:
            copied.synchronize()
        for clip_id, one in zip(ids, features, strict=True):
            store.put(clip_id, one)
        claims.release(group)
        advance(len(ids))

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        coming, written = reader.submit(read), Future[None]()
        written.set_result(None)
        while item := coming.result():
            group, ids, frames = item
            coming = reader.submit(read)
            frames = frames.to(device, non_blocking=True).float() / 255  # [B,T,3,H,W]
            features = tower.features(frames)
            written.result()  # at most one group of features waits in memory
            written = writer.submit(write, group, ids, _to_host(features))
        written.result()


def _read_frames(source: Source, ids: Sequence[str], device: torch.device) -> Tensor:
    read = [frames_of(source, i) for i in ids]
    for clip_id, one in zip(ids, read, strict=True):
        check_shapes(clip_id, {"frames": one.shape}, ids[0], {"frames": read[0].shape})
    frames = torch.stack([torch.from_numpy(one) for one in read])
    return frames.pin_memory() if device.type == "cuda" else frames


def _to_host(features: Tensor) -> Transfer:
    """Float16 on the CPU once the event has passed, without waiting. Overflow becomes infinite."""
    half = features.detach().half()
    if not features.is_cuda:
        return half, None
    host = torch.empty(half.shape, dtype=half.dtype, pin_memory=True)
    host.copy_(half, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return host, copied


def _check_spec(text: str, spec: dict, where: str) -> None:
    try:
        found, wanted = dict(parse_json(text)), json.loads(json.dumps(spec))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: not a manifest ({error}); delete its folder") from error
    if other := manifest.other_version(where, found, "format", FORMAT):
        raise ValueError(f"{other}; delete the folder or use another --features")
    differences = [f"{k}: {found.get(k)!r} stored, {wanted.get(k)!r} requested"
                   for k in found | wanted if found.get(k) != wanted.get(k)][:3]
    if found != wanted:
        raise ValueError(f"{where}: belongs to another configuration ({', '.join(differences)}); "
                         "delete the folder or use another --features")
