"""What a job of trt.py shares: its file, its rows, its turn, how things are timed. numpy and Python 3.10 suffice."""
import json
import statistics
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROUNDS = 10
LOADING = "built, but its process died while loading it"
BUILDING = "not built in the time: it was being built when the time was up"


class Job:
    """JOB.json: name, model, weights, batch, backend, variants {name: settings}, folders, when all must end."""

    def __init__(self, path):
        facts = json.loads(path.read_text())
        self.name, self.model, self.batch, self.backend = (facts[k] for k in ("name", "model", "batch", "backend"))
        self.work, self.folder, self.out = (Path(facts[k]) for k in ("work", "folder", "out"))
        self.variants, self.seconds = facts["variants"], facts["seconds"]
        self.weights, self.student = facts["weights"], facts["student"]
        self.profile, self.end = facts["profile"], facts["end"]
        held = self.out / f"rows.{self.name}.json"  # of a process that died before this one
        self.rows = {row["variant"]: row for row in json.loads(held.read_text())} if held.exists() else {}

    def file(self, variant):
        return self.folder / f"{variant}.b{self.batch}.onnx"

    def plan(self, variant):
        """The engine that a building process leaves for the one that times it."""
        return self.folder / f"{variant}.b{self.batch}.plan"

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
        """Adds facts to a variant's row (an error of None takes it out); its rows are on disk after every call."""
        precision = self.variants[variant]["precision"]
        row = self.rows.setdefault(variant, {"model": self.model, "precision": precision, "variant": variant,
                                             "backend": self.backend, "batch": self.batch,
                                             "weights": self.weights})
        row.update(facts)
        if row.get("error", "") is None:
            del row["error"]
        path = self.out / f"rows.{self.name}.json"
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(list(self.rows.values()), indent=1))
        scratch.replace(path)

    @property
    def signals(self):
        """(ready, go): files by which it asks for its turn, and gets it; both are gone when the turn has ended."""
        return tuple(self.out / f"turn.{self.name}.{what}" for what in ("ready", "go"))

    @contextmanager
    def alone(self, meanwhile=lambda: None):
        """A turn: trt.py has stopped every other process on this GPU until the block ends.

        meanwhile: called again and again until then, and once more when its turn has come.
        """
        ready, go = self.signals
        ready.touch()
        while not go.exists():
            meanwhile()
            time.sleep(0.05)
        meanwhile()
        try:
            yield
        finally:
            ready.unlink()
            go.unlink()


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
