"""Bar 3 of INT8 on H200s: TensorRT 8.6 at FP32, FP16 and INT8, beside torch and onnxruntime, gated, in one run.

    trt.py WORK OUT [--seconds 380] [--builders 3]       (trt.sh calls it and says what must lie where)

Every visible GPU takes jobs (trt_plan.py), the most important first: some processes build engines, one more has torch
or onnxruntime. Whatever has something to time gets a turn: the others on its GPU are stopped (SIGSTOP) meanwhile.
OUT/trt_h200.json is written anew after every turn. A process that dies is started again with what it had left.
"""
import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.h200.trt_plan import BASE, JOBS, ORT, TORCH, VARIANTS, Job
from bench.h200.trt_worker import BUILDING
from records.environment import environment
from records.files import beside
from records.results import Results, save

MODELS = {"ti": "ViT-Ti", "s": "ViT-S", "b": "ViT-B"}
GATE = {"fp32": (0.9999, 0.999), "fp16": (0.999, 0.99), "bf16": (0.999, 0.99), "int8": (0.999, 0.99)}
BACKENDS = {"engines": "tensorrt-8.6", "torch": "torch", "ort": "onnxruntime-cuda"}
MISSING = "not built in the time"
LAST_START = 20        # seconds before the end after which no build is started
QUIET = 0.3            # seconds until what stopped processes had sent to the GPU is done
TURN_SECONDS = 20      # a turn that takes longer has hung
Row = dict[str, Any]


@dataclass
class Running:
    job: Job
    gpu: str
    process: subprocess.Popen
    turn: Path
    left: list[str]          # variants that it was started with
    turn_began: float = 0.0  # 0: it is not its turn

    @property
    def builds(self) -> bool:
        return self.job.worker == "engines"

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def wants_a_turn(self) -> bool:
        return not self.turn_began and Path(f"{self.turn}.ready").exists()


class Sitting:
    def __init__(self, work: Path, out: Path, seconds: float, builders: int):
        self.work, self.out, self.builders, self.gpus = work, out, builders, visible_gpus()
        self.began = time.time()
        self.end = self.began + seconds
        self.env = {**environment(), "gpus": len(self.gpus), "builders_per_gpu": builders}
        self.running: list[Running] = []
        out.mkdir(parents=True, exist_ok=True)

    def say(self, what: str) -> None:
        print(f"{time.time() - self.began:6.1f} s  {what}", flush=True)

    def run(self) -> None:
        """Builds and times everything; without a TensorRT that starts, torch and onnxruntime alone."""
        graphs = [self._graphs(size) for size in dict.fromkeys(job.size for job in JOBS)]
        starts = tensorrt_starts()  # while graphs are being written
        self.say(f"TensorRT: {starts or 'starts'}; {len(self.gpus)} GPUs, {self.builders} builders on each")
        waiting = [job for job in JOBS if self._left(job) and (not starts or job.worker != "engines")]
        self.write()
        try:
            while (waiting or self.running) and time.time() < self.end:
                self._start_some(waiting)
                for gpu in self.gpus:
                    self._take_turns([each for each in self.running if each.gpu == gpu])
                for each in [each for each in self.running if each.ended]:
                    self._ended(each, waiting)
                if not self.running and all(graph.poll() is not None for graph in graphs):
                    waiting = [job for job in waiting if self._ready(job)]  # the others' graphs will never come
                time.sleep(0.05)
        finally:
            for each in self.running:
                self.say(f"{each.job.name}: stopped")
            for process in (*graphs, *(each.process for each in self.running)):
                if process.poll() is None:
                    process.kill()
                    process.wait()
            self.say(f"{len(waiting)} jobs never started")
            self.write()

    def _start_some(self, waiting: list[Job]) -> None:
        """Each GPU: `builders` building processes, and one of torch or onnxruntime; no new one during a turn."""
        for gpu in self.gpus:
            here = [each for each in self.running if each.gpu == gpu]
            for building, most in ((True, self.builders), (False, 1)):
                job = next((job for job in waiting if (job.worker == "engines") == building and self._ready(job)), None)
                if (job and sum(each.builds == building for each in here) < most
                        and not any(each.turn_began for each in here) and time.time() < self.end - LAST_START):
                    waiting.remove(job)
                    self.running.append(self._start(job, gpu))

    def _take_turns(self, here: list[Running]) -> None:
        """One at a time has a turn; the others on its GPU stand still meanwhile."""
        timed = next((each for each in here if each.turn_began), None)
        if timed:
            hung = time.time() - timed.turn_began > TURN_SECONDS
            if hung:
                timed.process.kill()
                timed.process.wait()
            if hung or timed.ended or not Path(f"{timed.turn}.go").exists():
                timed.turn_began = 0.0
                self.say(f"{timed.job.name}: {'hung in' if hung else 'had'} its turn")
                for each in here:
                    if not each.ended:
                        each.process.send_signal(signal.SIGCONT)
                self.write()
            return
        timed = next((each for each in here if each.wants_a_turn and not each.ended), None)
        if timed:
            for each in here:
                if each is not timed and not each.ended:
                    each.process.send_signal(signal.SIGSTOP)
            time.sleep(QUIET)
            timed.turn_began = time.time()
            Path(f"{timed.turn}.go").touch()

    def _ended(self, each: Running, waiting: list[Job]) -> None:
        """Forgets a process that ended; if it died, its job waits again, first in line, without what killed it."""
        self.running.remove(each)
        for end in ("ready", "go"):
            Path(f"{each.turn}.{end}").unlink(missing_ok=True)
        if not each.process.returncode:
            self.say(f"{each.job.name}: ended")
            return
        path = self.out / f"rows.{each.job.name}.json"
        if path.exists():
            rows = json.loads(path.read_text())
            for row in rows:
                if row.get("error") == BUILDING:
                    row["error"] = f"its process died while building it (exit {each.process.returncode})"
            with beside(path) as scratch:
                scratch.write_text(json.dumps(rows, indent=1))
        left = self._left(each.job)
        self.say(f"{each.job.name}: died, exit {each.process.returncode}; left: {' '.join(left) or 'nothing'}")
        if left and len(left) < len(each.left):  # it got further than at its last start
            waiting.insert(0, each.job)

    def _left(self, job: Job) -> list[str]:
        """Its variants that have no row yet."""
        path = self.out / f"rows.{job.name}.json"
        done = {row["variant"] for row in json.loads(path.read_text())} if path.exists() else set()
        return [name for name in job.variants if name not in done]

    def _ready(self, job: Job) -> bool:
        folder = self.work / job.size
        return all((folder / name).exists()
                   for name in ("reference.npy", *(f"{name}.b{job.batch}.onnx" for name in job.graphs)))

    def _graphs(self, size: str) -> subprocess.Popen:
        folder = os.environ.get(f"VIT_{size.upper()}")
        command = [sys.executable, "-m", "bench.h200.trt_graphs", str(self.work), size, *([folder] if folder else [])]
        return subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=(self.out / f"graphs.{size}.log").open("w"),
                                env={**os.environ, "CUDA_VISIBLE_DEVICES": self.gpus[-1]})

    def _start(self, job: Job, gpu: str) -> Running:
        left = self._left(job)
        facts = {"name": job.name, "model": MODELS[job.size], "batch": job.batch, "backend": BACKENDS[job.worker],
                 "variants": {name: settings(job, name) for name in left}, "work": str(self.work),
                 "folder": str(self.work / job.size), "out": str(self.out), "deadline": self.end - LAST_START,
                 "end": self.end, "seconds": 0.15,
                 "profile": job.worker == "engines" and job.batch == 32 and job.size == "s"}
        file = self.out / f"job.{job.name}.json"
        file.write_text(json.dumps(facts))
        python = shlex.split(os.environ["TRT_PYTHON"]) if job.worker == "engines" else [sys.executable]
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "CUDA_MODULE_LOADING": "LAZY",
               "TORCHINDUCTOR_COMPILE_THREADS": "4"}
        if job.worker == "ort" and "ORT_SITE" in env:
            env["PYTHONPATH"] = f"{env['ORT_SITE']}:{env.get('PYTHONPATH', '')}"
            env["LD_LIBRARY_PATH"] = f"{env.get('NVIDIA_LIBRARIES', '')}:{env.get('LD_LIBRARY_PATH', '')}"
        module = "bench.h200.trt_engines" if job.worker == "engines" else "bench.h200.trt_rivals"
        log = (self.out / f"log.{job.name}.txt").open("a")
        self.say(f"start {job.name} on GPU {gpu}")
        process = subprocess.Popen([*python, "-m", module, str(file)], stdout=log, stderr=log, env=env)
        return Running(job, gpu, process, self.out / f"turn.{job.name}", left)

    def write(self) -> None:
        """OUT/trt_h200.json: every row there is so far, held against FP16 and gated, and a row for what is missing."""
        rows: list[Row] = []
        for job in JOBS:
            path = self.out / f"rows.{job.name}.json"
            if path.exists():
                rows += json.loads(path.read_text())
        command = " ".join(["python3", "bench/h200/trt.py", *sys.argv[1:]])
        told_rows = told([*rows, *missing(rows)])
        save(Results("trt_h200", command, str(self.env["commit"]), self.env, told_rows), self.out / "trt_h200.json")


def keep(file: Path, out: Path) -> None:
    """Takes over an earlier file's jobs that are whole; one that lacks a variant is measured again, all in one run."""
    rows = json.loads(file.read_text())["rows"]
    out.mkdir(parents=True, exist_ok=True)
    for job in JOBS:
        mine = [row for row in rows if (row["backend"], row["model"], row["batch"]) ==
                (BACKENDS[job.worker], MODELS[job.size], job.batch) and row["variant"] in job.variants
                and row.get("latency_ms") is not None]
        if len(mine) == len(job.variants):
            (out / f"rows.{job.name}.json").write_text(json.dumps(mine, indent=1))


def settings(job: Job, name: str) -> dict[str, Any]:
    return {"precision": name.split("-")[0]} if job.worker == "torch" else asdict(VARIANTS[name])


def missing(rows: list[Row]) -> list[Row]:
    """A row with the reason for every piece of the bar's table (TensorRT's, torch's, onnxruntime's) that has none."""
    have = {(row["backend"], row["model"], row["batch"], row["variant"]) for row in rows}
    base = [job for job in JOBS if job.variants in (BASE, TORCH, ORT)]
    return [{"model": MODELS[job.size], "precision": settings(job, name)["precision"], "variant": name,
             "backend": BACKENDS[job.worker], "batch": job.batch, "error": MISSING}
            for job in base for name in job.variants
            if (BACKENDS[job.worker], MODELS[job.size], job.batch, name) not in have]


def visible_gpus() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, or all that the driver lists; one where nobody says."""
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except OSError:
        listed = ""
    return [str(i) for i in range(listed.count("GPU "))] or ["0"]


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
        if row.get("latency_ms") is None:
            row.setdefault("error", "built, but not timed in the time")
        if row.get("cosine_mean") is not None:
            mean, p1 = GATE[row["precision"]]
            row["gate"] = "passed" if row["cosine_mean"] >= mean and row["cosine_p1"] >= p1 else "failed"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=380)
    parser.add_argument("--builders", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="an earlier trt_h200.json: jobs that it has whole are not repeated")
    options = parser.parse_args()
    if options.keep:
        keep(options.keep, options.out)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what it started, and writes what there is
    Sitting(options.work.resolve(), options.out.resolve(), options.seconds, options.builders).run()


if __name__ == "__main__":
    main()
