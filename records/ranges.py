"""Ranges of numbers, declared in the annotation of a field or an argument: `lr: Rate = 1e-4`."""
import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """From `low` (more than it, if `above`) to `high`."""
    low: float
    high: float
    above: bool = False

    def check(self, value: Any, where: str) -> None:
        """Raises ValueError for another number, NaN, or what is no number."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and (self.low < value if self.above else self.low <= value) and (
                value <= self.high):
            return
        low = f"more than {self.low}" if self.above else f"at least {self.low}"
        shown = repr(value)[:40] if not number or abs(value) < 1e18 else f"{float(value):g}"
        raise ValueError(f"{where} is {shown}, expected {low} and at most {self.high}")


Count = Annotated[int, Range(1, 10_000_000)]
CountOrNone = Annotated[int, Range(0, 10_000_000)]
Batch = Annotated[int, Range(1, 65_536)]
Frames = Annotated[int, Range(1, 4097)]      # of a clip
Pixels = Annotated[int, Range(1, 8192)]      # of a side
Width = Annotated[int, Range(1, 16_384)]     # channels
Depth = Annotated[int, Range(1, 128)]        # blocks
FocalPx = Annotated[float, Range(0, 1_000_000, above=True)]
Processes = Annotated[int, Range(0, 1024)]   # or threads
Seed = Annotated[int, Range(0, 2**32 - 1)]
Rate = Annotated[float, Range(0, 1, above=True)]  # of learning
Weight = Annotated[float, Range(0, 10_000)]       # of a loss
Level = Annotated[int, Range(0, 1000)]     # of noise; or a block
Draws = Annotated[int, Range(1, 1000)]
Share = Annotated[float, Range(0, 1)]
Hours = Annotated[float, Range(0, 10_000_000, above=True)]  # of video
Fps = Annotated[float, Range(0, 1000, above=True)]
Gpus = Annotated[int, Range(1, 100_000)]
Seconds = Annotated[float, Range(0, 10_000_000)]


def check_ranges(config: Any, section: str) -> None:
    """Raises ValueError naming a field of a dataclass, as section.NAME, that is out of its range;
    for its `__post_init__`."""
    for name, hint in _hints(config.__class__).items():
        _check(hint, getattr(config, name), f"{section}.{name}".lstrip("."))


def check_listed(config: Any, section: str, *names: str) -> None:
    """Raises ValueError for an empty list: `--seeds` on the command line without a value."""
    for name in names:
        if not getattr(config, name):
            where = f"{section}.{name}".lstrip(".")
            raise ValueError(f"{where} is empty, expected at least one value")


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raises ValueError naming an argument, as its option, that is out of its range."""
    for name, hint in _hints(function).items():
        if name in values:
            _check(hint, values[name], f"--{name.replace('_', '-')}")


@cache
def _hints(owner: Hashable) -> dict[str, Any]:
    return get_type_hints(inspect.unwrap(owner), include_extras=True)  # type: ignore[arg-type]


def _check(hint: Any, value: Any, where: str) -> None:
    if get_origin(hint) is Annotated:
        ranges = [extra for extra in hint.__metadata__ if isinstance(extra, Range)]
        for limit in ranges:
            limit.check(value, where)
        hint = hint.__origin__ if not ranges else None
    args = get_args(hint)
    if get_origin(hint) is tuple and isinstance(value, (tuple, list)):
        kinds = args[:1] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        for kind, one in zip(kinds, value):
            _check(kind, one, where)
    elif (type(None) in args and value is None) or isinstance(value, str):
        return
    else:
        for kind in args:
            _check(kind, value, where)
