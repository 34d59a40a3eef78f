"""The report's picture strips: one held-out frame each, and what teacher, student and INT8 student
see in it."""
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from bench.report.html import Html, el
from bench.report.pictures import colour_bar
from records.results import Results, Row

CAPTIONS = {
    "frame": "frame", "truth_depth": "true depth", "semantic_depth": "semantic only",
    "teacher_depth": "teacher", "student_depth": "student FP32", "int8_depth": "student INT8",
    "teacher_features": "teacher features", "student_features": "student features",
    "int8_features": "INT8 features"
}


def gallery(results: Results, about: Row) -> Html:
    """The section of strips, or a line that says why there is none."""
    rows = results.of("picture")
    folder = Path(about["run"]) / "bench" / "strips"
    missing = [row["file"] for row in rows if not (folder / row["file"]).is_file()]
    if not rows or missing:
        why = f"{folder / missing[0]} is gone" if missing else "none were drawn"
        return el(
            "section", el("h2", "Pictures"),
            el("p", f"No pictures: {why}. ", el("code", "vega3d bench accuracy"), " draws them.",
               class_="notice"))
    clips = list(dict.fromkeys(row["clip"] for row in rows))
    strips = [_strip([row for row in rows if row["clip"] == clip], folder) for clip in clips]
    return el(
        "section", el("h2", "Pictures"),
        el(
            "p",
            "Held-out clips. Depth maps share one colour range per strip, bright is near. Feature "
            "maps show the three main directions of the teacher's features as red, green and blue: "
            "alike colours mean alike features."
        ), *strips)


def correspondences(results: Results, about: Row) -> Html | None:
    """Two views of a held-out room for each voice, with lines between the tokens that it takes for
    one another."""
    folder = Path(about["run"]) / "bench" / "strips"
    pairs = [row for row in results.of("match_pair")
             if (folder / row["from_file"]).is_file() and (folder / row["to_file"]).is_file()]
    if not pairs:
        return None
    lines = results.of("match")
    figures = [
        _views(pair,
               [row for row in lines if all(row[key] == pair[key]
                                            for key in ("clip", "voice"))], folder)
        for pair in pairs
    ]
    judged = any(pair["right"] is not None for pair in pairs)
    legend = (
        " A solid line ends where the same point of the room is (within 0.2 m), a dashed one does "
        "not."
        if judged else "")
    return el(
        "section", el("h2", "Where is this point in the other view?"),
        el(
            "p",
            "Tokens of the first and the last frame of a held-out clip that are each other's "
            "nearest, by their features alone. The lines are a random few of those found." + legend),
        el("div", *figures, class_="views"))


def _views(pair: Row, lines: Sequence[Row], folder: Path) -> Html:
    size, gap = 224, 8
    name = {"teacher": "Teacher", "student": "Student FP32", "int8": "Student INT8"}[pair["voice"]]
    verdict = f"{pair['found']} mutual matches"
    if pair["right"] is not None:
        verdict += f"; {pair['right']} of the {pair['asked']} whose point both frames see are right"
    drawn = []
    for row in lines:
        kind = "wrong" if row["right"] is False else "right"
        ends = {
            "x1": row["from_x_px"], "y1": row["from_y_px"], "x2": row["to_x_px"] + size + gap,
            "y2": row["to_y_px"]
        }
        drawn += [
            el("line", **ends, class_=f"halo {kind}"),
            el("line", **ends, class_=f"match {kind}"),
            *(el("circle", cx=ends[f"x{i}"], cy=ends[f"y{i}"], r=3, class_=f"tip {kind}")
              for i in (1, 2))
        ]
    pictures = [
        el("image", href=data_url((folder / pair[f"{side}_file"]).read_bytes()), x=x, y=0,
           width=size, height=size) for side, x in (("from", 0), ("to", size + gap))
    ]
    said = f"{name}, clip {pair['clip']}: {verdict}"
    picture = el("svg", el("title", said), *pictures, *drawn, role="img", aria_label=said,
                 viewBox=f"0 0 {2 * size + gap} {size}", xmlns="http://www.w3.org/2000/svg",
                 class_="wide")
    return el("figure", picture, el("figcaption", el("b", name), f": {verdict}."), class_="card")


def _strip(rows: Sequence[Row], folder: Path) -> Html:
    cells = [_cell(row, folder) for row in rows]
    depth = next((row for row in rows if row["shows"] == "depth"), None)
    if depth:
        ends = el("div", el("span", f"{depth['near_m']:.1f} m"),
                  el("span", f"{depth['far_m']:.1f} m"), class_="ends")
        cells.append(
            el("div", el("img", src=data_url(colour_bar()), alt="Depth colours, near to far"), ends,
               f"clip {rows[0]['clip']}", class_="key"))
    return el("div", *cells, class_="strip labelled" if depth else "strip")


def _cell(row: Row, folder: Path) -> Html:
    image = el("img", src=data_url((folder / row["file"]).read_bytes()), alt=row["alt"])
    return el("figure", image, el("figcaption", CAPTIONS[row["place"]]), class_=row["place"])


def data_url(content: bytes) -> str:
    """A PNG inside the page."""
    return f"data:image/png;base64,{b64encode(content).decode()}"
