"""Arguments of a command through tyro; what is wrong with them is one line."""
from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from functools import partial, wraps
from inspect import signature
from typing import Any

import tyro

from records.ranges import check_arguments


def parse(target: Any, args: Sequence[str], prog: str, **options: Any) -> Any:
    """`tyro.cli`; raises ValueError, one line, where that would print a box and exit."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            return tyro.cli(target, args=args, prog=prog, **options)
    except SystemExit as stopped:
        if not stopped.code:
            raise
        raise ValueError(f"{_text(printed.getvalue())}; see: {prog} --help") from None


def parse_call(function: Callable[..., None], args: Sequence[str], prog: str) -> partial[None]:
    """The call of `function` that the arguments ask for, within its ranges; errors: `parse`."""
    @wraps(function)
    def call(*positional: Any, **named: Any) -> partial[None]:
        check_arguments(function, signature(function).bind(*positional, **named).arguments)
        return partial(function, *positional, **named)

    return parse(call, args, prog)


def take_option(args: list[str], name: str, expected: str) -> tuple[str | None, list[str]]:
    """The value of `--name VALUE` or `--name=VALUE`, and the other arguments.

    Raises ValueError if it is given without a value, or twice.
    """
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


def _text(box: str) -> str:
    """The text of tyro's box (of Unicode or of ASCII) without its frame and the help it names."""
    parts = [""]
    for line in (line.strip("│| ") for line in box.splitlines()):
        if line.startswith(("╭", "+", "─", "---", "╰")):
            parts.append("")
        else:
            parts[-1] += f" {line}"
    return "; ".join(" ".join(part.split()) for part in parts if part and "helptext" not in part)
