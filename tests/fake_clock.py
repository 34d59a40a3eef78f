"""A clock that moves only when a timed call says so."""
from collections.abc import Callable


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def call_taking(self, ms: float, log: list | None = None) -> Callable[[], None]:
        """A call that takes `ms` by this clock and writes that into `log`."""
        def call() -> None:
            self.now += ms / 1000
            if log is not None:
                log.append(ms)
        return call
