"""Which token of one view is which of another, by the features alone: the lines between two frames
of the report."""
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.report.pictures import INT8, save_picture, spread
from distill.run import DistillRun
from records.results import Row
from scenes.clip import Clip
from teacher.data.dataset import Example, Examples
from teacher.probing.correspondence import NEAR_M, token_points
from teacher.towers.base import GRID

PAIRS = 2          # clips
LINES = 16  # of those found, drawn at random: the page shows what is typical, not what is best


def match_rows(run: DistillRun, test: Examples, files: Sequence[str]) -> list[Row]:
    """Rows of kind `match`: clip, voice, from and to in pixels of a 224 px frame, and right:
    whether the two tokens lie within 0.2 m of one another in the room (null where that is unknown).
    Of kind `match_pair`: the two pictures, and for each voice how many mutual nearest neighbours
    there are (found) and how many are right (of those asked: whose point the other view sees at
    all)."""
    voices = {"teacher": "generative", "student": "student_fp32"}
    if int8 := next((name for name in INT8 if name in files), None):
        voices["int8"] = int8
    rows: list[Row] = []
    for i, clip_id in enumerate(spread(test.ids, PAIRS)):
        clip, example = test.source.clip(clip_id), test.load(clip_id)
        if len(clip.frames) < 2:
            continue
        ends = (0, len(clip.frames) - 1)
        points = _points(clip, ends)
        names = [f"{i}_view_{end}.png" for end in ends]
        for end, name in zip(ends, names, strict=True):
            save_picture(run.folder / "bench" / "strips" / name,
                         clip.frames[end].transpose(1, 2, 0))
        for voice, field in voices.items():
            rows += _matched(clip_id, voice, _tokens(example, field, ends), points, names, seed=i)
    return rows


def mutual(a: Tensor, b: Tensor) -> Tensor:
    """a, b [N,D] -> [M,2]: indices of tokens that are each other's nearest by cosine."""
    cosine = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    there, back = cosine.argmax(1), cosine.argmax(0)
    here = torch.arange(len(a))
    kept = back[there] == here
    return torch.stack([here[kept], there[kept]], 1)


def _matched(clip: str, voice: str, tokens: Tensor, points: Tensor | None, names: Sequence[str],
             seed: int) -> list[Row]:
    pairs = mutual(*tokens)                                                              # [M,2]
    near = seen = None
    if points is not None:
        apart = torch.cdist(points[0], points[1]).nan_to_num(torch.inf)  # [196,196] m
        near, seen = apart[pairs[:, 0], pairs[:, 1]] < NEAR_M, (apart < NEAR_M).any(1)[pairs[:, 0]]
    about = {"clip": clip, "voice": voice}
    row: Row = {
        "kind": "match_pair", **about, "from_file": names[0], "to_file": names[1],
        "found": len(pairs), "asked": None if seen is None else int(seen.sum()),
        "right": None if near is None or seen is None else int((near & seen).sum())
    }
    drawn = np.random.default_rng(seed).permutation(len(pairs))[:LINES]
    lines = [{
        "kind": "match", **about,
        **_ends(pairs[i]), "right": None if near is None else bool(near[i])
    } for i in sorted(drawn.tolist())]
    return [row, *lines]


def _ends(pair: Tensor) -> Row:
    pixel = 224 / GRID
    (ay, ax), (by, bx) = (divmod(int(token), GRID) for token in pair)
    return {f"{name}_px": (cell + 0.5) * pixel for name, cell in
            (("from_x", ax), ("from_y", ay), ("to_x", bx), ("to_y", by))}


def _tokens(example: Example, field: str, ends: Sequence[int]) -> Tensor:
    """[2,196,D], channels standardised over the clip: a few huge ones would make any two tokens
    alike."""
    flat = example[field].float().flatten(2).transpose(1, 2)                             # [T,196,D]
    return ((flat - flat.mean((0, 1))) / flat.std((0, 1)).clamp_min(1e-4))[list(ends)]


def _points(clip: Clip, ends: Sequence[int]) -> Tensor | None:
    known = clip.depth is not None and clip.intrinsics is not None and clip.poses is not None
    return token_points(clip, ends).float() if known else None
