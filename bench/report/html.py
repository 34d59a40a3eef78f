"""Elements as nested calls: el("p", "a < b", class_="note"). Text is escaped; what `el` returned is
not again."""
import re
from collections.abc import Sequence
from html import escape

from bench.tables.columns import NONE, Column
from records.results import Row

VOID = {"img", "line", "rect", "circle", "path", "br", "image"}


class Html(str):
    """Markup that is already safe."""


def el(name: str, *children: Html | str | float | None, **attributes: str | float | None) -> Html:
    """One element. Attribute names lose a trailing underscore, inner ones become hyphens; None
    leaves one out."""
    words = [name, *(f'{key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
                     for key, value in attributes.items() if value is not None)]
    if name in VOID:
        return Html(f"<{' '.join(words)}/>")
    inner = "".join(
        child if isinstance(child, Html) else escape(_typeset(_text(child)), quote=False)
        for child in children if child is not None)
    return Html(f"<{' '.join(words)}>{inner}</{name}>")


def join(parts: Sequence[Html]) -> Html:
    return Html("\n".join(parts))


def html_table(caption: str, columns: Sequence[Column], rows: Sequence[Row]) -> Html:
    """A table whose rows fold into cards on a narrow screen; each cell carries its header, the
    first names the row.

    Roles are spelled out because a browser forgets that a table is one once CSS lays it out
    otherwise.
    """
    head = el(
        "tr",
        *(el("th", c.header, scope="col", class_="number" if c.numeric else None,
             role="columnheader") for c in columns), role="row")
    body = [el("tr", el("th", columns[0].cell(row), scope="row", role="rowheader"), *(
        el("td", text, data_label=c.header, class_=_classes(c, text), role="cell")
        for c in columns[1:] for text in [c.cell(row)]), role="row") for row in rows]
    return el("table", el("caption", caption), el("thead", head, role="rowgroup"),
              el("tbody", *body, role="rowgroup"), role="table")


def _classes(column: Column, cell: str) -> str | None:
    return " ".join(["number"] * column.numeric + ["empty"] * (cell == NONE)) or None


def _typeset(words: str) -> str:
    """A number keeps its unit on its line, and a true minus."""
    words = re.sub(r"(\d) (%|ms|MB|GB|M|m|px|points)(?!\w)", "\\1\u00a0\\2", words)
    return re.sub(r"(?<![\w-])-(?=\d)", "\u2212", words)


def _text(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
