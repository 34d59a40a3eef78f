"""The feature store: a frozen tower's features of each clip, on disk, for one configuration.

One safetensors file a clip, float16 [T,D,14,14], in a folder named by the digest of the tower's
spec. Files are written atomically; files.jsonl holds the SHA-256 of each.
"""
import hashlib
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load, save
from torch import Tensor

from records import manifest
from records.files import (
    atomic_write,
    parse_json,
    read_text,
    spec_digest,
    to_json,
    write_json,
)
from records.progress import Progress
from scenes.clip import Source, frames_of
from teacher.towers.base import GRID, Tower

FORMAT = 1
GROUP_BYTES = 2**28  # of uint8 frames on the GPU at once, where float32 takes four times that


class FeatureStore:
    """Features by clip id; opened by the tower's spec: another spec opens another folder."""

    def __init__(self, root: Path, spec: dict, source_key: str):
        self.spec = {"format": FORMAT, "grid": GRID, "dtype": "float16", "source": source_key,
                     **spec}
        self.key = spec_digest(self.spec)
        self.folder = root / f"{spec['tower']}-{self.key}"
        self.folder.mkdir(parents=True, exist_ok=True)
        spec_file = self.folder / "manifest.json"
        if spec_file.is_file():
            _check_manifest(spec_file, self.spec)
        else:
            write_json(self.spec, spec_file)
        if found := manifest.fault(self.folder / "files.jsonl"):
            print(f"{found}; features that do not match it are extracted again")
        self._files = self._read_files()
        self._verified: set[str] = set()

    def __contains__(self, clip_id: str) -> bool:
        """Whether its features are there and intact, by size and time if those are as written."""
        row, path = self._files.get(clip_id), self._path(clip_id)
        return row is not None and path.is_file() and manifest.matches(
            path, row["sha256"], row["bytes"], row.get("mtime_ns"))

    def damaged(self, clip_id: str) -> str:
        """A line about a file that is there although the store lacks its clip; else ""."""
        path = self._path(clip_id)
        lacks = clip_id not in self and path.is_file()
        return f"{path}: damaged (its SHA-256 is not the one in files.jsonl)" if lacks else ""

    def put(self, clip_id: str, features: Tensor) -> None:
        """features [T,D,14,14], any float type, stored as float16. ValueError if not finite."""
        half = features.detach().to("cpu", torch.float16).contiguous()
        if not torch.isfinite(half).all():
            raise ValueError(f"features of {clip_id}: not finite in float16 (largest magnitude "
                             f"{features.abs().max().item():.3g}); standardise the tower's output")
        data = save({"features": half})
        path = self._path(clip_id)
        _write(path, data)
        row = {"clip": clip_id, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data),
               "mtime_ns": path.stat().st_mtime_ns}
        manifest.forget([self.folder / "files.jsonl"])
        with (self.folder / "files.jsonl").open("a") as file:
            file.write(to_json(row) + "\n")
        self._files[clip_id] = row

    def get(self, clip_id: str) -> Tensor:
        """[T,D,14,14] float16. A file's first read checks its digest; ValueError if damaged."""
        if clip_id not in self._files:
            raise ValueError(f"{self.folder}: has no features of clip {clip_id}; fill the store")
        data = self._path(clip_id).read_bytes()
        if clip_id not in self._verified:
            if hashlib.sha256(data).hexdigest() != self._files[clip_id]["sha256"]:
                raise ValueError(f"{self._path(clip_id)}: damaged (its SHA-256 is not the one in "
                                 "files.jsonl); delete it and run again")
            self._verified.add(clip_id)
        return load(data)["features"]

    def _path(self, clip_id: str) -> Path:
        return self.folder / f"{clip_id}.safetensors"

    def _read_files(self) -> dict[str, dict]:
        log, rows = self.folder / "files.jsonl", {}
        for line in log.read_text().splitlines() if log.is_file() else []:
            with suppress(ValueError, KeyError):  # the last line of a killed run
                row = parse_json(line)
                rows[row["clip"]] = row
        return rows


def fill(store: FeatureStore, tower: Tower, source: Source, ids: Sequence[str],
         device: torch.device) -> None:
    """Extracts missing features and prints their size first; ValueError if the disk is too full."""
    missing = [i for i in ids if i not in store]
    if not missing:
        return
    for found in filter(None, map(store.damaged, missing)):
        print(f"{found}; it is extracted again")
    console = Console(stderr=True)
    first = frames_of(source, missing[0])
    size = len(missing) * len(first) * tower.dim * GRID * GRID * 2
    if size > (free := shutil.disk_usage(store.folder).free):
        raise ValueError(
            f"{store.folder}: features need {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB "
            "free; use fewer clips or another folder")
    console.print(f"{store.spec['tower']}: {len(missing)} clips x {len(first)} frames, "
                  f"{size / 1e6:.0f} MB -> {store.folder}", soft_wrap=True)
    group = max(1, min(16, GROUP_BYTES // first.nbytes)) if device.type == "cuda" else 1
    groups = [missing[i:i + group] for i in range(0, len(missing), group)]
    _extract(store, tower, source, groups, device, console)


def _extract(store: FeatureStore, tower: Tower, source: Source, groups: list[list[str]],
             device: torch.device, console: Console) -> None:
    """Reads the next group, runs this one and writes the last one at the same time."""
    with (Progress(console=console) as progress, ThreadPoolExecutor(1) as reader,
          ThreadPoolExecutor(1) as writer):
        read = reader.submit(_read_frames, source, groups[0], device)
        written: Future[None] | None = None
        for i in progress.track(range(len(groups)), description=f"{store.spec['tower']} features"):
            frames = read.result().to(device, non_blocking=True)  # [B,T,3,H,W] uint8
            if i + 1 < len(groups):
                read = reader.submit(_read_frames, source, groups[i + 1], device)
            features = tower.features(frames.float() / 255)
            if written is not None:  # at most one group of features waits in memory
                written.result()
            written = writer.submit(_put_all, store, groups[i], _to_host(features))
        if written is not None:
            written.result()


def _read_frames(source: Source, ids: Sequence[str], device: torch.device) -> Tensor:
    frames = torch.stack([torch.from_numpy(frames_of(source, i)) for i in ids])
    return frames.pin_memory() if device.type == "cuda" else frames


def _to_host(features: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Float16 on the CPU once the event has passed, without waiting. Overflow becomes infinite."""
    half = features.detach().half()
    if not features.is_cuda:
        return half, None
    host = torch.empty(half.shape, dtype=half.dtype, pin_memory=True)
    host.copy_(half, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return host, copied


def _put_all(store: FeatureStore, ids: Sequence[str],
             transfer: tuple[Tensor, torch.cuda.Event | None]) -> None:
    features, copied = transfer
    if copied is not None:
        copied.synchronize()
    for clip_id, one in zip(ids, features, strict=True):
        store.put(clip_id, one)


def _check_manifest(path: Path, spec: dict) -> None:
    try:
        found, wanted = parse_json(read_text(path)), json.loads(json.dumps(spec))
    except ValueError as error:
        raise ValueError(f"{path}: not a manifest ({error}); delete its folder") from error
    differences = [f"{k}: {found.get(k)!r} stored, {wanted.get(k)!r} requested"
                   for k in found | wanted if found.get(k) != wanted.get(k)][:3]
    if found != wanted:
        raise ValueError(f"{path}: belongs to another configuration ({', '.join(differences)}); "
                         "delete the folder or use another --features")


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path, listed=False) as scratch:
        scratch.write_bytes(data)
