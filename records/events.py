"""What a running command does, for programs: JSON lines on stderr, and status.json of a run.

An event is a dictionary: `event` is start, stage, progress, metrics, log, error or end; `time` is
UTC. A progress event has stage, step, steps (None: unknown), rate (steps a second) and eta_s.
"""
from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

from records import manifest
from records.files import atomic_write

Event = dict[str, Any]
EVERY_S = 1.0  # between two progress events of a stage, and two writings of status.json
_receivers: list[Callable[[Event], None]] = []  # none without --log-json and outside a run
_lines: list[TextIO] = []  # where JSON lines go; none without --log-json


def emit(event: str, **facts: Any) -> None:
    for receive in tuple(_receivers):
        receive({"event": event, "time": _now(), **facts})


def received() -> bool:
    return bool(_receivers)


def as_lines() -> bool:
    """Whether stderr holds JSON lines: what is drawn there would break them."""
    return bool(_lines)


@contextmanager
def json_lines(arguments: Sequence[str], stream: TextIO) -> Iterator[None]:
    """A command whose events go to `stream`, with start and end; its text on stderr is `log`."""
    sent: dict[str, tuple[float, Any]] = {}  # by stage: the time and step of its last event

    def receive(event: Event) -> None:
        if event["event"] == "progress":
            last, step = sent.get(event["stage"], (-EVERY_S, None))
            early = time.monotonic() - last < EVERY_S and event["step"] != event["steps"]
            if early or event["step"] == step:
                return
            sent[event["stage"]] = time.monotonic(), event["step"]
        with suppress(OSError, ValueError):  # the reader went away
            stream.write(json.dumps(event, default=str) + "\n")
            stream.flush()

    begin, code = time.monotonic(), 0
    with _added(receive), redirect_stderr(_LogLines()):
        _lines.append(stream)
        try:
            emit("start", command=" ".join(["vega3d", *arguments]), pid=os.getpid())
            yield
        except BaseException as error:
            code = getattr(error, "code", 1) or 0  # of SystemExit
            raise
        finally:
            sys.stderr.flush()
            emit("end", code=code, seconds=round(time.monotonic() - begin, 3))
            _lines.pop()


@contextmanager
def status_file(folder: Path) -> Iterator[None]:
    """folder/status.json: state, stage, step, steps, rate, eta_s, updated and pid.

    Replaced atomically: at progress at most once a second, and at the end. state: running,
    finished or stopped; a killed process leaves running, and a pid that is gone.
    """
    if int(os.environ.get("RANK", "0")):  # accelerate launch: one process writes
        yield
        return
    fields = ("stage", "step", "steps", "rate", "eta_s")
    status = {"state": "running", **dict.fromkeys(fields), "pid": os.getpid()}
    written = -EVERY_S

    def write() -> None:
        text = json.dumps({**status, "updated": _now()}, indent=1) + "\n"
        # a full disk stops the run where its results are written
        with suppress(OSError), atomic_write(folder / manifest.STATUS, listed=False) as scratch:
            scratch.write_text(text)

    def receive(event: Event) -> None:
        nonlocal written
        if event["event"] == "progress":
            status.update((key, event[key]) for key in fields)
            if time.monotonic() - written >= EVERY_S:
                written = time.monotonic()
                write()

    try:
        with _added(receive):
            yield
        status["state"] = "finished"
    except BaseException:
        status["state"] = "stopped"
        raise
    finally:
        write()


@contextmanager
def _added(receive: Callable[[Event], None]) -> Iterator[None]:
    _receivers.append(receive)
    try:
        yield
    finally:
        _receivers.remove(receive)


class _LogLines(io.TextIOBase):
    """A text stream whose lines become events of kind `log`."""

    def __init__(self) -> None:
        self.rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).replace("\r", "\n").split("\n")
        for line in filter(str.strip, lines):
            emit("log", message=line.rstrip())
        return len(text)

    def flush(self) -> None:
        if self.rest.strip():
            emit("log", message=self.rest.rstrip())
        self.rest = ""


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
