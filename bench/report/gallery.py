"""The report's pictures: strips of held-out clips, and token matches between two views."""
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from bench.report.axes import circle, line
from bench.report.pictures import FRAME_PX, png
from records.images import read_image
from records.outputs import safe_name
from records.results import Results, Row

CAPTIONS = {
    "frame": "frame", "truth_depth": "true depth", "semantic_depth": "semantic only",
    "teacher_depth": "teacher", "student_depth": "student FP32", "int8_depth": "student INT8",
    "teacher_features": "teacher features", "student_features": "student features",
    "int8_features": "INT8 features"
}
SOURCES = {"teacher": "Teacher", "student": "Student FP32", "int8": "Student INT8"}
GAP = 8        # px between two views
MAX_PX = 2048  # of a picture's side


def strips(results: Results, run: str) -> tuple[list[Row], str]:
    """The pictures of each clip and its row with the range of the depth colours; or [] and why
    there are none."""
    rows = results.of("picture")
    folder = Path(run, "bench", "strips")
    missing = [folder / row["file"] for row in rows if not (folder / row["file"]).is_file()]
    if not rows or missing:
        return [], f"{missing[0]} is gone" if missing else "none were drawn"
    by_clip: dict[str, list[Row]] = {}
    for row in rows:
        picture = {**row, "image": _picture(folder, row["file"]), "caption": CAPTIONS[row["place"]]}
        by_clip.setdefault(row["clip"], []).append(picture)
    return [{"clip": clip, "pictures": pictures,
             "depth": next((row for row in pictures if row["shows"] == "depth"), None)}
            for clip, pictures in by_clip.items()], ""


def view_pairs(results: Results, run: str) -> tuple[list[Row], bool]:
    """Pairs whose pictures exist, and whether any of them has true points to compare with."""
    folder = Path(run, "bench", "strips")
    pairs = [row for row in results.of("match_pair")
             if (folder / row["from_file"]).is_file() and (folder / row["to_file"]).is_file()]
    found = [_view_pair(pair, results.of("match"), folder) for pair in pairs]
    return found, any(pair["right"] is not None for pair in pairs)


def data_url(content: bytes) -> str:
    """A PNG inside the page."""
    return f"data:image/png;base64,{b64encode(content).decode()}"


def _picture(folder: Path, name: str) -> str:
    """The data URL of a picture in `folder`, decoded and drawn anew: of no other file, and nothing
    else that its file holds. Raises ValueError naming another one."""
    path = folder / name
    if safe_name(name) != name or path.resolve().parent != folder.resolve():
        raise ValueError(f"{path}: not a picture of {folder}; measure again with: vega3d bench")
    image = read_image(path)
    if max(image.size) > MAX_PX:
        raise ValueError(f"{path}: is {image.width} x {image.height} px, expected at most {MAX_PX} "
                         "a side; measure again with: vega3d bench")
    return data_url(png(np.asarray(image.convert("RGB"))))


def _view_pair(pair: Row, matches: Sequence[Row], folder: Path) -> Row:
    """Two views side by side, and lines between matched tokens in the pixels of both."""
    counts = f"{pair['found']} mutual matches"
    if pair["right"] is not None:
        counts += f"; {pair['right']} of the {pair['asked']} whose point both frames see are right"
    shift = FRAME_PX + GAP
    lines: list[Markup] = []
    for row in matches:
        if (row["clip"], row["voice"]) != (pair["clip"], pair["voice"]):
            continue
        kind = "wrong" if row["right"] is False else "right"
        start = (row["from_x_px"], row["from_y_px"])
        end = (row["to_x_px"] + shift, row["to_y_px"])
        lines += [line(*start, *end, f"halo {kind}"), line(*start, *end, f"match {kind}"),
                  circle(*start, 3, f"tip {kind}"), circle(*end, 3, f"tip {kind}")]
    images = [(x, _picture(folder, pair[f"{side}_file"]))
              for side, x in (("from", 0), ("to", shift))]
    return {"name": SOURCES[pair["voice"]], "clip": pair["clip"], "counts": counts,
            "images": images, "lines": lines, "width": FRAME_PX + shift}
