"""Ctrl-C, SIGTERM, a closed terminal: a command saves, says one line, ends within LAST_SECONDS.

They raise `Interrupted` in the main thread; a thread ends a process that does not stop.
"""
from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

LAST_SECONDS = 8.0
VERBS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
if sys.platform != "win32":
    VERBS[signal.SIGHUP] = "hung up"


class Interrupted(KeyboardInterrupt):
    """The process received a signal to end. `code`: its exit code, 128 and the signal."""

    def __init__(self, number: int):
        super().__init__(f"{VERBS[signal.Signals(number)]}; the same command resumes")
        self.code = 128 + number


_deferring = 0
_pending: int | None = None


@contextmanager
def handled() -> Iterator[None]:
    """A block in which these signals raise Interrupted, unless the process ignores them."""
    global _pending
    if (threading.current_thread() is not threading.main_thread()
            or sys.platform == "win32"):  # no select of pipes; Ctrl-C is a KeyboardInterrupt there
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    numbers = [n for n in VERBS if signal.getsignal(n) is not signal.SIG_IGN]  # nohup ignores
    before = {n: signal.signal(n, _receive) for n in numbers}
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()
    try:
        yield
    except Exception as error:  # torch.onnx, for one, wraps what it catches
        check(error)
        raise
    finally:
        _pending = None
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(write)


@contextmanager
def deferred() -> Iterator[None]:
    """A block that no signal cuts: it raises at the end of it, or at `check`. Main thread only."""
    global _deferring
    _deferring += 1
    try:
        yield
    finally:
        _deferring -= 1
    if not _deferring:
        check()


def pending() -> bool:
    """Whether a signal came: in a deferred block, time to save."""
    return _pending is not None


def check(cause: Exception | None = None) -> None:
    """Raises Interrupted if a signal came."""
    if _pending is not None:
        raise Interrupted(_pending) from cause


def _receive(number: int, frame: FrameType | None) -> None:
    global _pending
    _pending = number
    if not _deferring:
        raise Interrupted(number)


def _watch(read: int) -> None:
    """Reads the numbers of signals until the other end closes; after one, waits and ends."""
    number, end = 0, None
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], end and max(0.0, end - time.monotonic()))[0]:
            if not (received := pipe.read(1)):
                return
            if end is None and received[0] in VERBS:
                number, end = received[0], time.monotonic() + LAST_SECONDS
    interrupted = Interrupted(number)
    with suppress(OSError, ValueError):  # stderr may be closed
        if int(os.environ.get("RANK") or 0) == 0:  # one of the processes of a launch says it
            print(f"vega3d: {interrupted}", file=sys.stderr, flush=True)
    os._exit(interrupted.code)
