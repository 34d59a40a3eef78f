"""Processes side by side, each with one job at a time: what fails, hangs or is killed in one leaves the others alone.

Unlike a process pool, a process that has failed is replaced, since a CUDA error would fail all that came after it.
"""
import multiprocessing
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from language_tables import say

TRIES = 2  # of a job
_SPAWN = multiprocessing.get_context("spawn")


class Slots:
    """count processes that call begin(index) once; `run` and `everywhere` then call module-level functions in them."""

    def __init__(self, count: int, begin: Callable[[int], None]):
        self._slots = [_Slot(index, begin) for index in range(count)]

    def everywhere(self, function: Callable, until: float) -> list[Any]:
        """function() in every process at the same time; what failed is logged and left out."""
        answers: list[Any] = []
        self._threads(lambda slot: answers.append(slot.ask(function, (), until)))
        return answers

    def run(self, function: Callable, jobs: Sequence[tuple], until: float) -> None:
        """function(*job) of each, in order as processes get free; a string it returns is logged. No job starts after
        `until`, and none is waited for longer."""
        waiting: queue.SimpleQueue[tuple[int, tuple]] = queue.SimpleQueue()
        for job in jobs:
            waiting.put((1, job))

        def work(slot: "_Slot") -> None:
            while time.monotonic() < until:
                try:
                    number, job = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    say(str(slot.ask(function, job, until)))
                except Exception:
                    say(f"{job} failed, try {number} of {TRIES}:\n{traceback.format_exc()}")
                    if number < TRIES:
                        waiting.put((number + 1, job))

        self._threads(work)

    def close(self) -> None:
        for slot in self._slots:
            slot.end()

    def _threads(self, work: Callable[["_Slot"], Any]) -> None:
        def safely(slot: "_Slot") -> None:
            try:
                work(slot)
            except Exception:
                say(f"process {slot.index} failed:\n{traceback.format_exc()}")

        threads = [threading.Thread(target=safely, args=(slot,)) for slot in self._slots]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class _Slot:
    """One process, started when it is first asked."""

    def __init__(self, index: int, begin: Callable[[int], None]):
        self.index, self._begin = index, begin
        self._process: Any = None
        self._pipe: Connection | None = None

    def ask(self, function: Callable, arguments: tuple, until: float) -> Any:
        """What function(*arguments) returns there. Raises RuntimeError with the traceback if it failed or took longer
        than `until`; the process is then replaced."""
        if self._process is None:
            self._pipe, other = _SPAWN.Pipe()
            self._process = _SPAWN.Process(target=_serve, args=(other, self.index, self._begin), daemon=True)
            self._process.start()
            other.close()
        assert self._pipe is not None
        try:
            self._pipe.send((function, arguments))
            if not self._pipe.poll(max(0.0, until - time.monotonic())):
                raise RuntimeError("not done in time")
            fine, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            fine, answer = False, f"the process died ({type(error).__name__})"
        except RuntimeError as error:
            fine, answer = False, str(error)
        if not fine:
            self.end()
            raise RuntimeError(answer)
        return answer

    def end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.join(5)
            if self._process.is_alive():
                self._process.kill()
            self._process = None


def _serve(pipe: Connection, index: int, begin: Callable[[int], None]) -> None:
    ready = False
    with suppress(EOFError):
        while True:
            function, arguments = pipe.recv()
            try:
                if not ready:
                    begin(index)
                    ready = True
                pipe.send((True, function(*arguments)))
            except BaseException:
                pipe.send((False, traceback.format_exc()))
