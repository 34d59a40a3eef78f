"""README's picture: a frame, its depth and normals, and matches between two frames of its clip, by
the shipped student and heads."""
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tyro.conf import Positional

from bench.report.pictures import mutual_matches
from distill.correspondence import matching_cells
from infer.pictures import depth_colours, normal_colours
from scenes.clip import load_clip
from student.config import SHIPPED
from student.heads import StudentWithHeads, load_heads
from student.vit import load_student
from vega3d import run_recipe

PANEL_PX, GAP_PX, LINES = 320, 8, 32
RIGHT, WRONG, UNSEEN = (40, 220, 90), (255, 40, 40), (170, 170, 170)


def draw(clip_file: Positional[Path], out: Positional[Path], other: int = 4) -> None:
    """Writes five panels to `out`; frame 0 of the clip is matched with frame `other`."""
    clip = load_clip(clip_file)
    model = StudentWithHeads(load_student(SHIPPED), load_heads(SHIPPED))
    with torch.inference_mode():
        _, depth, normals, descriptors, *_ = model(torch.tensor(clip.frames[[0, other]]) / 255)
    views = [frame.transpose(1, 2, 0) for frame in clip.frames[[0, other]]]
    panels = [views[0], depth_colours(depth[0, 0].numpy()), normal_colours(normals[0].numpy()),
              *views]
    step = PANEL_PX + GAP_PX
    canvas = Image.new("RGB", (len(panels) * step - GAP_PX, PANEL_PX), "white")
    for i, panel in enumerate(panels):
        canvas.paste(Image.fromarray(panel).resize((PANEL_PX, PANEL_PX)), (i * step, 0))
    cells = descriptors.shape[-1]
    pairs = mutual_matches(*descriptors.flatten(2).transpose(1, 2)).numpy()     # [M,2]
    truth = matching_cells(clip, 0, other, cells)                               # [cells*cells,2]
    pen = ImageDraw.Draw(canvas)
    for a, b in np.random.default_rng(0).permutation(pairs)[:LINES]:
        error = np.abs(truth[a] - (b % cells, b // cells)).max() * 14 / cells   # 14x14 cells
        colour = UNSEEN if np.isnan(error) else RIGHT if error <= 1 else WRONG
        ends = []
        for panel, cell in ((3, a), (4, b)):
            x, y = (np.array([cell % cells, cell // cells]) + 0.5) * PANEL_PX / cells
            ends.append((panel * step + x, y))
        pen.line(ends, colour, 1)
        for x, y in ends:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), outline=colour, width=2)
    canvas.save(out, quality=85)


if __name__ == "__main__":
    run_recipe(draw)
