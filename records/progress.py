"""Progress bars that go away when their work fails, so that the error is the line that is seen."""
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

import rich.progress

T = TypeVar("T")


class Progress(rich.progress.Progress):
    """rich's, removed on an error and where its loop is left early."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is not None:
            self.live.transient = True
        super().__exit__(kind, error, trace)


def track(items: Iterable[T], description: str, total: float | None = None,
          disable: bool = False) -> Iterator[T]:
    """The items, under a bar on stdout."""
    with Progress(disable=disable) as progress:
        yield from progress.track(items, total, description=description)
