"""What each disturbance costs the teacher, the student and its INT8 file.

    python -m bench.recipes.robustness RUN --out bench/results/robustness.json [--real FOLDER]
    python -m bench.recipes.robustness --pack PACK --out …

RUN: a finished `vega3d distill run` on rooms, after `vega3d export onnx --preset edge`. Clips are
of its held-out rooms; filmed rooms and rooms with the training furniture are rendered. Without RUN:
the shipped student and infer/model, without the teacher, on rooms that their training held out
(PACK: as for students.sh). change: of delta1, from the undisturbed. NAME.png shows the student's
worst frame of each disturbance, of its first clips.

The models read pixels alone. A wrong focal length scales the metres of student and file; wrong
poses and depth go through infer.steady. The teacher takes part in neither.
"""
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.spatial.transform import Rotation
from torch import Tensor
from tyro.conf import Positional

from bench.real.depth import depth_scores, resampled, true_depth
from bench.real.page import labelled_rows, where_known
from bench.real.run import read_recorded
from bench.recipes.app_model import onnx_predictions
from bench.recipes.shipped_model import folder_of_shipped
from distill.augment import PHOTOMETRIC_DRAWS, photometric
from distill.config import ScenesConfig
from distill.heads import Predict, predictions, score
from distill.run import DistillRun, open_distill_run
from export.artefact import sidecar_path
from infer.model import SHIPPED
from infer.pictures import depth_colours
from infer.steady import Steady
from records.environment import environment
from records.files import read_object, sha256
from records.options import DepthUnit
from records.results import Row, measured, save
from scenes.clip import Clip, Split
from scenes.rooms.layout import Style
from scenes.rooms.source import RoomSource
from scenes.show import save_sheet
from student.config import HeadsShape, StudentConfig
from student.heads import StudentWithHeads, load_heads
from teacher.data.dataset import Examples
from teacher.dense import DenseTeacher
from vega3d import run_recipe

# a draw of `photometric` by its number, and the values that 0 and 1 mean; NEUTRAL: else 0.5
LIGHT = {"blur_px": (17, -6, 6), "noise": (34, -0.04, 0.04), "vignette": (27, -0.6, 0.6),
         "ln_exposure": (28, math.log(0.5), math.log(1.7))}
NEUTRAL = {25: (1 - 0.2) / (1.5 - 0.2), 28: math.log(2) / math.log(1.7 / 0.5)}
REFLECTIVE, ALONE = ("mirror", "glass screen", "glass table"), "reflective things alone"
WORST_OF = 20  # clips that the student's worst frame is looked for in
LEAST = 0.02   # share of a clip's pixels that things must have to be scored alone
STREAM = 200   # frames


class Model(NamedTuple):
    predict: Predict
    shape: HeadsShape

    def metres(self, clip: Clip) -> float:
        """By which depth is multiplied for the clip's camera."""
        assert clip.intrinsics is not None
        focal = float(np.diag(clip.intrinsics)[:2].mean())
        return focal / self.shape.canonical_focal if self.shape.canonical_focal else 1.0


class Condition(NamedTuple):
    """through: of outputs, for what student and file alone are used for."""
    perturbation: str
    level: str
    clips: Sequence[Clip]
    through: Callable[[Model, Sequence[Clip]], Predict] | None = None

    def predict(self, model: Model) -> Predict:
        return self.through(model, self.clips) if self.through else model.predict


@dataclass(frozen=True)
class _Source:
    clips: Sequence[Clip]

    def ids(self, split: Split) -> list[str]:
        return [str(i) for i in range(len(self.clips))]

    def clip(self, clip_id: str) -> Clip:
        return self.clips[int(clip_id)]


def main(run: Positional[Path | None] = None, *, out: Path, clips: int = 100,
         real: Path | None = None, depth_unit: DepthUnit | None = None,
         pack: Path | None = None) -> None:
    """clips: of each kind; real, depth_unit: a recording with poses, as of `vega3d bench real`."""
    with TemporaryDirectory() as scratch:
        recorded = None
        if real is not None:  # what is wrong with it is said first
            clip = read_recorded(real, StudentConfig.image_size, 400, depth_unit).clips[0]
            recorded = replace(clip, id=real.name)
        opened = open_distill_run(run or shipped_run(Path(scratch) / "run", clips, pack), not run)
        measure(opened, out, clips, recorded)


def shipped_run(folder: Path, clips: int, pack: Path | None) -> Path:
    """A folder of the shipped student and file; a clip of each of the first held-out rooms."""
    folder_of_shipped(folder, "ti", ScenesConfig(furniture=pack, style="mixed", train=1, test=clips,
                                                 clips_per_room=1, seed=3000))
    shutil.copytree(SHIPPED.parent, folder / "export" / "edge" / "onnx")
    return folder


def measure(opened: DistillRun, out: Path, clips: int, real: Clip | None) -> None:
    rows: list[Row] = []
    worst: dict[str, list[np.ndarray]] = {}
    found = models(opened)
    for one in conditions(opened, clips, real):
        new = list(condition_rows(one, found, opened))
        rows += new
        print(f"{one.perturbation}, {one.level}: delta1",
              *(f"{row['model']} {row['delta1']:.3f}" for row in new), flush=True)
        delta1, pictures = worst_frame(one, found["student"], opened.device)
        worst[f"{one.perturbation}, {one.level}: delta1 {delta1:.2f}"] = pictures
    clean = {row["model"]: row["delta1"] for row in rows if row["perturbation"] == "none"}
    for row in rows:
        row["change"] = row["delta1"] - clean[row["model"]]
    save(measured(out.stem, rows, {**environment(), "clips": clips}), out)
    save_sheet(Image.fromarray(labelled_rows(worst)), out.with_suffix(".png"))


def models(run: DistillRun) -> dict[str, Model]:
    """The first seed's student, its teacher and an INT8 file of a preset if there are such:
    model_quantized.onnx before model_int8.onnx, which is slow on a CPU."""
    seed = run.config.seeds[0]
    student, folder = run.student(seed), run.student_folder(seed)
    heads = load_heads(folder, sha256(folder / "student.safetensors")).to(run.device)
    found = {}
    if (run.folder / "teacher").is_dir():
        teacher = dense_predictions(run, run.dense_teacher("teacher", seed))
        found["teacher"] = Model(teacher, replace(heads.shape, canonical_focal=0.0))
    found["student"] = Model(predictions(StudentWithHeads(student, heads)), heads.shape)
    for path in sorted(run.folder.glob("export/*/onnx/*.onnx")):
        if read_object(sidecar_path(path)).get("precision") == "int8":
            found["int8"] = Model(onnx_predictions(path, run.device), heads.shape)
    return found


def dense_predictions(run: DistillRun, dense: DenseTeacher) -> Predict:
    def predict(frames: Tensor) -> dict[str, Tensor]:
        features = run.tower.features(frames[:, None])[:, 0].float()
        out = dense(run.semantic.features(frames[:, None])[:, 0].float(), features)
        return {"features": features, "descriptors": features,
                "depth": out.log_depth.exp()[:, None], "normals": F.normalize(out.normals, dim=1)}

    return predict


def condition_rows(one: Condition, found: dict[str, Model], run: DistillRun) -> Iterator[Row]:
    source = _Source(one.clips)
    examples = Examples(source, source.ids("test"), {}, run.device, cameras=True)
    student = run.student(run.config.seeds[0])
    for name, model in found.items():
        if one.through is None or name != "teacher":
            scores = score(one.predict(model), examples, model.shape, student, views=False)
            row: Row = {"perturbation": one.perturbation, "level": one.level, "model": name}
            row |= {key: scores.get(key) for key in ("delta1", "abs_rel", "normal_deg")}
            # what a mirror shows is elsewhere in the other view
            matches = None if one.perturbation == ALONE else scores["match_descriptor"]
            yield row | {"match": matches, "frames": len(examples)}


def conditions(run: DistillRun, count: int, real: Clip | None) -> Iterator[Condition]:
    ids = run.source.ids("test")
    clean = [run.source.clip(i) for i in ids[::max(1, len(ids) // count)][:count]]
    yield Condition("none", "held-out rooms", clean)
    for name, level, values in (
            ("motion blur", "3 px", {"blur_px": 3.0}), ("motion blur", "6 px", {"blur_px": 6.0}),
            ("exposure", "x0.5", {"ln_exposure": math.log(0.5)}),
            ("exposure", "x1.5", {"ln_exposure": math.log(1.5)}),
            ("vignette", "corners x0.5", {"vignette": 0.5}),
            ("exposure and vignette", "x1.5, corners x0.5",
             {"ln_exposure": math.log(1.5), "vignette": 0.5}),
            ("low light", "x0.15, noise", {"ln_exposure": math.log(0.15), "noise": 0.08})):
        yield Condition(name, level, [lit(clip, **values) for clip in clean])
    for share in (0.1, 0.25):
        yield Condition("occlusion", f"{share:.0%} covered", [hidden(c, share) for c in clean])
    yield Condition("lens", "1.5x longer", [longer_lens(clip, 1.5) for clip in clean])
    if alike := [found for clip in clean if (found := only(clip, look_alikes(clip)))]:
        yield Condition("look-alike things alone", "3 or more of a name", alike)
    yield Condition("furniture of the training", "in new rooms", rendered(run, "train", count))
    filmed = rendered(run, "test", count, style="filmed")
    yield Condition("filmed rooms", "clutter, tilt, 35 to 95 °", filmed)
    if glass := [found for clip in filmed if (found := only(clip, REFLECTIVE))]:
        yield Condition(ALONE, "in filmed rooms", glass)
    if real is not None:
        most = min(run.config.scenes.frames, len(real.frames))
        parts = min(count, len(real.frames) // most)
        starts = np.linspace(0, len(real.frames) - most, parts).astype(int)
        yield Condition("real frames", real.id, [part(real, at, most) for at in starts])
    for error in (-0.1, 0.1):
        yield Condition("focal length", f"{error:+.0%}", clean, wrong_focal(error))
    for name, level, through in (
            ("steady filter", "motion by matches", steadied()),
            ("steady, pose noise", "2 cm, 1 °", steadied(poses=(0.02, 1.0))),
            ("steady, pose noise", "10 cm, 5 °", steadied(poses=(0.1, 5.0))),
            ("steady, depth noise", "10 % a frame", steadied(depth=0.1)),
            ("steady, long stream", f"{STREAM} frames", steadied(stream=STREAM))):
        yield Condition(name, level, clean, through)


def rendered(run: DistillRun, split: Split, count: int, style: Style = "plain") -> list[Clip]:
    """Of rooms that the run has not seen."""
    config = run.config.scenes
    rooms = RoomSource(count, 0, count, frames=config.frames, seed=config.seed + 1,
                       pack=config.furniture, style=style)
    return [rooms.clip(i) for i in rooms.ids(split)]


def lit(clip: Clip, **values: float) -> Clip:
    """The clip as `photometric` gives it with these values of LIGHT, and nothing else."""
    draws = torch.full((len(clip.frames), PHOTOMETRIC_DRAWS), 0.5)
    draws[:, list(NEUTRAL)] = torch.tensor(list(NEUTRAL.values()))
    draws[:, 33] = torch.linspace(0, 0.9, len(draws))  # of the noise, each frame's own
    for name, value in values.items():
        number, low, high = LIGHT[name]
        draws[:, number] = (value - low) / (high - low)
    frames = photometric(torch.from_numpy(clip.frames).float() / 255, draws)
    return replace(clip, frames=(frames * 255).round().byte().numpy())


def hidden(clip: Clip, share: float) -> Clip:
    """A grey square, somewhere in each frame, covers `share` of it; what it hides is not scored."""
    rng, px = np.random.default_rng(0), clip.frames.shape[3]
    side, shown = round(px * math.sqrt(share)), np.ones((len(clip.frames), px, px), bool)
    for one, (top, left) in zip(shown, rng.integers(0, px - side, (len(shown), 2)), strict=True):
        one[top:top + side, left:left + side] = False
    frames = np.where(shown[:, None], clip.frames, np.uint8(90))
    return replace(_masked(clip, shown), frames=frames)


def only(clip: Clip, names: Sequence[str]) -> Clip | None:
    """The clip, scored on things of these names alone; None if they are hardly seen."""
    assert clip.instances is not None
    inside = np.isin(clip.instances, [o.id for o in clip.objects if o.name in names])
    objects = [replace(o, surface="fixed") for o in clip.objects]  # depth of mirrors is known
    return _masked(replace(clip, objects=objects), inside) if inside.mean() >= LEAST else None


def look_alikes(clip: Clip) -> list[str]:
    names = [o.name for o in clip.objects if o.category not in ("wall", "floor", "ceiling")]
    return [name for name in set(names) if names.count(name) >= 3]


def longer_lens(clip: Clip, times: float) -> Clip:
    assert clip.intrinsics is not None
    px = clip.frames.shape[3]
    at = ((np.arange(px) + 0.5 - px / 2) / times + px / 2).astype(int)
    intrinsics = np.diag([times, times, 1]) @ clip.intrinsics
    intrinsics[:2, 2] += px / 2 * (1 - times)
    arrays = {name: getattr(clip, name)[..., at[:, None], at]
              for name in ("frames", "depth", "normals", "instances")}
    return replace(clip, **arrays, intrinsics=intrinsics)


def wrong_focal(error: float) -> Callable[[Model, Sequence[Clip]], Predict]:
    def through(model: Model, clips: Sequence[Clip]) -> Predict:
        return lambda frames: (found := model.predict(frames)) | {
            "depth": found["depth"] * (1 + error * bool(model.shape.canonical_focal))}

    return through


def steadied(poses: tuple[float, float] | None = None, depth: float = 0.0,
             stream: int = 0) -> Callable[[Model, Sequence[Clip]], Predict]:
    """Through infer.steady, clip by clip.

    poses: deviation of those it is told, m and degrees; None: told none. depth: deviation of the ln
    of each frame's. stream: frames that a clip is played for, back and forth; the last ones count.
    """
    def through(model: Model, clips: Sequence[Clip]) -> Predict:
        waiting, rng = iter(clips), np.random.default_rng(0)

        def predict(frames: Tensor) -> dict[str, Tensor]:
            outputs, clip, count = model.predict(frames), next(waiting), len(frames)
            assert clip.intrinsics is not None and clip.poses is not None
            told = clip.poses.copy()
            if poses:
                turns = Rotation.from_rotvec(rng.normal(0, poses[1], (count, 3)), degrees=True)
                told[:, :3, :3] = told[:, :3, :3] @ turns.as_matrix()
                told[:, :3, 3] += rng.normal(0, poses[0], (count, 3))
            scale = model.metres(clip) * np.exp(rng.normal(0, depth, (count, 1, 1, 1)))
            maps = {name: value.cpu().numpy() for name, value in outputs.items()}
            maps["depth"] = maps["depth"] * scale
            steady = Steady(float(np.diag(clip.intrinsics)[:2].mean()), frames.shape[3],
                            clip.intrinsics[:2, 2])
            found, forth = np.empty_like(maps["depth"]), range(count)
            for t in np.resize([*forth, *forth[-2:0:-1]], max(stream, count)):
                frame = {name: value[t] for name, value in maps.items()}
                found[t] = steady(frame, told[t] if poses else None)["depth"]
            return outputs | {"depth": torch.from_numpy(found / model.metres(clip)).to(frames)}

        return predict

    return through


@torch.inference_mode()
def worst_frame(one: Condition, model: Model,
                device: torch.device) -> tuple[float, list[np.ndarray]]:
    """The least delta1 of a frame, and pictures of it, its true depth and the model's."""
    worst: tuple[float, list[np.ndarray]] = (2.0, [])
    predict = one.predict(model)
    for clip in one.clips[:WORST_OF]:
        found = predict(torch.from_numpy(clip.frames).to(device).float() / 255)["depth"]
        for t, depth in enumerate(found.cpu().numpy() * model.metres(clip)):
            truth = true_depth(clip, t)
            if (truth > 0).mean() < LEAST:
                continue
            delta1 = depth_scores(resampled(depth)[0], truth)["delta1_metric"]
            if delta1 < worst[0]:
                pictures = [clip.frames[t].transpose(1, 2, 0),
                            where_known(truth > 0, depth_colours(truth)), depth_colours(depth[0])]
                worst = (delta1, pictures)
    return worst


def part(clip: Clip, start: int, count: int) -> Clip:
    arrays = {name: value[start:start + count] for name in ("frames", "depth", "poses")
              if (value := getattr(clip, name)) is not None}
    return Clip(clip.id, **arrays, intrinsics=clip.intrinsics)


def _masked(clip: Clip, shown: np.ndarray) -> Clip:
    """Without labels where `shown` [T,H,W] is False."""
    assert clip.depth is not None and clip.normals is not None
    return replace(clip, depth=clip.depth * shown, normals=clip.normals * shown[:, None])


if __name__ == "__main__":
    run_recipe(main)
