"""How opening and reading grow with the number of clips: seconds, memory, random reads from disk.

    python -m bench.recipes.growth --out bench/results/growth.json [--clips 10000 100000]

Opening is what `vega3d distill run` does before it trains: the clips' key, two feature stores, and
whether they have every clip. Each is opened twice by processes of their own; the second counts.
"""
import hashlib
import json
import os
import random
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save as to_bytes

from distill.clips import open_source
from distill.config import ScenesConfig
from records.environment import environment
from records.results import Row, measured, save
from scenes.clip import SPLITS, Clip, ClipFolder, Source, save_clip
from teacher.data.feature_store import FeatureStore, fill
from teacher.towers.controls import FixedNoise
from vega3d import run_recipe

TOWERS = (FixedNoise(seed=0), FixedNoise(seed=1))
READ = 1000  # clips of 5 frames of 224 px with depth, 1.76 MB each


def make(top: Path, clips: int) -> None:
    """Tiny clips, and two stores with their features."""
    save_clip(Clip("any", np.zeros((1, 3, 16, 16), np.uint8)), top / "one.safetensors")
    content = (top / "one.safetensors").read_bytes()
    for i in range(clips):
        path = top / "clips" / SPLITS[0 if i % 10 < 8 else i % 10 - 7] / f"{i:07d}.safetensors"
        if i < 10:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    source, stores = _open(top)
    features = to_bytes({"features": torch.zeros(1, 1, 14, 14, dtype=torch.float16)})
    facts = {"sha256": hashlib.sha256(features).hexdigest(), "bytes": len(features)}
    for store in stores:
        store.prepare([])
        with (store.folder / "files.jsonl").open("w") as log:
            for split in SPLITS:
                (store.folder / split).mkdir()
                for clip_id in source.ids(split):
                    path = store.folder / f"{clip_id}.safetensors"
                    path.write_bytes(features)
                    row = {"clip": clip_id, **facts, "mtime_ns": path.stat().st_mtime_ns}
                    log.write(json.dumps(row) + "\n")


def _open(top: Path) -> tuple[Source, list[FeatureStore]]:
    source, key = open_source(ScenesConfig(path=top / "clips", frames=1), top, render=False)
    return source, [FeatureStore(top / "features", tower.spec, key) for tower in TOWERS]


def opened(top: Path) -> Row:
    """In a process that has imported everything."""
    before, began = _resident_mb(), time.perf_counter()
    source, stores = _open(top)
    for split in SPLITS:
        for store, tower in zip(stores, TOWERS, strict=True):
            fill(store, tower, source, source.ids(split), torch.device("cpu"))
    return {"open_s": round(time.perf_counter() - began, 2),
            "index_mb": round(_resident_mb() - before, 1)}


def random_reads(folder: Path, count: int) -> Row:
    """MB/s of frames in random order, of files that are not in the page cache."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 3, 224, 224), np.uint8)
    depth = rng.random((5, 224, 224), np.float32)
    ids = [f"train/{i:05d}" for i in range(count)]
    for clip_id in ids:
        save_clip(Clip(clip_id, frames, depth), path := folder / f"{clip_id}.safetensors")
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    source, before = ClipFolder(folder), _resident_mb()
    random.Random(0).shuffle(ids)
    began = time.perf_counter()
    size = sum(source.frames_of(clip_id).nbytes for clip_id in ids)
    return {"read_clips": count, "read_mb_per_s": round(size / 1e6 / (time.perf_counter() - began)),
            "read_memory_mb": round(_resident_mb() - before, 1)}


def _resident_mb() -> float:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(out: Path, clips: tuple[int, ...] = (10_000, 100_000), read: int = READ,
         work: Path | None = None) -> None:
    """clips: opened. read: clips read. work: a folder on the disk to measure."""
    rows: list[Row] = []
    with TemporaryDirectory(dir=work) as scratch:
        for count in clips:
            top = Path(scratch) / str(count)
            make(top, count)
            for _ in range(2):
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    row = process.submit(opened, top).result()
            rows.append({"clips": count, **row})
            shutil.rmtree(top)
        rows.append(random_reads(Path(scratch) / "read", read))
    save(measured(out.stem, rows, environment()), out)
    print(*rows, sep="\n")


if __name__ == "__main__":
    run_recipe(main)
