"""Picture strips of held-out rooms: the frame, its true depth, and what each reads out of it, as
small PNG files."""
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

from distill.pca_visualization import pca_colours
from distill.run import DistillRun
from records.files import atomic_write
from records.results import Row
from student.vit import Student
from teacher.data.dataset import Example, Examples

STRIPS = 4
PX = 224                          # of the frame; maps keep their own size
UNKNOWN = (128, 128, 128)         # colour of pixels without depth
INT8 = ("student_int8_cpu", "student_int8")  # which INT8 file speaks, in order of preference
SAYS = {
    "semantic_only": "semantic features only", "teacher": "the teacher",
    "student_fp32": "the FP32 student", "student_int8_cpu": "the INT8 student",
    "student_int8": "the INT8 student"
}


def draw_strips(run: DistillRun, student: Student, test: Examples,
                files: Sequence[str]) -> list[Row]:
    """Draws the middle frame of a few clips, spread over the split, into RUN/bench/strips.

    files: accuracy names of the exported files. Returns rows of kind `picture`: clip, file, place
    (its cell in the report's strip), shows, alt, and of depth near_m and far_m, the range of the
    colours.
    """
    int8 = [name for name in INT8 if name in files][:1]
    picked = spread(test.ids, STRIPS)
    middle = test.frames_per_clip // 2
    examples = [{
        key: value[middle:middle + 1].to(run.device)
        for key, value in test.load(clip).items()
    } for clip in picked]
    features = _feature_maps(student, examples, ["student_fp32", *int8])
    folder, rows = run.folder / "bench" / "strips", []
    for i, (clip, example) in enumerate(zip(picked, examples, strict=True)):
        pictures = [
            _save(folder, f"{i}_frame.png", example["frames"][0].permute(1, 2, 0).cpu().numpy(),
                  "frame", "frame", f"A frame of held-out clip {clip}")
        ]
        if run.labelled:
            pictures += _depth_pictures(run, student, example, int8, folder, f"{i}")
        pictures += [
            _save(folder, f"{i}_{name}_features.png", colours[i], f"{_column(name)}_features",
                  "features", f"Features of {SAYS[name]}, coloured by their three main directions")
            for name, colours in features.items()
        ]
        rows += [{"kind": "picture", "clip": clip, **picture} for picture in pictures]
    return rows


def spread(ids: Sequence[str], count: int) -> list[str]:
    """A few of the ids, evenly spaced."""
    return [ids[i] for i in np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int)]


def save_picture(path: Path, pixels: np.ndarray) -> None:
    """pixels [h,w,3] uint8, as a PNG."""
    with atomic_write(path) as scratch:
        scratch.write_bytes(_png(pixels))


def colour_bar() -> bytes:
    """The depth colours from near to far, as a PNG [1,64]."""
    return _png(_coloured(np.linspace(0, 1, 64)[None], 0, 1))


def _feature_maps(student: Student, examples: Sequence[Example],
                  names: Sequence[str]) -> dict[str, np.ndarray]:
    teacher = torch.cat([student.standardise(example["generative"])
                         for example in examples])  # [N,D,14,14]
    maps = [
        teacher, *(torch.cat([example[name].float() for example in examples]) for name in names)
    ]
    return dict(zip(("teacher", *names), pca_colours(maps), strict=True))


@torch.inference_mode()
def _depth_pictures(run: DistillRun, student: Student, example: Example, int8: Sequence[str],
                    folder: Path, stem: str) -> list[Row]:
    """True depth and every reader's, in one colour range: the truth's own, but for its outermost 2
    %."""
    seed = run.config.seeds[0]
    truth = example["depth"][0].cpu().numpy()
    near, far = np.percentile(truth[truth > 0], [2, 98]) if (truth > 0).any() else (0.0, 1.0)
    depths = {"truth": truth}
    for name in ("semantic_only", "teacher", "student_fp32", *int8):
        own = name in ("semantic_only", "teacher")
        heads = run.dense_teacher(name if own else "teacher", seed)
        stream = run.stream(name)(example) if own else student.destandardise(example[name].float())
        depths[name] = heads(example["semantic"].float(), stream).log_depth.exp()[0].cpu().numpy()
    span = {"near_m": float(near), "far_m": float(far)}
    return [{
        **_save(folder, f"{stem}_{name}_depth.png", _coloured(depth, near, far), f"{_column(name)}_depth", "depth", f"{'True depth' if name == 'truth' else f'Depth by {SAYS[name]}'}, bright is near"),
        **span
    } for name, depth in depths.items()]


def _column(name: str) -> str:
    places = {"semantic_only": "semantic", "student_fp32": "student", **dict.fromkeys(INT8, "int8")}
    return places.get(name, name)


def _coloured(depth: np.ndarray, near: float, far: float) -> np.ndarray:
    """Metres [h,w] -> [h,w,3] uint8, near bright and far dark."""
    share = np.clip((depth - near) / max(far - near, 1e-6), 0, 1)
    colours = (colormaps["magma"](0.97 - 0.92 * share)[..., :3] * 255).astype(np.uint8)
    return np.where((depth > 0)[..., None] | (near == 0), colours, np.array(UNKNOWN, np.uint8))


def _save(folder: Path, name: str, pixels: np.ndarray, place: str, shows: str, alt: str) -> Row:
    save_picture(folder / name, pixels)
    return {"file": name, "place": place, "shows": shows, "alt": alt}


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return out.getvalue()
