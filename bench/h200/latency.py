"""Latency, memory and energy on one GPU of the shipped student and of wan-nano's stages; and the clock's own check.

Usage: python bench/h200/latency.py --out DIR [--seconds 90] [--student DIR] [--generator DIR] [--commit HASH]
Writes DIR/latency_h200.json and DIR/timer_h200.json, again after every part: a part that fails is named in the file.
Meanwhile three more processes compile student and generator into torch's cache; they end before the student is timed.
"""
import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from sitting import Sitting, said
from torch import Tensor

from bench.artefacts import absent
from bench.device import device_facts
from bench.energy import energy
from bench.gpu import Launch
from bench.latency import timed
from bench.nvml import current_gpu
from bench.preprocess import preprocess_row
from bench.stages import generator_subjects, semantic_subjects
from bench.students import Torch, torch_subjects
from bench.timing import Device, Plan, Subject
from bench.yardstick import cpu_yardsticks, gpu_yardsticks
from records.results import Results, Row, save
from student.vit import SHIPPED
from teacher.wan import NANO, Tap, WanTower, load_wan

BATCHES = (1, 8, 32)
PRECISIONS = ("fp16", "fp32")
WARM = (*PRECISIONS, "generator")
PLAN = Plan(seconds=3.0, iterations=200, rounds=5, warmup_seconds=0.1)


class Latencies(Sitting):
    """What has been measured so far, and how long is left."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(args.seconds)
        self.args = args
        self.cuda, self.gpu = torch.cuda.is_available(), current_gpu()
        self.device: Device = "cuda" if self.cuda else "cpu"
        self.plan = PLAN if self.cuda else Plan(seconds=0.2, iterations=3, rounds=2, warmup_seconds=0.01)
        self.batches = BATCHES if self.cuda else (1, 2)
        self.clocks: list[Row] = []
        self.towers: dict[str, WanTower] = {}  # one a precision: a second one would compile everything again
        self.env = device_facts() | ({"commit": args.commit} if args.commit else {}) | self._gpu("before")

    def missing(self, part: str, error: Exception | None) -> Row:
        if error:
            return absent(part, f"{type(error).__name__}: {said(error, 200)}", "see log")
        return absent(part, f"{self.left:.0f} s were left of {self.seconds:.0f}", "raise --seconds")

    def write(self) -> None:
        env = self.env | self._gpu("after") | {"seconds": round(self.spent, 1)}
        command = "python bench/h200/latency.py " + " ".join(sys.argv[1:])
        for name, rows in (("latency_h200", self.rows), ("timer_h200", self.clocks)):
            save(Results(name, command, str(env["commit"]), env, rows), self.args.out / f"{name}.json")

    def _gpu(self, when: str) -> Row:
        return {f"gpu_{key}_{when}": value for key, value in self.gpu.state().items()} if self.gpu else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--student", type=Path, default=SHIPPED)
    parser.add_argument("--generator", type=Path, default=NANO)
    parser.add_argument("--commit", default="")
    parser.add_argument("--warm", choices=WARM, help="only compile this, into torch's cache")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.warm:
        _compile_all(args)
        return
    sitting = Latencies(args)
    warmers = {what: _warmer(args, what) for what in WARM} if sitting.cuda else {}
    sitting.part("clock", lambda: _clock(sitting))
    sitting.part("preprocessing", lambda: sitting.rows.append(preprocess_row(sitting.plan)))
    if warmers:
        _finish(warmers.pop("generator"), 35)  # or two processes would compile the same
    built: dict[int, list[Subject]] = {}
    for batch in sitting.batches:
        sitting.part(f"teacher, batch {batch}", partial(_build_teacher, sitting, batch, built))
    if sitting.gpu:
        sitting.part("teacher's energy", lambda: _teachers_energy(sitting, built), 20)
    for warmer in warmers.values():
        _finish(warmer, max(5.0, sitting.left - 45))
    for batch in sitting.batches:
        sitting.part(f"batch {batch}", partial(_batch, sitting, batch, built.pop(batch, [])), 5)


def _frames(batch: int) -> Tensor:
    return torch.rand(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def _clock(sitting: Latencies) -> None:
    if sitting.cuda:
        sitting.clocks += gpu_yardsticks()
    sitting.clocks += cpu_yardsticks()


def _build_teacher(sitting: Latencies, batch: int, built: dict[int, list[Subject]]) -> None:
    """The stages in both precisions; launched call by call only at batch 1 in FP32."""
    built[batch] = []
    for precision in ("fp32", "bf16") if sitting.cuda else ("fp32",):
        if precision not in sitting.towers:
            sitting.towers[precision] = load_wan(sitting.args.generator, Tap(precision=precision))  # type: ignore
        launches: tuple[Launch, ...] = ("eager", "graph") if batch == 1 and precision == "fp32" else ("graph",)
        subjects, gaps = generator_subjects(sitting.towers[precision], sitting.args.generator.name,
                                            _frames(batch)[:, None], sitting.device, launches)
        built[batch] += subjects
        sitting.rows += gaps
    subjects, gaps = semantic_subjects(_frames(batch)[:, None], sitting.device, ("graph",))
    built[batch] += subjects
    sitting.rows += gaps


def _teachers_energy(sitting: Latencies, built: dict[int, list[Subject]]) -> None:
    for subjects in built.values():
        _add_energy(sitting, [s for s in subjects if s.about["stage"] == "generator"])


def _batch(sitting: Latencies, batch: int, subjects: list[Subject]) -> None:
    """Teacher and student in turn, then the student's energy."""
    backends: tuple[Torch, ...] = ("torch", "compile")
    for backend in backends:
        for precision in PRECISIONS if sitting.cuda else ("fp32",):
            if backend == "compile" and sitting.left < 10:
                sitting.rows.append(absent(f"compile {precision} batch {batch}", "no time left", "raise --seconds"))
                continue
            try:
                found, gaps = torch_subjects(sitting.args.student, _frames(batch), sitting.device,
                                             precision, backend)
            except Exception as error:  # a compiler's errors share no base
                found, gaps = [], [absent(f"{backend} {precision} batch {batch}", str(error)[:200], "see log")]
            subjects, sitting.rows = subjects + found, sitting.rows + gaps
    if sitting.gpu and sitting.left > 8:
        _add_energy(sitting, [s for s in subjects if s.about["stage"] == "student" and s.about["backend"] == "torch"])
    sitting.rows += timed(subjects, sitting.plan)


def _add_energy(sitting: Latencies, subjects: list[Subject]) -> None:
    """energy_mj and power_w of a graph's replay, and energy_mj_per_frame."""
    def joules() -> float | None:
        millijoules = sitting.gpu.energy_mj() if sitting.gpu else None
        return None if millijoules is None else millijoules / 1000

    for subject in subjects:
        if subject.about["launch"] == "graph":
            found = energy(subject.call, joules, torch.cuda.synchronize, 1.0)
            if found:
                found["energy_mj_per_frame"] = found["energy_mj"] / subject.about["frames"]
            subject.about |= found


def _warmer(args: argparse.Namespace, what: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, __file__, "--out", str(args.out), "--student", str(args.student),
                             "--generator", str(args.generator), "--warm", what])


def _finish(warmer: subprocess.Popen, seconds: float) -> None:
    try:
        warmer.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"the compiler was still at work after {seconds:.0f} s more: stopped")
        warmer.kill()


def _compile_all(args: argparse.Namespace) -> None:
    """Fills torch's compile cache, so that the process that times finds everything there."""
    tower = load_wan(args.generator, Tap(precision="bf16")).to("cuda") if args.warm == "generator" else None
    for batch in BATCHES:
        if tower:
            tower.features(_frames(batch)[:, None].cuda())
        else:
            torch_subjects(args.student, _frames(batch), "cuda", args.warm, "compile", ("eager",))
        print(f"compiled {args.warm}, batch {batch}", flush=True)


if __name__ == "__main__":
    main()
