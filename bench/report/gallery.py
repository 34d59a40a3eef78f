"""The report's pictures: strips of held-out clips, and token matches between two views."""
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Strip:
    """The pictures of one clip. depth: the picture row with the range of the depth colours."""
    clip: str
    pictures: list[Row]  # with `image`, a data URL, and `caption`
    depth: Row | None


@dataclass(frozen=True)
class ViewPair:
    """Two views side by side, and lines between matched tokens in the pixels of both."""
    name: str
    clip: str
    counts: str
    images: list[tuple[int, str]]  # (x, data URL)
    lines: list[Markup]
    width: int                     # px, of both


def strips(results: Results, run: str) -> tuple[list[Strip], str]:
    """The strips, or [] and why there are none."""
    rows = results.of("picture")
    folder = _folder(run)
    missing = [folder / row["file"] for row in rows if not (folder / row["file"]).is_file()]
    if not rows or missing:
        return [], f"{missing[0]} is gone" if missing else "none were drawn"
    by_clip: dict[str, list[Row]] = {}
    for row in rows:
        picture = {**row, "image": _picture(folder, row["file"]), "caption": CAPTIONS[row["place"]]}
        by_clip.setdefault(row["clip"], []).append(picture)
    found = []
    for clip, pictures in by_clip.items():
        depth = next((row for row in pictures if row["shows"] == "depth"), None)
        found.append(Strip(clip, pictures, depth))
    return found, ""


def view_pairs(results: Results, run: str) -> tuple[list[ViewPair], bool]:
    """Pairs whose pictures exist, and whether any of them has true points to compare with."""
    folder = _folder(run)
    pairs = [row for row in results.of("match_pair")
             if (folder / row["from_file"]).is_file() and (folder / row["to_file"]).is_file()]
    matches = results.of("match")
    found = []
    for pair in pairs:
        its = [row for row in matches
               if (row["clip"], row["voice"]) == (pair["clip"], pair["voice"])]
        found.append(_view_pair(pair, its, folder))
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


def _folder(run: str) -> Path:
    return Path(run) / "bench" / "strips"


def _view_pair(pair: Row, matches: Sequence[Row], folder: Path) -> ViewPair:
    counts = f"{pair['found']} mutual matches"
    if pair["right"] is not None:
        counts += f"; {pair['right']} of the {pair['asked']} whose point both frames see are right"
    shift = FRAME_PX + GAP
    lines: list[Markup] = []
    for row in matches:
        kind = "wrong" if row["right"] is False else "right"
        start = (row["from_x_px"], row["from_y_px"])
        end = (row["to_x_px"] + shift, row["to_y_px"])
        lines += [line(*start, *end, f"halo {kind}"), line(*start, *end, f"match {kind}"),
                  circle(*start, 3, f"tip {kind}"), circle(*end, 3, f"tip {kind}")]
    images = [(x, _picture(folder, pair[f"{side}_file"]))
              for side, x in (("from", 0), ("to", shift))]
    return ViewPair(SOURCES[pair["voice"]], pair["clip"], counts, images, lines, FRAME_PX + shift)
