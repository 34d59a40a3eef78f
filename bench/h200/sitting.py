"""An unattended sitting at a machine: parts that run whatever happened to the others, within so many seconds."""
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable

from records.results import Row


class Sitting(ABC):
    """What has been measured so far (`rows`), and how long is left."""

    def __init__(self, seconds: float):
        self.seconds, self.began = seconds, time.monotonic()
        self.rows: list[Row] = []

    @property
    def spent(self) -> float:
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        return self.seconds - self.spent

    def part(self, name: str, work: Callable[[], object], needs_seconds: float = 0.0) -> None:
        """Runs one part, whatever happens to it, and writes what there is."""
        start = time.monotonic()
        if self.left < needs_seconds:
            self.rows.append(self.missing(name, None))
        else:
            try:
                work()
            except Exception as error:
                traceback.print_exc()
                self.rows.append(self.missing(name, error))
        print(f"{name}: {time.monotonic() - start:.1f} s, {self.left:.0f} s left", flush=True)
        self.write()

    @abstractmethod
    def missing(self, part: str, error: Exception | None) -> Row:
        """The row of a part that failed, or (None) for which there was no time."""

    @abstractmethod
    def write(self) -> None:
        """Everything there is so far, to its file."""


def said(error: Exception, most: int) -> str:
    """An error's text in one line of at most so many characters."""
    return " ".join(str(error).split())[:most]
