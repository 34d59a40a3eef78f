"""Result files: what was measured, by which command, on what machine.

Rows are flat and name their units: latency_ms, size_mb, cosine_mean, speedup. `kind` names a row's
table (run, latency, accuracy, absent); a file under bench/results/ holds one table and needs none.
"""
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from records.files import atomic_write, read_json

SCHEMA = 1
Row = dict[str, Any]  # values: str, int, float, bool or None
ROOT = Path(__file__).resolve().parents[1]
_FIELDS = {"name": str, "command": str, "commit": str, "env": dict, "rows": list}
# an absolute path or one above the working directory; not the slashes of a URL or a relative path
_MACHINE_PATH = re.compile(r"(?:(?<=[\s=(,])|^)(?:/|(?:\.\./)+)[^\s=(),;]+")


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
    """Rows just measured by the running command: vega3d, or a module of bench or tests."""
    spec = sys.modules["__main__"].__spec__
    recipe = spec is not None and spec.name.startswith(("bench.", "tests."))
    program = f"python -m {spec.name}" if spec and recipe else "vega3d"
    command = shorten_paths(" ".join([program, *sys.argv[1:]]))
    return Results(name, command, str(env["commit"]), env, list(rows))


def beside(earlier: Results, results: Results, key: Sequence[str]) -> Results:
    """The earlier results with rows that say themselves by which command, code and processor they
    were measured, in place of those with an equal `key`."""
    own = {"command": results.command, "commit": results.commit, "cpu": results.env["cpu"]}
    added = {tuple(row.get(name) for name in key): {**row, **own} for row in results.rows}
    retained = [row for row in earlier.rows if tuple(row.get(name) for name in key) not in added]
    return replace(earlier, rows=[*retained, *added.values()])


def shorten_paths(command: str) -> str:
    """A command without machine paths: relative to the checkout; outside it their last part."""
    def shorten(match: re.Match[str]) -> str:
        path = Path(match[0])
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    return _MACHINE_PATH.sub(shorten, command)


def save(results: Results, path: Path) -> None:
    """Writes the file atomically; NaN and infinity (a ratio over zero) become null."""
    rows = [{key: _plain(value, f"{path}: {key}") for key, value in row.items()}
            for row in results.rows]
    content = {"schema": SCHEMA, **asdict(results), "rows": rows}
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> Results:
    """Reads what `save` wrote; ValueError if the file is missing, not JSON or of another schema."""
    content = read_json(path, "measure again with: vega3d bench", "measure some with: vega3d bench",
                        kind=dict, schema=SCHEMA)
    for key, kind in {"schema": int, **_FIELDS}.items():
        if not isinstance(content.get(key), kind):
            raise ValueError(f"{path}: got {key} = {content.get(key)!r}, expected {kind.__name__}; "
                             "measure again")
    for i, row in enumerate(content["rows"]):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: row {i} is {row!r}, expected fields and values; "
                             "measure again")
        for key, value in row.items():
            _plain(value, f"{path}: row {i}: {key}")
    return Results(**{key: content[key] for key in _FIELDS})


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise ValueError(f"{where} is a {type(value).__name__}, expected a number, text or null; "
                     "rows are flat")
