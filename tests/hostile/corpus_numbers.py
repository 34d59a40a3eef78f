"""Every number of every configuration and option, out of its range."""
import importlib
import inspect
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from records.options import Range
from tests.hostile.case import Case

COMMANDS = ("scenes", "teacher", "distill", "export", "infer", "bench")
# arguments that have no default
GIVEN = {"infer": ["model.onnx", "photo.jpg"], "scenes import": ["scannet", "root", "--out", "out"],
         "scenes ask": ["clip.safetensors"], "scenes pack": ["--out", "pack.zip"],
         "bench real": ["frames"], "distill adapt": ["footage.mp4"]}


def numbers(hint: Any) -> Iterator[tuple[type, list[Range]]]:
    """int or float and the ranges declared for it, for each number within an annotation."""
    ranges = []
    if get_origin(hint) is Annotated:
        ranges = [extra for extra in hint.__metadata__ if isinstance(extra, Range)]
        hint = hint.__origin__
    if hint in (int, float):
        yield hint, ranges
    for inner in get_args(hint):
        if not isinstance(inner, str):
            yield from numbers(inner)


def options(owner: Any, prefix: str = "--") -> Iterator[tuple[str, type, list[Range], bool]]:
    """option, kind, ranges, whether two are needed; of a dataclass or a function, nested ones
    included."""
    hints = get_type_hints(owner, include_extras=True)
    names = [f.name for f in fields(owner)] if is_dataclass(owner) else list(
        inspect.signature(owner).parameters)
    for name in names:
        hint, flag = hints[name], name.replace("_", "-")
        inner = hint.__origin__ if get_origin(hint) is Annotated else hint
        if is_dataclass(inner):
            nested = "--" if get_origin(hint) is Annotated else f"{prefix}{flag}."
            yield from options(inner, nested)
        else:
            pair = len([a for a in get_args(inner) if a is not Ellipsis]) == 2 and get_origin(
                inner) is tuple
            for kind, ranges in list(numbers(hint))[:1]:
                yield f"{prefix}{flag}", kind, ranges, pair


def verbs() -> Iterator[tuple[list[str], Any]]:
    """Each subcommand and the function or configuration that defines its options."""
    from distill.config import RunConfig
    from teacher.language.config import LanguageTeacherConfig

    own = {"distill run": RunConfig, "teacher train": LanguageTeacherConfig}
    for command in COMMANDS:
        for verb, function in importlib.import_module(f"{command}.cli").VERBS.items():
            words = [command, *([verb] if verb else [])]
            yield words, own.get(" ".join(words), function)


def out_of_range() -> Iterator[Case]:
    for words, owner in verbs():
        for i, (option, kind, ranges, pair) in enumerate(options(owner)):
            limit = ranges[0]
            bad = [str(math.ceil(limit.low) - 1), str(int(limit.high) + 1), "9" * 5000]
            bad += ["nan", "inf", "-inf"] if kind is float else ["9" * 25]
            value = bad[i % len(bad)]
            yield Case("number", f"{' '.join(words)} {option} {value[:30]}",
                       _call(words, option, value, pair), option.rpartition(".")[2].strip("-"))


def _call(words: list[str], option: str, value: str, pair: bool):
    def make(folder: Path) -> list[str]:
        return [*words, *GIVEN.get(" ".join(words), []), option, *[value] * (1 + pair)]
    return make


CORPUS = (out_of_range,)
