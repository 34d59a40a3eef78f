"""A ViT-S for trt.sh, of the rooms and generator features that stages.py has left: trt_vit_s.py WORK PACK OUT SECONDS

Distilled as students.py does it, from frames and features alone, for as many epochs as SECONDS (all in) allow; OUT (for
VIT_S) is there only when it is whole. One GPU.
"""
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open

from bench.h200.stages import _source, _tower
from bench.h200.students import TIMED_STEPS, _InMemory, _seconds_a_step
from distill.config import load_config
from distill.loop import build_student, train_student
from records.files import beside
from scenes.clip import Source
from student.vit import save_student
from teacher.examples import Examples, moments
from teacher.features import FeatureStore
from teacher.tap import spec_digest

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HELD_CLIPS, READERS = 60, 16
LAST = 20  # seconds for compiling again, the last curve and the file


def examples(source: Source, store: FeatureStore, ids: list[str], folder: Path) -> Examples:
    """Frames straight from the clips' files, without the labels that fill most of them."""
    def read(clip_id: str) -> tuple[torch.Tensor, torch.Tensor]:
        with safe_open(folder / f"{clip_id}.safetensors", "pt") as file:
            return file.get_tensor("frames"), store.get(clip_id)

    with ThreadPoolExecutor(READERS) as pool:
        frames, features = zip(*pool.map(read, ids), strict=True)
    return _InMemory(ids, torch.stack(frames).to(DEVICE), torch.stack(features).to(DEVICE), DEVICE)


def main(work: Path, pack: Path, out: Path, seconds: float) -> None:
    until = time.time() + seconds
    config = load_config(work / "distill.yaml").student
    config = replace(config, init="scratch", model=replace(config.model, size="s"))
    tower = _tower(work)
    source, key = _source(work, pack, render=False)
    store, folder = FeatureStore(work / "features", tower.spec, key), work / "clips" / key
    train = examples(source, store, [i for i in source.ids("train") if i in store], folder)
    held = examples(source, store, [i for i in source.ids("test") if i in store][:HELD_CLIPS], folder)
    mean, std = moments(train, lambda example: example["generative"].float())
    print(f"{len(train)} frames, {len(held)} held out, {until - time.time():.0f} s left", flush=True)
    batch = next(iter(train.batches(config.batch, 0, 0)))
    step = _seconds_a_step(config, batch["frames"], batch["generative"], TIMED_STEPS if DEVICE.type == "cuda" else 1)
    epochs = max(1, int(0.9 * (until - time.time() - LAST) / (step * train.steps(config.batch))))
    print(f"{1000 * step:.0f} ms a step, {epochs} epochs, {until - time.time():.0f} s left", flush=True)
    student = build_student(config, spec_digest(tower.spec), mean, std, 0)
    student = train_student(student, train, held, replace(config, epochs=epochs), 0, out.with_name(f"{out.name}.made"))
    with beside(out) as made:
        save_student(student, made, torch.bfloat16)
    last = (out.with_name(f"{out.name}.made") / "metrics.jsonl").read_text().splitlines()[-1]
    print(json.dumps({**json.loads(last), "frames": len(train), "left": round(until - time.time())}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
