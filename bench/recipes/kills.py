"""Kills commands at random moments and at every file operation, resumes them, and compares.

    python -m bench.recipes.kills --out bench/results/kills.json [--trials 50] [--stages train …]

Each trial is a fork of one warm process, on a CPU. It starts from copies of the files that its
stage starts from, dies by SIGKILL, and the same command runs again: every file must be as an
uninterrupted command writes it, bit for bit but for times. Random kills meet a checkpoint at every
step. Rows that OUT has of other stages stay.
"""
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import vega3d
from records import manifest
from records.environment import environment
from records.options import RecipeParser
from records.results import Row, load, measured, save

CONFIG = """
name: {name}
device: cpu
scenes: {{train: {clips}, test: {clips}, clips_per_room: 1, frames: {frames}, workers: 0}}
teacher: {{tap: {{seeds: 1}}, heads: {{epochs: 2, batch: 2, width: 8}}, controls: []}}
student: {{model: {{depth: 1}}, init: scratch, epochs: 2, batch: 2}}
heads: {{steps: 2, batch: 2, init: scratch, width: 16, descriptor_dim: 8}}
"""
# what the commands import, so that no trial does
WARM = ("tyro", "distill.stages", "teacher.probing.tap_search", "scenes.rooms.writer")
WARM_EXPORT = ("nncf", "export.tensorrt.engines", "export.tensorrt.int8_verdict", "bench.run")
WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate"}
TIMES = {"build_seconds", "seconds", "mtime_ns"}  # fields that differ between equal commands
TIMED = {"latency", "preprocess", "findings"}  # kinds of rows that are measurements of time
LIMIT_SECONDS = 300.0                           # for a resumed command


@dataclass(frozen=True)
class Stage:
    """A command, the folder that it writes, and the finished files that it starts from."""
    command: str
    writes: str
    starts_from: tuple[str, ...] = ()
    needs: str | None = None  # the stage that finishes those files


STAGES = {
    "render": Stage("scenes render --n 6 --frames 2 --size 64 --workers 0 --out clips", "clips"),
    "rooms": Stage("distill run --config small.yaml", "runs"),
    "extract": Stage("distill run --config small.yaml", "runs/small", ("runs/cache",), "rooms"),
    "train": Stage("distill run --config small.yaml", "runs/small",
                   ("runs/cache", "runs/small/config.yaml", "runs/small/features"), "rooms"),
    "large": Stage("distill run --config large.yaml", "runs"),
    "export": Stage("export trt --run runs/large --sm 86", "runs/large/export", ("runs",), "large"),
    "bench": Stage("bench --run runs/large --out out --seconds 0.02 --iterations 2 --rounds 2 "
                   "--no-memory --no-teacher", "out", ("runs",), "export"),
}


class Trials:
    """Runs commands in `root`/trial; `root`/finished/STAGE has the files of uninterrupted ones."""

    def __init__(self, root: Path):
        self.folder, self.finished, self.log = root / "trial", root / "finished", root / "log"
        self.seconds: dict[str, float] = {}

    def prepare(self, name: str) -> None:
        """Runs the stage, and those it needs, without an interruption, once."""
        stage = STAGES[name]
        if name in self.seconds:
            return
        if stage.needs:
            self.prepare(stage.needs)
        self.begin(stage)
        began = time.monotonic()
        if code := self.run(stage):
            raise RuntimeError(f"{stage.command}: exit code {code}; see {self.log}")
        self.seconds[name] = time.monotonic() - began
        shutil.copytree(self.folder, self.finished / name, symlinks=True)

    def begin(self, stage: Stage) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for name, clips, frames in (("small", 2, 1), ("large", 7, 5)):
            text = CONFIG.format(name=name, clips=clips, frames=frames)
            (self.folder / f"{name}.yaml").write_text(text)
        for name in stage.starts_from:
            source, target = self.finished / str(stage.needs) / name, self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True)
            else:
                shutil.copy2(source, target)

    def run(self, stage: Stage, kill_at: int = 0, seconds: float = LIMIT_SECONDS) -> int | None:
        """The exit code of a fork that runs the command, -9 if it was killed: at the file operation
        `kill_at`, or after `seconds`."""
        process = get_context("fork").Process(target=self._command, args=(stage, kill_at))
        process.start()
        process.join(seconds)
        process.kill()  # does nothing to one that has ended
        process.join()
        return process.exitcode

    def _command(self, stage: Stage, kill_at: int) -> None:
        os.chdir(self.folder)
        with self.log.open("w") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        if kill_at:
            sys.addaudithook(_KillAt(kill_at, self.folder))
        vega3d.main(stage.command.split())

    def trial(self, name: str, kill_at: int = 0, seconds: float = LIMIT_SECONDS) -> Row | None:
        """What a kill left and what the same command made of it; None if it ended before."""
        stage = STAGES[name]
        self.begin(stage)
        if self.run(stage, kill_at, seconds) != -signal.SIGKILL:
            return None
        made, finished = (top / stage.writes for top in (self.folder, self.finished / name))
        partial = list(_partial(made, finished))
        code = self.run(stage)
        differing = list(_differences(made, finished))
        if partial or code or differing:
            print(f"{name}, operation {kill_at}, {seconds:.2f} s: partial {partial}, "
                  f"exit code {code}, differing {differing}", flush=True)
        return {"partial": bool(partial), "stuck": bool(code),
                "resumed_equal": not code and not differing}


class _KillAt:
    """An audit hook: SIGKILL before the n-th operation that changes files below a folder."""

    def __init__(self, number: int, folder: Path):
        self.left, self.folder = number, str(folder)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            writes = event in WRITES
        if writes and not isinstance(arguments[0], int):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            self.left -= path.startswith(self.folder)
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)


def _files(top: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(top.rglob("*")):
        if not path.is_dir():
            yield str(path.relative_to(top)), path


def _partial(made: Path, finished: Path) -> Iterator[str]:
    """Files with a final name that are neither absent nor complete."""
    for name, path in _files(made):
        if "/.vega3d-" in f"/{name}" or ".ckpt." in name:
            continue
        try:
            content = _comparable(path)
        except ValueError:
            yield name
            continue
        if isinstance(content, bytes) and path.suffix != ".html":
            other = finished / name
            if not other.is_file() or other.read_bytes() != content:
                yield name


def _differences(made: Path, finished: Path) -> Iterator[str]:
    """Files that only one folder has, that differ in more than times, or from the manifest."""
    yield from manifest.faults(made)
    ours, theirs = dict(_files(made)), dict(_files(finished))
    yield from sorted(ours.keys() ^ theirs.keys())
    for name in sorted(ours.keys() & theirs.keys()):
        if not name.endswith(".html") and _comparable(ours[name]) != _comparable(theirs[name]):
            yield name


def _comparable(path: Path) -> Any:
    """Bytes, or of JSON its content without times. Raises ValueError if that is broken."""
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix != ".json":
        return path.read_bytes()
    content = _timeless(json.loads(path.read_text()))
    if path.name == manifest.STATUS:
        return content["state"]
    if "vega3d_manifest" in content:  # its digests are of files with times; `faults` checks them
        return sorted(content["files"])
    if path.name == "results.json":
        content = [row if row["kind"] not in TIMED else row["kind"] for row in content["rows"]]
    return content


def _timeless(content: Any) -> Any:
    if isinstance(content, list):
        return [_timeless(item) for item in content]
    if isinstance(content, dict):
        return {key: _timeless(value) for key, value in content.items() if key not in TIMES}
    return content


def random_kills(trials: Trials, name: str, count: int, seed: int) -> Row:
    """`count` kills at times drawn evenly from those that the command takes."""
    draw = random.Random(f"{name} {seed}")
    done: list[Row] = []
    while len(done) < count:
        row = trials.trial(name, seconds=draw.uniform(0, trials.seconds[name]))
        done += [row] if row else []
    return _summed(name, "random moment", done)


def kills_at_operations(trials: Trials, name: str, every: int) -> Row:
    """A kill at each `every`-th operation that changes a file, from the first to the last."""
    done: list[Row] = []
    while row := trials.trial(name, kill_at=1 + every * len(done)):
        done.append(row)
    return _summed(name, "file operation", done)


def _summed(name: str, kill: str, rows: Sequence[Row]) -> Row:
    counts = {key: sum(row[key] for row in rows) for key in ("partial", "stuck", "resumed_equal")}
    return {"stage": name, "kill": kill, "trials": len(rows), **counts}


def main() -> None:
    parser = RecipeParser("kills", __doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=50, help="random kills of each stage")
    parser.add_argument("--stages", nargs="*", default=["render", "extract", "train", "export",
                                                        "bench"], choices=STAGES)
    parser.add_argument("--operations", nargs="*", default=["extract", "export"], choices=STAGES)
    parser.add_argument("--every", type=int, default=1, help="file operation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # and so no threads, which a fork would lose
    checkpoint = importlib.import_module("teacher.training.checkpoint")
    exports = {"export", "bench"} & {*options.stages, *options.operations}
    for module in WARM + WARM_EXPORT * bool(exports):
        importlib.import_module(module)
    with TemporaryDirectory() as scratch:
        trials, rows = Trials(Path(scratch)), []
        jobs: list[tuple[str, float, Callable[..., Row], tuple[int, ...]]] = [
            (name, 0.0, random_kills, (options.trials, options.seed)) for name in options.stages]
        jobs += [(name, 30.0, kills_at_operations, (options.every,)) for name in options.operations]
        for name, seconds, kills, how in jobs:
            checkpoint.SECONDS = seconds  # type: ignore[attr-defined]
            trials.prepare(name)
            rows.append(kills(trials, name, *how))
            _save(rows[-1], options.out)
    raise SystemExit(any(row["partial"] or row["resumed_equal"] < row["trials"] for row in rows))


def _save(row: Row, path: Path) -> None:
    """Replaces the row of the same stage and kind of kill, if the file has one."""
    print(row, flush=True)
    key = row["stage"], row["kill"]
    before = load(path).rows if path.is_file() else []
    rows = [*(other for other in before if (other["stage"], other["kill"]) != key), row]
    save(measured(path.stem, rows, environment()), path)


if __name__ == "__main__":
    vega3d.run_recipe(main)
