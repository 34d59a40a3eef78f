"""A result file: what was measured, by which command, on what. Report and README take every number
from one.

Rows are flat and say their units: latency_ms, size_mb, cosine_mean, speedup. `kind` tells a row's
table (run, latency, accuracy, absent); files under bench/results/ hold one table each and need
none.
"""
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from records.files import atomic_write

SCHEMA = 1
Row = dict[str, Any]  # values: str, int, float, bool or None

_KEYS: dict[str, type] = {
    "schema": int, "name": str, "command": str, "commit": str, "env": dict, "rows": list
}


@dataclass(frozen=True)
class Results:
    name: str
    command: str         # that wrote the file
    commit: str          # of the code that measured
    env: dict[str, Any]  # records.environment.environment, and more
    rows: list[Row]

    def of(self, kind: str) -> list[Row]:
        """The rows of one table, in order."""
        return [row for row in self.rows if row.get("kind") == kind]


def measured(name: str, rows: Sequence[Row], env: dict[str, Any]) -> Results:
    """Rows just measured, under the command line that is running."""
    return Results(name, " ".join(["vega3d", *sys.argv[1:]]), str(env["commit"]), env, list(rows))


def save(results: Results, path: Path) -> None:
    """Writes beside and renames. Values that are no number (a ratio over nothing) become null.

    Raises ValueError, naming the field, for a row that is not flat.
    """
    rows = [{key: _plain(value, f"{path}: {key}")
             for key, value in row.items()} for row in results.rows]
    content = {"schema": SCHEMA, **asdict(results), "rows": rows}
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> Results:
    """Reads what `save` wrote. Raises ValueError: no such file, not JSON, another schema, a field
    missing."""
    if not path.is_file():
        raise ValueError(f"{path}: no such results; measure some with: vega3d bench")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not a results file ({error}); measure again with: vega3d bench") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        got = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path}: got schema {got!r}, expected {SCHEMA}; measure again with this version")
    for key, kind in _KEYS.items():
        if not isinstance(content.get(key), kind):
            raise ValueError(
                f"{path}: got {key} = {content.get(key)!r}, expected {kind.__name__}; measure again"
            )
    for i, row in enumerate(content["rows"]):
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}: row {i} is {row!r}, expected fields and values; measure again")
    return Results(**{key: content[key] for key in _KEYS if key != "schema"})


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ValueError(
        f"{where} is a {type(value).__name__}, expected a number, text or null; rows are flat")
