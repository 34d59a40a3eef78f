"""Bar 3 of INT8 on an H200: TensorRT 8.6 at FP32, FP16 and INT8, beside torch and onnxruntime, gated, in one run.

    trt.py WORK OUT [--seconds 260] [--workers 7]       (trt.sh calls it and says what must lie where)

Jobs (trt_plan.py) build side by side in processes of their own, the most important first, until building time is up;
then each in turn, alone on the GPU, times what it holds. OUT/trt_h200.json is written anew whenever a job has ended.
"""
import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.h200.trt_plan import JOBS, VARIANTS, Job
from records.environment import environment
from records.results import Results, save

MODELS = {"ti": "ViT-Ti", "s": "ViT-S", "b": "ViT-B"}
GATE = {"fp32": (0.9999, 0.999), "fp16": (0.999, 0.99), "bf16": (0.999, 0.99), "int8": (0.999, 0.99)}
BACKENDS = {"engines": "tensorrt-8.6", "torch": "torch", "ort": "onnxruntime-cuda"}
TIMING_SHARE = 0.4     # of the time, for taking turns
TURN_SECONDS = 15      # a job that takes longer has hung
Row = dict[str, Any]


@dataclass
class Running:
    job: Job
    process: subprocess.Popen
    turn: Path

    @property
    def built(self) -> bool:
        return Path(f"{self.turn}.ready").exists() or self.process.poll() is not None


class Sitting:
    def __init__(self, work: Path, out: Path, seconds: float, workers: int):
        self.work, self.out, self.workers = work, out, workers
        self.began = time.time()
        self.end, self.deadline = self.began + seconds, self.began + seconds * (1 - TIMING_SHARE)
        self.env, self.running = environment(), []  # type: ignore[var-annotated]
        out.mkdir(parents=True, exist_ok=True)

    def say(self, what: str) -> None:
        print(f"{time.time() - self.began:6.1f} s  {what}", flush=True)

    def run(self, engines: bool = True) -> None:
        """Builds and times everything; without `engines`, torch and onnxruntime alone."""
        graphs = [self._graphs(size) for size in dict.fromkeys(job.size for job in JOBS)]
        waiting = [job for job in JOBS if engines or job.worker != "engines"]
        while waiting and time.time() < self.deadline:
            busy = sum(not each.built for each in self.running)
            ready = next((job for job in waiting if self._ready(job)), None)
            if ready and (busy < self.workers or ready.worker == "ort"):
                waiting.remove(ready)
                self.running.append(self._start(ready))
            elif not ready and all(process.poll() is not None for process in graphs):
                break  # what is left has no graphs, and will get none
            time.sleep(0.05)
        self.say(f"{len(self.running)} jobs started, {len(waiting)} left out")
        while not all(each.built for each in self.running) and time.time() < self.deadline + 20:
            time.sleep(0.05)
        for each in self.running:
            if not each.built:  # still inside one build: it would disturb the timing
                self.say(f"{each.job.name}: stopped, still building")
                each.process.kill()
        order = list(BACKENDS)
        for each in sorted(self.running, key=lambda each: order.index(each.job.worker)):
            self._turn(each)
            self.write()
        for process in (*graphs, *(each.process for each in self.running)):
            if process.poll() is None:
                process.kill()
        self.write()

    def _ready(self, job: Job) -> bool:
        folder = self.work / job.size
        return all((folder / name).exists()
                   for name in ("reference.npy", *(f"{name}.b{job.batch}.onnx" for name in job.graphs)))

    def _graphs(self, size: str) -> subprocess.Popen:
        folder = os.environ.get(f"VIT_{size.upper()}")
        command = [sys.executable, "-m", "bench.h200.trt_graphs", str(self.work), size, *([folder] if folder else [])]
        return subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=(self.out / f"graphs.{size}.log").open("w"))

    def _start(self, job: Job) -> Running:
        variants = {name: asdict(VARIANTS[name]) for name in job.variants} if job.worker != "torch" else {
            f"{precision}-{how}": {"precision": precision} for precision in job.variants
            for how in ("eager", "compiled")}
        facts = {"name": job.name, "model": MODELS[job.size], "batch": job.batch, "backend": BACKENDS[job.worker],
                 "variants": variants, "work": str(self.work), "folder": str(self.work / job.size),
                 "out": str(self.out), "deadline": self.deadline, "end": self.end, "seconds": 0.15,
                 "profile": job.worker == "engines" and job.batch == 32 and job.size == "s"}
        file = self.out / f"job.{job.name}.json"
        file.write_text(json.dumps(facts))
        python = shlex.split(os.environ["TRT_PYTHON"]) if job.worker == "engines" else [sys.executable]
        env = {**os.environ, "CUDA_MODULE_LOADING": "LAZY", "TORCHINDUCTOR_COMPILE_THREADS": "4"}
        if job.worker == "ort" and "ORT_SITE" in env:
            env["PYTHONPATH"] = f"{env['ORT_SITE']}:{env.get('PYTHONPATH', '')}"
            env["LD_LIBRARY_PATH"] = f"{env.get('NVIDIA_LIBRARIES', '')}:{env.get('LD_LIBRARY_PATH', '')}"
        module = "bench.h200.trt_engines" if job.worker == "engines" else "bench.h200.trt_rivals"
        log = (self.out / f"log.{job.name}.txt").open("w")
        self.say(f"start {job.name}")
        return Running(job, subprocess.Popen([*python, "-m", module, str(file)], stdout=log, stderr=log, env=env),
                       self.out / f"turn.{job.name}")

    def _turn(self, each: Running) -> None:
        if each.process.poll() is not None or time.time() > self.end:
            self.say(f"{each.job.name}: no turn ({'ended' if each.process.poll() is not None else 'out of time'})")
            return
        Path(f"{each.turn}.go").touch()
        try:
            each.process.wait(min(TURN_SECONDS, max(self.end - time.time(), 1)))
        except subprocess.TimeoutExpired:
            each.process.kill()
        self.say(f"{each.job.name}: had its turn")

    def write(self) -> None:
        """OUT/trt_h200.json: every row there is so far, each held against FP16 as exported, and gated."""
        rows: list[Row] = []
        for job in JOBS:
            path = self.out / f"rows.{job.name}.json"
            if path.exists():
                rows += json.loads(path.read_text())
        command = " ".join(["python3", "bench/h200/trt.py", *sys.argv[1:]])
        save(Results("trt_h200", command, str(self.env["commit"]), self.env, told(rows)), self.out / "trt_h200.json")


def tensorrt_starts() -> str:
    """Why TensorRT makes no builder here, in its own words; "" if it does."""
    code = "import tensorrt; tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))"
    done = subprocess.run([*shlex.split(os.environ["TRT_PYTHON"]), "-c", code], capture_output=True, text=True)
    return " ".join((done.stdout + done.stderr).split())[:300] if done.returncode else ""


def told(rows: list[Row]) -> list[Row]:
    """The rows with `gate` and, within each backend, model and batch, `vs_fp16`: how many times faster than FP16."""
    plain = {"tensorrt-8.6": "fp16", "torch": "fp16-compiled", "onnxruntime-cuda": "ort-fp16"}
    base = {(row["backend"], row["model"], row["batch"]): row.get("latency_ms") for row in rows
            if row["variant"] == plain[row["backend"]]}
    for row in rows:
        fp16 = base.get((row["backend"], row["model"], row["batch"]))
        if row.get("latency_ms") and fp16:
            row["vs_fp16"] = fp16 / row["latency_ms"]
        if row.get("cosine_mean") is not None:
            mean, p1 = GATE[row["precision"]]
            row["gate"] = "passed" if row["cosine_mean"] >= mean and row["cosine_p1"] >= p1 else "failed"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=260)
    parser.add_argument("--workers", type=int, default=7)
    options = parser.parse_args()
    sitting = Sitting(options.work.resolve(), options.out.resolve(), options.seconds, options.workers)
    starts = tensorrt_starts()
    sitting.say(f"TensorRT: {starts or 'starts'}")
    sitting.run(engines=not starts)


if __name__ == "__main__":
    main()
