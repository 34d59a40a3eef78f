"""Three ViT-Ti students of a trained generator, from nothing, for as long as there is time: frames and features alone.

    PYTHONPATH=REPOSITORY students.py PACK OUT --config bench/h200/distill.yaml --seconds 280

The long form of ship.sh's students: the same rooms, loss and loop (distill.loop), but neither heads nor labels, so that
nearly all of the time is training. One process a seed; all take the same number of epochs, as many as the slowest has
time for. OUT/seedN/ holds student.safetensors (bfloat16), student.json, metrics.jsonl; OUT/students.json says how many.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from distill.config import StudentTraining, load_config
from distill.loop import build_student, parameter_groups, train_step, train_student
from records.environment import environment
from records.files import write_json
from scenes.clip import Source
from scenes.rooms import RoomSource
from student.vit import save_student
from teacher.examples import Examples, moments
from teacher.pretrain import gather_frames
from teacher.tap import Tap, spec_digest
from teacher.wan import load_wan

TIMED_STEPS = 40
HELD_CLIPS = 60  # for the curves; the scores are made at home, on all held-out rooms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", type=Path, default=Path("bench/h200/distill.yaml"))
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/vega3d_students"))
    parser.add_argument("--seconds", type=float, default=280)
    parser.add_argument("--until", type=float, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--rooms", type=int, default=0, help="other than the configuration's")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=28)
    args = parser.parse_args()
    if args.seed is None:
        direct(args)
    else:
        one(args)


def direct(args: argparse.Namespace) -> None:
    """Starts a process for each seed, which compiles while this one renders."""
    until, gpus = time.time() + args.seconds, max(1, torch.cuda.device_count())
    args.scratch.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    crew = []
    for i, seed in enumerate(args.seeds):
        log = (args.out / f"seed{seed}.log").open("w")
        crew.append(subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--seed", str(seed), "--until", str(until)],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": str(i % gpus)}, stdout=log, stderr=log))
    for split in ("train", "test"):
        gather_frames(*_clips(args, split), args.scratch / f"{split}.npy", args.workers)
    codes = [process.wait() for process in crew]
    about = json.loads((args.scratch / "plan.json").read_text()) if (args.scratch / "plan.json").is_file() else {}
    write_json({**about, "command": " ".join(sys.argv), "env": environment(), "exit_codes": codes,
                "gpus": gpus}, args.out / "students.json")


def one(args: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_config(args.config).student
    _warm(config, device)
    tower = load_wan(tap=Tap()).to(device)
    sets = []
    for split in ("train", "test"):
        source, ids = _clips(args, split)
        while not (args.scratch / f"{split}.done").is_file():
            time.sleep(0.2)
        frames = gather_frames(source, ids, args.scratch / f"{split}.npy", 0).to(device)      # [N,5,3,224,224] uint8
        with torch.inference_mode():
            made = [tower.features(frames[i:i + 32].float() / 255).half() for i in range(0, len(frames), 32)]
        sets.append(_InMemory(ids, frames, torch.cat(made), device))
    train, held = sets
    print(f"{len(train)} frames, {len(held)} held out, {args.until - time.time():.0f} s left", flush=True)
    mean, std = moments(train, lambda example: example["generative"].float())
    plan = _plan(args, config, train, device)
    print(f"{plan}, {args.until - time.time():.0f} s left", flush=True)
    student = build_student(config, spec_digest(tower.spec), mean, std, args.seed)
    student = train_student(student, train, held, replace(config, epochs=plan["epochs"]), args.seed,
                            args.scratch / f"seed{args.seed}")
    folder = args.out / f"seed{args.seed}"
    save_student(student, folder, torch.bfloat16)
    (folder / "metrics.jsonl").write_bytes((args.scratch / f"seed{args.seed}" / "metrics.jsonl").read_bytes())
    print(f"done, {args.until - time.time():.0f} s left", flush=True)


class _InMemory(Examples):
    """Clips' frames [N,T,3,H,W] and features [N,T,D,14,14], already on the device."""

    def __init__(self, ids: Sequence[str], frames: Tensor, generative: Tensor, device: torch.device):
        self.ids, self.stores, self.device, self.frames_per_clip = list(ids), {}, device, frames.shape[1]
        self._all = {"frames": frames.flatten(0, 1), "generative": generative.flatten(0, 1)}


def _clips(args: argparse.Namespace, split: str) -> tuple[Source, list[str]]:
    scenes = load_config(args.config).scenes
    source = RoomSource(train=args.rooms or scenes.train, val=scenes.val, test=scenes.test, frames=scenes.frames,
                        clips_per_room=scenes.clips_per_room, seed=scenes.seed, pack=args.pack)
    ids = source.ids("train") if split == "train" else source.ids("test")[:HELD_CLIPS]
    return source, ids


def _warm(config: StudentTraining, device: torch.device) -> None:
    """Fills the compiler's cache while the rooms are rendered; if it cannot compile, nothing later will try."""
    try:
        _seconds_a_step(config, torch.zeros(config.batch, 3, 224, 224, dtype=torch.uint8, device=device),
                        torch.zeros(config.batch, config.model.out_dim, 14, 14, device=device).half(), 2)
    except Exception as error:  # whatever the compiler throws
        print(f"not compiled: {' '.join(str(error).split())[:300]}", flush=True)
        torch._dynamo.config.disable = True


def _seconds_a_step(config: StudentTraining, frames: Tensor, features: Tensor, steps: int) -> float:
    dim = features.shape[1]
    student = build_student(config, "", torch.zeros(dim), torch.ones(dim), 0).to(frames.device).train()
    forward = torch.compile(student) if frames.is_cuda else student
    optimizer = torch.optim.AdamW(parameter_groups(student, config.weight_decay), lr=0.0)
    began = time.time()
    for step in range(steps + 1):
        loss = train_step(student, forward, optimizer, frames, features, config)
        if step == 0:
            loss.sum().item()
            began = time.time()
    loss.sum().item()
    return (time.time() - began) / steps


def _plan(args: argparse.Namespace, config: StudentTraining, train: Examples, device: torch.device) -> dict:
    """All seeds train at once while each times itself; the slowest decides on the epochs of all."""
    _meet(args, "ready", {})
    batch = next(iter(train.batches(config.batch, 0, 0)))
    mine = _seconds_a_step(config, batch["frames"], batch["generative"], TIMED_STEPS if device.type == "cuda" else 1)
    slowest = max(row["seconds"] for row in _meet(args, "timed", {"seconds": mine}))
    if args.seed == args.seeds[0]:
        left, an_epoch = args.until - time.time(), slowest * train.steps(config.batch)
        write_json({"epochs": max(1, int(0.9 * (left - 10) / an_epoch)), "step_ms": 1000 * slowest,
                    "frames": len(train), "batch": config.batch}, args.scratch / "plan.json")
    while not (args.scratch / "plan.json").is_file():
        time.sleep(0.1)
    return json.loads((args.scratch / "plan.json").read_text())


def _meet(args: argparse.Namespace, name: str, said: dict) -> list[dict]:
    """Waits until every seed has said something, and returns what they all said."""
    write_json(said, args.scratch / f"{name}.{args.seed}.json")
    files = [args.scratch / f"{name}.{seed}.json" for seed in args.seeds]
    while not all(f.is_file() for f in files):
        if time.time() > args.until:
            raise TimeoutError(f"{name}: another seed never came")
        time.sleep(0.05)
    return [json.loads(f.read_text()) for f in files]


if __name__ == "__main__":
    main()
