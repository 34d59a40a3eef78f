"""The contact sheet and the page of `vega3d bench real`."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bench.real.depth import true_normals
from bench.real.run import Predictor, Recorded, camera_of
from bench.report.gallery import data_url
from bench.report.page import environment, facts
from bench.report.pictures import UNKNOWN, png
from bench.tables.columns import NONE, Column, columns, filled_columns
from infer.pictures import depth_colours, normal_colours
from records.files import atomic_write
from records.results import Results
from scenes.clip import Clip

FRAMES, CELL_PX, LINE_PX = 6, 160, 16


def write_page(results: Results, recorded: Recorded, predictors: Sequence[Predictor],
               path: Path) -> Image.Image:
    """Writes the page, with the contact sheet in it; returns the sheet."""
    sheet, shown = contact_sheet(recorded, predictors)
    page = environment().get_template("real.html").render(
        title=f"{results.env['recording']}: exported files on real frames", results=results,
        notes=recorded.notes, tables=tables(results), sheet=data_url(png(sheet)),
        rows_shown=f"Rows: {', '.join(shown)}", facts=facts(results, {"run": NONE}), NONE=NONE)
    with atomic_write(path) as scratch:
        scratch.write_text(page)
    return Image.fromarray(sheet)


def tables(results: Results) -> list[dict]:
    """Depth by its three alignments, then normals, flicker and matches."""
    rows = results.rows
    depth = [Column("", "file")]
    for name, what in (("metric", "metric"), ("median", "median-scaled"),
                       ("affine", "affine in 1/z")):
        depth += columns((f"δ<1.25, {what}", f"delta1_{name}"), (f"AbsRel, {what}",
                         f"abs_rel_{name}"), (f"RMSE, {what}, m", f"rmse_{name}_m"))
    depth += columns(("correlation", "corr", 2))
    matches = [name for name in rows[0] if name.startswith("match_")]
    other = [*columns(("", "file"), ("normal error, °", "normal_deg", 1),
                      ("flicker, %", "flicker", 2, 100)),
             *(Column(_match_header(name), name) for name in matches)]
    return [{"title": "Depth", "caption": "Means over frames; metric: as the file gives it.",
             "columns": filled_columns(depth, rows),
             "rows": [row for row in rows if row.get("delta1_metric") is not None]},
            {"title": "Normals, steadiness, matches",
             "caption": "Flicker: mean change of a static point's log depth between neighbouring "
                        "frames. Matches: on the 14x14 grid, at the stated distance of the two "
                        "cameras.",
             "columns": filled_columns(other, rows), "rows": rows}]


def _match_header(field: str) -> str:
    _, kind, at = field.split("_")
    return f"{'exact' if kind == 'exact' else 'within one cell'}, {at.removesuffix('cm')} cm"


def contact_sheet(recorded: Recorded,
                  predictors: Sequence[Predictor]) -> tuple[np.ndarray, list[str]]:
    """A column a frame; rows of colour, truth and each file's depth and normals, whose names it
    returns too."""
    places = [(clip, t) for clip in recorded.clips for t in range(len(clip.frames))]
    chosen = [places[i] for i in np.unique(np.linspace(0, len(places) - 1, FRAMES).astype(int))]
    rows = {"colour": [clip.frames[t].transpose(1, 2, 0) for clip, t in chosen],
            "true depth": [_true_depth(clip, t) for clip, t in chosen],
            "true normals": [_normals(true_normals(clip, t, camera_of(clip)))
                             for clip, t in chosen]}
    for each in predictors:
        name = each.facts["file"]
        found = [each.outputs(_one(clip, t)) for clip, t in chosen if "sha256" in each.facts]
        if found and "depth" in found[0]:
            rows[f"{name}: depth"] = [depth_colours(one["depth"][0, 0]) for one in found]
        if found and "normals" in found[0]:
            rows[f"{name}: normals"] = [normal_colours(one["normals"][0]) for one in found]
    sheet = Image.new("RGB", (len(chosen) * CELL_PX, len(rows) * (CELL_PX + LINE_PX)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (name, pictures) in enumerate(rows.items()):
        top = i * (CELL_PX + LINE_PX)
        pen.text((4, top + 2), name, fill="black")
        for j, picture in enumerate(pictures):
            cell = Image.fromarray(picture).resize((CELL_PX, CELL_PX), Image.Resampling.NEAREST)
            sheet.paste(cell, (j * CELL_PX, top + LINE_PX))
    return np.asarray(sheet), list(rows)


def _one(clip: Clip, t: int) -> Clip:
    return Clip(clip.id, clip.frames[t:t + 1], intrinsics=clip.intrinsics)


def _true_depth(clip: Clip, t: int) -> np.ndarray:
    assert clip.depth is not None
    valid = (clip.depth[t] > 0)[..., None]
    return np.where(valid, depth_colours(clip.depth[t]), np.array(UNKNOWN, np.uint8))


def _normals(normals: np.ndarray) -> np.ndarray:
    valid = (normals != 0).any(0)[..., None]
    return np.where(valid, normal_colours(normals), np.array(UNKNOWN, np.uint8))
