"""Progress bars with the time left; each is also the `progress` events of records.events.

They go away when their work fails, so that the error is the line that is seen.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import rich.progress
from rich.console import Console
from rich.progress import TaskID

from records import events

T = TypeVar("T")


class Progress(rich.progress.Progress):
    """rich's, removed on an error and where its loop is left early."""

    def __init__(self, *columns: str | rich.progress.ProgressColumn, console: Console | None = None,
                 **options: Any):
        if events.as_lines() and console is not None and console.stderr:
            console = Console(quiet=True)
        super().__init__(*columns, console=console, **options)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is not None:
            self.live.transient = True
        super().__exit__(kind, error, trace)

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._send(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._send(task_id)

    def _send(self, task_id: TaskID) -> None:
        if self.disable or not events.received():  # disabled in all processes but the first
            return
        for task in self.tasks:
            if task.id == task_id:
                left = task.time_remaining
                events.emit("progress", stage=task.description.strip(), step=int(task.completed),
                            steps=None if task.total is None else int(task.total),
                            rate=None if task.speed is None else round(task.speed, 3),
                            eta_s=None if left is None else round(left))


def track(items: Iterable[T], description: str, total: float | None = None,
          disable: bool = False) -> Iterator[T]:
    """The items, under a bar on stdout."""
    with Progress(disable=disable) as progress:
        yield from progress.track(items, total, description=description)
