"""The student's heads: their training on labelled clips, and their scores on held-out ones."""
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import log
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.augment import sampled
from distill.config import HeadTraining, StudentTraining
from distill.correspondence import (
    batched_matching_cells,
    best_matches,
    chance_of_match,
    rgb_patches,
    right_matches,
)
from distill.joint import CHECKPOINT, cropped_view, train_jointly
from records import manifest
from records.files import sha256
from scenes.clip import Clip
from student.config import HeadsShape
from student.heads import FILE, Heads, StudentWithHeads, heads_scores, load_heads, save_heads
from student.vit import Student, load_student, save_student
from teacher.data.dataset import Example, Examples
from teacher.training.checkpoint import remove_checkpoint

NAME = "student_heads"  # of the row in accuracy.json
SIDE = 112              # of the maps that depth is scored on
EDGE = 0.1              # least jump of inverse depth, as a share of it, that is an occlusion edge
CLIPS = {"cpu": 1, "cuda": 8}  # that are scored at once: a GPU waits less, a CPU's cache holds one
BINS = 10               # of the confidence's calibration curve
# what `score` shows the model of a frame: side, left and top edge of the window; its resolution, px
VIEWS = {"complete": ((1.0, 0.0, 0.0), None), "160": ((1.0, 0.0, 0.0), 160),
         "448": ((1.0, 0.0, 0.0), 448), "crop": ((0.75, 0.125, 0.125), None),
         "corner": ((0.75, 0.0, 0.25), None)}

Predict = Callable[[Tensor], dict[str, Tensor]]  # frames [B,3,H,W] in [0,1] -> outputs by name


def can_train(clip: Clip) -> bool:
    """Whether it has depth, normals and cameras, and two frames to match."""
    labels = clip.depth, clip.normals, clip.instances, clip.intrinsics, clip.poses
    return len(clip.frames) > 1 and all(value is not None for value in labels)


def ensure_heads(folder: Path, train: Examples, test: Examples, config: HeadTraining,
                 training: StudentTraining, seed: int, again: bool = False,
                 initial: Student | None = None) -> dict:
    """Trains heads, and by `config.training` the student in `folder` (`initial`: this one), unless
    it has them (`again`: even so); both examples with `cameras`.

    Writes folder/student.safetensors and folder/heads.safetensors; returns the row of held-out
    scores. With several processes all train, and the first one scores and writes.
    """
    if again or not _has_heads(folder):
        student = initial or load_student(folder)
        if config.training == "frozen":
            config = replace(config, student_lr=0.0)
        torch.manual_seed(seed)
        model = StudentWithHeads(student, initial_heads(student, config)).to(train.device)
        train_jointly(model, train, config, training, seed, folder)
        if train.processes.main:
            scores = score(predictions(model), test, model.heads.shape, student)
            _save(model, folder, scores, config.student_lr > 0 or initial is not None)
    train.processes.wait()
    return {"features": NAME, "head": "own", "seed": seed, **heads_scores(folder)}


def initial_heads(student: Student, config: HeadTraining) -> Heads:
    """Untrained heads of the student; by `config.init` with what fits of the shipped ones."""
    shape = HeadsShape(student.config.out_dim, student.config.grid, config.width,
                       config.descriptor_dim, canonical_focal=float(student.config.image_size),
                       patch=student.config.patch)
    heads = Heads(shape)
    folder = student.config.shipped
    shipped = (folder / FILE).is_file() and load_student(folder).config.teacher
    if config.init == "shipped" and shipped == student.config.teacher:
        own = heads.state_dict()
        heads.load_state_dict(own | {name: value for name, value
                                     in load_heads(folder).state_dict().items()
                                     if name in own and own[name].shape == value.shape})
    return heads


def predictions(model: StudentWithHeads) -> Predict:
    model.eval()
    names = ("features", *model.heads.shape.outputs)
    return lambda frames: dict(zip(names, model(frames), strict=True))


@torch.inference_mode()
def score(predict: Predict, examples: Examples, shape: HeadsShape, student: Student | None,
          views: bool = True) -> dict[str, float]:
    """Scores of held-out clips with `cameras`, as far as the clips and `predict` have what for.

    cosine_mean: of the features and the teacher's, standardised as the student's are, if given.
    delta1, abs_rel: of metres, with the focal length given; delta1_median: after each frame's depth
    is scaled by the ratio of medians, and so edge_abs_rel, beside occlusion edges. edge_precision,
    edge_recall: of predicted occlusion edges; one cell of 112x112 apart counts. normal_deg.
    match_NAME: share of visible cells, between first and last frames, matched within one cell of
    14x14. share_at_N, right_at_N: of pixels with a confidence of N % or up to 10 % more, how many
    of all these are, and how many of these are within 25 % of the truth; confidence_error: the mean
    of |confidence - right|. With `views`, scale_change_NAME: mean |ln| of
    the change of metres when a frame arrives with that side (px), or cropped.
    """
    means = _Means()
    curve = torch.zeros(BINS, 3, dtype=torch.double, device=examples.device)
    for example in _groups(examples):
        example = {**example, "frames": example["frames"].float() / 255}
        whole = torch.tensor([[1.0, 0.0, 0.0]], device=examples.device)
        view = cropped_view(example, whole.expand(len(example["frames"]), 3), SIDE)
        outputs = predict(example["frames"])
        depth = metres(outputs, view["focal"], shape)
        _add_depth(means, depth, view["depth"])
        if "confidence" in outputs:
            curve += _calibration(outputs["confidence"][:, 0], depth, view["depth"])
        if "normals" in example:
            truth = example["normals"].float()
            cosine = torch.cosine_similarity(outputs["normals"], truth, dim=1).clamp(-1, 1)
            means.add("normal_deg", cosine.arccos().rad2deg()[(truth != 0).any(1)])
        if student and "generative" in example:
            target = student.standardise(example["generative"])
            means.add("cosine_mean", torch.cosine_similarity(outputs["features"], target, dim=1))
        _add_matches(means, outputs, example, view, examples.frames_per_clip)
        if views:
            _add_scale_changes(means, predict, example, shape, examples.frames_per_clip)
    return means.result() | _calibration_scores(curve) | {"test_clips": len(examples.ids)}


def _groups(examples: Examples) -> Iterator[Example]:
    """The fields of up to CLIPS clips, frame by frame."""
    group: list[Example] = []
    count = CLIPS[examples.device.type]
    for i, (_, example) in enumerate(examples.in_order(), 1):
        group.append(example)
        if len(group) == count or i == len(examples.ids):
            yield {name: torch.cat([clip[name] for clip in group]) for name in example}
            group = []


class _Means:
    """Means by name of values that are added part by part, summed where they are."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor) -> None:
        pair = torch.stack([values.double().sum(), values.new_tensor(values.numel()).double()])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def result(self) -> dict[str, float]:
        return {name: (pair[0] / pair[1]).item() for name, pair in self.sums.items() if pair[1]}


def metres(outputs: dict[str, Tensor], focal: Tensor, shape: HeadsShape) -> Tensor:
    """[B,112,112] of cameras with these focal lengths [B], px."""
    depth = outputs["depth"]
    if depth.shape[-1] != SIDE:
        depth = F.interpolate(depth, (SIDE, SIDE), mode="bilinear")
    if shape.canonical_focal:
        depth = depth * (focal / shape.canonical_focal)[:, None, None, None]
    return depth[:, 0]


def _add_depth(means: _Means, depth: Tensor, truth: Tensor) -> None:
    valid = truth > 0
    medians = [maps.where(valid, torch.nan).flatten(1).nanmedian(1).values
               for maps in (truth, depth)]
    scaled = depth * (medians[0] / medians[1])[:, None, None]
    means.add("delta1", _close(depth, truth)[valid].float())
    means.add("abs_rel", (depth / truth - 1).abs()[valid])
    means.add("delta1_median", _close(scaled, truth)[valid].float())
    edges, found = _edges(truth) & valid, _edges(scaled) & valid
    means.add("edge_abs_rel", (scaled / truth - 1).abs()[_wider(edges) & valid])
    means.add("edge_precision", _wider(edges)[found].float())
    means.add("edge_recall", _wider(found)[edges].float())


def _close(depth: Tensor, truth: Tensor) -> Tensor:
    return (depth.log() - truth.clamp_min(1e-3).log()).abs() < log(1.25)


def _edges(depth: Tensor) -> Tensor:
    """Where inverse depth, which is linear on a plane however slanted, is not: [B,S,S] bool."""
    inverse = 1 / depth.clamp_min(1e-3)
    inverse = inverse.where(depth > 0, torch.nan)  # beside the unknown there is no edge
    padded = F.pad(inverse[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    middle = padded[:, 1:-1, 1:-1]
    across = padded[:, 1:-1, 2:] + padded[:, 1:-1, :-2] - 2 * middle
    down = padded[:, 2:, 1:-1] + padded[:, :-2, 1:-1] - 2 * middle
    return (across.abs() > EDGE * middle) | (down.abs() > EDGE * middle)


def _wider(mask: Tensor) -> Tensor:
    """And the eight neighbours."""
    return F.max_pool2d(mask[:, None].float(), 3, 1, 1)[:, 0] > 0


def _calibration(confidence: Tensor, depth: Tensor, truth: Tensor) -> Tensor:
    """For each of BINS the sums of confidence and of hits, and the count."""
    valid = truth > 0
    p, hit = confidence[valid].double(), _close(depth, truth)[valid].double()
    place = (p * BINS).long().clamp(max=BINS - 1)
    return torch.zeros(BINS, 3, dtype=torch.double, device=p.device).index_add_(
        0, place, torch.stack([p, hit, torch.ones_like(p)], 1))


def _calibration_scores(curve: Tensor) -> dict[str, float]:
    confidence, right, count = curve.T
    if not count.any():
        return {}
    share, filled = count / count.sum(), count.clamp_min(1)
    scores = {"confidence_error": ((confidence - right).abs().sum() / count.sum()).item()}
    for i in count.nonzero()[:, 0].tolist():
        name = f"at_{100 * i // BINS}"
        scores |= {f"share_{name}": share[i].item(), f"right_{name}": (right / filled)[i].item()}
    return scores


def _add_matches(means: _Means, outputs: dict[str, Tensor], example: Example, view: Example,
                 frames: int) -> None:
    """Of the descriptors, the features, RGB patches and the same place, each clip's first frame to
    its last and back; frames: of a clip."""
    cells, count = outputs["descriptors"].shape[-1], len(example["frames"])
    maps = {"descriptor": outputs["descriptors"],
            "features": F.interpolate(outputs["features"], size=(cells, cells)),
            "rgb": rgb_patches(example["frames"], cells)}
    poses = example["poses"].double()
    first = torch.arange(0, count, frames, device=poses.device)
    last = first + frames - 1
    same_place = torch.arange(cells**2, device=poses.device).expand(len(first), -1)
    for a, b in ((first, last), (last, first)):
        targets = batched_matching_cells(
            view["depth"][a], view["depth"][b], view["intrinsics"][a], view["intrinsics"][b],
            torch.linalg.inv(poses[b]) @ poses[a], cells)
        for name, values in maps.items():
            right = right_matches(best_matches(values[a], values[b]), targets)
            means.add(f"match_{name}", right.float())
        means.add("match_same_place", right_matches(same_place, targets).float())
        means.add("match_chance", chance_of_match(targets))


def _add_scale_changes(means: _Means, predict: Predict, example: Example, shape: HeadsShape,
                       frames: int) -> None:
    """Of each clip's first frame, in each of VIEWS; frames: of a clip."""
    first = {k: example[k][::frames] for k in ("frames", "pixel_depth", "intrinsics")}
    clips, width = len(first["frames"]), first["frames"].shape[-1]
    windows = torch.tensor([window for window, _ in VIEWS.values()],
                           device=first["frames"].device).repeat(clips, 1)       # [clips*views,3]
    repeated = {k: v.repeat_interleave(len(VIEWS), 0) for k, v in first.items()}
    view = cropped_view(repeated, windows, SIDE)
    for i, (_, px) in enumerate(VIEWS.values()):
        if px:
            small = F.interpolate(first["frames"], (px, px), mode="bicubic", antialias=True)
            view["frames"][i::len(VIEWS)] = F.interpolate(
                small, (width, width), mode="bicubic", antialias=True).clamp(0, 1)
    depth = metres(predict(view["frames"]), view["focal"], shape)
    complete = depth[::len(VIEWS)].repeat_interleave(len(VIEWS), 0)
    expected = sampled(complete[:, None], windows, SIDE, "nearest")[:, 0]
    changes = (depth.log() - expected.log()).flatten(1).median(1).values.abs()
    for i, name in list(enumerate(VIEWS))[1:]:
        means.add(f"scale_change_{name}", changes[i::len(VIEWS)])


def _has_heads(folder: Path) -> bool:
    if damage := manifest.fault(folder / FILE):
        print(f"{damage}; training the heads again")
        return False
    try:
        load_heads(folder, sha256(folder / "student.safetensors"))
    except (ValueError, FileNotFoundError):
        return False
    return True


def _save(model: StudentWithHeads, folder: Path, scores: dict, joint: bool) -> None:
    """The heads last: they name the student that they fit, so a kill in between trains on."""
    if joint:
        save_student(model.student, folder)
    weights = sha256(folder / "student.safetensors")
    model.heads.shape = replace(model.heads.shape, student=weights)
    save_heads(model.heads, folder, scores)
    remove_checkpoint(folder / CHECKPOINT)
