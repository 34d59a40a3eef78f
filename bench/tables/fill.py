"""The result tables of README and docs, generated from the committed result files: no number
without a file.

A table stands between <!-- results:NAME --> and <!-- /results:NAME --> and comes from
bench/results/NAME.json, or from the file that it names in bench.table_list. Its columns are those
given there; or fields named in the marker: <!-- results:NAME model precision latency_ms -->.
"""
import re
from collections.abc import Sequence
from pathlib import Path

from bench.tables.table_list import TABLES, plain_table
from records.files import atomic_write
from records.results import Results, load

_BLOCK = re.compile(
    r"<!-- results:(?P<name>[\w.-]+)(?P<fields>( \w+)*) -->\n(?P<table>.*?)<!-- /results:(?P=name) "
    r"-->",
    re.DOTALL)
_MARKER = re.compile(r"<!-- (/?)results:([\w.-]+)(?: \w+)* -->")


def fill(text: str, folder: Path) -> str:
    """`text` with every table between markers replaced by the one its result file gives.

    Raises ValueError for an unknown name, a missing or foreign file, or a marker without its
    partner.
    """
    blocks = [match["name"] for match in _BLOCK.finditer(text)]
    markers = [name for _, name in _MARKER.findall(text)]
    if broken := [name for name in markers if markers.count(name) != 2 or blocks.count(name) != 1]:
        raise ValueError(
            f"results:{broken[0]}: got a marker without its partner, or twice; expected one "
            "<!-- results:NAME --> and below it one <!-- /results:NAME -->, each on its own line")
    return _BLOCK.sub(lambda match: _block(match["name"], match["fields"], folder), text)


def table(name: str, folder: Path, fields: Sequence[str] = ()) -> str:
    """The Markdown table of one result file, and where it was measured. A column that no row fills
    is left out.

    fields: the columns, for a file that has no table of its own, or for fewer of them; rows that
    have all of them.
    """
    if name not in TABLES and not fields:
        raise ValueError(
            f"results:{name}: no such table; there are: {', '.join(TABLES)}; or name the fields: "
            f"<!-- results:{name} FIELD FIELD -->")
    asked = plain_table(fields) if fields else TABLES[name]
    results = load(folder / f"{asked.file or name}.json")
    rows = asked.rows(results.rows)
    if not rows:
        missing = f"no row has all of: {', '.join(fields)}" if fields else f"{results.name}.json has no row for it"
        raise ValueError(f"results:{name}: {missing}")
    columns = [
        column for column in asked.columns if any(
            row.get(column.field) is not None for row in rows)
    ]
    head = [column.header for column in columns]
    rule = ["---:" if column.numeric else "---" for column in columns]
    body = [[column.cell(row) for column in columns] for row in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]
    return "\n".join([*lines, "", _source(results), ""])


def update(documents: Sequence[Path], folder: Path, check: bool = False) -> list[Path]:
    """Rewrites the tables of the documents; returns those that changed. All are read before any is
    written.

    Raises ValueError for a missing document, and if `check` and one would change.
    """
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
            stale = [
                m["name"]
                for m, n in zip(_BLOCK.finditer(before), _BLOCK.finditer(after), strict=True)
                if m["table"] != n["table"]
            ]
            raise ValueError(
                f"{document}: tables differ from their result files ({', '.join(stale)}); "
                "run: vega3d bench tables")
        if before != after:
            filled.append((document, after))
    for document, text in filled:
        with atomic_write(document) as scratch:
            scratch.write_text(text)
    return [document for document, _ in filled]


def _block(name: str, fields: str, folder: Path) -> str:
    return f"<!-- results:{name}{fields} -->\n{table(name, folder, fields.split())}<!-- /results:{name} -->"


def _source(results: Results) -> str:
    env, devices = results.env, {row.get("device", "cuda") for row in results.rows}
    cpu = f"{env.get('cpu', 'unknown CPU')}, {env.get('cores', '?')} cores"
    machine = env.get("gpu", cpu) if "cuda" in devices else cpu
    return f"<sub>`{results.command}` on {machine}, commit {results.commit}: bench/results/{results.name}.json</sub>"
