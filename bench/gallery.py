"""The report's picture strips: one held-out frame each, and what teacher, student and INT8 student see in it."""
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from bench.html import Html, el
from bench.strips import colour_bar
from records.results import Results, Row

CAPTIONS = {
    "frame": "frame", "truth_depth": "true depth", "semantic_depth": "semantic only", "teacher_depth": "teacher",
    "student_depth": "student FP32", "int8_depth": "student INT8", "teacher_features": "teacher features",
    "student_features": "student features", "int8_features": "INT8 features"}


def gallery(results: Results, about: Row) -> Html:
    """The section of strips, or a line that says why there is none."""
    rows = results.of("picture")
    folder = Path(about["run"]) / "bench" / "strips"
    missing = [row["file"] for row in rows if not (folder / row["file"]).is_file()]
    if not rows or missing:
        why = f"{folder / missing[0]} is gone" if missing else "none were drawn"
        return el("section", el("h2", "Pictures"), el("p", f"No pictures: {why}. ", el("code", "vega3d bench accuracy"),
                                                      " draws them.", class_="notice"))
    clips = list(dict.fromkeys(row["clip"] for row in rows))
    strips = [_strip([row for row in rows if row["clip"] == clip], folder) for clip in clips]
    return el("section", el("h2", "Pictures"), el(
        "p", "Held-out clips. Depth maps share one colour range per strip, bright is near. Feature maps show the three "
        "main directions of the teacher's features as red, green and blue: alike colours mean alike features."),
        *strips)


def _strip(rows: Sequence[Row], folder: Path) -> Html:
    cells = [_cell(row, folder) for row in rows]
    depth = next((row for row in rows if row["shows"] == "depth"), None)
    if depth:
        ends = el("div", el("span", f"{depth['near_m']:.1f} m"), el("span", f"{depth['far_m']:.1f} m"), class_="ends")
        cells.append(el("div", el("img", src=data_url(colour_bar()), alt="Depth colours, near to far"), ends,
                        f"clip {rows[0]['clip']}", class_="key"))
    return el("div", *cells, class_="strip labelled" if depth else "strip")


def _cell(row: Row, folder: Path) -> Html:
    image = el("img", src=data_url((folder / row["file"]).read_bytes()), alt=row["alt"], loading="lazy")
    return el("figure", image, el("figcaption", CAPTIONS[row["place"]]), class_=row["place"])


def data_url(content: bytes) -> str:
    """A PNG inside the page."""
    return f"data:image/png;base64,{b64encode(content).decode()}"
