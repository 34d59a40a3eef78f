"""What a job of trt.py shares: its file, its rows, its turn, how things are timed. numpy and Python 3.10 suffice."""
import json
import statistics
import time
from pathlib import Path

import numpy as np

ROUNDS = 10


class Job:
    """JOB.json: name, model, batch, backend, variants {name: settings}, folders, when building and all must end."""

    def __init__(self, path):
        facts = json.loads(path.read_text())
        self.name, self.model, self.batch, self.backend = (facts[k] for k in ("name", "model", "batch", "backend"))
        self.work, self.folder, self.out = (Path(facts[k]) for k in ("work", "folder", "out"))
        self.variants, self.deadline, self.seconds = facts["variants"], facts["deadline"], facts["seconds"]
        self.profile, self.end, self.rows = facts["profile"], facts["end"], {}

    def file(self, variant):
        return self.folder / f"{variant}.b{self.batch}.onnx"

    def plan(self, variant):
        return self.folder / f"{self.name}.{variant}.plan"

    def late(self):
        """No time left to build."""
        return time.time() > self.deadline

    def over(self):
        return time.time() > self.end

    def timed(self, calls, graphs):
        """Adds times to the rows: latency_ms of each launch by launch, graph_ms of those captured as CUDA graphs."""
        if calls and not self.over():
            for name, times in interleaved(calls, self.seconds).items():
                self.row(name, **times)
        if graphs and not self.over():
            for name, times in interleaved(graphs, self.seconds).items():
                self.row(name, graph_ms=times["latency_ms"])

    def row(self, variant, **facts):
        """Adds facts to a variant's row; the job's rows are on disk after every call."""
        precision = self.variants[variant]["precision"]
        self.rows.setdefault(variant, {"model": self.model, "precision": precision, "variant": variant,
                                       "backend": self.backend, "batch": self.batch}).update(facts)
        path = self.out / f"rows.{self.name}.json"
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(list(self.rows.values()), indent=1))
        scratch.replace(path)

    def wait(self):
        """Until trt.py gives the turn: everything is built, and nothing else uses the GPU."""
        turn = self.out / f"turn.{self.name}"
        Path(f"{turn}.ready").touch()
        while not Path(f"{turn}.go").exists():
            time.sleep(0.02)


def fidelity(reference, features):
    """Token cosine (mean, 1st percentile) and relative error of [N,D,h,w] features; NaN where they are not finite."""
    a, b = (x.reshape((*x.shape[:2], -1)).astype(np.float64) for x in (reference, features))  # [N,D,h*w]
    cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    if not np.isfinite(b).all():
        return {"cosine_mean": None, "cosine_p1": None, "relative_error": None, "error": "features are not finite"}
    return {"cosine_mean": float(cosine.mean()), "cosine_p1": float(np.percentile(cosine, 1)),
            "relative_error": float(np.linalg.norm(b - a) / np.linalg.norm(a))}


def interleaved(calls, seconds, warmup=20):
    """{name: median, p90, p99 of calls that return their milliseconds}, timed in turn so that drift hits all alike."""
    for call in calls.values():
        for _ in range(warmup):
            call()
    blocks = {name: max(3, min(40, int(1000 * seconds / ROUNDS / max(call(), 1e-3)))) for name, call in calls.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in calls}
    for i in range(ROUNDS):
        for name in list(calls) if i % 2 == 0 else list(calls)[::-1]:
            calls[name]()
            times[name].append([calls[name]() for _ in range(blocks[name])])
    told = {}
    for name, rounds in times.items():
        flat = [ms for block in rounds for ms in block]
        p50, p90, p99 = np.percentile(flat, [50, 90, 99])
        told[name] = {"latency_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99), "iterations": len(flat),
                      "round_spread": statistics.pstdev([statistics.median(block) for block in rounds]) / float(p50)}
    return told
