"""A TensorRT build as a rich progress bar; a signal stops the builder at its next step."""
from types import ModuleType
from typing import Any

from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from records.interrupts import pending
from records.progress import Progress


class Monitor:
    """A context that shows a build's phases, where TensorRT reports them (8.6 and later)."""

    def __init__(self, title: str):
        self.title = title
        self.bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
                            TimeRemainingColumn(), transient=True)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Monitor":
        self.bar.start()
        self.bar.add_task(self.title, total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def attach(self, trt: ModuleType, config: Any) -> Any:
        """Attaches to a builder config. The returned hook must live as long as the build."""
        if not (hasattr(trt, "IProgressMonitor") and hasattr(config, "progress_monitor")):
            return None
        monitor = self

        class Hook(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None,
                            num_steps: int) -> None:
                monitor.tasks[phase_name] = monitor.bar.add_task(f"  {phase_name}", total=num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                monitor.bar.update(monitor.tasks[phase_name], completed=step + 1)
                return not pending()

            def phase_finish(self, phase_name: str) -> None:
                monitor.bar.remove_task(monitor.tasks.pop(phase_name))

        config.progress_monitor = hook = Hook()
        return hook
