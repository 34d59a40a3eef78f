"""`vega3d bench real`: exported files on recorded RGB-D frames, run as `vega3d infer` runs them.
Beside them a constant and a prior of each row from rendered rooms (prior.py), and for matches a
window of RGB and EfficientNet-Lite0."""
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.device import device_facts
from bench.real import depth as geometry
from bench.real.prior import Prior, load_prior
from bench.real.views import flicker, match_scores, pairs_at, steady_pairs
from distill.correspondence import rgb_patches
from infer.inputs import focal_of_square
from infer.model import Model
from infer.steady import Steady
from records.files import sha256
from records.results import Results, Row, measured
from scenes.clip import SPLITS, Clip, ClipFolder
from scenes.sources.registration import check_registration
from scenes.sources.rgbd import read_recording

CHUNK = 8
STREAM, ENDS = 1000, 100  # frames of the stream that drift is measured over, and of each end
Outputs = dict[str, np.ndarray]  # depth [T,1,h,w] m, normals [T,3,h,w], descriptors [T,C,g,g]


@dataclass(frozen=True)
class Recorded:
    """A recording's clips at one size, and what was assumed and noticed about them."""
    clips: list[Clip]
    notes: list[str]

    @property
    def frames(self) -> int:
        return sum(len(clip.frames) for clip in self.clips)


@dataclass(frozen=True)
class Predictor:
    """outputs: of a clip, by the names of an exported file; what it has none of is left out."""
    facts: Row
    outputs: Callable[[Clip], Outputs]
    drift: Callable[[Clip], float] | None = None


def bench_real(folder: Path, files: Sequence[Path], most: int, per_metre: float | None,
               baselines: Sequence[float]) -> tuple[Results, Recorded, list[Predictor]]:
    """A row for each file and each predictor beside it. Raises ValueError for a folder or file that
    cannot be read, and for depth in another unit."""
    prior = load_prior()
    models = [Model(file) for file in files]
    sizes = {model.px for model in models}
    if len(sizes) > 1:
        raise ValueError(f"bench real: the files take frames of {', '.join(map(str, sizes))} px; "
                         "score those of one size at a time")
    recorded = read_recorded(folder, sizes.pop(), most, per_metre)
    recorded = replace(recorded, notes=[*recorded.notes, *_lacking(recorded.clips, baselines)])
    for note in recorded.notes:
        print(f"note: {folder}: {note}", file=sys.stderr)
    stateless = [_file(model) for model in models]
    steady = [_steady(each) for each, model in zip(stateless, models, strict=True)
              if "depth" in model.outputs]
    predictors = [*stateless, *steady, *_controls(prior)]
    rows = [measure(each, recorded.clips, baselines) for each in predictors]
    row_prior = next(row for row in rows if row["file"] == "row prior")
    for row in rows:
        row["row_prior_affine"] = row_prior["delta1_affine"]
    env = {**device_facts(), "recording": folder.name, "frames": recorded.frames,
           "notes": "; ".join(recorded.notes)}
    return measured("real", rows, env), recorded, predictors


def read_recorded(folder: Path, size: int, most: int, per_metre: float | None) -> Recorded:
    """An RGB-D folder, or a folder of clips with depth, at `size` px. Errors: read_recording's."""
    assumed: Sequence[str] = ()
    if any(folder.glob("*/[!.]*.safetensors")):
        source = ClipFolder(folder)
        clips = [source.clip(clip_id) for split in SPLITS for clip_id in source.ids(split)]
        bad = [clip for clip in clips
               if clip.depth is None or clip.frames.shape[2:] != (size, size)]
        if bad:
            raise ValueError(f"{folder}: clip {bad[0].id} has no depth, or is not of {size} px, "
                             "which the file takes")
        if not any(np.any(clip.depth) for clip in clips):
            raise ValueError(f"{folder}: no pixel has a depth")
    else:
        clip, assumed = read_recording(folder, size, most, per_metre)
        clips = [clip]
    return Recorded(clips, [*assumed, *_notes(clips)])


def _notes(clips: Sequence[Clip]) -> Iterator[str]:
    """Of what makes the scores doubtful or leaves some out."""
    if note := check_registration(clips).note:
        yield note
    if all(len(clip.frames) == 1 for clip in clips):
        yield "one frame: no matches and no flicker"
    elif all(clip.poses is None and clip.intrinsics is not None for clip in clips):
        yield "no poses: no matches and no flicker"


def _lacking(clips: Sequence[Clip], baselines: Sequence[float]) -> Iterator[str]:
    """Baselines at which nothing can be matched, of clips with poses and two frames or more."""
    if any(clip.poses is not None and len(clip.frames) > 1 for clip in clips):
        for baseline in baselines:
            if not any(pairs_at(clip, baseline) for clip in clips):
                yield (f"no two frames about {baseline:g} m apart show the same things: no matches "
                       "there")


def measure(predictor: Predictor, clips: Sequence[Clip], baselines: Sequence[float]) -> Row:
    """The predictor's row: means over frames, cells of pairs, and pairs of neighbouring frames."""
    frames: list[Row] = []
    changes: list[float] = []
    cells: dict[float, list[np.ndarray]] = {baseline: [] for baseline in baselines}
    for clip in clips:
        outputs = predictor.outputs(clip)
        frames += [_frame_scores(clip, t, outputs) for t in range(len(clip.frames))]
        if "depth" in outputs:
            changes += flicker(outputs["depth"], clip, steady_pairs(clip))
        if "descriptors" in outputs:
            for baseline, found in cells.items():
                found.append(match_scores(outputs["descriptors"], clip, pairs_at(clip, baseline)))
    row: Row = {**predictor.facts}
    for name in dict.fromkeys(name for frame in frames for name in frame):
        values = [frame[name] for frame in frames if np.isfinite(frame.get(name, np.nan))]
        row[name] = float(np.mean(values)) if values else None
    row["abs_rel"] = row.get("abs_rel_metric")
    for baseline, found in cells.items():
        every = np.concatenate(found) if found else np.empty((0, 2))
        scores = every.mean(0).tolist() if len(every) else (None, None)
        at = f"{100 * baseline:.0f}cm"
        row |= {f"match_exact_{at}": scores[0], f"match_within1_{at}": scores[1]}
    row["flicker"] = float(np.mean(changes)) if changes else None
    longest = max(clips, key=lambda clip: len(clip.frames))
    if predictor.drift and len(longest.frames) > 1:
        row["drift"] = predictor.drift(longest)
    return row


def camera_of(clip: Clip) -> np.ndarray:
    """The clip's camera matrix, or an assumed one."""
    if clip.intrinsics is not None:
        return clip.intrinsics
    px = clip.frames.shape[3]
    focal = focal_of_square(px, px, None).px
    return np.array([[focal, 0, px / 2], [0, focal, px / 2], [0, 0, 1]])


def _frame_scores(clip: Clip, t: int, outputs: Outputs) -> Row:
    scores: Row = {}
    truth = geometry.true_depth(clip, t)
    if "depth" in outputs and (truth > 0).sum() >= 100:
        scores |= geometry.depth_scores(geometry.resampled(outputs["depth"][t])[0], truth)
    if "normals" in outputs:
        found = geometry.resampled(outputs["normals"][t], geometry.NORMAL_CELLS)
        true = geometry.true_normals(clip, t, camera_of(clip))
        scores["normal_deg"] = geometry.normal_error(found, true)
    return scores


def _file(model: Model) -> Predictor:
    step = model.batch if isinstance(model.batch, int) else CHUNK

    def outputs(clip: Clip) -> Outputs:
        focal, count = float(np.diag(camera_of(clip))[:2].mean()), len(clip.frames)
        filled = np.concatenate([clip.frames, clip.frames[-1:].repeat(-count % step, 0)])
        parts = [model(filled[at:at + step], focal) for at in range(0, count, step)]
        found = {name: np.concatenate([part[name] for part in parts])[:count]
                 for name in parts[0]}
        return {"descriptors": found["features"], **found} if "features" in found else found

    return Predictor({"file": model.path.name, "sha256": sha256(model.path),
                      "precision": str(model.metadata.get("precision", "unknown"))}, outputs)


def _steady(file: Predictor) -> Predictor:
    """The file's depth through infer.steady, which is told the camera's matrix and no poses."""
    def streamed(clip: Clip, order: Sequence[int]) -> tuple[Outputs, np.ndarray]:
        found, camera = file.outputs(clip), camera_of(clip)
        steady = Steady(float(np.diag(camera)[:2].mean()), clip.frames.shape[3], camera[:2, 2])
        frames = ({name: value[t] for name, value in found.items()} for t in order)
        return found, np.stack([steady(frame)["depth"] for frame in frames])

    def outputs(clip: Clip) -> Outputs:
        found, depth = streamed(clip, range(len(clip.frames)))
        return found | {"depth": depth}

    def drift(clip: Clip) -> float:
        """Depth over the file's alone, the last frames' mean over the first's, of a long stream."""
        forth = np.arange(len(clip.frames))
        order = np.resize([*forth, *forth[-2:0:-1]], STREAM).tolist()  # and back
        found, depth = streamed(clip, order)
        ratio = depth / found["depth"][order]
        return float(ratio[-ENDS:].mean() / ratio[:ENDS].mean())

    return Predictor(file.facts | {"file": f"{file.facts['file']}, steady"}, outputs, drift)


def _controls(prior: Prior) -> list[Predictor]:
    from teacher.towers.efficientnet import SemanticEncoder

    n, encoder = len(prior.rows_m), SemanticEncoder()
    constant = np.full((1, n, n), prior.constant_m)
    rows = np.repeat(prior.rows_m[:, None], n, 1)[None]
    normals = np.repeat(prior.normals.T[:, :, None], n, 2)

    def fixed(**arrays: np.ndarray) -> Callable[[Clip], Outputs]:
        return lambda clip: {name: np.repeat(array[None], len(clip.frames), 0)
                             for name, array in arrays.items()}

    def described(describe: Callable[[Tensor], Tensor]) -> Callable[[Clip], Outputs]:
        def outputs(clip: Clip) -> Outputs:
            with torch.inference_mode():
                chunks = torch.from_numpy(clip.frames).split(CHUNK)
                return {"descriptors": torch.cat([describe(x / 255) for x in chunks]).numpy()}
        return outputs

    outputs = {"constant": fixed(depth=constant), "row prior": fixed(depth=rows, normals=normals),
               "RGB window": described(lambda frames: rgb_patches(frames, 14)),
               "EfficientNet-Lite0": described(encoder)}
    return [Predictor({"file": name}, call) for name, call in outputs.items()]
