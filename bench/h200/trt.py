"""Bar 3 of INT8 on H100s or H200s: TensorRT 8.6 at FP32, FP16 and INT8, gated, beside torch and onnxruntime.

    trt.py WORK OUT [--seconds 580] [--timing 120] [--builders 16]       (trt.sh calls it and says what must lie where)

First engines are built, one process each and many at once on every visible GPU (trt_plan.py, the most important first);
meanwhile torch compiles. Then no more are built, and whatever there is to time gets its turn, one at a time on a GPU;
whoever else is on that GPU is stopped (SIGSTOP) meanwhile. OUT/trt_h100.json (or h200, as the card is) is written anew
whenever a process ends. SIGUSR1 ends the building and begins the timing; SIGTERM ends all and keeps what there is.
"""
import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.h200.trt_plan import BASE, BUILDS, JOBS, ORT, PLACES, TORCH, VARIANTS, Job
from bench.h200.trt_worker import BUILDING, LOADING
from records.environment import environment
from records.files import beside, write_json
from records.results import Results, save

MODELS = {"ti": "ViT-Ti", "s": "ViT-S", "b": "ViT-B"}
GATE = {"fp32": (0.9999, 0.999), "fp16": (0.999, 0.99), "bf16": (0.999, 0.99), "int8": (0.999, 0.99)}
BACKENDS = {"build": "tensorrt-8.6", "time": "tensorrt-8.6", "torch": "torch", "ort": "onnxruntime-cuda"}
MISSING = "not built in the time"
LAST_START = 30        # seconds before the timing after which no build is started
RIVALS = 2             # of torch and onnxruntime that get ready at once on a GPU
QUIET = 0.3            # seconds until what stopped processes had sent to the GPU is done
TURN_SECONDS = 60      # a turn that takes longer has hung
Row = dict[str, Any]


@dataclass
class Running:
    job: Job
    gpu: str
    process: subprocess.Popen
    turn: Path
    turn_began: float = 0.0  # 0: it is not its turn

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def ready(self) -> bool:
        """It waits for its turn."""
        return not self.turn_began and Path(f"{self.turn}.ready").exists()


class Sitting:
    def __init__(self, work: Path, out: Path, seconds: float, timing: float = 120, builders: int = 16,
                 wait: float = 240, carry: Path | None = None, places: Sequence[tuple[str, int]] = PLACES):
        self.places = [place for place in PLACES if place in places]
        self.work, self.out, self.builders, self.carry, self.gpus = work, out, builders, carry, visible_gpus()
        self.began = time.time()
        self.end, self.quiet, self.wait = self.began + seconds, self.began + seconds - timing, self.began + wait
        self.env = {**environment(), "gpus": len(self.gpus), "builders_per_gpu": builders,
                    "timed": "one at a time on a GPU, after all building"}
        self.name = f"trt_{card(self.env)}"
        self.running: list[Running] = []
        self.builds = [job for job in BUILDS if (job.size, job.batch) in self.places]
        self.others = [job for job in JOBS if (job.size, job.batch) in self.places or job.worker == "jetson"]
        self.makers: list[subprocess.Popen] = []
        self.students: dict[str, str | None] = {}  # whose graphs are being made: the folder of its weights
        out.mkdir(parents=True, exist_ok=True)

    def say(self, what: str) -> None:
        print(f"{time.time() - self.began:6.1f} s  {what}", flush=True)

    def time_now(self, *_: object) -> None:
        """Ends the building; the timing keeps its length."""
        early = max(0.0, self.quiet - time.time())
        self.quiet, self.end = self.quiet - early, self.end - early

    def run(self) -> None:
        """Builds and times everything; without a TensorRT that starts, torch and onnxruntime alone."""
        try:
            self._make_graphs()
            if self.carry:
                self._maker("jetson", "bench.h200.trt_jetson", self.carry, self.work, self.work / "jetson")
            if said := tensorrt_starts():  # while graphs are being written
                self.builds = []
                self.others = [job for job in self.others if job.worker in ("torch", "ort")]
            self.say(f"TensorRT: {said or 'starts'}; {len(self.gpus)} GPUs, {self.builders} builders on each")
            self.write()
            self._build()
            self._time()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for each in self.running:
                self.say(f"{each.job.name}: stopped")
            for process in (*self.makers, *(each.process for each in self.running)):
                if process.poll() is None:
                    process.kill()
                    process.wait()
            self._jetson_result()
            self.write()
            self.say(f"{len(self.builds)} engines never begun; wrote {self.name}.json")

    def _build(self) -> None:
        while time.time() < self.quiet and (self.builds or self._here("build")):
            self._make_graphs()
            self._start_builds()
            self._start_others()
            self._reap()
            if not self._here("build"):
                if time.time() > self.quiet - LAST_START:
                    return
                if len(self.students) == len(MODELS) and self._made:
                    self.builds = [job for job in self.builds if self._ready(job)]  # the others' will never come
            time.sleep(0.05)

    def _time(self) -> None:
        """Ends all building and gives out the turns, until nobody wants one or the time is up."""
        for each in self._here("build"):
            self.say(f"{each.job.name}: not built in the time")
            each.process.kill()
            each.process.wait()
            self.running.remove(each)
        self.env["load_at_timing"] = round(os.getloadavg()[0], 1)
        self.say(f"timing; load {self.env['load_at_timing']}")
        while time.time() < self.end and (self.others or self.running):
            for gpu in self.gpus:
                self._take_turns([each for each in self.running if each.gpu == gpu])
            self._reap()
            self._start_others()
            if self._made or not self.running:
                self.others = [job for job in self.others if self._ready(job)]
            time.sleep(0.02)

    def _here(self, *workers: str) -> list[Running]:
        return [each for each in self.running if each.job.worker in workers]

    @property
    def _made(self) -> bool:
        return all(maker.poll() is not None for maker in self.makers)

    def _start_builds(self) -> None:
        """The next engines whose graph is there, on the GPU with fewer builders; experiments on half as many, so that
        what the table asks for is not held up."""
        if time.time() > self.quiet - LAST_START:
            return
        for job in [job for job in self.builds if self._ready(job)]:
            busy = {gpu: sum(each.gpu == gpu for each in self._here("build")) for gpu in self.gpus}
            gpu = min(busy, key=lambda gpu: busy[gpu])
            if busy[gpu] < (self.builders if job.variants[0] in BASE else self.builders // 2):
                self.builds.remove(job)
                self._start(job, gpu)

    def _start_others(self) -> None:
        """Those that time, each place on one GPU: engines once there is one, a few of torch and onnxruntime at once."""
        for job in list(self.others):
            gpu = self._gpu(job)
            rivals = [each for each in self._here("torch", "ort") if each.gpu == gpu and not each.ready]
            timed = any(each.turn_began for each in self.running if each.gpu == gpu)
            if not timed and self._ready(job) and (job.worker in ("time", "jetson") or len(rivals) < RIVALS):
                self.others.remove(job)
                self._start(job, gpu)

    def _gpu(self, job: Job) -> str:
        if job.worker == "jetson":
            return self.gpus[-1]
        return self.gpus[PLACES.index((job.size, job.batch)) % len(self.gpus)]

    def _take_turns(self, here: list[Running]) -> None:
        """One at a time has a turn, in the plan's order; the others on its GPU stand still meanwhile."""
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
        asking = [each for each in here if each.ready and not each.ended]
        if asking:
            timed = min(asking, key=lambda each: JOBS.index(each.job))
            for each in here:
                if each is not timed and not each.ended:
                    each.process.send_signal(signal.SIGSTOP)
            time.sleep(QUIET)
            timed.turn_began = time.time()
            Path(f"{timed.turn}.go").touch()

    def _reap(self) -> None:
        for each in [each for each in self.running if each.ended and not each.turn_began]:
            self.running.remove(each)
            for end in ("ready", "go"):
                Path(f"{each.turn}.{end}").unlink(missing_ok=True)
            code = each.process.returncode
            self.say(f"{each.job.name}: {self._told(each.job) if not code else f'died, exit {code}'}")
            if code and self._spoilt(each.job, code) and each.job.worker == "time":
                self.others.insert(0, each.job)  # again, without the engine that killed it
            self.write()

    def _told(self, job: Job) -> str:
        """What a process that ended says for itself."""
        rows = self._rows(job)
        if job.worker != "build":
            return f"ended; {sum(row.get('latency_ms') is not None for row in rows)} timed"
        row = rows[0] if rows else {}
        return row.get("error") or f"built in {row.get('build_seconds')} s, cosine {row.get('cosine_mean', 0):.5f}"

    def _spoilt(self, job: Job, code: int) -> bool:
        """Says of a dead process' rows what it died of; whether there was one that it was building or loading."""
        rows = self._rows(job)
        fatal = [row for row in rows if row.get("error") in (BUILDING, LOADING)]
        for row in fatal:
            doing = "building" if row["error"] == BUILDING else "loading"
            row["error"] = f"its process died while {doing} it (exit {code})"
        if fatal:
            with beside(self.out / f"rows.{job.name}.json") as scratch:
                scratch.write_text(json.dumps(rows, indent=1))
        return bool(fatal)

    def _rows(self, job: Job) -> list[Row]:
        path = self.out / f"rows.{job.name}.json"
        return json.loads(path.read_text()) if path.exists() else []

    def _ready(self, job: Job) -> bool:
        """What it needs is there."""
        folder = self.work / job.size
        if job.worker == "jetson":
            return (self.work / "jetson").exists()
        if job.worker == "time":
            return any((folder / f"{name}.b{job.batch}.plan").exists() for name in job.variants)
        return all((folder / name).exists()
                   for name in ("reference.npy", *(f"{name}.b{job.batch}.onnx" for name in job.graphs)))

    def _make_graphs(self) -> None:
        """Of each student whose weights are known: a folder named by VIT_S may come later, but not too late."""
        for size in [size for size in MODELS if size not in self.students]:
            folder = os.environ.get(f"VIT_{size.upper()}")
            if folder and not Path(folder, "student.json").exists():
                if time.time() < self.wait:
                    continue
                self.say(f"{folder} never came: {MODELS[size]} is measured with random weights")
                folder = None
            self.students[size] = folder
            for _, batch in (place for place in PLACES if place[0] == size):
                self._maker(f"graphs-{size}-b{batch}", "bench.h200.trt_graphs", self.work, size, batch,
                            *([folder] if folder else []))

    def _maker(self, name: str, module: str, *arguments: object) -> None:
        self.say(f"start {name}")
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": self.gpus[len(self.makers) % len(self.gpus)],
               "OMP_NUM_THREADS": "4"}
        log = (self.out / f"log.{name}.txt").open("w")
        command = [sys.executable, "-m", module, *map(str, arguments)]
        self.makers.append(subprocess.Popen(command, stdout=log, stderr=log, env=env))

    def _start(self, job: Job, gpu: str) -> None:
        folder = self.students.get(job.size)
        weights = "distilled in this sitting" if folder else "shipped" if job.size == "ti" else "random"
        facts = {"name": job.name, "model": MODELS[job.size], "weights": weights, "student": folder,
                 "batch": job.batch, "backend": BACKENDS.get(job.worker, job.worker),
                 "variants": {name: settings(job, name) for name in job.variants}, "work": str(self.work),
                 "folder": str(self.work / job.size), "out": str(self.out), "end": self.end, "seconds": 0.15,
                 "profile": job.worker == "time" and job.batch == 32}
        file = self.out / f"job.{job.name}.json"
        file.write_text(json.dumps(facts))
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "CUDA_MODULE_LOADING": "LAZY",
               "TORCHINDUCTOR_COMPILE_THREADS": "4", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        if job.worker == "ort" and "ORT_SITE" in env:
            env["PYTHONPATH"] = f"{env['ORT_SITE']}:{env.get('PYTHONPATH', '')}"
            env["LD_LIBRARY_PATH"] = f"{env.get('NVIDIA_LIBRARIES', '')}:{env.get('LD_LIBRARY_PATH', '')}"
        command = {"build": [*tensorrt_python(), "-m", "bench.h200.trt_engines", "build"],
                   "time": [*tensorrt_python(), "-m", "bench.h200.trt_engines", "time"],
                   "jetson": [*tensorrt_python(), "-m", "bench.h200.trt_jetson_run"]
                   }.get(job.worker, [sys.executable, "-m", "bench.h200.trt_rivals"])
        if job.worker in ("build", "jetson"):
            command = ["nice", "-n", "5", *command]  # whoever times or trains beside goes first
        log = (self.out / f"log.{job.name}.txt").open("a")
        self.say(f"start {job.name} on GPU {gpu}")
        process = subprocess.Popen([*command, str(file)], stdout=log, stderr=log, env=env)
        self.running.append(Running(job, gpu, process, self.out / f"turn.{job.name}"))

    def _jetson_result(self) -> None:
        """What the Jetson's own script left, with the card it ran on."""
        path = self.work / "jetson" / "result.json"
        if path.exists():
            result = json.loads(path.read_text())
            result["env"] |= {"gpu": self.env.get("gpu"), "timed": "alone on its GPU, after building beside others"}
            write_json(result, self.out / "trt_jetson.json")

    def write(self) -> None:
        """OUT/trt_CARD.json: every row there is so far, held against FP16 and gated, and a row for what is missing."""
        rows = merged([*kept(self.out), *(row for job in (*BUILDS, *JOBS) for row in self._rows(job))])
        command = " ".join(["python3", "bench/h200/trt.py", *sys.argv[1:]])
        told_rows = told([*rows, *missing(rows, self.places)])
        save(Results(self.name, command, str(self.env["commit"]), self.env, told_rows), self.out / f"{self.name}.json")


def card(env: Row) -> str:
    """h100, h200: of the GPU's name, what tells result files apart."""
    names = [word.lower() for word in str(env.get("gpu", "")).split() if word.upper() not in ("NVIDIA", "GEFORCE")]
    return names[0] if names else "nogpu"


def merged(rows: list[Row]) -> list[Row]:
    """One row of what built an engine and what timed it."""
    found: dict[tuple, Row] = {}
    for row in rows:
        found.setdefault((row["backend"], row["model"], row["batch"], row["variant"]), {}).update(row)
    return list(found.values())


def keep(file: Path, sitting: Sitting) -> None:
    """Takes over an earlier file's places that are whole; one that lacks a variant is measured again, all in one run.

    Raises ValueError for a file of another card.
    """
    earlier = json.loads(file.read_text())
    if earlier["env"].get("gpu") != sitting.env.get("gpu"):
        raise ValueError(f"{file}: was measured on {earlier['env'].get('gpu')}, this is {sitting.env.get('gpu')}: "
                         "their rows do not go into one file")
    rows: list[Row] = []
    for job in [job for job in sitting.others if job.worker != "jetson"]:
        mine = [row for row in earlier["rows"] if (row["backend"], row["model"], row["batch"]) ==
                (BACKENDS[job.worker], MODELS[job.size], job.batch) and row["variant"] in job.variants
                and row.get("latency_ms") is not None]
        if len(mine) == len(job.variants):
            rows += [{"kept_from": earlier.get("commit"), **row} for row in mine]
            sitting.others.remove(job)
            if job.worker == "time":
                place = job.size, job.batch
                sitting.builds = [build for build in sitting.builds if (build.size, build.batch) != place]
    write_json(rows, sitting.out / "rows.kept.json")


def kept(out: Path) -> list[Row]:
    path = out / "rows.kept.json"
    return json.loads(path.read_text()) if path.exists() else []


def settings(job: Job, name: str) -> Row:
    return {"precision": name.split("-")[0]} if job.worker in ("torch", "jetson") else asdict(VARIANTS[name])


def missing(rows: list[Row], places: Sequence[tuple[str, int]] = PLACES) -> list[Row]:
    """A row with the reason for every piece of the bar's table (TensorRT's, torch's, onnxruntime's) that has none."""
    have = {(row["backend"], row["model"], row["batch"], row["variant"]) for row in rows}
    base = [Job(worker, *place, names) for worker, names in (("time", BASE), ("torch", TORCH), ("ort", ORT))
            for place in places]
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


def tensorrt_python() -> list[str]:
    return shlex.split(os.environ["TRT_PYTHON"])


def tensorrt_starts() -> str:
    """Why TensorRT makes no builder here, in its own words; "" if it does."""
    code = "import tensorrt; tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))"
    done = subprocess.run([*tensorrt_python(), "-c", code], capture_output=True, text=True)
    return " ".join((done.stdout + done.stderr).split())[:300] if done.returncode else ""


def told(rows: list[Row]) -> list[Row]:
    """The rows with `gate` and, within each backend, model and batch, how many times faster than FP16: `vs_fp16`,
    launched one by one, `graph_vs_fp16` as CUDA graphs."""
    plain = {"tensorrt-8.6": "fp16", "torch": "fp16-compiled", "onnxruntime-cuda": "ort-fp16"}
    halves = {(row["backend"], row["model"], row["batch"]): row for row in rows
              if row["variant"] == plain[row["backend"]]}
    base, graphs = ({place: row.get(field) for place, row in halves.items()} for field in ("latency_ms", "graph_ms"))
    for row in rows:
        fp16 = base.get(place := (row["backend"], row["model"], row["batch"]))
        if row.get("latency_ms") and fp16:
            row["vs_fp16"] = fp16 / row["latency_ms"]
        if row.get("graph_ms") and graphs.get(place):
            row["graph_vs_fp16"] = graphs[place] / row["graph_ms"]
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
    parser.add_argument("--seconds", type=float, default=580)
    parser.add_argument("--timing", type=float, default=120, help="the last seconds, in which nothing is built")
    parser.add_argument("--builders", type=int, default=16, help="on each GPU at once")
    parser.add_argument("--wait", type=float, default=240, help="seconds for the folder that VIT_S names")
    parser.add_argument("--carry", type=Path, help="what trt_carry.py made: the Jetson's script runs too")
    parser.add_argument("--keep", type=Path, help="an earlier result of this card: places that it has whole stay")
    parser.add_argument("--places", nargs="+", help="s32 ti32: only these students and batches; all without it")
    options = parser.parse_args()
    named = {f"{size}{batch}": (size, batch) for size, batch in PLACES}
    if unknown := set(options.places or ()) - set(named):
        parser.error(f"--places: got {', '.join(sorted(unknown))}, expected some of {', '.join(named)}")
    sitting = Sitting(options.work.resolve(), options.out.resolve(), options.seconds, options.timing, options.builders,
                      options.wait, options.carry.resolve() if options.carry else None,
                      [named[name] for name in options.places or named])
    if options.keep:
        keep(options.keep, sitting)
    signal.signal(signal.SIGUSR1, sitting.time_now)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what it started, and writes what there is
    sitting.run()


if __name__ == "__main__":
    main()
