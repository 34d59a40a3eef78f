"""Options of commands and configurations: their ranges, and tyro with errors of one line.

A range stands in the annotation of a field or an argument: `lr: Rate = 1e-4`.
"""
from __future__ import annotations

import argparse
import inspect
import io
import re
from collections.abc import Callable, Hashable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import Annotated, Any, NoReturn, get_args, get_origin, get_type_hints


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
DepthUnit = Annotated[float, Range(1, 1_000_000)]  # values a metre
Metres = Annotated[float, Range(0, 1000, above=True)]
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


def check_ranges(config: Any, section: str, filled: Sequence[str] = ()) -> None:
    """For a dataclass's `__post_init__`: raises ValueError naming section.NAME if a field is out of
    its range, or an empty list and in `filled` (`--seeds` without a value)."""
    for name, hint in _hints(config.__class__).items():
        where = f"{section}.{name}".lstrip(".")
        _check(hint, getattr(config, name), where)
        if name in filled and not getattr(config, name):
            raise ValueError(f"{where} is empty, expected at least one value")


class RecipeParser(argparse.ArgumentParser):
    """Of `python -m bench.recipes.NAME`; raises ValueError, one line, where argparse prints its
    usage and exits."""

    def __init__(self, name: str, doc: str | None):
        super().__init__(prog=f"python -m bench.recipes.{name}",
                         description=(doc or "").partition("\n")[0])

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see: {self.prog} --help")


def parse(target: Any, args: Sequence[str], prog: str, **options: Any) -> Any:
    """`tyro.cli`, with subcommands if target is a dictionary; raises ValueError, one line, where
    that would print a box and exit."""
    import tyro  # a tenth of a second

    cli = tyro.extras.subcommand_cli_from_dict if isinstance(target, dict) else tyro.cli
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            return cli(target, args=args, prog=prog, **options)
    except SystemExit as stopped:
        if not stopped.code:
            raise
        raise ValueError(f"{_text(printed.getvalue())}; see: {prog} --help") from None


def parse_call(functions: Sequence[Callable[..., None]], args: Sequence[str],
               prog: str) -> partial[None]:
    """The call of the function, or of that of several which the first argument names, that the
    arguments ask for, within its ranges; errors: `parse`."""
    bound = {each.__name__: _bound(each) for each in functions}
    return parse(bound if len(bound) > 1 else bound.popitem()[1], args, prog)


def _bound(function: Callable[..., None]) -> Callable[..., partial[None]]:
    """With the parameters of `function`, whose ranges it checks."""
    @wraps(function)
    def call(*positional: Any, **named: Any) -> partial[None]:
        given = inspect.signature(function).bind(*positional, **named).arguments
        for name, value in given.items():
            _check(_hints(function).get(name), value, f"--{name.replace('_', '-')}")
        return partial(function, *positional, **named)

    return call


def take_option(args: list[str], name: str, expected: str) -> tuple[str | None, list[str]]:
    """The value of `--name VALUE` or `--name=VALUE`, or None; and the other arguments."""
    found = [i for i, each in enumerate(args) if each.partition("=")[0] == name]
    if not found:
        return None, args
    if len(found) > 1:
        raise ValueError(f"{name}: given {len(found)} times, expected once")
    at = found[0]
    _, joined, value = args[at].partition("=")
    rest = args[at + 1:]
    if not joined and rest and not rest[0].startswith("--"):
        value, rest = rest[0], rest[1:]
    if not value:
        raise ValueError(f"{name}: expected {expected} after it")
    return value, args[:at] + rest


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
    elif not ((type(None) in args and value is None) or isinstance(value, str)):
        for kind in args:
            _check(kind, value, where)


def _text(box: str) -> str:
    """The text of tyro's box (of Unicode or of ASCII) without its frame and the help it names."""
    parts = [""]
    for line in (line.strip("│| ") for line in box.splitlines()):
        if line.startswith(("╭", "+", "─", "---", "╰")):
            parts.append("")
        else:
            parts[-1] += f" {line}"
    text = "; ".join(" ".join(part.split()) for part in parts if part and "helptext" not in part)
    text = re.sub(r"^(Value error; )?Error parsing [\w.]+: ", "", text)  # a class of ours
    return re.sub(r"no type matching (.+?) could be instantiated from \[(.*?)\]\. Got errors:.*",
                  r"got \2, expected \1", text)
