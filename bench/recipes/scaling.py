"""Frames a second of extraction and of distillation on 1, 2, 4 … GPUs (or CPU processes).

    python -m bench.recipes.scaling OUT.json [--processes 1 2 4] [--size s] [--batch 1024]

Frames are random: rates do not depend on what they show. The batch is that of all processes
together, so that all counts train the same student. Compilation and first steps are not counted.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from bench.device import device_facts
from distill.config import StudentTraining
from distill.loop import StudentLoss, parameter_groups, train_step
from records.options import RecipeParser
from records.results import Row, measured, save
from scenes.clip import Clip, Split
from student.config import StudentConfig
from student.vit import Student
from teacher.data.feature_store import FeatureStore, fill
from teacher.towers.checkpoints import generator_folder
from teacher.towers.tap import Tap
from teacher.towers.wan import load_wan
from teacher.training.gradients import Gradients
from teacher.training.processes import Processes, join_processes, resolve_device
from vega3d import run_recipe

WARM = 10  # steps


class RandomClips:
    """Clips of `frames` random frames, by their number."""

    def __init__(self, frames: int):
        self.pixels = np.random.default_rng(0).integers(0, 256, (frames, 3, 224, 224), np.uint8)

    def ids(self, split: Split) -> list[str]:
        return []

    def frames_of(self, clip_id: str) -> np.ndarray:
        return np.roll(self.pixels, int(clip_id), -1)

    def clip(self, clip_id: str) -> Clip:
        return Clip(clip_id, self.frames_of(clip_id))


def main() -> None:
    parser = RecipeParser("scaling", __doc__)
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--generator", default="wan-nano")
    parser.add_argument("--clips", type=int, default=512, help="extracted, of 9 frames")
    parser.add_argument("--size", default="s", help="of the student: ti, s, b")
    parser.add_argument("--batch", type=int, default=1024, help="frames of all processes")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)  # in a measuring process
    args = parser.parse_args()
    if args.store:
        _measure(args)
        return
    rows: list[Row] = []
    for count in args.processes:
        with TemporaryDirectory() as folder:
            launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count),
                        "--main_process_port", "0", "-m"] if count > 1 else []
            done = subprocess.run([sys.executable, "-m", *launcher, "bench.recipes.scaling",
                                   *sys.argv[1:], "--store", folder])
            if done.returncode:  # it has said why
                raise SystemExit(done.returncode)
            for stage, rate in json.loads((Path(folder) / "rates.json").read_text()).items():
                one = next((r for r in rows if r["stage"] == stage and r["gpus"] == 1), None)
                speedup = rate / one["items_per_s"] if one else 1.0 if count == 1 else None
                rows.append({"stage": stage, "gpus": count, "items_per_s": rate,
                             "speedup": speedup, "batch": args.batch, "student": args.size})
                print(f"{stage}, {count}: {rate:.0f} frames/s", flush=True)
    save(measured(args.out.stem, rows, device_facts()), args.out)


def _measure(args: argparse.Namespace) -> None:
    processes = join_processes(resolve_device(args.device))
    rates = {"extraction": _extraction(processes, args)}
    rates["distillation"] = _distillation(processes, args)
    if processes.main:
        (args.store / "rates.json").write_text(json.dumps(rates))
    processes.leave()


def _extraction(processes: Processes, args: argparse.Namespace) -> float:
    tower = load_wan(generator_folder(args.generator), Tap()).to(processes.device)
    source, ids = RandomClips(9), [str(i) for i in range(args.clips)]
    warm = FeatureStore(args.store / f"warm{processes.index}", tower.spec, "")
    fill(warm, tower, source, ids[:min(16, args.clips // 8)], processes.device)
    store = FeatureStore(args.store, tower.spec, "")
    began = _together(processes)
    fill(store, tower, source, ids, processes.device)
    return args.clips * len(source.pixels) / (_together(processes) - began)


def _distillation(processes: Processes, args: argparse.Namespace) -> float:
    device, part = processes.device, processes.part(args.batch)
    config, local = StudentTraining(StudentConfig(args.size)), part.stop - part.start
    student = Student(config.model).to(device).train()
    processes.copy_of_main(student)
    loss = StudentLoss(student, config)
    if device.type == "cuda":
        loss.compile(dynamic=False)
    gradients = Gradients(loss, processes)
    optimizer = torch.optim.AdamW(parameter_groups(student, config), lr=1e-4,
                                  fused=device.type == "cuda")
    frames = torch.randint(0, 256, (4 * local, 3, 224, 224), dtype=torch.uint8, device=device)
    raw = torch.randn(4 * local, config.model.out_dim, 14, 14, device=device).half()
    began = 0.0
    for step in range(WARM + args.steps):
        if step == WARM:
            began = _together(processes)
        rows = torch.randint(0, len(frames), (local, ), device=device)
        train_step(gradients, optimizer, frames[rows].float() / 255, raw[rows],
                   local / args.batch)
    return args.steps * args.batch / (_together(processes) - began)


def _together(processes: Processes) -> float:
    """The time at which all processes have finished what they began."""
    if processes.device.type == "cuda":
        torch.cuda.synchronize(processes.device)
    processes.wait()
    if processes.device.type == "cuda":
        torch.cuda.synchronize(processes.device)
    return time.perf_counter()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run_recipe(main)
