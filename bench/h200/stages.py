"""The pieces that ship.sh and questions.sh run side by side: stages.py STAGE WORK PACK [PART | MODE].

Afterwards, at home: stages.py grid WORK OUT writes OUT/nano_probe.json and .png from what both probes left.
"""
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from distill.clips import open_source
from distill.config import load_config
from records.files import beside
from records.results import Results, save
from scenes.clip import SPLITS, Source
from scenes.rooms import RoomSource
from teacher.backbones import Tower
from teacher.features import FeatureStore, fill
from teacher.grid import ProbeConfig, collect, controls, heat_map, open_tower, read_blocks
from teacher.semantic import SemanticEncoder
from teacher.wan import Tap, VAELatents, WanTower, load_wan

GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PARTS = int(os.environ.get("PARTS", "2"))  # processes that fill a store together, one a GPU
PROBE_CLIPS = int(os.environ.get("PROBE_CLIPS", "100"))  # to fit the probes, and as many to score them


def rooms(work: Path, pack: Path) -> None:
    """Renders the distillation's rooms and fills the semantic store, beside the pre-training."""
    _fill(work, *_source(work, pack, render=True), SemanticEncoder().to(GPU))


def semantic(work: Path, pack: Path, part: str) -> None:
    """Fills the semantic store with every PARTS-th clip: one process a GPU."""
    _fill(work, *_source(work, pack, render=False), SemanticEncoder().to(GPU), int(part))


def features(work: Path, pack: Path, part: str) -> None:
    """Likewise the generator's."""
    _fill(work, *_source(work, pack, render=False), _tower(work), int(part))


def latents(work: Path, pack: Path, part: str) -> None:
    """Likewise that of the VAE latents."""
    _fill(work, *_source(work, pack, render=False), VAELatents(_tower(work)), int(part))


def probe(work: Path, pack: Path, mode: Literal["image", "video"]) -> None:
    """Renders the probe's clips, waits for the generator, probes; image mode begins with the likeliest blocks
    and levels and writes the tap."""
    config = ProbeConfig(generator=work / "wan-nano", clips=PROBE_CLIPS)
    source = RoomSource(train=0, val=PROBE_CLIPS, test=PROBE_CLIPS, frames=9, seed=2000, pack=pack)
    train, test = (collect(source, source.ids(split)) for split in ("val", "test"))
    while not (work / "ready").exists():
        time.sleep(0.5)
    rows: list[dict] = []

    def read(k: int, blocks: list[int], seeds: int) -> None:
        tower = open_tower(config, Tap(block=9, k=k, frames=mode, seeds=seeds), GPU)
        rows.extend(read_blocks(tower, blocks, train, test, GPU, f"generator, {mode}"))
        (work / f"probe_{mode}.json").write_text(json.dumps(rows, indent=1))

    def best() -> dict:
        return max(rows, key=lambda r: r["depth_r2_mlp"] + r["normal_cos"])

    levels, blocks = (200, 300, 500, 100, 700, 20, 999), range(10)
    first = {(k, b) for k in levels[:3] for b in range(4, 9)} if mode == "image" else set()  # among these is the tap
    for k in levels[:3] if first else ():
        read(k, sorted(b for level, b in first if level == k), 1)
    if first:
        with beside(work / "tap") as scratch:
            scratch.write_text(f"{best()['block']} {round(1000 * best()['t'])}\n")
    while not (work / "tap").exists():  # the line waits for the tap: nothing else on this GPU until then
        time.sleep(0.5)
    for k in levels:
        read(k, [b for b in blocks if (k, b) not in first], 1)
    chosen = best()
    for seeds in (8, 4):
        read(round(1000 * chosen["t"]), [max(0, chosen["block"] - 1), chosen["block"]], seeds)
    rows.extend(controls(replace(config, modes=(mode,)), train, test, GPU))
    (work / f"probe_{mode}.json").write_text(json.dumps(rows, indent=1))


def grid(work: Path, out: Path) -> None:
    """Both modes' rows in one file, controls first; those that know no mode are in both and are taken once."""
    rows = [row for mode in ("image", "video") for row in json.loads((work / f"probe_{mode}.json").read_text())]
    controls = [row for row in rows if not row["features"].startswith("generator")]
    once = [row for i, row in enumerate(controls) if row["mode"] != "-" or row["features"] not in
            {earlier["features"] for earlier in controls[:i]}]
    rows = once + [row for row in rows if row["features"].startswith("generator")]
    env = json.loads((work / "env.json").read_text())
    save(Results("nano_probe", "bench/h200/ship.sh PACK WORK", env["commit"], env, rows), out / "nano_probe.json")
    heat_map(rows, out / "nano_probe.png")


def _source(work: Path, pack: Path, render: bool) -> tuple[Source, str]:
    scenes = load_config(work / "distill.yaml").scenes
    return open_source(replace(scenes, furniture=pack), work / "clips", render)


def _tower(work: Path) -> WanTower:
    """WORK/wan-nano at the tap that WORK/tap names."""
    block, k = map(int, (work / "tap").read_text().split())
    return load_wan(work / "wan-nano", Tap(block=block, k=k)).to(GPU)


def _fill(work: Path, source: Source, key: str, tower: Tower, part: int | None = None) -> None:
    ids = [i for split in SPLITS for i in source.ids(split)]
    store = FeatureStore(work / "features", tower.spec, key)
    fill(store, tower, source, ids if part is None else ids[part::PARTS], GPU)


if __name__ == "__main__":
    stages: dict[str, Any] = {"rooms": rooms, "semantic": semantic, "features": features,
                              "latents": latents, "probe": probe, "grid": grid}
    stages[sys.argv[1]](*map(Path, sys.argv[2:4]), *sys.argv[4:])
