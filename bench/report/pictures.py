"""Pictures of held-out clips for the report, as small PNG files, and the rows that describe
them."""
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from distill.loop import pca_colours
from distill.run import DistillRun
from export.source import evenly_spaced
from records.files import atomic_write
from records.results import Row
from scenes.clip import Clip
from student.vit import Student
from teacher.data.dataset import Example, Examples
from teacher.probing.correspondence import NEAR_M, centre_points
from teacher.towers.base import GRID

CLIPS, PAIRS = 4, 2        # clips with a strip of pictures; with matches between two views
LINES = 16                 # matches drawn, at random: the typical ones, not the best
FRAME_PX = 224
UNKNOWN = (128, 128, 128)  # colour of pixels without depth
INT8 = ("student_int8_cpu", "student_int8")  # the INT8 file that is shown, in order of preference
NAMES = {
    "semantic_only": "semantic features only", "teacher": "the teacher",
    "student_fp32": "the FP32 student", "student_int8_cpu": "the INT8 student",
    "student_int8": "the INT8 student"
}
COLUMNS = {"semantic_only": "semantic", "student_fp32": "student", **dict.fromkeys(INT8, "int8")}


def draw_pictures(run: DistillRun, student: Student, test: Examples,
                  files: Sequence[str]) -> list[Row]:
    """Draws the middle frame of a few clips into RUN/bench/strips. files: accuracy names of the
    exported files. Returns rows of kind `picture`; place: in the report's strip; near_m, far_m: the
    range of a depth picture's colours."""
    int8 = [name for name in INT8 if name in files][:1]
    clips = evenly_spaced(np.array(test.ids), CLIPS).tolist()
    middle = test.frames_per_clip // 2
    examples = [{key: value[[middle]].to(run.device) for key, value in test.load(clip).items()}
                for clip in clips]
    feature_maps = _feature_maps(student, examples, ["student_fp32", *int8])
    folder, rows = run.folder / "bench" / "strips", []
    for i, (clip, example) in enumerate(zip(clips, examples, strict=True)):
        frame = example["frames"][0].permute(1, 2, 0).cpu().numpy()
        pictures = [_save(folder, f"{i}_frame.png", frame, "frame", "frame",
                          f"A frame of held-out clip {clip}")]
        if run.labelled:
            pictures += _depth_pictures(run, student, example, int8, folder, f"{i}")
        for name, colours in feature_maps.items():
            alt = f"Features of {NAMES[name]}, coloured by their three main directions"
            pictures.append(_save(folder, f"{i}_{name}_features.png", colours[i],
                                  f"{COLUMNS.get(name, name)}_features", "features", alt))
        rows += [{"kind": "picture", "clip": clip, **picture} for picture in pictures]
    return rows


def match_rows(run: DistillRun, test: Examples, files: Sequence[str]) -> list[Row]:
    """Token matches between the first and the last frame of a few clips, by the features alone.
    Rows of kind `match_pair`, one a clip and `voice`: how many mutual nearest neighbours there are
    (found), whose point the other view sees (asked), and are right, which means within 0.2 m. Rows
    of kind `match`, one a drawn line, with its ends in pixels; right: null without depth and
    poses."""
    fields = ("generative", "student_fp32", *[name for name in INT8 if name in files][:1])
    sources = dict(zip(("teacher", "student", "int8"), fields, strict=False))
    rows: list[Row] = []
    for i, clip_id in enumerate(evenly_spaced(np.array(test.ids), PAIRS).tolist()):
        clip, example = test.source.clip(clip_id), test.load(clip_id)
        if len(clip.frames) < 2:
            continue
        ends = (0, len(clip.frames) - 1)
        points = _points(clip, ends)
        names = [f"{i}_view_{end}.png" for end in ends]
        for end, name in zip(ends, names, strict=True):
            frame = clip.frames[end].transpose(1, 2, 0)
            save_picture(run.folder / "bench" / "strips" / name, frame)
        for source, field in sources.items():
            rows += _matches({"clip": clip_id, "voice": source}, _tokens(example, field, ends),
                             points, names, seed=i)
    return rows


def save_picture(path: Path, pixels: np.ndarray) -> None:
    """pixels [h,w,3] uint8, as a PNG."""
    with atomic_write(path) as scratch:
        scratch.write_bytes(png(pixels))


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return out.getvalue()


def colour_bar() -> bytes:
    """The depth colours from near to far, as a PNG [1,64]."""
    return png(_depth_colours(np.linspace(0, 1, 64)[None], 0, 1))


def mutual_matches(a: Tensor, b: Tensor) -> Tensor:
    """a, b [N,D] -> [M,2]: indices of tokens that are each other's nearest by cosine."""
    cosine = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    nearest_b, nearest_a = cosine.argmax(1), cosine.argmax(0)
    index = torch.arange(len(a))
    mutual = nearest_a[nearest_b] == index
    return torch.stack([index[mutual], nearest_b[mutual]], 1)


def _feature_maps(student: Student, examples: Sequence[Example],
                  names: Sequence[str]) -> dict[str, np.ndarray]:
    """Colours [N,14,14,3] of the teacher's features and of each name's, in one PCA."""
    maps = [torch.cat([student.standardise(example["generative"]) for example in examples])]
    maps += [torch.cat([example[name].float() for example in examples]) for name in names]
    return dict(zip(("teacher", *names), pca_colours(maps), strict=True))


@torch.inference_mode()
def _depth_pictures(run: DistillRun, student: Student, example: Example, int8: Sequence[str],
                    folder: Path, stem: str) -> list[Row]:
    """True and predicted depth in one colour range: the 2nd to 98th percentile of the truth."""
    seed = run.config.seeds[0]
    truth = example["depth"][0].cpu().numpy()
    near, far = np.percentile(truth[truth > 0], [2, 98]) if (truth > 0).any() else (0.0, 1.0)
    streams = {name: run.stream(name)(example) for name in ("semantic_only", "teacher")}
    for name in ("student_fp32", *int8):
        streams[name] = student.destandardise(example[name].float())
    depths = {"truth": truth}
    for name, stream in streams.items():
        heads = run.dense_teacher("semantic_only" if name == "semantic_only" else "teacher", seed)
        depths[name] = heads(example["semantic"].float(), stream).log_depth.exp()[0].cpu().numpy()
    rows = []
    for name, depth in depths.items():
        title = "True depth" if name == "truth" else f"Depth by {NAMES[name]}"
        row = _save(folder, f"{stem}_{name}_depth.png", _depth_colours(depth, near, far),
                    f"{COLUMNS.get(name, name)}_depth", "depth", f"{title}, bright is near")
        rows.append(row | {"near_m": float(near), "far_m": float(far)})
    return rows


def _depth_colours(depth: np.ndarray, near: float, far: float) -> np.ndarray:
    """Metres [h,w] -> [h,w,3] uint8, near bright and far dark."""
    share = np.clip((depth - near) / max(far - near, 1e-6), 0, 1)
    colours = (colormaps["magma"](0.97 - 0.92 * share)[..., :3] * 255).astype(np.uint8)
    return np.where((depth > 0)[..., None] | (near == 0), colours, np.array(UNKNOWN, np.uint8))


def _save(folder: Path, name: str, pixels: np.ndarray, place: str, shows: str, alt: str) -> Row:
    save_picture(folder / name, pixels)
    return {"file": name, "place": place, "shows": shows, "alt": alt}


def _matches(facts: Row, tokens: Tensor, points: Tensor | None, names: Sequence[str],
             seed: int) -> list[Row]:
    """tokens [2,196,D], points [2,196,3] m or None -> the pair's row and those of its lines."""
    pairs = mutual_matches(*tokens)  # [M,2]
    near = seen = None
    if points is not None:
        distance = torch.cdist(points[0], points[1]).nan_to_num(torch.inf)  # [196,196] m
        near = distance[pairs[:, 0], pairs[:, 1]] < NEAR_M                  # [M]
        seen = (distance < NEAR_M).any(1)[pairs[:, 0]]                      # [M]
    rows: list[Row] = [{
        "kind": "match_pair", **facts, "from_file": names[0], "to_file": names[1],
        "found": len(pairs), "asked": None if seen is None else int(seen.sum()),
        "right": None if near is None or seen is None else int((near & seen).sum())
    }]
    drawn = np.random.default_rng(seed).permutation(len(pairs))[:LINES]
    for i in sorted(drawn.tolist()):
        right = None if near is None else bool(near[i])
        rows.append({"kind": "match", **facts, **_line_ends(pairs[i]), "right": right})
    return rows


def _line_ends(pair: Tensor) -> Row:
    """Centres of two tokens, in pixels of a frame."""
    ends = ((pair[:, None] // torch.tensor([1, GRID]) % GRID + 0.5) * FRAME_PX / GRID).flatten()
    return dict(zip(("from_x_px", "from_y_px", "to_x_px", "to_y_px"), ends.tolist(), strict=True))


def _tokens(example: Example, field: str, ends: Sequence[int]) -> Tensor:
    """[2,196,D], channels standardised over the clip: a few huge ones would make all alike."""
    flat = example[field].float().flatten(2).transpose(1, 2)  # [T,196,D]
    return ((flat - flat.mean((0, 1))) / flat.std((0, 1)).clamp_min(1e-4))[list(ends)]


def _points(clip: Clip, ends: Sequence[int]) -> Tensor | None:
    labelled = clip.depth is not None and clip.intrinsics is not None and clip.poses is not None
    return centre_points(clip, ends).float() if labelled else None
