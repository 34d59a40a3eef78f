"""The contact sheets and pages of `vega3d bench real` and `vega3d distill adapt`."""
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from bench.real.depth import true_normals
from bench.real.run import Predictor, Recorded, camera_of
from bench.report.gallery import data_url
from bench.report.page import DataTable, facts, write_template
from bench.report.pictures import UNKNOWN, png
from bench.tables.columns import NONE, columns, filled_columns
from distill.adapt import outputs
from infer.pictures import depth_colours, normal_colours
from records.results import Results
from scenes.clip import Clip
from student.heads import StudentWithHeads

ADAPTED = columns(("", "stage"), ("frames from", "frames_from"), ("AbsRel", "abs_rel"),
                  ("δ<1.25", "delta1"), ("δ<1.25, median-scaled", "delta1_median"),
                  ("normal error, °", "normal_deg", 1),
                  ("matches within one cell", "match_descriptor"),
                  ("cosine to the generator", "cosine_mean"))
FRAMES, CELL_PX, LINE_PX = 6, 160, 16


def write_page(results: Results, recorded: Recorded, predictors: Sequence[Predictor],
               path: Path) -> Image.Image:
    """Writes the page, with the contact sheet in it; returns the sheet."""
    lead = (f"{results.env['frames']} frames of a depth camera. The constant and the row prior "
            "come from rendered rooms and do not look at the picture; RGB window and "
            "EfficientNet-Lite0 only match.")
    sheet, shown = contact_sheet(recorded, predictors)
    _write(results, "exported files on real frames", sheet, shown, path, lead=lead,
           notes=recorded.notes, tables=tables(results))
    return Image.fromarray(sheet)


def write_adaptation(results: Results, clips: list[Clip], models: dict[str, StudentWithHeads],
                     path: Path) -> None:
    """The page of `vega3d distill adapt`: scores and held-out frames, before and after."""
    env = results.env
    lead = (f"The shipped student before and after {env['steps']} steps on {env['frames']} frames "
            f"of this place, scored on the {env['held_out_frames']} last ones, which it was not "
            f"trained on; {env['replay']:.0%} of every batch were rendered rooms.")
    predictors = [Predictor({"file": stage, "sha256": ""}, partial(outputs, model))
                  for stage, model in models.items()]
    sheet, shown = contact_sheet(Recorded(clips, []), predictors)
    table = DataTable("Means over held-out frames; depth in metres as predicted, with the camera's "
                      "focal length. Without a value: nothing to compare with.",
                      filled_columns(ADAPTED, results.rows), results.rows)
    _write(results, "before and after adaptation", sheet, shown, path, lead=lead,
           notes=[env["notes"]] if env["notes"] else [], tables={"Scores": table})


def _write(results: Results, what: str, sheet: np.ndarray, shown: Sequence[str], path: Path,
           **others: Any) -> None:
    write_template("real.html", path, results=results, sheet=data_url(png(sheet)), **others,
                   title=f"{results.env['recording']}: {what}",
                   rows_shown=f"Rows: {', '.join(shown)}", facts=facts(results, {"run": NONE}))


def tables(results: Results) -> dict[str, DataTable]:
    """Depth by its three alignments, then normals, flicker and matches, by their titles."""
    rows, depth = results.rows, [("", "file")]
    for name, what in (("metric", "metric"), ("median", "median-scaled"),
                       ("affine", "affine in 1/z")):
        depth += [(f"δ<1.25, {what}", f"delta1_{name}"), (f"AbsRel, {what}", f"abs_rel_{name}"),
                  (f"RMSE, {what}, m", f"rmse_{name}_m")]
    depth_columns = columns(*depth, ("correlation", "corr", 2))
    matches = []
    for field in rows[0]:
        if field.startswith("match_"):
            _, kind, at = field.removesuffix("cm").split("_")
            matches.append((f"{'exact' if kind == 'exact' else 'within one cell'}, {at} cm", field))
    other = columns(("", "file"), ("normal error, °", "normal_deg", 1),
                    ("flicker, %", "flicker", 2, 100),
                    ("drift over 1,000 frames", "drift", 3), *matches)
    return {
        "Depth": DataTable("Means over frames; metric: as the file gives it.",
                           filled_columns(depth_columns, rows),
                           [row for row in rows if row.get("delta1_metric") is not None]),
        "Normals, steadiness, matches": DataTable(
            "Flicker: mean change of a static point's log depth between neighbouring frames. "
            "Matches: on the 14x14 grid, at the stated distance of the two cameras.",
            filled_columns(other, rows), rows)}


def contact_sheet(recorded: Recorded,
                  predictors: Sequence[Predictor]) -> tuple[np.ndarray, list[str]]:
    """A column a frame; rows of colour, truth and each file's depth and normals, whose names it
    returns too."""
    places = [(clip, t) for clip in recorded.clips for t in range(len(clip.frames))]
    chosen = [places[i] for i in np.unique(np.linspace(0, len(places) - 1, FRAMES).astype(int))]
    depths = [clip.depth[t] for clip, t in chosen if clip.depth is not None]
    normals = [true_normals(clip, t, camera_of(clip)) for clip, t in chosen]
    rows = {"colour": [clip.frames[t].transpose(1, 2, 0) for clip, t in chosen]}
    if np.any(depths):
        rows |= {"true depth": [where_known(depth > 0, depth_colours(depth)) for depth in depths],
                 "true normals": [where_known((normal != 0).any(0), normal_colours(normal))
                                  for normal in normals]}
    for each in predictors:
        name = each.facts["file"]
        shown = "sha256" in each.facts and each.drift is None  # one frame has nothing to steady
        found = [each.outputs(_one(clip, t)) for clip, t in chosen if shown]
        if found and "depth" in found[0]:
            rows[f"{name}: depth"] = [depth_colours(one["depth"][0, 0]) for one in found]
        if found and "normals" in found[0]:
            rows[f"{name}: normals"] = [normal_colours(one["normals"][0]) for one in found]
    return labelled_rows(rows), list(rows)


def labelled_rows(rows: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """Equally many pictures uint8 [h,w,3] a row, under the row's name: uint8 [H,W,3]."""
    strips = []
    for name, pictures in rows.items():
        caption = Image.new("RGB", (len(pictures) * CELL_PX, LINE_PX), "white")
        ImageDraw.Draw(caption).text((4, 2), name, fill="black")
        cells = (Image.fromarray(picture).resize((CELL_PX, CELL_PX), Image.Resampling.NEAREST)
                 for picture in pictures)
        strips += [np.asarray(caption), np.concatenate([*map(np.asarray, cells)], 1)]
    return np.concatenate(strips)


def _one(clip: Clip, t: int) -> Clip:
    return Clip(clip.id, clip.frames[t:t + 1], intrinsics=clip.intrinsics)


def where_known(known: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """colours [h,w,3] where known [h,w], grey elsewhere."""
    return np.where(known[..., None], colours, np.array(UNKNOWN, np.uint8))
