"""What a case of the hostile corpus is; corpus_*.py generate them."""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One hostile input and the command that reads it.

    make: writes the input into an empty folder, the working directory, and returns the arguments of
    `vega3d`. The command has to end with exit code 2 (`code`), one line on stderr that holds
    `says`, and nothing written; in 60 s and 2 GB.
    """
    kind: str
    name: str
    make: Callable[[Path], list[str]]
    says: str = ""       # the file's or the option's name
    heavy: bool = False  # left out of CI
    code: int = 2
