"""The result tables of README and docs. A table stands between <!-- results:NAME --> and <!--
/results:NAME --> and is made as bench.tables.table_list says, or of the fields that the marker
names: <!-- results:NAME model precision latency_ms -->."""
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.tables.columns import filled_columns
from bench.tables.table_list import TABLES, table_of_fields
from records.files import atomic_write
from records.results import Results, load, shorten_paths

_BLOCK = re.compile(
    r"<!-- results:(?P<name>[\w.-]+)(?P<fields>( \w+)*) -->\n(?P<table>.*?)<!-- /results:(?P=name) "
    r"-->", re.DOTALL)
_MARKER = re.compile(r"<!-- (/?)results:([\w.-]+)(?: \w+)* -->")
_REMOVED = re.compile(r"bench/h200/|bench\.(question_probes|int8_tools|trials)\b")  # experiments
_LAST_WITH_SCRIPTS = "6866ce9"
_LONGEST = 120  # characters of a command; all of it is in the result file


def fill(text: str, folder: Path) -> str:
    """`text` with every table between markers replaced by the one its result file gives. Raises
    ValueError for an unknown name, a missing or foreign file, or a marker without its partner."""
    blocks = [match["name"] for match in _BLOCK.finditer(text)]
    markers = [name for _, name in _MARKER.findall(text)]
    for name in markers:
        if markers.count(name) != 2 or blocks.count(name) != 1:
            raise ValueError(f"results:{name}: got a marker without its partner, or twice; "
                             "expected one <!-- results:NAME --> and below it one "
                             "<!-- /results:NAME -->, each on its own line")
    return _BLOCK.sub(lambda match: _block(match["name"], match["fields"], folder), text)


def table(name: str, folder: Path, fields: Sequence[str] = ()) -> str:
    """The Markdown table of one result file, without empty columns, and where it was measured.
    fields: these columns instead, in the rows of NAME.json that have all of them."""
    if name not in TABLES and not fields:
        raise ValueError(
            f"results:{name}: no such table; there are: {', '.join(TABLES)}; or name the fields: "
            f"<!-- results:{name} FIELD FIELD -->")
    listed = table_of_fields(name, fields) if fields else TABLES[name]
    results = load(folder / f"{listed.file}.json")
    rows = listed.rows(results.rows)
    if not rows:
        why = f"{results.name}.json has no row for it"
        if fields:
            why = f"no row has all of: {', '.join(fields)}"
        raise ValueError(f"results:{name}: {why}")
    columns = filled_columns(listed.columns, rows)
    lines = [_line(column.header for column in columns),
             _line("---:" if column.numeric else "---" for column in columns)]
    for row in rows:
        lines.append(_line(column.cell(row) for column in columns))
    if "command" in rows[0]:  # measured later than the rest of the file
        own = rows[0]
        results = replace(results, command=own["command"], commit=own["commit"],
                          env={"cpu": own["cpu"]})
    return "\n".join([*lines, "", _source(results), ""])


def update(documents: Sequence[Path], folder: Path, check: bool = False) -> list[Path]:
    """Rewrites the tables of the documents, all or none; returns those that changed. Raises
    ValueError for a missing document, and if `check` and one would change."""
    filled: list[tuple[Path, str]] = []
    for document in documents:
        if not document.is_file():
            raise ValueError(f"{document}: no such file; give Markdown files with result markers")
        before = document.read_text()
        try:
            after = fill(before, folder)
        except ValueError as error:
            raise ValueError(f"{document}: {error}") from error
        if check and before != after:
            raise ValueError(
                f"{document}: tables differ from their result files "
                f"({', '.join(_changed(before, after))}); run: vega3d bench tables")
        if before != after:
            filled.append((document, after))
    for document, text in filled:
        with atomic_write(document) as scratch:
            scratch.write_text(text)
    return [document for document, _ in filled]


def _block(name: str, fields: str, folder: Path) -> str:
    content = table(name, folder, fields.split())
    return f"<!-- results:{name}{fields} -->\n{content}<!-- /results:{name} -->"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _changed(before: str, after: str) -> list[str]:
    """The names of the tables that differ."""
    pairs = zip(_BLOCK.finditer(before), _BLOCK.finditer(after), strict=True)
    return [old["name"] for old, new in pairs if old["table"] != new["table"]]


def _source(results: Results) -> str:
    env, devices = results.env, {row.get("device", "cuda") for row in results.rows}
    cpu = env.get("cpu", "unknown CPU") + (f", {env['cores']} cores" if "cores" in env else "")
    machine = env.get("gpu", cpu) if "cuda" in devices else cpu
    command = f"`{_printed(results.command)}`"
    if _REMOVED.search(results.command):
        command += f" (script at commit {_LAST_WITH_SCRIPTS})"
    return (f"<sub>{command} on {machine}, commit {results.commit}: "
            f"bench/results/{results.name}.json</sub>")


def _printed(command: str) -> str:
    """Without machine paths, and without the end of a long command."""
    command = shorten_paths(command)
    if len(command) <= _LONGEST:
        return command
    return command[:_LONGEST].rpartition(" ")[0] + " …"
