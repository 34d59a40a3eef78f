"""Runs the hostile corpus: python -m tests.hostile.run [--heavy] [--kind KIND] [--save FILE].

Every case runs vega3d.main in a forked process of its own, in an empty folder, with a limit on time
and memory. Prints a JSON line for each case that is not clean.
"""
import argparse
import gc
import importlib
import io
import json
import os
import resource
import signal
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from tests.hostile.case import Case

HERE = Path(__file__).parent
SECONDS = 60      # of CPU time
HANGS = 300       # seconds until a case that waits is killed
BYTES = 2 * 10**9  # more than the process has at its start
MAX_LINE = 1300  # characters
JOBS = 2
# a process that is forked has them already
PRELOADED = ("torch", "onnx", "tyro", "distill.stages", "bench.run", "bench.report.page",
             "bench.real.run", "bench.real.page",
             "export.pipeline", "infer.photos", "scenes.rooms.writer", "scenes.show",
             "teacher.language.train", *(f"{name}.cli" for name in
                                         ("scenes", "teacher", "distill", "export", "bench")))


def corpus(kinds: Sequence[str] = (), heavy: bool = False) -> list[Case]:
    """The cases of every corpus_*.py beside this file, by the functions listed in its CORPUS."""
    cases = []
    for path in sorted(HERE.glob("corpus_*.py")):
        for generate in importlib.import_module(f"tests.hostile.{path.stem}").CORPUS:
            cases += generate()
    return [case for case in cases
            if (not kinds or case.kind in kinds) and (heavy or not case.heavy)]


def faults(cases: Sequence[Case]) -> Iterator[tuple[Case, str]]:
    """Each case, as it ends, and what is wrong: "" if it is clean. Two run at a time."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would copy every page
    running: dict[int, tuple[Case, io.FileIO, float]] = {}
    todo = list(reversed(cases))
    while todo or running:
        while todo and len(running) < JOBS:
            case = todo.pop()
            report = tempfile.TemporaryFile("w+b", buffering=0)  # noqa: SIM115 (outlives the loop)
            if (pid := os.fork()) == 0:
                _child(case, report)
            running[pid] = case, report, time.monotonic() + HANGS
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            case, report, _ = running.pop(pid)
            report.seek(0)
            text = report.read().decode(errors="replace")
            yield case, (text.removeprefix("ran") if text.startswith("ran") else
                         f"the process died: status {status} {text}")
            continue
        for pid, (_, _, end) in running.items():
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def _child(case: Case, report: io.FileIO) -> None:
    """Runs the case and writes its fault behind the word "ran"."""
    try:
        with tempfile.TemporaryDirectory(prefix="vega3d-hostile-") as folder:
            os.chdir(folder)
            _limit()
            fault = _fault(case, Path(folder))
            os.chdir("/")
        report.write(f"ran{fault}".encode())
    except BaseException as error:
        report.write(f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(0)


def _limit() -> None:
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, used + SECONDS))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _fault(case: Case, folder: Path) -> str:
    import vega3d

    args = case.make(folder)
    before, code = _listing(folder), 0
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            vega3d.main(args)
        except SystemExit as stopped:
            code = stopped.code
    lines = err.getvalue().splitlines()
    last = lines[-1][:600] if lines else out.getvalue()[-300:]
    if code != case.code:
        return f"exit code {code}: {last}"
    if len(lines) != 1 or "Traceback" in err.getvalue() + out.getvalue():
        return f"{len(lines)} lines: {last}"
    said = case.says.replace("-", "_") in lines[0].replace("-", "_")  # option or key
    if len(lines[0]) > MAX_LINE or not said:
        return f"does not say {case.says!r}: {last}"
    if changed := sorted(set(before.items()) ^ set(_listing(folder).items())):
        return f"wrote {changed[0][0]}: {last}"
    return ""


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file; of folders, whose times change with a scratch file, zeros."""
    found = {}
    for path in folder.rglob("*"):
        facts = path.lstat()
        listed = (0, 0) if stat.S_ISDIR(facts.st_mode) else (facts.st_size, facts.st_mtime_ns)
        found[str(path.relative_to(folder))] = listed
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heavy", action="store_true")
    parser.add_argument("--kind", action="append", default=[])
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    from records.environment import environment

    env = environment()  # before the cases: the code may be committed to while they run
    tried: Counter[str] = Counter()
    clean: Counter[str] = Counter()
    for case, fault in faults(corpus(options.kind, options.heavy)):
        tried[case.kind] += 1
        clean[case.kind] += not fault
        if fault:
            print(json.dumps({"kind": case.kind, "name": case.name, "fault": fault}), flush=True)
    print(f"{clean.total()} of {tried.total()} cases clean", file=sys.stderr)
    if options.save:
        from records.results import measured, save

        rows = [{"kind": kind, "tried": count, "clean": clean[kind]}
                for kind, count in sorted(tried.items())]
        save(measured(options.save.stem, rows, env), options.save)
    raise SystemExit(clean != tried)


if __name__ == "__main__":
    main()
